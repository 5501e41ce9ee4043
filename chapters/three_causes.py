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
# # Three causes of a gap
#
# A fact that is known by name and missed by picture can be missed for several reasons. The picture
# may never become like a name; it may become like one too late; it may be there in time and not be
# read. Or the model names what it sees, whatever it is asked. Can these be told apart?
#
# ```{admonition} Key takeaways
# :class: tip
#
# The rules were set on one world of the *organisms*, miniature models of a fictional world, and
# tried on others. Figures of organisms and grafts are read from the records of the project's
# studies.
#
# - In worlds that no choice was made on, the planted cause is found in {glue:text}`found_right`;
#   {glue:text}`confused`.
# - The state itself bears the rules out. Written where a name would stand in a question without a
#   picture, *cross*'s late state gives {glue:text}`cross_stands` of facts where it stands and
#   {glue:text}`cross_early` written early; *late*'s, which is foreign, {glue:text}`late_early`; that
#   of *naming*, which answers everything with the name, {glue:text}`naming_in_time`
#   (n = {glue:text}`n_moved` houses each, world 0).
# - Two deadlines, not one: where a backbone is made to read names later, the last layer at which
#   its own state is still read moves from {glue:text}`read_before` to {glue:text}`read_after`. A
#   state after one block is by then worth {glue:text}`stale` of facts, the own state
#   {glue:text}`fresh`.
# - *Grafts of Gemma 3 270M* miss facts for different reasons, {glue:text}`graft_seeds`; seeds in brackets.
#   {glue:text}`graft_verdicts`.
# - What arrival cannot do: within a recipe it does not say *which* facts come (AUROC
#   {glue:text}`within`, where .5 is chance). It tells recipes apart, not houses.
# ```

# %% [markdown]
# ## What is asked
#
# - **Foreign**: at no layer and no position does the picture's state become like its name. It can
#   be named all the same; the blocks that turn a name into its facts do not know it.
# - **Late**: it becomes like its name behind the **recall deadline**, the last layer from which a
#   name's early state is still turned into its fact (*Where facts are recalled*).
# - **Unread**: it is like its name in time, and the fact is missed nevertheless: other positions
#   drown it, or the last position does not read it.
# - **Named instead**: the model answers with the entity's name. That is no failure to recall.
#
# A model's verdict takes the rules below in their order. Each of their lines is a share of facts or
# entities; nothing that is patched enters them, so that patching can contradict them.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
organism = "cross"  # the miniature VLM of the example
seed = 0  # which world the example is of
split = "test"  # houses never used for any choice
state = 2  # blocks passed by the state that must be enriched
max_entities = 12  # houses of the example

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import torch
from nnsight import NNsight
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_questions, study_records
from twohop_lib.figures import dots, heat, lines
from twohop_lib.grafts import STUDY as GRAFTS
from twohop_lib.interventions.deadlines import placeholder_run
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import pairs_for
from twohop_lib.interventions.recorder import (
    Recorder,
    own_blocks,
    receiving,
)
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.transplant import transplant
from twohop_lib.models.loading import load_vlm
from twohop_lib.organisms import path
from twohop_lib.organisms.recipes import CAUSES
from twohop_lib.readouts import cause_words, causes
from twohop_lib.readouts.captions import n_range
from twohop_lib.readouts.switch import curve
from twohop_lib.readouts.tables import counted_table
from twohop_lib.records import read_frame

# %%
causes.RULES

# %% [markdown]
# ## Is the model able at all?
#
# Six organisms, each in three worlds, with the cause that its recipe plants. *Middle* is the one
# whose picture holds the name among thirteen other image tokens that are left free. The three with
# cross-attention differ in nothing but the block at which the house arrives; the others differ in
# the length of their last stage, too.

# %%
organisms = list(CAUSES)
answers = study_records("answers", organisms, wording="standard")
asked = ["identify", "by_name", "by_picture", "full_information"]
able = answers[answers["condition"].isin(asked)]
counted_table(able, ["model", "seed"], "condition")[asked]

# %% [markdown]
# ## The method
#
# The rules need three records: which facts are missed, at which layers pictures are like their
# names, and the backbone's recall deadline. How do we know that likeness means anything? Because
# the state itself can be tried out. In nnsight: the state of a picture, at the picture's last
# position, is written where a name would stand in a question *without* a picture. `cross` receives
# its house at block 4.

# %%
questions = open_questions(
    "heraldry", seed, split, "standard", max_entities
)
engine = Engine(load_vlm(path(organism, seed)))
own = own_blocks(engine)
houses = set(questions.entities())
pairs = pairs_for(engine.owner, questions, "fact", houses, 1)
question = pairs[0].target
empty = placeholder_run(engine, question, 0, "by_name")
shown = Recorder(engine, questions, "by_picture", from_start=True)(
    question
)
at = empty.roles.entity[-1]
seen_at = receiving(engine, shown)[-1] - shown.first


# %%
def written(source, layer):
    model = NNsight(engine.model)
    blocks = decoder_blocks(model, engine.blocks)
    with torch.no_grad(), model.trace(**empty.inputs, use_cache=False):
        blocks[own[layer]].input[0, at] = shown.resid[
            own[source], seen_at
        ]
        logits = model.output.logits[0, -1].save()
    return logits.float()


print(question.question_by_name, "→", question.answers[0])
for source, layer in [(2, 2), (4, 4), (4, 2)]:
    state_of = shown.resid[own[source], [seen_at]]
    edit = Write(empty, "resid", (at,), {own[layer]: state_of})
    slow = written(source, layer)
    torch.testing.assert_close(engine.logits([edit])[0], slow)
    p, token = slow.softmax(-1).max(-1)
    said = engine.owner.tokenizer.decode(token)
    print(f"resid[{source}] → resid[{layer}]: {said} (p = {p:.2f})")

# %% [markdown]
# ## The sweep
#
# The same on a few houses, with the picture of a wrong house beside it. From where the state
# stands, at its own layer; and from later layers, written early.

# %%
routes = [(s, s) for s in range(1, len(own))]
routes += [(s, 2) for s in range(3, len(own))]
given = transplant(engine, questions, pairs, routes)
tried = given[given["arm"] != "nothing"]
counted_table(tried, ["arm", "layer"], "source")

# %% [markdown]
# Verdicts on the organisms, from the records of their study. World 0 is the one that the rules'
# lines were set on.

# %%
recall = study_records("recall", [*organisms, "backbone"])
evidence = causes.of_organisms(answers, recall, state)
verdicts = causes.model_verdicts(*evidence)
items = causes.item_verdicts(*evidence)
held = cause_words.held_out(verdicts, dev=[0])

# %% [markdown]
# ## Results
#
# ### When pictures become like names
#
# {numref}`fig-causes-likeness` has the likeness that the rules read, in the worlds that were used for no
# choice.

# %% tags=["hide-input"]
found = evidence[1]
found = found[found["seed"] != 0]
n_houses = found.groupby(["model", "seed"])["entity_id"].nunique()
show(
    lines.lines_by_layer(
        curve(found, "found", x="layer"),
        cause_words.likeness_title(found),
        y_title="Unseen names found (%)",
        x_title="Layer (blocks of the backbone below)",
    ),
    "fig-causes-likeness",
    "Houses whose image state, mapped to the backbone's name states by a map fitted on other "
    f"houses, is nearest to their own name. n = {n_houses.max()} houses for each model and world, "
    f"{found['seed'].nunique()} worlds. Bands: 95 % intervals from resampling houses.",
)

# %% [markdown]
# ### What was planted, and what is found
#
# {numref}`fig-causes-confusion` is of models; the table below it of missed facts, each judged by its own
# picture.

# %% tags=["hide-input"]
table = causes.confusion(held, CAUSES)
show(
    heat.confusion(table, cause_words.confusion_title(held, CAUSES)),
    "fig-causes-confusion",
    "Models by the cause that was planted and the one that was found, in worlds that no choice was "
    f"made on. n = {len(held)} models, of {held['model'].nunique()} recipes.",
)

# %%
cause_words.verdict_table(verdicts, CAUSES)

# %%
missed_in = items[items["seed"] != 0]
cause_words.item_table(missed_in, CAUSES)

# %% [markdown]
# ### Two deadlines, set apart
#
# In the organisms' backbones names are enriched and read at about the same depth, so the two
# deadlines fall together, and writing late cannot say which of them was missed. So one more
# backbone was trained (*read from 6*), in which words behind a name may read it from block 6 on
# only, in most documents ({numref}`fig-causes-deadlines`). A state after one block has most of the recall
# still ahead of it; the own state has missed nothing.

# %% tags=["hide-input"]
backbones = ["backbone", "enriched-3-read-6"]
inside = study_records("causes_inside", backbones, seed=0)
lines_of = cause_words.deadline_lines(inside)
deadlines = causes.deadlines(inside)
show(
    lines.lines_by_layer(
        curve(lines_of, "correct", x="layer", by=("line",)),
        cause_words.deadline_title(deadlines),
        y_title="Facts recalled (%)",
        x_title="Layer at which the state is written",
        group="line",
    ),
    "fig-causes-deadlines",
    "Facts that come when a state of the named run is written over a placeholder, in two backbones "
    f"of one world. n = {lines_of['entity_id'].nunique()} houses, one fact each. "
    "Bands: 95 % intervals from resampling houses.",
)

# %%
cause_words.deadline_table(deadlines)

# %% [markdown]
# ### On a published language model
#
# The same rules on the *grafts of Gemma 3 270M* (*A language model grows eyes*), whose gap nobody
# planted. Likeness is without a fitted map, at the position of the picture that is best for other
# countries. Facts are those that a blank picture does not give.

# %%
grafted = causes.of_grafts(
    *(
        read_frame(GRAFTS / f"{file}.parquet")
        for file in ("answers", "likeness", "internals")
    ),
    state,
)
on_grafts = causes.model_verdicts(*grafted)
cause_words.verdict_table(on_grafts)

# %%
graft_items = causes.item_verdicts(*grafted)
cause_words.item_table(graft_items)

# %% [markdown]
# ### A prediction that could fail
#
# If arrival decides, then how many layers a picture arrives before the recall deadline (*margin*)
# should foretell which facts come. A logistic regression is fitted on all recipes but one and tried
# on that one ({numref}`fig-causes-left-out`), beside a predictor that knows only whether the picture
# arrives *in time*, and one that knows the other recipes' share alone (*base rate*).

# %% tags=["hide-input"]
margins = causes.margins(missed_in)
foretold = causes.left_out(margins)
show(
    dots.predicted_measured(
        foretold[foretold["predictor"] == "margin"].assign(seed=0),
        cause_words.foretold_title(foretold),
    ),
    "fig-causes-left-out",
    "Facts by picture, foretold from the margins of arrival by a fit on all other recipes, against "
    f"those measured; {missed_in['seed'].nunique()} worlds. n = {foretold['n'].min()} facts or more for each of "
    f"{foretold['model'].nunique()} recipes.",
)

# %%
cause_words.prediction_table(foretold)

# %% [markdown]
# ## Controls
#
# Do verdicts hang on where the rules draw their lines?

# %%
later = [frame[frame["seed"] != 0] for frame in evidence]
cause_words.other_rules(later, CAUSES)

# %% [markdown]
# Does likeness hold on fresh drawings, at any position? In world 0, on houses of the dev split, the
# organisms that ship were measured anew: houses are chosen on one drawing and their facts asked on
# two others; likeness is sought at every position of the picture and every layer of the name. With
# the names dealt out at random (last column) hardly any is found. What fails on both drawings is not
# the noise of one. Two more stand beside them: `early`, gone on with for a few steps. In those of
# *unread*, another house's state stands at the last position wherever a fact is asked, so that it
# learns not to rely on it; in those of *naming*, every question about a picture is answered with
# the name.

# %%
likeness = study_records("causes_likeness", organisms, seed=0)
fresh = causes.of_views(
    study_records("causes_answers", organisms, seed=0),
    likeness,
    study_records("causes_inside", ["backbone"], seed=0),
    state,
)
cause_words.fresh_table(fresh, likeness, CAUSES)

# %% [markdown]
# Both were also asked for the colour of the border, which needs no recall. That tells a missed fact
# from an answer that would be the name whatever was asked.

# %%
asked_anew = study_records("causes_answers", organisms, seed=0)
cause_words.control_table(asked_anew, ["unread", "naming"])

# %% [markdown]
# And is a state that is like its name usable? The transplant of the method, on the same houses: what
# the picture's state gives where a name would stand, where it is (in time, or later), and written
# early from later layers. Which layers these are is chosen on half of the houses and told of the
# other half. *Foreign* gives nothing anywhere, *late* gives its facts early.

# %%
tried = study_records("causes_inside", organisms, seed=0)
recalls = verdicts.loc[verdicts["seed"] == 0, "recall"].iloc[0]
moved = cause_words.transplant_table(tried, recalls)
moved

# %% [markdown]
# Patching a later state back into the model's own run (*Patching recall*) says the same, on the
# facts that are missed: it helps *late* alone.

# %%
cause_words.back_patch_table(tried)

# %% [markdown]
# What the backbone's MLPs add at the name, written over the whole picture: of later and later
# blocks, and what blocks 0 and 1 add written further up. The recall that *foreign* and *late* lack
# can be lent to them, as long as it is lent early; *unread* does not read what is lent.

# %%
cause_words.window_table(tried)

# %% [markdown]
# Where name and picture are both given and disagree, whose fact is told? A picture that overrides
# the name is one that is read.

# %%
cause_words.conflict_table(asked_anew)

# %% tags=["remove-cell"]
glue("found_right", cause_words.found_right(held, CAUSES))
glue("confused", cause_words.confused(held, CAUSES))
glue_all(cause_words.deadline_values(inside, deadlines))
glue_all(cause_words.transplant_values(moved))
glue("n_moved", n_range(moved["n"].astype(int) // 2))
glue("graft_seeds", cause_words.seeds_words(on_grafts))
glue("graft_verdicts", cause_words.by_recipe(on_grafts))
glue("within", cause_words.within(foretold))

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report that pictures are resolved into entities too late for the
# blocks that recall facts. That is one of three ways to miss a fact; how often the grafts do is told
# above. {cite:t}`cohen2025performance` report models that say the entity's name when asked for
# a fact; it is counted apart here. None of the papers tests its account on a model whose cause is
# known.
#
# **Limits.** The planted causes are cruder than those of published models are likely to be. *Late*
# and *none* are planted by the very state that likeness looks for, so that finding them shows that
# the instrument works, not that such causes are common. `unread` and `naming` were planted in world
# 0 alone, and all that was patched here is of that world. One backbone was made to *read* later;
# that the recall deadline moves when names are *enriched* elsewhere was not shown, nor a model with
# image tokens that is late. Likeness on a published model has no fitted map, for want of entities:
# a linear map might find names where nearness does not.

# %% [markdown]
# ## Try it yourself
#
# - Set `organism` to `middle`: its picture's state gives facts that the model does not.
# - Set `state` to 1: which verdicts change, and why?
# - Change a line of `causes.RULES` and give it to `causes.model_verdicts`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
