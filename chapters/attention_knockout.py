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
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
#
# - With the edge question→image cut from block b upwards, half of the names are back at b =
#   {glue:text}`cut_late` (late), {glue:text}`cut_middle` (middle), {glue:text}`cut_early` (early)
#   and {glue:text}`cut_cross` (cross).
# - Who reads the picture? {glue:text}`reader_sentence`
# - On one axis, the blocks that have to read the picture before the *name* is settled are
#   {glue:text}`axis_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
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
benchmark = ""  # what is asked: a source's name or a path; "" asks what suits the model
organisms = [
    "late",
    "middle",
    "early",
    "cross",
]  # which miniature VLMs to ask
seed = 0  # which world; 0 ships with the package, others are trained on demand
split = "test"  # houses never used for any choice in making the organisms
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
rows = 64  # changed runs at once; halved when memory runs out
work = ""  # a folder that keeps finished work; "" keeps none

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import pandas as pd
import torch
from nnsight import NNsight
from twohop_lib import records
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.dots import depths
from twohop_lib.figures.lines import lines_by_layer
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.freeze import freeze
from twohop_lib.interventions.knockout import edge_positions, knockout
from twohop_lib.interventions.pairs import one_per_entity, pairs_for
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Recorder
from twohop_lib.organisms import STUDY, suited_benchmark
from twohop_lib.readouts import switch as depth
from twohop_lib.runs.evaluate import evaluate

benchmark = benchmark or suited_benchmark(vlm)
questions = open_questions(benchmark, seed, split, wording, max_entities)
noun = questions.questions[0].noun
print(
    f"{noun}: {len(questions.entities())}, {len(questions.questions)} questions"
)

# %% [markdown]
# ## Is the model able at all?
#
# What is asked below is asked of entities that the model names from their pictures.

# %%
pairs = open_pairs(vlm, llm, organisms, seed, load)
models = list(pairs)
able = {
    name: evaluate(
        pair.vlm,
        pair.backbone,
        questions,
        conditions=("identify", "by_name", "by_picture"),
        model_name=name,
        seed=seed,
        folder=work or None,
    )
    for name, pair in pairs.items()
}
recognised = {
    name: set(
        a.loc[(a["condition"] == "identify") & a["correct"], "entity_id"]
    )
    or set(questions.entities())
    for name, a in able.items()
}
asked = {
    name: [
        q
        for q in one_per_entity(questions.questions)
        if q.entity_id in found
    ]
    for name, found in recognised.items()
}
pd.concat(able.values()).groupby(["model", "condition"], sort=False)[
    "correct"
].mean().unstack().style.format("{:.1%}")

# %% [markdown]
# ## The method
#
# In nnsight, for one picture: add minus infinity to the attention mask of some blocks, at the
# edges to be cut.

# %%
name = "middle" if "middle" in pairs else models[0]
engine = Engine(pairs[name].vlm, rows)
record = Recorder(engine, questions, "identify", True, 8)
target = record(asked[name][0])
queries, keys = edge_positions(target, "question→image")
tokenizer = pairs[name].vlm.tokenizer


# %%
def knocked_out(model, start: int, stop: int) -> torch.Tensor:
    blocks, n = decoder_blocks(model, engine.blocks), target.n
    lowest = torch.finfo(engine.model.dtype).min
    mask = torch.full((n, n), lowest, device=engine.model.device).triu(1)
    mask[torch.tensor(queries)[:, None], torch.tensor(keys)] = lowest
    mask = mask[None, None].to(engine.model.dtype)
    with torch.no_grad(), model.trace(**target.inputs, use_cache=False):
        for block in range(start, stop):
            args, kwargs = blocks[block].inputs
            blocks[block].inputs = (
                args,
                {**kwargs, "attention_mask": mask},
            )
        logits = model.output.logits[0, -1].save()
    return logits


if keys:  # a picture shown through cross-attention has no key positions
    traced = NNsight(pairs[name].vlm.model)
    print(f"shown: {asked[name][0].entity}")
    for b in range(0, engine.n_blocks + 1, max(1, engine.n_blocks // 8)):
        p, first = (
            knocked_out(traced, b, engine.n_blocks)
            .float()
            .softmax(-1)
            .max(-1)
        )
        print(
            f"cut from block {b} upwards: {tokenizer.decode(first)} … (p = {p:.2f})"
        )

# %% [markdown]
# The mask above is a plain causal one, which is what most models use. The library edits each
# block's own mask (sliding windows, pictures read in both directions) and runs again only the words
# behind the picture. In cross-attention models, a query cut off from the picture passes the
# cross-attention blocks unchanged, as text without a picture does.

# %% [markdown]
# ## The sweep

# %%
swept = []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    for task in ("identify", "fact"):
        swept.append(
            knockout(
                engine,
                questions,
                asked[name],
                task,
                modes=(
                    ("below", 0),
                    ("above", 0),
                    ("window", max(1, engine.n_blocks // 4)),
                ),
                labels={"model": name, "seed": seed},
                folder=work or None,
            )
        )
swept = pd.concat(swept, ignore_index=True)

# %% [markdown]
# For the one axis, the two other experiments are run as well, as in their own chapters.

# %%
others = []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    labels = {"model": name, "seed": seed}
    for task in ("identify", "fact"):
        chosen = pairs_for(pair.vlm, questions, task, recognised[name], 1)
        others.append(
            cross_patch(
                engine,
                questions,
                chosen,
                task,
                labels=labels,
                folder=work or None,
            )
        )
    if engine.site.kind == "stream":
        others.append(
            freeze(
                engine,
                questions,
                asked[name],
                until=[engine.n_blocks - 1],
                labels=labels,
                folder=work or None,
            )
        )
others = pd.concat(others, ignore_index=True)
keep_records(
    pd.concat([*able.values(), swept, others]),
    work,
    "attention_knockout",
    pairs,
)

# %% [markdown]
# ## Results
#
# ### Cut from above
#
# {numref}`fig-above` cuts question→image in block b and all above: what is left was read below b.


# %% tags=["hide-input"]
def counted(frame):
    n = (
        frame.drop_duplicates(["model", "entity_id"])
        .groupby("model")
        .size()
    )
    return f"n = {n.min()}–{n.max()} entities for each model"


def cut(task, edge, mode):
    return swept[
        (swept["task"] == task)
        & (swept["edge"] == edge)
        & (swept["mode"] == mode)
    ]


above = cut("identify", "question→image", "above")
above = above.assign(depth=depth.undisturbed(above))
turn = depth.switches(above, "correct").set_index("model")
order = turn["switch"].dropna().sort_values()
show(
    lines_by_layer(
        depth.curve(above, "correct"),
        f"Half of the names need {order.iloc[0]:.1f} ({order.index[0]})"
        + (
            f" to {order.iloc[-1]:.1f} ({order.index[-1]})"
            if len(order) > 1
            else ""
        )
        + " blocks that read the picture"
        if len(order)
        else "The cut does not turn the answer anywhere",
        y_title="Still named (%)",
        x="depth",
        x_title="First block cut off from the picture",
    ),
    "fig-above",
    "Recognised entities still named when no position behind the picture attends to it in block b "
    f"and above. {counted(above)}. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Cut from below
#
# {numref}`fig-below` cuts the blocks below b: what is left can still be read above.

# %% tags=["hide-input"]
below = cut("identify", "question→image", "below")
lost = below.groupby(["model", "stop"])["correct"].mean().unstack("model")
gone = lost.lt(0.5).idxmax().where(lost.lt(0.5).any())
show(
    lines_by_layer(
        depth.curve(below, "correct", x="stop"),
        "Half of the names are lost with the first "
        + ", ".join(f"{int(v)} ({m})" for m, v in gone.dropna().items())
        + " blocks cut"
        if gone.notna().any()
        else "Cuts from below lose less than half of the names",
        y_title="Still named (%)",
        x="stop",
        x_title="Blocks cut off from the picture, from the lowest up",
    ),
    "fig-below",
    "Recognised entities still named when no position behind the picture attends to it in the "
    f"lowest blocks. {counted(below)}. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Who reads the picture
#
# Does the last position read the picture itself, or through the question's words? The table cuts
# one edge in *all* blocks.

# %%
whole = swept[(swept["mode"] == "above") & (swept["start"] == 0)]
free = swept[(swept["mode"] == "below") & (swept["stop"] == 0)]
edges = (
    whole.groupby(["task", "model", "edge"], sort=False)["correct"]
    .mean()
    .unstack("edge")
)
edges.insert(
    0, "nothing cut", free.groupby(["task", "model"])["correct"].mean()
)
edges.style.format("{:.1%}")

# %% [markdown]
# ### A sliding window
#
# {numref}`fig-window` cuts a quarter of the blocks at a time, for one model and all three edges.

# %% tags=["hide-input"]
one = "middle" if "middle" in pairs else models[0]
windows = swept[
    (swept["mode"] == "window")
    & (swept["task"] == "identify")
    & (swept["model"] == one)
]
worst = windows.groupby(["edge", "start"])["correct"].mean()
width = int((windows["stop"] - windows["start"]).iloc[0])
show(
    lines_by_layer(
        depth.curve(windows, "correct", x="start", by=("edge",)),
        f"{one} loses most ({100 * worst.min():.0f} % left) with {worst.idxmin()[0]} cut in blocks "
        f"{int(worst.idxmin()[1])} to {int(worst.idxmin()[1]) + width - 1}",
        y_title="Still named (%)",
        x="start",
        x_title=f"First of {width} blocks cut",
        group="edge",
    ),
    "fig-window",
    f"Recognised entities that {one} still names when one edge is cut in a window of blocks. "
    f"{counted(windows)}. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Where does the picture become an entity?
#
# All three experiments leave a number of blocks, from the lowest up, that read the picture
# undisturbed: l in a cross-patch from layer l, k + 1 in a freeze at layer k, b with attention cut
# from block b. {numref}`fig-axis` gives the number at which half of the answers are the target's
# own.

# %% tags=["hide-input"]
others["depth"] = pd.concat(
    [depth.undisturbed(part) for _, part in others.groupby("experiment")]
)
crossed = others[others["experiment"] == "cross-patch"]
crossed = crossed.assign(balance=depth.balance(crossed))
by_name, by_fact = (
    depth.switches(crossed[crossed["task"] == task], "balance")
    for task in ("identify", "fact")
)
axis = [
    by_name.assign(experiment="cross-patch"),
    by_fact.assign(experiment="cross-patch, fact"),
    turn.reset_index().assign(experiment="knockout"),
]
frozen = others[others["experiment"] == "freeze"]
if len(frozen):
    axis.append(
        depth.switches(frozen, "correct").assign(experiment="freeze")
    )
axis = pd.concat(axis, ignore_index=True)
there = axis[axis["experiment"] != "cross-patch, fact"].dropna(
    subset=["switch"]
)
spread = there.groupby("model")["switch"].agg(["min", "max"])
turned_somewhere = len(spread) > 0
if turned_somewhere:
    last = spread["max"].idxmax()
    show(
        depths(
            axis,
            f"Names are settled by block {spread['max'].max():.1f} ({last}) at the latest",
        ),
        "fig-axis",
        "Blocks that have to read the picture undisturbed before half of the answers are the "
        f"target's own, by experiment. {counted(above)}. Bars: 95 % intervals from resampling "
        "entities. Experiments that do not turn, or do not apply, are left out.",
    )

# %%
axis.pivot(index="model", columns="experiment", values="switch").loc[
    models
].style.format("{:.2f}", na_rep="none")

# %% tags=["remove-cell"]
for model in models:
    value = turn["switch"].get(model)
    glue(
        f"cut_{model}",
        "none" if value is None or pd.isna(value) else f"{value:.1f}",
    )
named_edges = edges.loc["identify"]
direct = [m for m in models if named_edges.loc[m, "last→image"] < 0.5]
glue(
    "reader_sentence",
    f"cutting last→image alone, in all blocks, leaves less than half of the names in "
    f"{', '.join(direct)}: there the last position reads the picture itself."
    if direct
    else "in no model does cutting last→image alone lose half of the names: the words carry them.",
)
glue(
    "axis_sentence",
    "; ".join(
        f"{m} {r['min']:.1f} to {r['max']:.1f}"
        for m, r in spread.loc[
            [m for m in models if m in spread.index]
        ].iterrows()
    )
    + " by experiment."
    if turned_somewhere
    else "not to be had: no experiment turned.",
)
name = models[0]
glue(
    "model_asked",
    f"{name}, with {len(questions.entities())} entities of the benchmark {questions.name}",
)
value = turn["switch"].get(name)
glue(
    "model_cut",
    f"With question→image cut from block b upwards, half of the names are back at b = {value:.1f}."
    if value is not None and not pd.isna(value)
    else "With question→image cut from any block upwards, the share of names does not turn.",
)

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
recorded = records.read_frame(STUDY / "sweeps.parquet")
recorded = recorded[
    (recorded["experiment"] == "knockout")
    & (recorded["mode"] == "above")
    & (recorded["edge"] == "question→image")
    & (recorded["task"] == "identify")
    & (recorded["seed"] != seed)
    & (vlm == "")
]
worlds = pd.concat([above, recorded])
worlds["depth"] = depth.undisturbed(worlds)
by_world = depth.switches(worlds, "correct", by=("model", "seed"))
by_world["block"] = [
    "none"
    if pd.isna(r.switch)
    else f"{r.switch:.1f} [{r.low:.1f}, {r.high:.1f}]"
    for r in by_world.itertuples()
]
by_world.pivot(index="model", columns="seed", values="block").fillna(
    "none"
)

# %% [markdown]
# ## Controls
#
# Cutting nothing must leave a run as it is; the sweep stops if it does not. Cut off from the
# picture in every block, a model should do no better than with a blank one.

# %%
blank = pd.concat(
    [
        evaluate(
            pair.vlm,
            None,
            questions,
            conditions=("blank_by_picture",),
            model_name=name,
            seed=seed,
            folder=work or None,
        )
        for name, pair in pairs.items()
    ]
)
control = edges.loc["fact"][["nothing cut", "question→image"]].rename(
    columns={"question→image": "cut off in every block"}
)
control["blank picture"] = blank.groupby("model")["correct"].mean()
control.style.format("{:.1%}")

# %%
swept.groupby(["model", "computation"])["unchanged"].agg(
    ["count"]
).rename(columns={"count": "answers"})

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
