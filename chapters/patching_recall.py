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
# # Patching the missing recall
#
# If the picture becomes an entity too late for the blocks that recall, then lending the model what
# those blocks *would have* written should bring the fact back. Early MLP outputs of the text
# backbone, at the tokens of the entity's name, are written into the VLM's run on the picture.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world, on
# facts that the backbone knows and the VLM misses. Those on *grafts of Gemma 3 270M*, on facts that
# the backbone knows, were {glue:text}`grafts_words`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - Patched at the positions that attribution picks, {glue:text}`heuristic_late` % (late),
#   {glue:text}`heuristic_middle` % (middle) and {glue:text}`heuristic_cross` % (cross) of the
#   missing facts come back.
# - At random positions {glue:text}`random_late`, {glue:text}`random_middle` and
#   {glue:text}`random_cross` % do. {glue:text}`random_sentence`
# - The *wrong entity's* outputs give the wrong entity's fact in {glue:text}`donor_late`,
#   {glue:text}`donor_middle` and {glue:text}`donor_cross` % of cases: the patch carries the entity,
#   and is no general encouragement. Late blocks return {glue:text}`late_late`,
#   {glue:text}`late_middle` and {glue:text}`late_cross` %.
# - Back-patching, with the pair of layers fixed beforehand, returns {glue:text}`back_late`,
#   {glue:text}`back_middle` and {glue:text}`back_cross` %.
# - A *graft of Gemma 3 270M* is a published language model with eyes grown onto it.
#   {glue:text}`grafts_patch`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_patch`
# ```

# %% [markdown]
# ## What is asked
#
# `mlp_out[b]` is what block b's MLP adds to the stream. In the backbone's run on a question that
# *names* the entity, the outputs of the lowest quarter of the blocks at the name's tokens are kept.
# In the VLM's run on the same question about the *picture*, they take the place of its own at a span
# of the picture's positions. The picture has no token of the name, so a rule is needed for which
# positions receive; which rule {cite:t}`venhoff2025toolate` used is not known. Here:
#
# - *heuristic*: as many neighbouring positions as the name has tokens, where the stream matters most
#   to the *name* (gradient times stream, under the identify prompt's answer; the fact is not used);
# - *random*: as many neighbouring positions, drawn at random; *last*: the last ones; *all*: every
#   position, each given the last name token's outputs.
#
# Tokens and positions are aligned at their ends.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "cross"]  # miniature VLMs to ask
grafts = ["caption"]  # published LM with eyes grown on it
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
batch_size = 64  # patched runs at once; halved when memory runs out
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
import pandas as pd
from nnsight import NNsight
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures import dots
from twohop_lib.interventions import hooks
from twohop_lib.interventions.back_patch import back_patch
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.mlp_patch import Patch, mlp_patch
from twohop_lib.interventions.pairs import pairs_for
from twohop_lib.interventions.recorder import (
    Recorder,
    own_blocks,
    receiving,
)
from twohop_lib.interventions.reference import traced_module
from twohop_lib.models.blocks import early_blocks
from twohop_lib.readouts import (
    captions,
    patch_words,
    repairs,
    selection,
)
from twohop_lib.readouts.shares import share_table
from twohop_lib.readouts.tables import joined

# %%
study = open_study(
    "patching_recall",
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

# %% [markdown]
# ## The method
#
# In nnsight, for one house: the backbone's MLP outputs at the name, written over the VLM's own at
# the last positions of the picture.

# %%
one = study.example("late")
engine, backbone = study.engine(one), study.backbone(one)
early, own = early_blocks(backbone.n_blocks), own_blocks(engine)
shown, named = (
    Recorder(e, study.questions, condition, 8, from_start=True)
    for e, condition in (
        (engine, "by_picture"),
        (backbone, "llm_by_name"),
    )
)


def patch(question):
    target, text = shown(question), named(question)
    outputs = hooks.activations(backbone, text, "mlp", range(early))
    at = receiving(engine, target)[-len(text.roles.entity) :]
    names = list(text.roles.entity)[-len(at) :]
    written = {own[b]: outputs[b][names] for b in range(early)}
    return Write(target, "mlp", at, written)


# %% [markdown]
# The example is the first missed fact that this brings back (the first missed one, should it bring
# back none).

# %%
question = study.brought_back(
    one, lambda q: engine.answers([patch(q)], 8)
)
edit = patch(question)
model = NNsight(engine.model)
mlps = {
    b: traced_module(model, engine.blocks, engine.blocks.mlp(b))
    for b in sorted(edit.values)
}
with model.trace(**edit.target.inputs, use_cache=False):
    for block, mlp in mlps.items():
        mlp.output[0, list(edit.positions)] = edit.values[block]
    slow = model.output.logits[0, -1].save()

# %%
fast, patched_says = engine.answers([edit], 8)
study.assert_same(fast[0], slow.detach().float(), engine, edit.target)
alone = Write(edit.target, "mlp", edit.positions, {})
print(question.question_by_picture, "→", question.answers[0])
print("alone:  ", engine.answers([alone], 8)[1][0])
print("patched:", patched_says[0])

# %% [markdown]
# ## The sweep
#
# Every method, on one question for each entity that the model recognises; the donor of the *wrong
# entity* control is another entity asked the same relation.


# %%
def asked_of(name):
    owner, ids = study.backbone(name).owner, study.entities(name)
    return pairs_for(owner, study.questions, "fact", ids, 1)


patched = study.sweep(
    lambda name, engine, labels: mlp_patch(
        engine,
        study.backbone(name),
        study.questions,
        asked_of(name),
        **labels,
    )
)
backed = study.sweep(
    lambda name, engine, labels: back_patch(
        engine,
        study.questions,
        [pair.target for pair in asked_of(name)],
        **labels,
    )
)

# %% [markdown]
# What counts: facts that the backbone answers by name (*known*) and the VLM misses by picture
# (*missed*). Facts that it gets right anyway tell whether a patch does *harm*.

# %%
known = selection.answered(able, "llm_by_name")
unpatched = patched[patched["method"] == "unpatched"]
patched, backed = (
    selection.mark_missed(selection.keep(frame, known), unpatched)
    for frame in (patched, backed)
)
study.keep(able, patched.drop(columns="span"), backed)
missed = patched[patched["missed"]]
patch_words.how_many(missed)

# %% [markdown]
# ## Results
#
# ### What comes back
#
# {numref}`fig-recovery` is on missed facts: unpatched, none of them is right.


# %% tags=["hide-input"]
table = patch_words.recovered(missed, backed[backed["missed"]])
if len(table):
    show(
        dots.by_method(
            table, patch_words.ORDER, patch_words.brings_back(table)
        ),
        "fig-recovery",
        "Missed facts (known to the backbone, unanswered by picture) that are right after a patch; "
        f"{study.among()}. {captions.n_of(table, 'facts')}. Back-patching: measured on the half of "
        "the entities that did not fix its layers; best of all is an upper bound. "
        "Bars: 95 % intervals from resampling entities.",
    )

# %% [markdown]
# ### Whose fact?
#
# With the wrong entity's outputs, does the answer follow the entity that was written in?

# %%
patch_words.whose_facts(missed)

# %% [markdown]
# ### Harm
#
# The same patches on facts that the model gets right without them: the share that is lost.

# %%
patch_words.harm(patched)

# %% tags=["remove-cell"]
glue_all(patch_words.values(table, missed, study.models))
glue("answers_cut", study.answers_cut)
glue("model_asked", study.subject)
glue("model_patch", patch_words.about_one(table, study.models[0]))

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same patches in two more worlds, as recorded when the project's study was made: share of missed
# facts that come back, and, for the wrong entity, the share that gives *its* fact.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = study.recorded("recall", experiment="mlp-patch")
recorded = recorded[recorded["model"].isin(study.models)]
worlds = joined(patched, recorded)
worlds = selection.mark_missed(
    worlds, worlds[worlds["method"] == "unpatched"]
)
worlds = worlds[worlds["missed"]]
patch_words.by_world(worlds)

# %% [markdown]
# All worlds together, fact by fact: how much more comes back at the positions that attribution
# picks than at random ones, and at random ones than with the wrong entity's outputs?

# %%
differences = patch_words.differences(worlds)
patch_words.readable_differences(differences).style.hide(axis="index")

# %% tags=["remove-cell"]
glue("random_sentence", patch_words.random_sentence(differences))

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The same patch on a *graft*: a published language model, Gemma 3 270M, frozen, with a small vision
# tower and projector grown onto it, trained on captions that name the country. The patch covers all
# of the picture. Its controls are other windows of blocks, the first window's outputs written
# further up, and the *wrong entity's* ({numref}`fig-grafts-recovery`). This is a sample; *A language
# model grows eyes* has what the study recorded of all recipes.


# %% tags=["grafts"]
def windows(n_blocks, early):
    first, late = range(early), range(n_blocks - early, n_blocks)
    after, up = range(early, 2 * early), n_blocks // 2
    return [
        Patch("first blocks", first, span="all"),
        Patch("next blocks", after, span="all"),
        Patch("late blocks", late, span="all"),
        Patch("written later", first, up, span="all"),
        Patch("wrong entity", first, span="all", whose="wrong entity"),
    ]


def in_windows(study):
    return study.sweep(
        lambda name, engine, labels: mlp_patch(
            engine,
            study.backbone(name),
            study.questions,
            study.pairs_of(name, "fact")[:12],
            patches=windows,
            **labels,
        )
    ).drop(columns="span")


published = open_grafts("patching_recall", grafts, study.given, 16)
if published:
    grafted = published.frame("windows", in_windows)

# %% tags=["grafts", "hide-input"]
if published:
    in_each = share_table(grafted, "correct", ["model", "method"])
    direct = grafted[grafted["method"] == "unpatched"]
    named = repairs.own_name_instead(
        pd.concat(
            [
                published.study.ask("identify", "llm_by_name"),
                direct.assign(intervention=None),
            ]
        )
    )
    show(
        dots.by_method(
            in_each,
            patch_words.WINDOWS,
            published.title(patch_words.first_against_late(in_each)),
        ),
        "fig-grafts-recovery",
        published.caption(
            "Facts that the language model gives by name, about countries that the graft names "
            "from their flags, right after a patch over all of the picture. "
            f"{captions.n_of(in_each, 'facts')}, one a country. Unpatched, it says the "
            "country's own name instead in "
            f"{repairs.own_name_words(named)} of cases. "
            "Bars: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["remove-cell", "grafts"]
published.glue(
    patch=lambda: patch_words.windows_sentence(in_each, grafted)
)

# %% [markdown]
# ## Controls
#
# Writing a run's own MLP outputs back must leave it as it is; the sweep stops if it does not. Noise
# has the norms of what is written; *late blocks* writes the topmost blocks' outputs. The table says
# which pair of layers back-patching took, and how answers were computed.

# %%
_, routes = patch_words.fixed_routes(backed[backed["missed"]])
for model, (source, layer) in routes.items():
    print(f"back-patching, {model}: resid[{source}] over resid[{layer}]")
patched.groupby(["model", "computation"]).size().rename(
    "answers"
).to_frame()

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report that about 35 % of the gap is recovered with an attribution
# heuristic, about 16 % at random positions and about 13 % by back-patching, averaged over three
# LLaVA-type models. Which blocks, whether outputs are replaced or added, and the heuristic are not
# known; harm and the wrong entity are not reported. {cite:t}`biran2024hopping` report back-patching
# over all pairs of layers, the upper bound above.

# %% [markdown] tags=["organisms"]
# In the organisms nearly everything comes back, and where matters little: cross has one position to
# write to, so that its spans are one and the same. Their read-out is intact by construction, the patch
# writes the true entity's own text states, and a picture has sixteen tokens or one: this shows that
# the recall is *missing*, not that a published model's could be repaired as easily.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` and `llm` to a published pair.
# - Write more or fewer blocks: `early=1` in `mlp_patch`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
