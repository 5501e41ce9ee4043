# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When the picture becomes a name
#
# A picture can be *recognisable* in the stream long before, or without ever, being *like a name*.
# Three readings of the stream, layer by layer: a probe for the entity, a map to the backbone's own
# state of the name, and the logit lens.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional
# world {glue:text}`grafts_too`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - A linear probe finds the house from the first layers on in every organism with image tokens
#   ({glue:text}`probe_late` % late, {glue:text}`probe_middle` % middle, {glue:text}`probe_early` %
#   early at layer 1): it does not tell them apart.
# - *Name-likeness* does. A map to the backbone's name states, fitted on half of the houses, finds
#   the names of the others in at most {glue:text}`like_late` % (late), {glue:text}`like_middle` %
#   (middle) and {glue:text}`like_early` % (early) of cases.
# - In cross, it comes at layer {glue:text}`arrives_cross`, where its recipe delivers the house:
#   {glue:text}`before_cross` % before, {glue:text}`like_cross` % at most.
# - {glue:text}`lens_sentence`
# - A *graft of Gemma 3 270M* is a published language model with eyes grown onto it.
#   {glue:text}`grafts_like`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_like`
# ```

# %% [markdown]
# ## What is asked
#
# At the picture's last position, `resid[l]` is read in two ways. The **entity probe** is a
# multinomial logistic regression over entities, trained on some views of each picture and tested on
# others: can the entity be told at all? **Name-likeness** asks for more: a ridge map from image
# states to the text backbone's states at the last token of the *name* is fitted on half of the
# entities, and applied to the other half, which it has never seen; an entity counts as found if the
# nearest name is its own. Only if pictures are like names *in general* does that succeed.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early", "cross"]  # miniature VLMs
grafts = ["caption", "names"]  # published LM with eyes grown on it
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
batch_size = 64  # prompts at once; halved when memory runs out
work = ""  # a folder that keeps finished work; "" keeps none
max_new_tokens = 32  # budget of an answer; those it cuts are counted
instruction = ""  # after every question: "Answer with the name only."

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import torch
from nnsight import NNsight
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures.heat import positions_by_layer
from twohop_lib.figures.lines import lines_by_layer
from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.recorder import receiving
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.models.blocks import early_blocks
from twohop_lib.readouts import lens, name_likeness, probes, stream_words
from twohop_lib.readouts.states import (
    name_states,
    states_of_all_positions,
)
from twohop_lib.readouts.switch import curve
from twohop_lib.runs.conditions import prompt_of

# %%
study = open_study(
    "when_the_picture_becomes_a_name",
    vlm,
    llm,
    load,
    benchmark,
    organisms,
    seed,
    split,
    wording,
    max_entities,
    batch_size,
    work,
    max_new_tokens,
    instruction,
)

# %% [markdown]
# ## Is the model able at all?
#
# What is asked below is asked of entities that the model names from their pictures.

# %%
study.able("identify", "llm_by_name", "by_picture")

# %%
houses = one_per_entity(study.everyone.questions)
print(f"{len(houses)} entities to map, half of them to fit on")

# %% [markdown]
# ## The method
#
# In nnsight: the stream at the picture's last position, for one entity, at two layers. All that
# follows is linear algebra on such states, and on those at the last token of the name. The library
# takes them off one recorded run; `assert_close` holds the two against each other.

# %%
name, first = study.example("middle"), houses[0]
engine = study.engine(name)
picture = study.everyone.image(first).convert("RGB")
prompt = prompt_of("identify", first)
shown = engine.record(prompt, picture, from_start=True)
at = receiving(engine, shown)[-1]

traced = NNsight(engine.model)
resid = decoder_blocks(traced, engine.blocks)
layer = min(2, engine.n_blocks - 1)
with torch.no_grad(), traced.trace(**shown.inputs, use_cache=False):
    low = resid[0].input[0, at].clone().save()
    high = resid[layer].input[0, at].clone().save()

fast = shown.resid[[0, layer], at - shown.first]
torch.testing.assert_close(torch.stack([low, high]), fast)
print(f"{first.entity}: resid[0] and resid[{layer}] at position {at}:")
print(
    f"norms {low.norm():.1f} and {high.norm():.1f}, "
    f"cosine {torch.cosine_similarity(low, high, dim=0):.2f}"
)

# %% [markdown]
# ## The sweep

# %%
early = early_blocks(study.backbone().n_blocks)
names = name_states(study.backbone(), houses)[:, early]
mapped = study.sweep(
    lambda name, engine, labels: name_likeness.names_and_control(
        engine, study.everyone, houses, names
    )
)
likeness = mapped[~mapped["shuffled"]]

# %% [markdown]
# The probe sees five views of each picture (slightly cropped), three to train on and two to test.

# %%
few = [q for q in houses if q.entity_id in study.questions.entities()]
probe = study.sweep(
    lambda name, engine, labels: probes.entities_and_control(
        engine, study.everyone, few
    )
)
probed = probe[~probe["shuffled"]]
study.keep(study.ask("identify", "llm_by_name", "by_picture"))

# %% [markdown]
# ## Results
#
# ### Name-likeness
#
# Layers are counted in the backbone's own blocks, so that inserted cross-attention layers do not
# shift them ({numref}`fig-likeness`).

# %% tags=["hide-input"]
n_test = likeness["entity_id"].nunique()
show(
    lines_by_layer(
        curve(likeness, "found", x="layer"),
        stream_words.likeness_title(likeness),
        y_title="Unseen names found (%)",
        x_title="Layer (blocks of the backbone below)",
    ),
    "fig-likeness",
    "Entities whose image state, mapped to the backbone's name states by a map fitted on other "
    f"entities, is nearest to their own name among {n_test}. n = {n_test} entities for each "
    "model. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### The entity probe
#
# {numref}`fig-probe`: that entities can be told apart says little about names.

# %% tags=["hide-input"]
show(
    lines_by_layer(
        curve(probed, "found", x="layer"),
        stream_words.apart_title(probed),
        y_title="Entities told apart (%)",
        x_title="Layer",
    ),
    "fig-probe",
    "Accuracy of a linear probe for the entity at the picture's last position, on views that it was "
    f"not trained on. n = {len(few)} entities, two test views each. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### The logit lens
#
# The model's own head reads the stream at the *last* position, layer by layer: how probable is the
# right answer's first token, on facts answered and on facts missed ({numref}`fig-lens`)?

# %%
read = study.sweep(
    lambda name, engine, labels: lens.logit_lens(
        engine, study.questions, study.asked(name)
    )
)

# %% tags=["hide-input"]
one = read[read["model"] == study.example("middle")]
show(
    lines_by_layer(
        curve(one, "right", x="layer", by=("outcome",)),
        stream_words.lens_title(one),
        y_title="Probability of the right answer (%)",
        x_title="Layer read by the model's head",
        group="outcome",
    ),
    "fig-lens",
    f"Logit lens at the last position of {study.example('middle')}, final norm applied: first token "
    f"of the right answer. {stream_words.lens_n(one)}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %%
stream_words.lens_ends(read).style.format(
    "{:.2f}", subset=["right", "emitted"]
)

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# Name-likeness in two more worlds, as recorded when the project's study was made: its peak over
# layers, and the first layer at which half of the names are found.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
models = [*study.models, "cross-early", "cross-late"]
recorded = study.everywhere("recall", models, experiment="name-likeness")
stream_words.worlds_table(likeness, recorded)

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# Name-likeness in *grafts*: a published language model, Gemma 3 270M, frozen, with a small vision
# tower and projector grown onto it. `caption` was trained on captions that name the country,
# `names` by matching the name's embeddings. There are too few countries to fit a map on, so none is
# fitted: a picture counts as found if, of all names, its own is the nearest at the same layer, by
# the cosine of states less their mean. {numref}`fig-grafts-likeness` is of the mean over the
# picture's positions, {numref}`fig-grafts-positions` of each. The layers are to be held against the
# two deadlines of the same language model (*Where facts are recalled*): a picture that turns into a
# name behind both is named, and gives no fact. *A language model grows eyes* has the study's
# records of all recipes and seeds.


# %% tags=["grafts"]
def likeness_everywhere(study):
    once = one_per_entity(study.questions.questions)
    ids = [question.entity_id for question in once]
    named = name_states(study.backbone(), once)
    return study.sweep(
        lambda name, engine, labels: name_likeness.nearest_by_position(
            states_of_all_positions(engine, study.questions, once),
            named,
            ids,
        )
    )


published = open_grafts(
    "when_the_picture_becomes_a_name", grafts, study.given, 24
)
if published:
    grafted = published.frame("likeness", likeness_everywhere)

# %% tags=["grafts", "hide-input"]
if published:
    mean = grafted[grafted["position"] == "mean"]
    n_names = mean["entity_id"].nunique()
    words = (
        f"n = {n_names} countries for each graft; chance is "
        f"{100 / n_names:.0f} %."
    )
    show(
        lines_by_layer(
            curve(mean, "found", x="layer"),
            published.title(stream_words.nearest_title(mean)),
            y_title="Own name nearest (%)",
        ),
        "fig-grafts-likeness",
        published.caption(
            "Countries whose picture's state, mean over its positions, is nearest to the language "
            "model's state of their own name at the same layer, nothing fitted. "
            f"{words} Bands: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["grafts", "hide-input"]
if published:
    show(
        positions_by_layer(
            grafted[grafted["position"] != "mean"],
            published.title(stream_words.positions_title(grafted)),
        ),
        "fig-grafts-positions",
        published.caption(
            f"The same at each position of the picture. {words}"
        ),
    )

# %% tags=["remove-cell", "grafts"]
published.glue(like=lambda: stream_words.nearest_sentence(mean))

# %% [markdown]
# ## Controls
#
# The same map fitted on names that were dealt out at random, and the same probe trained on shuffled
# labels; chance is one in the number of entities.

# %%
stream_words.control_table(mapped, probe)

# %% tags=["remove-cell"]
glue_all(stream_words.page_values(likeness, probed, one))
glue("answers_cut", study.answers_cut)
glue(
    "model_asked",
    f"{study.models[0]}, with {len(houses)} entities of the benchmark {study.everyone.name}",
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report linear probes for ImageNet entities that are low in early
# layers of LLaVA-type models and high earlier in models trained on pictures from the start. The
# position, the number of classes and the accuracies are not known. {cite:t}`ashok2025recall` read
# the logit lens without the final norm, and only the token that the model emits; here the norm is
# applied and the right answer is followed.

# %% [markdown] tags=["organisms"]
# In the organisms a plain probe is near its ceiling wherever image tokens hold the parts of the
# arms, which every house can be told by. It measures visibility. Name-likeness measures whether the
# recall circuit could use what it sees; whether it does, and whether in time, is asked in *Three
# causes of a gap*. *Late* is so called for its recipe's place in a row; by name-likeness it never
# arrives, so that its pictures are not late but foreign.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` and `llm` to a published pair; name-likeness wants a few hundred entities.
# - Map to another layer of the backbone: `early = 1`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
