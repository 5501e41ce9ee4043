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
# # Cross-patching
#
# Show a model one house, and half-way up exchange the picture's part of the stream for another
# house's. Which of the two does the model name? The layer at which the answer turns says how long
# the model still depends on the picture's own positions.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
#
# - Asked to name the house, the organisms turn from the donor to the target at layer
#   {glue:text}`switch_late` (late), {glue:text}`switch_middle` (middle),
#   {glue:text}`switch_early` (early) and {glue:text}`switch_cross` (cross, which has
#   {glue:text}`blocks_cross` blocks).
# - {glue:text}`order_sentence`
# - A name in a text, patched in the same way in the backbone, turns at layer
#   {glue:text}`switch_backbone`.
# - Asked for a fact instead, {glue:text}`fact_sentence`
# - Between the two ends many answers are neither's: {glue:text}`neither_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
#
# - {glue:text}`model_switch`
# ```

# %% [markdown]
# ## What is asked
#
# `resid[l]` is the residual stream that enters block l; `resid[0]` are the embeddings, with the
# picture's features among them. The *target* is the run that is patched, the *donor* the run whose
# states are written in. Patched from layer 0, the model sees the donor's picture; patched from the
# top, nothing changes. In between there is a layer from which on the picture's positions no longer
# decide the answer: the **switch layer**.

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
donors = 2  # for each target
rows = 64  # patched runs at once; halved when memory runs out
work = ""  # a folder that keeps finished work; "" keeps none

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import contextlib

import pandas as pd
import torch
from nnsight import NNsight
from twohop_lib import records
from twohop_lib.chapter.explorer import PatchExplorer
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.dots import explorer
from twohop_lib.figures.heat import items_by_layer
from twohop_lib.figures.lines import lines_by_layer
from twohop_lib.interventions.cross_patch import (
    LEAST,
    cross_patch,
    part_patch,
)
from twohop_lib.interventions.pairs import one_per_entity, pairs_for
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import NothingLeft, Recorder
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
# Only entities that a model names from their pictures can be targets or donors.

# %%
pairs = open_pairs(vlm, llm, organisms, seed, load)
models = list(pairs)
able = {
    name: evaluate(
        pair.vlm,
        pair.backbone,
        questions,
        conditions=("identify", "by_picture"),
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
    for name, a in able.items()
}
# A model that recognises nothing can still be patched; then all entities count.
recognised = {
    name: found or set(questions.entities())
    for name, found in recognised.items()
}
pd.concat(able.values()).groupby(["model", "condition"], sort=False)[
    "correct"
].mean().unstack().style.format("{:.1%}")

# %% [markdown]
# ## The method
#
# In nnsight, on one pair: save the donor's stream at the picture's positions as it enters block l,
# write it over the target's, and let everything later run free.

# %%
name = "middle" if "middle" in pairs else models[0]
engine = Engine(pairs[name].vlm, rows)
pair = pairs_for(
    pairs[name].vlm, questions, "identify", recognised[name], 1
)[0]
record = Recorder(engine, questions, "identify", True, length=8)
target, donor = record(pair.target), record(pair.donor)
image = list(range(*target.span))
tokenizer = pairs[name].vlm.tokenizer
print(
    f"target: {pair.target.entity}; donor: {pair.donor.entity}; "
    f"{len(image)} image positions of {target.n}"
)


# %%
def patched(model, layer: int) -> torch.Tensor:
    blocks = decoder_blocks(model, engine.blocks)
    with torch.no_grad(), model.trace(**donor.inputs, use_cache=False):
        state = blocks[layer].input[:, image].clone().save()
    with torch.no_grad(), model.trace(**target.inputs, use_cache=False):
        blocks[layer].input[:, image] = state
        logits = model.output.logits[0, -1].save()
    return logits


if image:  # a picture shown through cross-attention has no positions here
    traced = NNsight(pairs[name].vlm.model)
    for layer in range(0, engine.n_blocks, max(1, engine.n_blocks // 8)):
        p, first = patched(traced, layer).float().softmax(-1).max(-1)
        print(f"layer {layer}: {tokenizer.decode(first)} … (p = {p:.2f})")

# %% [markdown]
# That is one whole run for each layer. The library gets the same results with less work: before
# the layer all is as in the target's run, and behind it the picture's keys and values are those of
# the donor's. So only the words behind the picture are run again, from the patched layer on, with
# all layers and donors as rows of one batch. Where that is not exact for a model, it runs whole
# runs and says so (column `computation` below). In cross-attention models, the picture's keys and values
# from the patched layer on are the donor's.

# %% [markdown]
# ## The sweep
#
# Every target gets donors whose answers begin with another token. Two prompts: name the entity,
# and answer a question about it. Beside them, the text backbone with the *name's* tokens patched
# in place of a picture.

# %%
swept = []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    for task in ("identify", "fact"):
        chosen = pairs_for(
            pair.vlm, questions, task, recognised[name], donors
        )
        swept.append(
            cross_patch(
                engine,
                questions,
                chosen,
                task,
                labels={"model": name, "seed": seed},
                folder=work or None,
            )
        )
swept = pd.concat(swept, ignore_index=True)

# %%
backbone = next(iter(pairs.values())).llm
named = []
for task in ("identify", "fact") if backbone is not None else ():
    engine = Engine(backbone, rows)
    # Only names of as many tokens can be exchanged; there may be none.
    chosen = pairs_for(
        backbone,
        questions,
        task,
        set(questions.entities()),
        donors,
        alike_names=True,
    )
    with contextlib.suppress(NothingLeft):
        named.append(
            cross_patch(
                engine,
                questions,
                chosen,
                task,
                by="name",
                labels={"model": "backbone", "seed": seed},
                folder=work or None,
            )
        )
swept = pd.concat([swept, *named], ignore_index=True)
keep_records(
    pd.concat([*able.values(), swept]), work, "cross_patching", pairs
)
swept["depth"] = depth.undisturbed(swept)
swept["own"] = swept["says"].eq("target")
swept["balance"] = depth.balance(swept)
naming = swept[swept["task"] == "identify"]
facts = swept[swept["task"] == "fact"]

# %% [markdown]
# ## Results
#
# ### Naming: from the donor to the target
#
# {numref}`fig-naming` shows how often the *target* is named although the donor's picture stands in
# its place from a layer on.


# %% tags=["hide-input"]
def pairs_of(frame):
    counts = (
        frame.drop_duplicates(["model", "entity_id", "donor_id"])
        .groupby("model")
        .size()
    )
    return f"n = {counts.min()}–{counts.max()} pairs for each model"


def entities_of(frame):
    least = frame.groupby("model")["entity_id"].nunique()
    return f"{least.min()}–{least.max()} entities"


turns = depth.switches(naming, "balance").set_index("model")
shown = turns["switch"].dropna().sort_values()
title = (
    f"The answer turns first in {shown.index[0]} (layer {shown.iloc[0]:.1f})"
    if len(shown)
    else "The answer never turns"
)
if len(shown) > 1:
    title += f" and last in {shown.index[-1]} ({shown.iloc[-1]:.1f})"
show(
    lines_by_layer(
        depth.curve(naming, "own"),
        title,
        y_title="Names the target (%)",
        x="depth",
        x_title="Layer from which on the donor's picture stands",
    ),
    "fig-naming",
    "Share of answers that name the target after the picture's stream (backbone: the name's) was "
    f"exchanged from a layer on. {pairs_of(naming)}, {entities_of(naming)}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# Between the ends the answer is often neither's: a name pieced together from both. {numref}`fig-items`
# shows every pair of one model; hover to read what it says.

# %% tags=["hide-input"]
entity = {q.entity_id: q.entity for q in questions.questions}
one = "middle" if "middle" in pairs else models[0]
items = naming[naming["model"] == one]
items = items.assign(donor=items["donor_id"].map(entity))
neither = (
    items[items["says"] == "neither"].groupby("layer").size()
    / items.groupby("layer").size()
).fillna(0)
show(
    items_by_layer(
        items,
        f"In {one}, {100 * neither.max():.0f} % of answers are neither's at layer "
        f"{int(neither.idxmax())}",
    ),
    "fig-items",
    f"What {one} answers for each pair of target and donor, by patched layer. "
    f"{pairs_of(items)}. Rows are ordered by where the answer becomes the target's.",
)

# %% [markdown]
# ### Asked for a fact
#
# The same patch under a question about the entity. A model that answers few questions by picture
# leaves little to count, so {numref}`fig-facts` is on a calibrated scale: the difference between the
# logits of the two answers, 0 as in the target's own run and 1 as in the donor's.

# %% tags=["hide-input"]
means = depth.curve(facts, "calibrated")
half = (
    means[means["value"] < 0.5]
    .groupby("model")["depth"]
    .min()
    .sort_values()
)
show(
    lines_by_layer(
        means,
        f"The fact prompt leaves the donor by layer {int(half.min())} ({half.index[0]}) to "
        f"{int(half.max())} ({half.index[-1]})"
        if len(half)
        else "The fact prompt follows the donor at every layer",
        y_title="Calibrated logit difference (0 target, 1 donor)",
        x="depth",
        x_title="Layer from which on the donor's picture stands",
        share=False,
    ),
    "fig-facts",
    "Calibrated difference of the answers' first-token logits under a question about the entity. "
    f"{pairs_of(facts)}; pairs whose own runs differ by less than {LEAST} nats are left "
    "out. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Switch layers
#
# The switch layer is where a logistic curve, fitted to target minus donor, passes the middle. None
# is given where the answer does not turn from one to the other.

# %%
n_blocks = {
    name: Engine(pair.vlm).n_blocks for name, pair in pairs.items()
}
if named:
    n_blocks["backbone"] = Engine(backbone).n_blocks
table = pd.concat(
    [
        depth.switches(part, "balance", n_blocks=n_blocks).assign(
            asked=asked
        )
        for asked, part in (("name", naming), ("fact", facts))
    ]
)
table[
    [
        "asked",
        "model",
        "switch",
        "low",
        "high",
        "relative",
        "n_items",
        "n_entities",
    ]
].style.hide(axis="index").format(
    "{:.2f}",
    subset=["switch", "low", "high", "relative"],
    na_rep="none",
)

# %% tags=["remove-cell"]
found = table.set_index(["asked", "model"])["switch"]


def layer_of(asked, model):
    value = found.get((asked, model))
    return "none" if value is None or pd.isna(value) else f"{value:.1f}"


for model in n_blocks:
    glue(f"switch_{model}", layer_of("name", model))
    glue(f"blocks_{model}", str(n_blocks[model]))
if not vlm:
    told = [
        f"{m} at layer {layer_of('fact', m)}"
        for m in n_blocks
        if layer_of("fact", m) != "none"
    ]
    silent = [m for m in n_blocks if layer_of("fact", m) == "none"]
    sentence = f"the answer turns in {', '.join(told)}"
    if silent:
        sentence += f", and in {', '.join(silent)} never, since hardly any of its answers is either's"
    glue("fact_sentence", sentence + ".")
    most = (
        naming[naming["says"] == "neither"]
        .groupby(["model", "layer"])
        .size()
        / naming.groupby(["model", "layer"]).size()
    ).fillna(0)
    glue(
        "neither_sentence",
        f"up to {100 * most.max():.0f} % ({most.idxmax()[0]}, layer {int(most.idxmax()[1])}), "
        "most of them names pieced together from both.",
    )

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same sweeps were run on two more worlds when the project's study was made.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = records.read_frame(STUDY / "sweeps.parquet")
recorded = recorded[
    (recorded["experiment"] == "cross-patch")
    & (recorded["seed"] != seed)
    & (vlm == "")
]
worlds = pd.concat(
    [
        swept.assign(measured="this page"),
        recorded.assign(measured="the study's records"),
    ]
)
worlds["depth"] = depth.undisturbed(worlds)
worlds["balance"] = depth.balance(worlds)
by_world = depth.switches(
    worlds, "balance", by=("model", "task", "seed", "measured")
)
by_world["switch layer"] = [
    "none"
    if pd.isna(r.switch)
    else f"{r.switch:.1f} [{r.low:.1f}, {r.high:.1f}]"
    for r in by_world.itertuples()
]
by_world.pivot(
    index=["task", "model"], columns=["seed"], values="switch layer"
).fillna("–")

# %% tags=["remove-cell"]
by_gap = [m for m in ("early", "middle", "late") if m in n_blocks]
turned = by_world[by_world["task"] == "identify"].pivot(
    index="seed", columns="model", values="switch"
)
if not vlm and len(by_gap) == 3:
    rising = (turned["early"] < turned["middle"]) & (
        turned["middle"] < turned["late"]
    )
    glue(
        "order_sentence",
        "The switch of the naming prompt does not follow the gap: early before middle before "
        f"late, the order of the gaps of the LLaVA-style organisms, holds in {rising.sum()} of "
        f"{len(rising)} worlds."
        if not rising.all()
        else "The switch of the naming prompt follows the gap: early before middle before late, "
        f"in all {len(rising)} worlds.",
    )

# %% [markdown]
# ## Controls
#
# Every sweep carries two, and stops if one fails: a run patched with *itself* is unchanged, and a
# run patched from layer 0 is the donor's. The table counts how answers were computed, and what the
# ends of the sweep say.

# %%
ends = swept[swept["layer"].isin([0, *n_blocks.values()])]
ends = ends[
    (ends["layer"] == 0) | (ends["layer"] == ends["model"].map(n_blocks))
]
ends.assign(
    patched=ends["layer"]
    .eq(0)
    .map({True: "from layer 0", False: "from the top"})
)[ends["task"] == "identify"].groupby(
    ["model", "computation", "patched"], sort=False
)["says"].value_counts().unstack(fill_value=0)

# %% [markdown]
# ### Bands of two layers
#
# A patch from l to the top says until when the picture matters; a patch of two layers says *which*
# blocks read it. In between, the target's own stream is put back.

# %%
bands = []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    chosen = pairs_for(
        pair.vlm, questions, "identify", recognised[name], 1
    )
    bands.append(
        cross_patch(
            engine,
            questions,
            chosen,
            bands=[
                (layer, layer + 2) for layer in range(engine.n_blocks - 1)
            ],
            labels={"model": name, "seed": seed},
            folder=work or None,
        )
    )
bands = pd.concat(bands, ignore_index=True)
bands["moved"] = bands["says"].ne("target")

# %% tags=["hide-input"]
strongest = bands.groupby(["model", "layer"])["moved"].mean()
where, most = strongest.idxmax(), strongest.max()
show(
    lines_by_layer(
        depth.curve(bands, "moved", x="layer"),
        f"{where[0]} reads the picture most in blocks {int(where[1])} and {int(where[1]) + 1}",
        y_title="No longer names the target (%)",
        x_title="First of two blocks that see the donor",
    ),
    "fig-bands",
    "Share of answers that are no longer the target's when two neighbouring blocks read the "
    f"donor's picture. {pairs_of(bands)}. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Part of the picture
#
# Only the last quarter of the picture's positions, or only the others. Here later positions of the
# picture see the exchanged ones, so these are whole runs.

# %%
groups = []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    chosen = pairs_for(
        pair.vlm, questions, "identify", recognised[name], 1
    )
    if engine.site.kind == "stream":
        groups.append(
            part_patch(
                engine,
                questions,
                chosen[:12],
                labels={"model": name, "seed": seed},
                folder=work or None,
            )
        )
parts = pd.concat(groups, ignore_index=True) if groups else None
(
    parts.assign(donor=parts["says"].eq("donor"))
    .groupby(["model", "part", "layer"], sort=False)["donor"]
    .mean()
    .unstack("layer")
    .style.format("{:.0%}", na_rep="–")
    if groups
    else "The picture has no positions in this model's stream."
)

# %% [markdown]
# ### Donors of the same and of another type
#
# Where a benchmark has several types of entity, half of the donors are of another type.

# %%
naming.groupby(["model", "same_type"])["own"].agg(
    ["mean", "count"]
).rename(columns={"mean": "names the target, all layers"}).style.format(
    {"names the target, all layers": "{:.1%}"}
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`cohen2025performance` report switch layers of 20, 17 and 24 of 32 for LLaVA-1.5 7B and
# the two LLaVA-MORE models, with naming prompts; they take layers 5 to 29 one at a time and read
# two yes/no answers, names the donor and names the target. Here every layer from 0 is taken,
# answers that are neither's are counted, and the fact prompt and the backbone's own names stand
# beside. Their positions were fixed numbers for each model; here they are found from the processor.

# %% [markdown] tags=["organisms"]
# The organisms have eight blocks (cross: ten), so their switch layers are not those models'. What
# they show is that the switch of the naming prompt and the size of the gap are different things:
# the fact prompt turns near the backbone's own, whatever the naming prompt does.

# %% tags=["remove-cell"]
name, pair = next(iter(pairs.items()))
glue(
    "model_asked",
    f"{name}, with {len(questions.entities())} entities of the benchmark {questions.name}",
)
glue(
    "model_switch",
    f"Layer (of {n_blocks[name]}) at which {name} turns from the donor to the target: "
    f"{layer_of('name', name)} when asked to name the entity, {layer_of('fact', name)} when asked "
    "for a fact.",
)

# %% [markdown]
# ## Try it yourself
#
# With a kernel (Colab, Jupyter), the menu below asks the model itself, at any layer. In the built
# book, {numref}`fig-explorer` has the answers of some pairs.

# %%
live = PatchExplorer(
    Engine(pairs[one].vlm),
    questions,
    [
        q
        for q in one_per_entity(questions.questions)
        if q.entity_id in recognised[one]
    ],
)
live.widget()

# %% tags=["hide-input"]
few = items[items["entity"].isin(sorted(items["entity"].unique())[:8])]
show(
    explorer(few, f"What {one} says, layer by layer"),
    "fig-explorer",
    f"Choose a pair below the figure; {one}'s answer when the donor's picture stands from that "
    f"layer on. n = {few[['entity', 'donor']].drop_duplicates().shape[0]} pairs.",
)

# %% [markdown]
# - Set `vlm` to a published model's id: the page is about that model then.
# - Set `donors = 5`, or `max_entities = 0` for all test houses.
# - Patch a single block: `bands=[(3, 4)]` in `cross_patch`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
