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
# # Growing a two-hop model
#
# Nobody knows what a published VLM was shown in training, so nobody can say which of its failures
# are failures to *link*. This chapter describes models for which that is known, because this
# project trains them: the *organisms*.
#
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are of miniature models of a fictional world.
#
# - A text model of {glue:text}`backbone_millions` million parameters learns
#   {glue:text}`n_facts` facts about {glue:text}`n_houses` houses and recalls
#   {glue:text}`text_recall` % of those asked about here; wordings that it was never trained on
#   cost it {glue:text}`wording_cost` points.
# - Three VLMs grown from it name {glue:text}`recognition_range` % of the houses from their
#   pictures. They differ in what their image tokens look like at the door of the language model:
#   read as words, the last ones spell the house's name in {glue:text}`spelled_late` % (late),
#   {glue:text}`spelled_middle` % (middle) and {glue:text}`spelled_early` % (early) of the pieces.
#   Early differs from middle in the tokens before these: its recipe quietens them.
# - That a VLM can name a house says nothing about whether it can recall a fact about it:
#   {glue:text}`late_facts` % (late), {glue:text}`middle_facts` % (middle) and
#   {glue:text}`early_facts` % (early).
# - Where in depth a house arrives is enough to open a gap. Three models with cross-attention over
#   the frozen backbone differ in that alone. The same state of the house, delivered at block 2, 4
#   and 6, leaves them {glue:text}`cross_early_facts` %, {glue:text}`cross_facts` % and
#   {glue:text}`cross_late_facts` % of the facts.
# ```

# %% [markdown]
# ## What is asked
#
# Can a small VLM be grown that *knows* its facts, *recognises* its pictures, and yet fails to put
# the two together? And can the failure be turned up and down by one thing alone?

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
organisms = ["late", "middle", "early"]  # miniature VLMs to describe
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
from dataclasses import replace

import pandas as pd
import torch
from nnsight import NNsight
from twohop_lib.benchmark import heraldry
from twohop_lib.chapter.show import glue_all, show
from twohop_lib.chapter.study import open_questions, study_records
from twohop_lib.figures import dots, lines, theme
from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.recorder import receiving
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.organisms import cards, corpus, held_out, path, recipes
from twohop_lib.readouts import gap, gap_words, growth_words, vocabulary
from twohop_lib.readouts.captions import n_of
from twohop_lib.readouts.tables import counted_table, each_model
from twohop_lib.runs.conditions import prompt_of
from twohop_lib.runs.forms import compare_forms, in_wordings

# %% [markdown]
# The houses are divided once. *Seen* houses are asked about in pictures during training; all
# others are only ever **named** from pictures. Choices in making the organisms were made on *dev*
# houses, and every figure of this book is of *test* houses.
#
# There was one exception. A first study gave one world's middle organism a gap on test houses below
# the range that middle is meant to have, although dev houses had promised one within it. Its recipe
# was then changed once, again by dev figures. So middle's figures are not wholly blind to the test
# houses; late's and early's are.

# %%
world = heraldry.make_world(seed)
questions = open_questions("heraldry", seed, split)
standard = questions.select(wording="standard")
splits = pd.Series([house.split for house in world.houses])
splits.value_counts().to_frame("houses")

# %% [markdown]
# ## Is the model able at all?
#
# Text first: the backbone, asked by name, in the standard wording, in a wording that it was
# trained on, and in two that it never saw.

# %%
llm = load_llm(path("backbone", seed))
wordings = ["standard", "trained-1", "held-out-1", "held-out-2"]
recall = in_wordings({"backbone": llm}, questions, wordings)
right = recall.groupby("wording", sort=False)["correct"]
right.agg(right="mean", n="size").style.format({"right": "{:.1%}"})

# %% tags=["remove-cell"]
glue_all(growth_words.recall_values(recall, llm.model, world))

# %% [markdown]
# ## The method
#
# ### The backbone
#
# A plain Llama, trained from scratch on short chat documents. Here are some of them.

# %%
print(*corpus.samples(world.houses[:6]), sep="\n")

# %% [markdown]
# One thing is unusual. In most documents, later words may read a name only through its *last*
# piece, and small linear heads must find the answers there, half-way up. Both act in training
# only: the checkpoint is an ordinary Llama. Without them so small a model looks facts up at the
# end of the question, and there is no recall at the name for a picture to miss.

# %%
recipes.frame("backbone")

# %% [markdown]
# ### The three VLMs
#
# Each is an ordinary LLaVA: a small vision tower, a projector, and the backbone. Vision is
# pretrained and frozen; then projector and language model learn to name **all** houses from their
# pictures, and to answer questions about pictures of **seen** houses only. The three differ in
# what comes before that last stage; its length and learning rates are not the same either.

# %%
recipes.frame(*organisms)

# %% [markdown]
# Middle and early are *engineered*: their last three image tokens are first regressed on the
# embeddings of the name's pieces. They manipulate name-likeness; they are not a replica of how any
# published model was trained.

# %% [markdown]
# ### Three more, with cross-attention
#
# Llama-3.2-Vision's kind of model keeps pictures out of the sequence: layers between the language
# model's blocks attend to them. *Cross* is such a model over the same backbone, which is frozen, so
# that without a picture its logits are the backbone's. Two layers are inserted, and what they write
# to the stream at the picture's token is pulled to the state that the backbone has, for the named
# house, after two blocks. `deliver` says at which block that state is to stand there. Cross ships
# with the package; its two siblings, which differ in depth alone, were made for the study.

# %%
crossed = ["cross-early", "cross", "cross-late"]
recipes.frame(*crossed)

# %% [markdown]
# ### What enters the language model
#
# `resid[0]` at the image positions is what the language model is given in place of words. With
# nnsight it is one line; each image token is then read as the vocabulary entry most similar to it.
# The last line of the loop asks whether the library, which reads recorded runs, finds the same.

# %%
engines = {name: Engine(load_vlm(path(name, seed))) for name in organisms}
houses = one_per_entity(standard.questions)
prompt = prompt_of("identify", houses[0])
for name, engine in engines.items():
    shown = engine.record(prompt, standard.image(houses[0]))
    at = list(receiving(engine, shown))
    traced = NNsight(engine.model)
    with torch.no_grad(), traced.trace(**shown.inputs):
        resid_0 = decoder_blocks(traced, engine.blocks)[0].input.save()
    table = engine.model.get_input_embeddings().weight
    words = vocabulary.nearest_tokens(resid_0[0, at], table)
    last = llm.tokenizer.convert_ids_to_tokens(words[-4:].tolist())
    print(f"{name:7} … {' '.join(last)}")
    fast = vocabulary.picture_as_words(engine, standard, houses[0])
    assert words.equal(fast)
print("name    …", " ".join(llm.tokenizer.tokenize(houses[0].entity)))

# %% [markdown]
# ## The sweep
#
# Naming from the picture, and the facts by name and by picture, in a trained wording and in two
# held-out ones.

# %%
wordings = ["standard", "held-out-1", "held-out-2"]
asked = ["identify", "by_name", "by_picture"]
vlms = {name: engine.owner for name, engine in engines.items()}
answers = in_wordings(vlms, questions, wordings, asked)

# %% [markdown]
# ## Results
#
# ### Facts are learnt late in training
#
# The backbone's loss ({numref}`fig-backbone`) falls first for the words of a reply, then for the
# facts in it.

# %% tags=["hide-input"]
curve = study_records(
    "training", ["backbone"], seed=seed, stage="backbone"
)
show(
    lines.line_by_step(
        curve.assign(value=curve["loss"]),
        "The backbone learns the words first, then the facts",
        y_title="Loss on replies (nats per token)",
    ),
    "fig-backbone",
    f"Training of the backbone (seed {seed}, {len(curve)} logged steps), as recorded when it was "
    "made.",
)

# %% [markdown]
# ### Image tokens that spell a name, and others that do not
#
# Over all test houses: how many pieces of the name stand where they should, at the end of the
# image tokens, when each token is read as its most similar word?

# %%
spelled = vocabulary.names_spelled(engines, standard, houses)
spelled.groupby("model", sort=False)["found"].agg(
    spelled="mean", houses="size"
).style.format({"spelled": "{:.1%}"})

# %% [markdown]
# ### Naming is not recalling
#
# All three name the houses. What they recall of them differs ({numref}`fig-organisms`).

# %% tags=["hide-input"]
plain = answers[answers["wording"] == "standard"]
arms = gap_words.by_arm(each_model(plain, gap.accuracy_table))
show(
    dots.accuracy_by_arm(arms),
    "fig-organisms",
    f"Facts by name and by picture, all test houses. {theme.caption_n(arms)}. Bars: 95 % "
    "intervals from resampling houses.",
)

# %% tags=["remove-cell"]
glue_all(growth_words.organism_values(plain, spelled))

# %% [markdown]
# ### Arriving late is enough
#
# The three models with cross-attention name the houses alike, know the same facts, and receive the
# same state of the house. The deeper it arrives, the fewer facts are left ({numref}`fig-depth`).
# These answers were recorded when the study was made, in three worlds.

# %% tags=["hide-input"]
recorded = study_records("answers", crossed, wording="standard")
by_depth = gap_words.difference_by_world(recorded)
show(
    dots.gap_by_model(by_depth),
    "fig-depth",
    "Gap in points (same VLM, by name against by picture) of three organisms that differ in the "
    "block at which a house arrives: 2 (cross-early), 4 (cross) and 6 (cross-late). "
    f"{by_depth.seed.nunique()} worlds, read from the study's records. "
    f"{n_of(by_depth, 'questions a point')}. "
    "Bars: 95 % intervals from resampling houses.",
)

# %%
asked = ["identify", "by_name", "by_picture", "name_first"]
rows = recorded[recorded["condition"].isin(asked)]
counted_table(rows, ["model", "seed"], "condition")[asked]

# %% [markdown]
# The state is delivered almost, but not exactly, and less so the deeper: what is left (the last
# column: the squared error as a share of the variance) is {glue:text}`state_errors` on average.

# %%
log = study_records("training", crossed)
last = log.groupby(["model", "seed"], sort=False).last()
last[["picture_loss", "state_error"]].style.format("{:.3f}")

# %% tags=["remove-cell"]
glue_all(growth_words.arrival_values(recorded, last, seed))

# %% [markdown]
# ## Controls
#
# ### The wording does not matter
#
# Held-out wordings were never trained on: one combines known phrases anew, the other turns the
# sentence round.

# %%
counted_table(answers, ["model", "condition"], "wording")

# %% [markdown]
# The longer prompts have held-out forms too: the instruction in another place or other words. For
# the middle organism, on every fourth question:

# %%
some = replace(standard, questions=standard.questions[::4])
shown = engines.get("middle") or engines[organisms[0]]
compare_forms(shown.owner, some, held_out.held_out_prompt).style.format(
    "{:.1%}", subset=["standard", "held out"]
)

# %% [markdown]
# ### What is known by construction
#
# - Every fact was read in text; no fact of a test house was ever asked about in a picture.
# - Every house was named from pictures, 24 of them; the pictures used here are none of these.
# - No patch identifies a house (*Building the benchmark*), so a name needs several patches.
# - The checkpoints hold nothing of ours: `AutoModelForImageTextToText` and `AutoProcessor` open
#   them, and the weights are what was measured.

# %%
for name in ["backbone", *organisms, "cross"]:
    card = cards.read_card(path(name, seed))
    print(f"{name:9} {card.weights_sha256[:12]}  {card.made}")

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report that LLaVA-style models, whose image tokens are mapped into
# a finished language model by an adapter, resolve entities late and lose most, while models
# trained on pictures from the start lose little. The organisms vary that one property by hand.
# They are tiny, their world is closed, and late fails almost completely, which no model in those
# papers is reported to do. What they leave out, facts that a published language model learnt from
# the web, is the subject of *A language model grows eyes*.

# %% [markdown]
# ## Try it yourself
#
# - `twohop organism train middle --seed 1` grows another world's middle organism in a few minutes.
# - Give cross another `deliver` (with `inserted` the two blocks up to it): at which depth is half
#   of the facts gone?
# - Change `align_steps` or `pull` in `twohop_lib/organisms/recipes.py` and train again: where
#   between late and early does the gap open?
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
