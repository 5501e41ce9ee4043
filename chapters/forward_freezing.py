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
# # Forward freezing
#
# Hold the picture's part of the stream still from an early layer on, and let only the words go on
# thinking. What is still named, and what is still recalled, needed no further work on the picture.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
#
# - Frozen as it enters the first block, the picture still lets {glue:text}`named_late` % (late),
#   {glue:text}`named_middle` % (middle) and {glue:text}`named_early` % (early) of the recognised
#   houses be named, and a name in the backbone {glue:text}`named_backbone` %.
# - Half of the names are back when {glue:text}`depth_name_late` (late),
#   {glue:text}`depth_name_middle` (middle) and {glue:text}`depth_name_early` (early) blocks read the
#   picture as it is; in the backbone, with name tokens, {glue:text}`depth_name_backbone`.
# - Facts need more of that work: {glue:text}`fact_sentence`
# - {glue:text}`group_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
#
# - {glue:text}`model_freeze`
# ```

# %% [markdown]
# ## What is asked
#
# *Freeze k → T*: the picture's positions enter blocks k + 1 … T with the value of `resid[k]`, the
# stream that entered block k. Behind block T they run on from there. The words run freely
# throughout and read the frozen picture. With k = T nothing is frozen.
#
# A model that resolves the picture early keeps its answers from a small k on.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # what is asked: a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early"]  # which miniature VLMs to ask
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
from twohop_lib import records, stats
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.lines import lines_by_layer
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.freeze import freeze, freeze_ends
from twohop_lib.interventions.pairs import one_per_entity, pairs_for
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Recorder
from twohop_lib.models.blocks import UnsupportedSite
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
# In nnsight, for one picture: keep what enters block k at the picture's positions, and write it
# over what enters the next blocks.

# %%
name = "middle" if "middle" in pairs else models[0]
engine = Engine(pairs[name].vlm, rows)
record = Recorder(engine, questions, "identify", True, 8, from_start=True)
target = record(asked[name][0])
image = list(range(*target.span))
tokenizer = pairs[name].vlm.tokenizer


# %%
def frozen(model, k: int, last: int) -> torch.Tensor:
    blocks = decoder_blocks(model, engine.blocks)
    with torch.no_grad(), model.trace(**target.inputs, use_cache=False):
        held = blocks[k].input[:, image].clone()
        for block in range(k + 1, last + 1):
            blocks[block].input[:, image] = held
        logits = model.output.logits[0, -1].save()
    return logits


if (
    image
):  # a picture shown through cross-attention has no positions to freeze
    traced = NNsight(pairs[name].vlm.model)
    print(f"shown: {asked[name][0].entity}")
    for k in range(0, engine.n_blocks, max(1, engine.n_blocks // 8)):
        p, first = (
            frozen(traced, k, engine.n_blocks - 1)
            .float()
            .softmax(-1)
            .max(-1)
        )
        print(
            f"frozen at resid[{k}]: {tokenizer.decode(first)} … (p = {p:.2f})"
        )

# %% [markdown]
# The library reads the frozen positions' keys and values off each block without running the rest
# of it, and runs the words alone until block T.

# %% [markdown]
# ## The sweep
#
# Every k, for three depths T: the layer at which cross-patching turns from donor to target,
# two thirds of the blocks, and the top. Naming and facts. The backbone's name tokens are frozen in
# the same way, so that "later than text" is measured and not assumed.

# %%
swept, ends, skipped = [], {}, []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    if engine.site.kind != "stream":
        skipped.append(name)
        continue
    crossed = cross_patch(
        engine,
        questions,
        pairs_for(pair.vlm, questions, "identify", recognised[name], 1),
        labels={"model": name, "seed": seed},
        folder=work or None,
    )
    crossed["depth"] = depth.undisturbed(crossed)
    crossed["balance"] = depth.balance(crossed)
    turn = depth.switch(crossed, "balance").estimate
    ends[name] = freeze_ends(engine.n_blocks, turn)
    for task in ("identify", "fact"):
        swept.append(
            freeze(
                engine,
                questions,
                asked[name],
                task,
                until=ends[name],
                labels={"model": name, "seed": seed},
                folder=work or None,
            )
        )
if skipped:
    print(
        f"{', '.join(skipped)}: pictures are shown through cross-attention and have no positions "
        "in the stream that could be frozen."
    )

# %%
backbone = next(iter(pairs.values())).llm
if backbone is not None:
    engine = Engine(backbone, rows)
    ends["backbone"] = freeze_ends(engine.n_blocks)
    for task in ("identify", "fact"):
        swept.append(
            freeze(
                engine,
                questions,
                one_per_entity(questions.questions),
                task,
                "name",
                ends["backbone"],
                labels={"model": "backbone", "seed": seed},
                folder=work or None,
            )
        )
if not swept:
    raise UnsupportedSite(
        "This model shows pictures through cross-attention and has no text backbone to freeze "
        "names in; leave this chapter out."
    )
swept = pd.concat(swept, ignore_index=True)
keep_records(
    pd.concat([*able.values(), swept]), work, "forward_freezing", pairs
)

# %% [markdown]
# ## Results
#
# ### Naming with a frozen picture
#
# {numref}`fig-freeze-names` freezes the picture up to the top. The first point is the picture as it
# enters the model.


# %% tags=["hide-input"]
def to_the_top(task):
    top = swept.groupby("model")["until"].transform("max")
    return swept[(swept["task"] == task) & (swept["until"] == top)]


def counted(frame):
    n = (
        frame.drop_duplicates(["model", "entity_id"])
        .groupby("model")
        .size()
    )
    return f"n = {n.min()}–{n.max()} entities for each model"


naming = to_the_top("identify")
start = naming[naming["layer"] == 0].groupby("model")["correct"].mean()
show(
    lines_by_layer(
        depth.curve(naming, "correct", x="layer"),
        f"A picture frozen at the door is still named in {100 * start.max():.0f} % "
        f"({start.idxmax()})"
        + (
            f" to {100 * start.min():.0f} % ({start.idxmin()})"
            if len(start) > 1
            else ""
        ),
        y_title="Still named (%)",
        x_title="Layer k at which the picture is frozen",
    ),
    "fig-freeze-names",
    "Recognised entities that are still named when the picture's positions (backbone: the name's) "
    f"are held at resid[k] up to the last block. {counted(naming)}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Facts with a frozen picture
#
# {numref}`fig-freeze-facts` asks for a fact under the same freeze.

# %% tags=["hide-input"]
facts = to_the_top("fact")
rise = (
    facts[facts["layer"] == facts["until"]]
    .groupby("model")["correct"]
    .mean()
)
first = facts[facts["layer"] == 0].groupby("model")["correct"].mean()
most = (rise - first).idxmax()
show(
    lines_by_layer(
        depth.curve(facts, "correct", x="layer"),
        f"Facts need blocks to work on the picture: {most} goes from "
        f"{100 * first[most]:.0f} to {100 * rise[most]:.0f} %",
        y_title="Facts answered (%)",
        x_title="Layer k at which the picture is frozen",
    ),
    "fig-freeze-facts",
    "Facts answered when the picture's positions (backbone: the name's) are held at resid[k] up "
    f"to the last block. {counted(facts)}, one fact each. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### How much work the picture needs
#
# The table gives the number of blocks that have to read the picture as it is before half of the
# answers that there are without freezing are back.

# %%
own = swept.assign(depth=depth.undisturbed(swept))
free = (
    own[own["layer"] == own["until"]]
    .groupby(["model", "task", "until"])["correct"]
    .mean()
    .rename("free")
)
own = own.merge(free.reset_index(), on=["model", "task", "until"])
own["retained"] = own["correct"] / own["free"].where(own["free"] > 0.1)
table = depth.switches(
    own.dropna(subset=["retained"]),
    "retained",
    by=("model", "task", "until"),
)
table.rename(
    columns={
        "switch": "blocks until half is back",
        "until": "T",
        "n_entities": "entities",
    }
).drop(columns="n_items").style.hide(axis="index").format(
    "{:.2f}",
    subset=["blocks until half is back", "low", "high"],
    na_rep="none",
)

# %% [markdown]
# "None" means that half of the answers are there from the first point on, or that there are too few
# answers without freezing to speak of.

# %% [markdown]
# ### Early and late identified
#
# *Early identified* are entities named although the picture is frozen from layer 1 on; *late
# identified* need more. If late resolution costs facts, late entities should lose more of them, at
# equal knowledge by name.

# %%
rows_ = []
for name in [m for m in models if m not in skipped]:
    part = naming[(naming["model"] == name) & (naming["layer"] == 1)]
    early = set(part.loc[part["correct"], "entity_id"])
    answers = able[name]
    known = answers[
        (answers["condition"] == "by_name") & answers["correct"]
    ]["question_id"]
    facts_ = answers[
        (answers["condition"] == "by_picture")
        & answers["question_id"].isin(known)
        & answers["entity_id"].isin(recognised[name])
    ]
    for group, own_ in (
        ("early", facts_[facts_["entity_id"].isin(early)]),
        ("late", facts_[~facts_["entity_id"].isin(early)]),
    ):
        share = stats.entity_bootstrap(
            own_["correct"].astype(float).to_numpy(), own_["entity_id"]
        )
        rows_.append(
            {"model": name, "identified": group}
            | share.columns("facts by picture")
            | {"entities": share.n_entities, "facts": share.n_items}
        )
groups = pd.DataFrame(
    rows_,
    columns=[
        "model",
        "identified",
        "facts by picture",
        "facts by picture_low",
        "facts by picture_high",
        "entities",
        "facts",
    ],
)
groups.style.hide(axis="index").format(
    "{:.1%}",
    subset=[c for c in groups if c.startswith("facts by")],
    na_rep="–",
)

# %% tags=["remove-cell"]
found = table[
    table["until"] == table.groupby("model")["until"].transform("max")
]
found = found.set_index(["model", "task"])["switch"]


def depth_of(model, task):
    value = found.get((model, task))
    if value is not None and not pd.isna(value):
        return f"{value:.1f}"
    part = own[(own["model"] == model) & (own["task"] == task)]
    return (
        "at most 1"
        if part.loc[part["layer"] == 0, "retained"].mean() >= 0.5
        else "none"
    )


for model in ends:
    glue(f"named_{model}", f"{100 * start[model]:.0f}")
    glue(f"depth_name_{model}", depth_of(model, "identify"))
told = [
    f"{depth_of(m, 'fact')} in {m}"
    for m in ends
    if depth_of(m, "fact") != "none"
]
glue(
    "fact_sentence",
    f"half of them are back with {', '.join(told)}."
    if told
    else "none are back.",
)
wide = groups.pivot(
    index="model", columns="identified", values="facts by picture"
)
told = groups.groupby("model").agg(
    least=("entities", "min"), most=("facts by picture", "max")
)
apart = [
    f"{100 * (wide.loc[m, 'early'] - wide.loc[m, 'late']):+.0f} points in {m}"
    for m in told.index[(told["least"] > 4) & (told["most"] > 0.1)]
]
glue(
    "group_sentence",
    "Houses identified early keep more of their known facts than those identified late by "
    + ", ".join(apart)
    + " (intervals below)."
    if apart
    else "Whether houses identified late lose more facts cannot be told here: where enough are "
    "identified late, hardly any fact is answered by picture.",
)
name = models[0]
glue(
    "model_asked",
    f"{name}, with {len(questions.entities())} entities of the benchmark {questions.name}",
)
glue(
    "model_freeze",
    f"Frozen as it enters the first block, the picture lets {100 * start[name]:.0f} % of the "
    f"entities be named; half of them are back after {depth_of(name, 'identify')} blocks (facts: "
    f"{depth_of(name, 'fact')})."
    if name in start
    else f"{name} shows pictures through cross-attention; nothing in its stream can be frozen.",
)

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same freeze in two more worlds, as recorded when the project's study was made: blocks until
# half of the answers are back, frozen up to the last block.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = records.read_frame(STUDY / "sweeps.parquet")
recorded = recorded[
    (recorded["experiment"] == "freeze")
    & (recorded["seed"] != seed)
    & (vlm == "")
]
worlds = pd.concat([swept, recorded])
top = worlds.groupby("model")["until"].transform("max")
worlds = worlds[worlds["until"] == top]
worlds = worlds.assign(depth=depth.undisturbed(worlds))
keys = ["model", "task", "seed"]
free = (
    worlds[worlds["layer"] == worlds["until"]]
    .groupby(keys)["correct"]
    .mean()
    .rename("free")
)
worlds = worlds.merge(free.reset_index(), on=keys)
worlds["retained"] = worlds["correct"] / worlds["free"].where(
    worlds["free"] > 0.1
)
by_world = depth.switches(
    worlds.dropna(subset=["retained"]), "retained", by=keys
)
by_world["blocks"] = [
    "none"
    if pd.isna(r.switch)
    else f"{r.switch:.1f} [{r.low:.1f}, {r.high:.1f}]"
    for r in by_world.itertuples()
]
by_world.pivot(
    index=["task", "model"], columns="seed", values="blocks"
).fillna("none")

# %% [markdown]
# ## Controls
#
# Freezing nothing (k = T) must leave a run as it is; the sweep stops if it does not. The table
# shows how many answers are word for word unchanged, at k = T and at k = 0, and how they were
# computed.

# %%
edges = swept[(swept["layer"] == 0) | (swept["layer"] == swept["until"])]
edges.assign(
    frozen=edges["layer"].eq(0).map({True: "k = 0", False: "k = T"})
).groupby(["model", "computation", "frozen"])["unchanged"].agg(
    ["mean", "count"]
).style.format({"mean": "{:.1%}"})

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`cohen2025performance` freeze LLaVA-type models from layers 0 to 19 up to block 20, and
# report that the two LLaVA-MORE models keep about 30 to 50 % of their identified entities even from
# layer 0. Their layer 0 is the stream *behind* block 0, here k = 1. They fix T at 20; here it is the
# measured switch layer, and others beside it. Facts under the freeze, and names frozen alike in the
# text backbone, are not reported there.
#
# They also report that entities identified early are the better known ones. Here the two groups are
# compared on facts that the same model knows by name.

# %% [markdown] tags=["organisms"]
# The organisms are tiny, and all of their facts are known by name, so that the comparison of early
# and late identified houses needs no correction for knowledge here.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` to a published model's id: the page is about that model then.
# - Freeze up to another block: `until=[2]` in `freeze`.
# - Is the last image token enough? Freeze it alone, with the nnsight form above.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
