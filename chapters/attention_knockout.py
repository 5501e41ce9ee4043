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
# # Attention knockout, and one axis for all
#
# Cut the attention edges through which the words read the picture, in some blocks and not in
# others. Then put the three experiments on one axis: *where does the picture become an entity?*

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional
# world {glue:text}`grafts_too`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - With the edge question→image cut from block b upwards, half of the names are back at b =
#   {glue:text}`cut_late` (late), {glue:text}`cut_middle` (middle), {glue:text}`cut_early` (early)
#   and {glue:text}`cut_cross` (cross).
# - Who reads the picture? {glue:text}`reader_sentence`
# - On one axis, the blocks that have to read the picture before the *name* is settled are
#   {glue:text}`axis_sentence`
# - In *grafts of Gemma 3 270M*, with question→image cut from block b of 18 upwards, half of the
#   names are back at {glue:text}`grafts_cut` And there, {glue:text}`grafts_reader`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_cut`
# ```

# %% [markdown]
# ## What is asked
#
# Edges are written query→key. *question→image* cuts every position behind the picture off from it,
# the last one included; *last→image* only the last position, from which the answer is read;
# *last→question* the last position off from the words before it. A cut edge has attention weight
# exactly zero. Cuts are made in blocks 0 … b − 1 (*below*), b … top (*above*), or in a sliding
# window.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early", "cross"]  # miniature VLMs
grafts = ["caption", "names"]  # a published LM, given eyes
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
batch_size = 64  # cut runs at once; halved when memory runs out
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
from twohop_lib.figures import dots, lines
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.edits import Knockout
from twohop_lib.interventions.freeze import freeze
from twohop_lib.interventions.knockout import (
    EDGES,
    edge_positions,
    knockout,
)
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.readouts import captions, knockout_words, switch
from twohop_lib.readouts.tables import counted_table, joined

# %%
study = open_study(
    "attention_knockout",
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
able = study.ask("identify", "by_name", "by_picture")
study.able("identify", "by_name", "by_picture")

# %% [markdown]
# ## The method
#
# In nnsight, for one picture: add minus infinity to the attention mask of some blocks, at the
# edges to be cut.

# %%
one = study.example("middle")
engine = study.engine(one)
question = study.asked(one)[0]
target = Recorder(engine, study.questions, "identify", 8)(question)
queries, keys = edge_positions(target, "question→image")


# %%
def knocked_out(start, stop):
    model, n = NNsight(engine.model), target.n
    blocks = decoder_blocks(model, engine.blocks)
    like = {"device": engine.model.device, "dtype": engine.model.dtype}
    lowest = torch.finfo(engine.model.dtype).min
    mask = torch.full((n, n), lowest, **like).triu(1)
    mask[torch.tensor(queries)[:, None], torch.tensor(keys)] = lowest
    with model.trace(**target.inputs, use_cache=False):
        for block in range(start, stop):
            args, kwargs = blocks[block].inputs
            kwargs = {**kwargs, "attention_mask": mask[None, None]}
            blocks[block].inputs = (args, kwargs)
        logits = model.output.logits[0, -1].save()
    return logits.detach().float()


# %% [markdown]
# The library runs the words behind the picture again, from the first block that is cut, all cuts as
# rows of one batch. Both ways, side by side:

# %%
print(f"shown: {question.entity}")
top = engine.n_blocks
for b in range(0, top + 1, max(1, top // 8)):
    fast = engine.logits([Knockout(target, queries, keys, b, top)])[0]
    if keys:  # a picture shown through cross-attention has none
        study.assert_same(fast, knocked_out(b, top), engine, target)
    p, first = fast.softmax(-1).max(-1)
    said = engine.owner.tokenizer.decode(first)
    print(f"cut from block {b} upwards: {said} … (p = {p:.2f})")

# %% [markdown]
# ## The sweep


# %%
def cut(study, task, where, edges=EDGES):
    def of_a_model(name, engine, labels):
        n = engine.n_blocks
        modes = {
            "all ways": [
                ("below", 0),
                ("above", 0),
                ("window", max(1, n // 4)),
            ],
            "above": [("above", 0)],
            "everywhere": [("window", n)],
        }[where]
        asked = study.asked(name)
        return knockout(
            engine, study.questions, asked, task, edges, modes, **labels
        )

    return study.sweep(of_a_model)


swept = joined(
    cut(study, "identify", "all ways"), cut(study, "fact", "all ways")
)


# %%
def crossed(task):
    return study.sweep(
        lambda name, engine, labels: cross_patch(
            engine,
            study.questions,
            study.pairs_of(name, task),
            task,
            **labels,
        )
    )


def frozen(name, engine, labels):
    if engine.site.kind != "stream":
        return None
    ends, asked = [engine.n_blocks - 1], study.asked(name)
    return freeze(engine, study.questions, asked, until=ends, **labels)


# %%
others = {
    "cross-patch": crossed("identify"),
    "cross-patch, fact": crossed("fact"),
    "freeze": study.sweep(frozen),
}
study.keep(able, swept, *others.values())

# %% [markdown]
# ## Results
#
# ### Cut from above
#
# {numref}`fig-above` cuts question→image in block b and all above: what is left was read below b.


# %% tags=["hide-input"]
names = swept[swept["task"] == "identify"]
picture = names[names["edge"] == "question→image"]
above = picture[picture["mode"] == "above"]
above = above.assign(blocks_read=switch.blocks_read(above))
turn = switch.switch_table(above, "correct")
show(
    lines.lines_by_layer(
        switch.curve(above, "correct"),
        knockout_words.names_need(turn),
        y_title="Still named (%)",
        x="blocks_read",
        x_title="First block cut off from the picture",
    ),
    "fig-above",
    "Entities still named when no position behind the picture attends to it in block b and above; "
    f"{study.among()}. {captions.n_words(above, 'entities')}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Cut from below
#
# {numref}`fig-below` cuts the blocks below b: what is left can still be read above.

# %% tags=["hide-input"]
below = picture[picture["mode"] == "below"]
lost = switch.curve(below, "correct", x="stop")
show(
    lines.lines_by_layer(
        lost,
        knockout_words.names_lost(lost),
        y_title="Still named (%)",
        x="stop",
        x_title="Blocks cut off from the picture, from the lowest up",
    ),
    "fig-below",
    "Entities still named when no position behind the picture attends to it in the lowest blocks; "
    f"{study.among()}. {captions.n_words(below, 'entities')}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Who reads the picture
#
# Does the last position read the picture itself, or through the question's words? The table cuts
# one edge in *all* blocks.

# %%
edges = knockout_words.cut_in_all_blocks(swept)
counted_table(edges, ["task", "model"], "cut", "correct")

# %% [markdown]
# ### A sliding window
#
# {numref}`fig-window` cuts a quarter of the blocks at a time, for one model and all three edges.

# %% tags=["hide-input"]
windows = names[(names["mode"] == "window") & (names["model"] == one)]
left = switch.curve(windows, "correct", x="start", by=("edge",))
width = knockout_words.width(windows)
show(
    lines.lines_by_layer(
        left,
        knockout_words.worst_window(left, one, width),
        y_title="Still named (%)",
        x="start",
        x_title=f"First of {width} blocks cut",
        group="edge",
    ),
    "fig-window",
    f"Entities that {one} still names when one edge is cut in a window of blocks; "
    f"{study.among([one])}. {captions.n_words(windows, 'entities')}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Where does the picture become an entity?
#
# All three experiments leave a number of blocks, from the lowest up, that read the picture
# undisturbed: l in a cross-patch from layer l, k + 1 in a freeze at layer k, b with attention cut
# from block b. {numref}`fig-axis` gives the number at which half of the answers are the target's
# own.

# %% tags=["hide-input"]
axis = knockout_words.on_one_axis(others, turn)
spread = switch.spread_over_experiments(
    axis[axis["experiment"] != "cross-patch, fact"]
)
if len(spread):
    show(
        dots.depths(axis, knockout_words.settled_by(spread)),
        "fig-axis",
        "Blocks that have to read the picture undisturbed before half of the answers are the "
        f"target's own, by experiment. {captions.n_words(above, 'entities')}. Bars: 95 % intervals "
        "from resampling entities. Experiments that do not turn, or do not apply, are left out.",
    )

# %%
worded = [
    switch.switch_words(r.switch, digits=2) for r in axis.itertuples()
]
axis.assign(switch=worded).pivot(
    index="model", columns="experiment", values="switch"
).loc[study.models].fillna("–")

# %% tags=["remove-cell"]
at = turn.set_index("model")["switch"].map(switch.switch_words)
glue_all({f"cut_{model}": layer for model, layer in at.items()})
glue("reader_sentence", knockout_words.who_reads(edges))
glue("axis_sentence", knockout_words.axis_sentence(spread, study.models))
glue("answers_cut", study.answers_cut)
glue("model_asked", study.subject)
glue("model_cut", knockout_words.back_at(at[study.models[0]]))

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same cuts in two more worlds, as recorded when the project's study was made: the block b at
# which half of the names are back.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = study.recorded(
    "sweeps",
    experiment="knockout",
    mode="above",
    edge="question→image",
    task="identify",
)
worlds = joined(above, recorded)
worlds["blocks_read"] = switch.blocks_read(worlds)
switch.switches_by_world(worlds, "correct")

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The same cuts in *grafts of Gemma 3 270M*: a published language model, frozen, that sees flags
# through a small tower and projector grown onto it. {numref}`fig-grafts-above` cuts question→image
# in block b and all above; the table cuts one edge in all blocks.

# %% tags=["grafts"]
published = open_grafts("attention_knockout", grafts, study.given, 12)
if published:
    cuts = published.frame(
        "naming",
        lambda study: joined(
            cut(study, "identify", "above", ["question→image"]),
            cut(
                study,
                "identify",
                "everywhere",
                ["last→image", "last→question"],
            ),
        ),
    )
    upwards = cuts[cuts["mode"] == "above"]
    upwards = upwards.assign(blocks_read=switch.blocks_read(upwards))
    turned = switch.switch_table(upwards, "correct")

# %% tags=["grafts", "hide-input"]
if published:
    show(
        lines.lines_by_layer(
            switch.curve(upwards, "correct"),
            published.title(knockout_words.names_need(turned)),
            y_title="Still named (%)",
            x="blocks_read",
            x_title="First block cut off from the picture",
        ),
        "fig-grafts-above",
        published.caption(
            "Countries still named when no position behind the picture attends to it in block b "
            f"and above; {published.study.among()}. {captions.n_words(upwards, 'entities')}. "
            "Bands: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["grafts"]
if published:
    edges_of_grafts = knockout_words.cut_in_all_blocks(cuts)
counted_table(
    edges_of_grafts, "model", "cut", "correct"
) if published else None

# %% tags=["remove-cell", "grafts"]
published.glue(
    cut=lambda: knockout_words.cut_at(turned),
    reader=lambda: knockout_words.who_reads(edges_of_grafts),
)

# %% [markdown]
# ## Controls
#
# Cutting nothing must leave a run as it is; the sweep stops if it does not. Cut off from the
# picture in every block, a model should do no better than with a blank one.

# %%
blank = study.ask("blank_by_picture").assign(cut="blank picture")
facts = edges[edges["task"] == "fact"]
facts = facts[facts["cut"].isin(["nothing cut", "question→image"])]
counted_table(joined(facts, blank), "model", "cut", "correct")

# %%
knockout_words.how_computed(swept)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`cohen2025performance` describe cutting the positions behind the image off from it,
# cumulatively from the top and from the bottom, and report that cuts in layers 15 to 20 make the
# prediction collapse; their numbers, and a script, are not published. Other work cuts single edges
# in windows. Here the three edges and the three kinds of window are run on the same items, with
# intervals, and beside the two other experiments.

# %% [markdown] tags=["organisms"]
# In organisms the answer is one or three tokens and the question half a dozen, so there are few
# positions for information to be parked at. In larger models more of it may pass through the
# question's words.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` to a published model's id: the page is about that model then.
# - Cut single blocks: `modes=(("window", 1),)` in `knockout`.
# - Cut last→question: which words of the question does the answer need?
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
