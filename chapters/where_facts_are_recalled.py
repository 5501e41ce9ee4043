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
# # Where facts are recalled
#
# Which blocks of the text backbone turn a name into a fact, and until when can they still do it? And
# until when is the position of the name read at all? A state that is written too late can miss
# either *deadline*.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
# Those on the language model of *grafts of Gemma 3 270M* were {glue:text}`grafts_words`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - In the backbone, {glue:text}`early_mlp` % of what attribution finds at the name's tokens lies in
#   the MLPs of the lower half of the blocks. Of the attention's at the last token,
#   {glue:text}`late_attn` % lies in the upper half; of all there is, {glue:text}`late_mlp` % lies in
#   the upper half's MLPs at the last token.
# - Place by place that estimate goes with true patching at r = {glue:text}`correlation`
#   (n = {glue:text}`n_places` places, signs agree in {glue:text}`signs` %), and with small steps at
#   {glue:text}`finite`; averaged over the way from one name to the other (integrated), with true
#   patching at r = {glue:text}`correlation_integrated`. By that variant the three shares are
#   {glue:text}`early_mlp_integrated`, {glue:text}`late_attn_integrated` and
#   {glue:text}`late_mlp_integrated` %.
# - **Two deadlines that fall together.** An entity's state after {glue:text}`s_main` blocks is
#   turned into its fact in {glue:text}`at_start` % of cases where it stands, in {glue:text}`at_4` %
#   written at layer 4 and {glue:text}`at_6` % at layer 6; half of it is gone at layer
#   {glue:text}`deadline`. But the layer's own state, which has missed nothing, falls with it, to
#   {glue:text}`read_4` % at layer 4 and {glue:text}`read_6` % at layer 6: what fails there is reading,
#   too (n = {glue:text}`n_written` houses). Where both stand was trained in: answers had to be read
#   off the name after block {glue:text}`head_block`.
# - **Two deadlines, far apart.** In the language model of a *graft of Gemma 3 270M*,
#   {glue:text}`grafts_deadlines`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_deadline`
# ```

# %% [markdown]
# ## What is asked
#
# **Attribution patching.** Two prompts that differ in the entity alone, *clean* and *corrupt*. The
# metric is logit(clean answer) − logit(corrupt answer) in the corrupt run. A component's score is
# (clean output − corrupt output) · gradient: how much the metric would rise if its clean output were
# written in. Positive scores restore the clean answer.
#
# **Two deadlines.** A question with a placeholder where the name would be. A state of the named run,
# `resid[s]` at its last name token, is written over the placeholder at `resid[l]`. With s fixed and
# l rising, it misses more and more of the blocks that enrich a name with its facts: the **recall
# deadline** is the last layer at which half of what came at l = s still comes. With s = l it misses
# nothing, and fails where later blocks no longer read the position: the **reading deadline**. Only
# where the second is later does the first say anything about recall.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early", "cross"]  # miniature VLMs
grafts = ["caption"]  # whose published language model is looked into
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
batch_size = 64  # changed runs at once; halved when memory runs out
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
from nnsight import NNsight
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures import heat, lines
from twohop_lib.interventions import attribution
from twohop_lib.interventions.deadlines import (
    placeholder_run,
    reading_deadline,
    recall_deadline,
)
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import (
    one_per_entity,
    pairs_for,
    pick_pairs,
)
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.models.blocks import early_blocks
from twohop_lib.models.prompts import count_tokens
from twohop_lib.organisms.recipes import BACKBONE
from twohop_lib.readouts import attribution_shares as places
from twohop_lib.readouts import deadline_words
from twohop_lib.readouts.captions import n_of
from twohop_lib.readouts.states import name_states
from twohop_lib.readouts.tables import joined

# %%
study = open_study(
    "where_facts_are_recalled",
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
able = study.ask("identify", "llm_by_name", "by_picture")
study.able("identify", "llm_by_name", "by_picture")

# %%
backbone = study.backbone()
chosen = study.pairs_of("backbone", "fact")
s_main = early_blocks(backbone.n_blocks)

# %% [markdown]
# ## The method
#
# In nnsight: write one entity's state into a prompt that names none, at one layer after another.

# %%
question = chosen[0].target
empty = placeholder_run(backbone, question)
named = Recorder(
    backbone, study.questions, "llm_by_name", from_start=True
)(question)
name = named.roles.entity[-1] - named.first
state, at = named.resid[s_main, name], empty.roles.entity[-1]
print(f"{question.question_by_name} → {question.answers[0]}")


# %%
def written(layer):
    model = NNsight(backbone.model)
    blocks = decoder_blocks(model, backbone.blocks)
    with model.trace(**empty.inputs, use_cache=False):
        blocks[layer].input[0, at] = state
        logits = model.output.logits[0, -1].save()
    return logits.detach().float()


for layer in range(s_main, backbone.n_blocks):
    edit = Write(empty, "resid", (at,), {layer: state[None]})
    fast = backbone.logits([edit])[0]
    study.assert_same(fast, written(layer), backbone, empty, named)
    p, first = fast.softmax(-1).max(-1)
    said = backbone.owner.tokenizer.decode(first)
    print(f"resid[{layer}]: {said} … (p = {p:.2f})")

# %% [markdown]
# ## The sweep
#
# Attribution on the backbone with names (two at a time, of equally many tokens), and on each VLM
# with pictures; then the deadlines, of states taken after one and two blocks and of each layer's own,
# with a wrong entity's state beside.


# %%
# Only names of as many tokens can be exchanged; donors may be any house.
alike = [
    pair
    for pair in pairs_for(
        backbone.owner,
        study.everyone,
        "fact",
        set(study.everyone.entities()),
        1,
        alike_names=True,
    )
    if pair.target.entity_id in study.questions.entities()
]


def contrasts(engine):
    by = "name" if engine is backbone else "picture"
    return attribution.contrasts(engine, study.everyone, alike[:24], by)


# %%
engines = {"backbone": backbone} | {
    m: study.engine(m) for m in study.models
}
scored = joined(
    *(
        attribution.attribute(engine, contrasts(engine)).assign(model=m)
        for m, engine in engines.items()
    )
)

# %%
late_write = recall_deadline(
    backbone,
    study.questions,
    chosen,
    sorted({1, s_main}),
    **study.kept("backbone"),
)
own_write = reading_deadline(
    backbone,
    study.questions,
    chosen,
    range(s_main, backbone.n_blocks),
    **study.kept("backbone"),
)
study.keep(able, late_write, own_write)

# %% [markdown]
# ## Results
#
# ### Early MLPs at the name, later attention at the end
#
# {numref}`fig-attribution` is the backbone's: each component's share of all positive scores.

# %% tags=["hide-input"]
profiles = places.profile(scored)
own = profiles[profiles["model"] == "backbone"]
n_pairs = scored.loc[scored["model"] == "backbone", "contrast"].nunique()
show(
    heat.component_map(own, deadline_words.largest_share(own)),
    "fig-attribution",
    "Attribution in the text backbone, by block, component and position: share of all positive "
    f"scores, mean over n = {n_pairs} pairs of prompts.",
)

# %% [markdown]
# ### The same on pictures
#
# How alike are a VLM's profile, with the picture in the name's place, and its backbone's? The null
# shuffles the VLM's blocks.


# %%
inserted = {m: engines[m].blocks.cross for m in study.models}
overlap = places.overlap(profiles, study.models, inserted=inserted)
deadline_words.readable_overlap(overlap).style.hide(axis="index")

# %% [markdown]
# ### Two deadlines
#
# {numref}`fig-deadline` gives the share of facts that come when a state of the entity is written at
# a layer.

# %% tags=["hide-input"]
both = deadline_words.deadline_curves(joined(late_write, own_write))
show(
    lines.lines_by_layer(
        both,
        deadline_words.two_deadlines_title(both, s_main),
        y_title="Facts recalled (%)",
        x_title="Layer at which the state is written",
        group="arrives",
    ),
    "fig-deadline",
    "Facts that the backbone answers when an entity's state is written over a placeholder at a "
    f"layer. n = {late_write['entity_id'].nunique()} entities, one fact each. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# When pictures arrive, whether that is in time, and what else makes them miss their facts, is the
# subject of *Three causes of a gap*.

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The organisms' backbones learnt their facts here. Gemma 3 270M, the language model of the
# *grafts*, learnt its own from the web, and two deadlines can be told apart in it
# ({numref}`fig-grafts-deadlines`): until when a state after two blocks can still be *enriched* into
# its fact, and until when the layer's own state, which has missed nothing, is still *read*.
# {numref}`fig-grafts-attribution` gives its attribution. Every layer and more facts are in *A
# language model grows eyes*.


# %% tags=["grafts"]
def of_one_token(lm, pair):
    return count_tokens(f" {pair.target.entity}", lm.owner.tokenizer) == 1


def deadlines(study):
    lm, kept = study.backbone(), study.kept("backbone")
    asked = study.pairs_of("backbone", "fact")
    asked = [pair for pair in asked if of_one_token(lm, pair)][:12]
    early = [(2, layer) for layer in (2, 3, 4, 6)]
    return joined(
        recall_deadline(lm, study.questions, asked, routes=early, **kept),
        reading_deadline(
            lm, study.questions, asked, (8, 12, 13, 14), **kept
        ),
    )


def attributions(study):
    lm, every = study.backbone(), study.questions.questions
    alike = pick_pairs(lm.owner, every, "fact", 1, alike_names=True)
    some = alike[:: max(1, len(alike) // 10)][:10]
    found = attribution.contrasts(lm, study.questions, some, "name")
    return attribution.attribute(lm, found)


published = open_grafts(
    "where_facts_are_recalled", grafts, study.given, 24
)
if published:
    grafts_written = published.frame("deadlines", deadlines)
    grafts_scored = published.frame("attribution", attributions)

# %% tags=["grafts", "hide-input"]
if published:
    two = deadline_words.deadline_curves(grafts_written)
    show(
        lines.lines_by_layer(
            two,
            published.title(deadline_words.two_deadlines_title(two, 2)),
            y_title="Facts recalled (%)",
            x_title="Layer at which the state arrives",
            group="arrives",
        ),
        "fig-grafts-deadlines",
        published.caption(
            "Facts that come when a state of the named run is written over a placeholder at a "
            f"layer. {n_of(two, 'countries', 'n_entities')} whose names are one token, "
            "one fact each. With the placeholder left alone, "
            f"{deadline_words.left_alone(grafts_written)} come. "
            "Bands: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["grafts", "hide-input"]
if published:
    grafts_places = places.profile(grafts_scored)
    largest = deadline_words.largest_share(grafts_places)
    show(
        heat.component_map(
            grafts_places,
            published.title(largest[0].lower() + largest[1:]),
        ),
        "fig-grafts-attribution",
        published.caption(
            "Attribution in the language model, by block, component and position: share of all "
            "positive scores, mean over "
            f"n = {grafts_scored['contrast'].nunique()} pairs of prompts."
        ),
    )

# %% tags=["remove-cell", "grafts"]
published.glue(
    deadlines=lambda: deadline_words.two_deadlines_sentence(
        grafts_written
    )
)

# %% [markdown]
# ## Controls
#
# ### Attribution against true patching
#
# Twelve places of each pair of prompts, drawn at random: the estimate against what patching that
# place really does, and a small step against the gradient. The integrated variant averages the
# gradient on the way from corrupt to clean.

# %%
truth = attribution.against_truth(backbone, contrasts(backbone))
stepped = attribution.small_steps(backbone, list(contrasts(backbone))[:8])
checks = deadline_words.checks(truth, stepped)
deadline_words.readable_checks(checks)

# %% [markdown]
# If the estimate is rough, do the shares still hold? The same two, by the integrated variant:

# %%
integrated = attribution.attribute(backbone, contrasts(backbone), True)
shares = {
    "one gradient": places.shares_by_half(own, backbone.n_blocks),
    "integrated": places.shares_by_half(
        places.profile(integrated), backbone.n_blocks
    ),
}
deadline_words.readable_shares(shares)

# %% [markdown]
# ### Whose fact, and what the state already carries
#
# The wrong entity's state should give the *wrong entity's* fact; a placeholder left alone, no
# fact. And a state may already carry answers that no block need recall: a linear probe, trained on
# other houses' states, reads off the answer as often as given in the last column.

# %%
deadline_words.whose_facts(late_write)

# %%
houses = one_per_entity(study.everyone.questions)
deadline_words.what_states_carry(
    late_write,
    name_states(backbone, houses),
    [house.entity_id for house in houses],
    study.everyone.questions,
).style.hide(axis="index")

# %% tags=["remove-cell"]
glue_all(deadline_words.share_values(shares))
glue_all(deadline_words.check_values(checks))
glue_all(deadline_words.deadline_values(late_write, s_main))
glue_all(deadline_words.reading_values(own_write))
glue("head_block", BACKBONE.head_block)
glue("answers_cut", study.answers_cut)
glue("model_asked", study.subject)
glue(
    "model_deadline",
    deadline_words.about_one(late_write, s_main, backbone.n_blocks),
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report the three parts of recall in the backbones (early MLPs at
# entity tokens, late attention at the last token, transfer between), and that VLMs with a large gap
# use other, later components for pictures. Their title's claim, that entities arrive *too late to
# recall*, needs two quantities: until which layer the backbone can still recall an entity that
# arrives, and until which layer it reads what has been recalled. Which of its pictures are late is
# asked in *Three causes of a gap*.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` and `llm` to a published pair: has its backbone a deadline, and when does it fall?
# - Take states from another layer: `states=(4,)` in `recall_deadline`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
