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
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
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
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
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
import numpy as np
import pandas as pd
from nnsight import NNsight
from twohop_lib import records
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.lines import lines_by_layer
from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Recorder, own_blocks, receiving
from twohop_lib.organisms import STUDY, suited_benchmark
from twohop_lib.readouts import probes
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
        conditions=("identify", "llm_by_name", "by_picture"),
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

# %%
engines = {name: Engine(pair.vlm, rows) for name, pair in pairs.items()}
backbone = Engine(next(iter(pairs.values())).backbone, rows)
everyone = open_questions(benchmark, seed, "", wording, 0)
houses = one_per_entity(everyone.questions)
print(f"{len(houses)} entities to map, half of them to fit on")

# %% [markdown]
# ## The method
#
# In nnsight: the stream at the picture's last position, and at the last token of the name, for one
# entity. All that follows is linear algebra on such states.

# %%
name = "middle" if "middle" in pairs else models[0]
engine = engines[name]
shown = Recorder(engine, everyone, "identify", True, 0, from_start=True)(
    houses[0]
)
at = receiving(engine, shown)[-1]
traced = NNsight(engine.model)
blocks = decoder_blocks(traced, engine.blocks)
with traced.trace(**shown.inputs, use_cache=False):
    early = blocks[0].input[0, at].clone().save()
    later = (
        blocks[min(2, engine.n_blocks - 1)].input[0, at].clone().save()
    )
print(f"{houses[0].entity}: resid[0] and resid[2] at position {at}:")
print(
    f"norms {early.norm():.1f} and {later.norm():.1f}, "
    f"cosine {(early @ later / early.norm() / later.norm()):.2f}"
)

# %% [markdown]
# ## The sweep

# %%
s_main = max(2, backbone.n_blocks // 4)
names = probes.name_states(backbone, houses)[:, s_main]
fit, test = probes.halves(len(houses))
ids = [houses[i].entity_id for i in test]
likeness, shuffled = [], []
for name, engine in engines.items():
    images = probes.image_states(engine, everyone, houses)["image"][:, 0]
    own = [*own_blocks(engine), engine.n_blocks]
    for into, mixed in ((likeness, False), (shuffled, True)):
        found = probes.name_likeness(
            images[:, own], names, shuffled=mixed
        )
        into.append(probes.tidy(found, ids).assign(model=name, seed=seed))
likeness = pd.concat(likeness, ignore_index=True)
shuffled = pd.concat(shuffled, ignore_index=True)

# %% [markdown]
# The probe sees five views of each picture (slightly cropped), three to train on and two to test.

# %%
few = [q for q in houses if q.entity_id in set(questions.entities())]
probed, mixed_up = [], []
for name, engine in engines.items():
    views = probes.image_states(engine, everyone, few, views=range(5))
    for into, mixed in ((probed, False), (mixed_up, True)):
        found = probes.entity_probe(
            views["image"], (3, 4), shuffled=mixed
        )
        into.append(
            probes.tidy(found, [q.entity_id for q in few]).assign(
                model=name
            )
        )
probed = pd.concat(probed, ignore_index=True)
mixed_up = pd.concat(mixed_up, ignore_index=True)
keep_records(
    pd.concat(able.values()),
    work,
    "when_the_picture_becomes_a_name",
    pairs,
)

# %% [markdown]
# ## Results
#
# ### Name-likeness
#
# Layers are counted in the backbone's own blocks, so that inserted cross-attention layers do not
# shift them ({numref}`fig-likeness`).

# %% tags=["hide-input"]
peaks = likeness.groupby(["model", "layer"])["found"].mean()
peaks = peaks.groupby("model").max().sort_values()
show(
    lines_by_layer(
        depth.curve(likeness, "found", x="layer"),
        f"Name-likeness peaks at {100 * peaks.iloc[0]:.0f} % in {peaks.index[0]}"
        + (
            f" and {100 * peaks.iloc[-1]:.0f} % in {peaks.index[-1]}"
            if len(peaks) > 1
            else ""
        ),
        y_title="Unseen names found (%)",
        x_title="Layer (blocks of the backbone below)",
    ),
    "fig-likeness",
    "Entities whose image state, mapped to the backbone's name states by a map fitted on other "
    f"entities, is nearest to their own name among {len(test)}. n = {len(test)} entities for each "
    "model. Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### The entity probe
#
# {numref}`fig-probe`: that entities can be told apart says little about names.

# %% tags=["hide-input"]
by_layer = probed.groupby(["model", "layer"])["found"].mean().unstack()
first = (
    by_layer.ge(0.9).idxmax(axis=1).where(by_layer.ge(0.9).any(axis=1))
)
show(
    lines_by_layer(
        depth.curve(probed, "found", x="layer"),
        "Entities are told apart (90 %) from layer "
        + ", ".join(f"{int(v)} ({m})" for m, v in first.dropna().items())
        if first.notna().any()
        else "No model's entities are told apart nine times in ten",
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
one = "middle" if "middle" in pairs else models[0]
lens = pd.concat(
    [
        probes.logit_lens(engines[name], questions, asked[name]).assign(
            model=name
        )
        for name in models
    ],
    ignore_index=True,
)
lens["outcome"] = lens["correct"].map({True: "answered", False: "missed"})

# %% tags=["hide-input"]
part = lens[lens["model"] == one]
sizes = part.drop_duplicates("question_id")["outcome"].value_counts()
ends = part[part["layer"] == part["layer"].max()]
means = ends.groupby("outcome")["right"].mean()
show(
    lines_by_layer(
        depth.curve(part, "right", x="layer", by=("outcome",)),
        f"In {one}, the right answer rises only where it is given"
        if means.get("answered", 0) > 0.5
        else f"In {one}, the right answer does not rise",
        y_title="Probability of the right answer (%)",
        x_title="Layer read by the model's head",
        group="outcome",
    ),
    "fig-lens",
    f"Logit lens at the last position of {one}, final norm applied: first token of the right answer. "
    + ", ".join(f"n = {v} {k}" for k, v in sizes.items())
    + ". Bands: 95 % intervals from resampling entities.",
)

# %%
top = lens[
    lens["layer"] == lens.groupby("model")["layer"].transform("max")
]
top.groupby(["model", "outcome"])[["right", "emitted"]].agg(
    ["mean", "count"]
).style.format("{:.2f}", subset=[("right", "mean"), ("emitted", "mean")])

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
recorded = records.read_frame(STUDY / "recall.parquet")
recorded = recorded[
    (recorded["experiment"] == "name-likeness")
    & ((recorded["seed"] != seed) | ~recorded["model"].isin(models))
    & (vlm == "")
]
worlds = pd.concat([likeness, recorded])
share = worlds.groupby(["model", "seed", "layer"])["found"].mean()
peak = share.groupby(["model", "seed"]).max().unstack("seed")
arrives = (
    share[share >= 0.5]
    .reset_index()
    .groupby(["model", "seed"])["layer"]
    .min()
    .unstack("seed")
    .reindex(index=peak.index, columns=peak.columns)
)
pd.concat({"peak": peak, "first layer": arrives}, axis=1).style.format(
    "{:.0%}", subset=["peak"]
).format("{:.0f}", subset=["first layer"], na_rep="never")

# %% [markdown]
# ## Controls
#
# The same map fitted on names that were dealt out at random, and the same probe trained on shuffled
# labels; chance is one in the number of entities.

# %%
control = pd.DataFrame(
    {
        "name-likeness, names dealt out": shuffled.groupby(
            ["model", "layer"]
        )["found"]
        .mean()
        .groupby("model")
        .max(),
        "probe, labels shuffled": mixed_up.groupby(["model", "layer"])[
            "found"
        ]
        .mean()
        .groupby("model")
        .max(),
    }
).loc[models]
control["chance"] = 1 / len(test)
control.style.format("{:.1%}")

# %% tags=["remove-cell"]
like = likeness.groupby(["model", "layer"])["found"].mean()
for model in models:
    course = like[model]
    half = course[course >= 0.5]
    glue(f"probe_{model}", f"{100 * by_layer.loc[model, 1]:.0f}")
    glue(f"like_{model}", f"{100 * course.max():.0f}")
    glue(
        f"arrives_{model}",
        str(int(half.index[0])) if len(half) else "none",
    )
    before = course[course.index < (half.index[0] if len(half) else 99)]
    glue(
        f"before_{model}",
        f"{100 * before.max():.0f}" if len(before) else "–",
    )
gap_ = means.get("missed")
glue(
    "lens_sentence",
    f"Through the logit lens, the right answer ends at a probability of "
    f"{100 * means.get('answered', np.nan):.0f} % in {one} where it is given, and at "
    f"{100 * gap_:.0f} % where it is missed."
    if gap_ is not None and not pd.isna(gap_)
    else f"Through the logit lens, {one} gives no answer that is missed.",
)
name = models[0]
glue(
    "model_asked",
    f"{name}, with {len(houses)} entities of the benchmark {questions.name}",
)
glue(
    "model_like",
    f"Name-likeness peaks at {100 * like[name].max():.0f} % of {len(test)} unseen entities (chance "
    f"{100 / len(test):.1f} %); a linear probe tells {100 * by_layer.loc[name].max():.0f} % apart.",
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
# recall circuit could use what it sees.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` and `llm` to a published pair; name-likeness wants a few hundred entities.
# - Map to another depth of the backbone: `s_main = 1`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
