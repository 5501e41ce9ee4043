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
# Which blocks of the text backbone turn a name into a fact, and until when can they still do it? If
# a picture's entity arrives after that *deadline*, the fact must be missed: a prediction that can be
# checked.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
#
# - In the backbone, {glue:text}`early_mlp` % of what attribution finds at the name's tokens lies in
#   the MLPs of the lowest half of the blocks, and {glue:text}`late_attn` % of the attention's at the
#   last token in the upper half of its blocks.
# - Place by place that estimate goes with true patching at r = {glue:text}`correlation`
#   (n = {glue:text}`n_places` places, signs agree in {glue:text}`signs` %), and with small steps at
#   {glue:text}`finite`; averaged over the way from one name to the other (integrated), with true
#   patching at r = {glue:text}`correlation_integrated`. By that variant the two shares are
#   {glue:text}`early_mlp_integrated` % and {glue:text}`late_attn_integrated` %.
# - **The recall deadline.** An entity's state that arrives at layer {glue:text}`s_main` is turned
#   into its fact in {glue:text}`at_start` % of cases, at layer 4 in {glue:text}`at_4` %, at layer 6 in
#   {glue:text}`at_6` %. Half of it is gone at layer {glue:text}`deadline`.
# - {glue:text}`prediction_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
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
# **The recall deadline.** A question with a placeholder where the name would be. The entity's own
# state, `resid[s]` at its last name token, is written over the placeholder at `resid[l]`, for l from
# s to the top. While the blocks that recall are still ahead, the fact comes; behind them it does not.

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
from twohop_lib import records, stats
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.dots import predicted_measured
from twohop_lib.figures.heat import component_map
from twohop_lib.figures.lines import lines_by_layer
from twohop_lib.interventions import attribution, hooks
from twohop_lib.interventions.deadlines import (
    placeholder,
    recall_deadline,
)
from twohop_lib.interventions.pairs import one_per_entity, pairs_for
from twohop_lib.interventions.recorder import named_recording, own_blocks
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import early_blocks
from twohop_lib.models.prompts import Prompt
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
pair = next(iter(pairs.values()))
backbone = Engine(pair.backbone, rows)
chosen = pairs_for(
    pair.backbone, questions, "fact", set(questions.entities()), 1
)

# %% [markdown]
# ## The method
#
# In nnsight: write one entity's state into a prompt that names none, at one layer after another.

# %%
word = placeholder(backbone)
question = chosen[0].target
text = question.question_by_name.replace(question.entity, word)
print(text, "←", question.entity, "→", question.answers[0])
empty = backbone.record(
    Prompt("by_name", text, False), None, word, from_start=True
)
named = named_recording(backbone, question)
s_main = early_blocks(backbone.n_blocks)
state = hooks.activations(backbone, named, "resid", [s_main])[s_main]
state = state[named.roles.entity[-1]]
at = empty.roles.entity[-1]

# %%
traced = NNsight(backbone.model)
tokenizer = pair.backbone.tokenizer
for layer in range(s_main, backbone.n_blocks):
    blocks = decoder_blocks(traced, backbone.blocks)
    with traced.trace(**empty.inputs, use_cache=False):
        blocks[layer].input[0, at] = state
        logits = traced.output.logits[0, -1].save()
    p, first = logits.detach().float().softmax(-1).max(-1)
    print(f"resid[{layer}]: {tokenizer.decode(first)} … (p = {p:.2f})")

# %% [markdown]
# ## The sweep
#
# Attribution on the backbone with names (two at a time, of equally many tokens), and on each VLM
# with pictures; then the deadline for states taken after one, two and three blocks, with a wrong
# entity's state beside.


# %%
everyone = open_questions(benchmark, seed, "", wording, 0)
alike = pairs_for(
    pair.backbone,
    everyone,
    "fact",
    set(everyone.entities()),
    1,
    alike_names=True,
)
asked_of = set(questions.entities())
alike = [p for p in alike if p.target.entity_id in asked_of]


def contrasts(engine):
    by = "name" if engine is backbone else "picture"
    return attribution.contrasts(engine, everyone, alike[:24], by)


# %%
engines = {"backbone": backbone} | {
    name: Engine(p.vlm, rows) for name, p in pairs.items()
}
scored = pd.concat(
    [
        attribution.attribute(engine, contrasts(engine)).assign(
            model=name
        )
        for name, engine in engines.items()
    ],
    ignore_index=True,
)

# %%
states = sorted({1, s_main, min(3, backbone.n_blocks - 1)})
late_write = recall_deadline(
    backbone,
    questions,
    chosen,
    states,
    labels={"model": "backbone", "seed": seed},
    folder=work or None,
)
keep_records(
    pd.concat([*able.values(), late_write]),
    work,
    "where_facts_are_recalled",
    pairs,
)

# %% [markdown]
# ## Results
#
# ### Early MLPs at the name, later attention at the end
#
# {numref}`fig-attribution` is the backbone's: each component's share of all positive scores.

# %% tags=["hide-input"]
profile = (
    scored.groupby(["model", "component", "role", "block"])["score"]
    .mean()
    .reset_index()
)
own = profile[profile["model"] == "backbone"].copy()
total = own["score"].clip(lower=0).sum()
own["share"] = own["score"].clip(lower=0) / total
top = own.loc[own["share"].idxmax()]
show(
    component_map(
        own,
        f"The largest share ({100 * top['share']:.0f} %) is the {top['component']} of block "
        f"{int(top['block'])} at the {'name' if top['role'] == 'entity' else top['role']}",
    ),
    "fig-attribution",
    "Attribution in the text backbone, by block, component and position: share of all positive "
    f"scores, mean over n = {scored[scored['model'] == 'backbone']['entity_id'].nunique()} pairs "
    "of prompts.",
)

# %% [markdown]
# ### The same on pictures
#
# How alike are a VLM's profile, with the picture in the name's place, and its backbone's? The null
# shuffles the VLM's blocks.


# %%
def vector(name):
    part = profile[profile["model"] == name]
    return part.pivot_table(
        index=["component", "role"], columns="block", values="score"
    )


reference = vector("backbone")
overlap = []
for name in models:
    mine = vector(name)
    keep = [
        b for b in mine.columns if b not in engines[name].blocks.cross
    ]
    mine = mine[keep].reindex(reference.index).to_numpy()
    same = np.corrcoef(mine.ravel(), reference.to_numpy().ravel())[0, 1]
    rng = np.random.default_rng(0)
    null = [
        np.corrcoef(
            mine[:, rng.permutation(mine.shape[1])].ravel(),
            reference.to_numpy().ravel(),
        )[0, 1]
        for _ in range(500)
    ]
    overlap.append(
        {
            "model": name,
            "correlation with the backbone": same,
            "null, 95th percentile": np.quantile(null, 0.95),
            "p": (1 + np.sum(np.array(null) >= same)) / 501,
        }
    )
pd.DataFrame(overlap).style.hide(axis="index").format(
    "{:.2f}",
    subset=["correlation with the backbone", "null, 95th percentile"],
).format("{:.3f}", subset=["p"])

# %% [markdown]
# ### The recall deadline
#
# {numref}`fig-deadline` gives the share of facts that come when the entity's state arrives at a
# layer.

# %% tags=["hide-input"]
entity = late_write[late_write["arm"] == "entity"].assign(
    arrives=lambda f: "state after " + f["state"].astype(str) + " blocks"
)
curve = depth.curve(entity, "correct", x="layer", by=("arrives",))
main = (
    entity[entity["state"] == s_main].groupby("layer")["correct"].mean()
)
half = main.iloc[0] / 2
fallen = main[main < half]
show(
    lines_by_layer(
        curve,
        f"An entity that arrives at layer {int(fallen.index[0])} or later is rarely recalled"
        if len(fallen)
        else "The backbone recalls entities that arrive at any layer",
        y_title="Facts recalled (%)",
        x_title="Layer at which the entity's state arrives",
        group="arrives",
    ),
    "fig-deadline",
    "Facts that the backbone answers when an entity's state is written over a placeholder at a "
    f"layer. n = {entity['entity_id'].nunique()} entities, one fact each. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Does the deadline predict the gap?
#
# *Arrival* is the layer at which the picture's last position becomes name-like (*When the picture
# becomes a name*): the first at which a linear map, fitted on half of the houses, finds the names
# of half of the others. Read off the deadline's curve at that layer, what should the VLM recall?

# %%
houses = one_per_entity(everyone.questions)
name_states = probes.name_states(backbone, houses)[:, s_main]
nothing = late_write[late_write["arm"] == "nothing"]["correct"].mean()


def predicted(found, curve, floor):
    """The layer of arrival, and the share of facts that its deadline leaves."""
    share = found.groupby("layer")["found"].mean()
    there = share[share >= 0.5]
    if not len(there):
        return None, floor
    layer = int(there.index[0])
    # A state that arrives before the layer it was taken from has the whole way ahead.
    return layer, float(curve.get(max(layer, s_main), floor))


arrivals = []
for name in pairs:
    engine = engines[name]
    images = probes.image_states(engine, everyone, houses)["image"][:, 0]
    own_ = [*own_blocks(engine), engine.n_blocks]
    found = probes.name_likeness(images[:, own_], name_states)
    _, test = probes.halves(len(houses))
    found = probes.tidy(found, [houses[i].entity_id for i in test])
    layer, expected = predicted(found, main, nothing)
    facts = able[name]
    facts = facts[
        (facts["condition"] == "by_picture")
        & facts["entity_id"].isin(recognised[name])
    ]
    arrivals.append(
        {
            "model": name,
            "seed": seed,
            "arrives at": layer,
            "predicted": expected,
            "measured": facts["correct"].mean(),
        }
    )
arrivals = pd.DataFrame(arrivals)

# %%
recorded = records.read_frame(STUDY / "recall.parquet")
answers = records.read(STUDY / "answers.parquet")
answers = answers[answers["wording"] == "standard"]
more = []
for (name, world), part in recorded[
    recorded["experiment"] == "name-likeness"
].groupby(["model", "seed"]):
    if vlm or (world == seed and name in models):
        continue
    dead = recorded[
        recorded["arm"].eq("entity")
        & recorded["seed"].eq(world)
        & recorded["state"].eq(s_main)
    ]
    none = recorded[
        recorded["arm"].eq("nothing") & recorded["seed"].eq(world)
    ]
    layer, expected = predicted(
        part,
        dead.groupby("layer")["correct"].mean(),
        none["correct"].mean(),
    )
    rows_ = answers[
        (answers["model"] == name) & (answers["seed"] == world)
    ]
    known = set(
        rows_.loc[
            (rows_["condition"] == "identify") & rows_["correct"],
            "entity_id",
        ]
    )
    rows_ = rows_[
        (rows_["condition"] == "by_picture")
        & rows_["entity_id"].isin(known)
    ]
    more.append(
        {
            "model": name,
            "seed": world,
            "arrives at": layer,
            "predicted": expected,
            "measured": rows_["correct"].mean(),
        }
    )
arrivals = pd.concat([arrivals, pd.DataFrame(more)], ignore_index=True)
arrivals = arrivals.sort_values(["model", "seed"])
arrivals.style.hide(axis="index").format(
    "{:.0%}", subset=["predicted", "measured"]
).format("{:.0f}", subset=["arrives at"], na_rep="never")

# %% tags=["hide-input"]
off = (arrivals["predicted"] - arrivals["measured"]).abs()
enough = len(arrivals) > 2
linked = (
    np.corrcoef(arrivals["predicted"], arrivals["measured"])[0, 1]
    if enough
    else float("nan")
)
show(
    predicted_measured(
        arrivals,
        f"The deadline predicts facts by picture within {100 * off.mean():.0f} points on average",
    ),
    "fig-prediction",
    "Facts answered by picture, predicted from the layer of arrival and the backbone's deadline, "
    f"against those measured on recognised entities. n = {len(arrivals)} models"
    + (
        " of three worlds (others than this page's from the study's records)."
        if not vlm
        else "."
    ),
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
contrasted = list(contrasts(backbone))
truth = attribution.against_truth(backbone, contrasted)
stepped = np.array(
    [
        attribution.finite_difference(
            backbone, c, ("mlp", 1, c.corrupt.span[1] - 1)
        )
        for c in contrasted[:8]
    ]
)


def correlation(column):
    return stats.resample_entities(
        truth["contrast"],
        lambda at: np.corrcoef(truth[column][at], truth["true"][at])[
            0, 1
        ],
    )


# %%
r, r_integrated = correlation("estimated"), correlation("integrated")
large = truth[truth["true"].abs() > 0.05]
agree = (np.sign(large["estimated"]) == np.sign(large["true"])).mean()
r_finite = np.corrcoef(stepped[:, 0], stepped[:, 1])[0, 1]
pd.DataFrame(
    {
        "correlation with true patching": (r.estimate, r.low, r.high),
        "the same, integrated variant": (
            r_integrated.estimate,
            r_integrated.low,
            r_integrated.high,
        ),
        "signs that agree (effects above 0.05)": (agree, None, None),
        "correlation with finite differences": (r_finite, None, None),
    },
    index=["value", "low", "high"],
).T.style.format("{:.2f}", na_rep="")

# %% [markdown]
# If the estimate is rough, do the shares still hold? The same two, by the integrated variant:

# %%
averaged = (
    attribution.attribute(backbone, contrasted, integrated=True)
    .groupby(["component", "role", "block"])["score"]
    .mean()
    .reset_index()
)


def shares(scores):
    """Of positive scores: early MLPs' share at the name, late attention's at the last token."""
    above = scores.assign(score=scores["score"].clip(lower=0))
    name = above[above["role"] == "entity"]
    early = (name["component"] == "mlp") & (
        name["block"] < backbone.n_blocks / 2
    )
    last = above[
        (above["role"] == "last") & (above["component"] == "attn")
    ]
    late = last["block"] >= backbone.n_blocks / 2 - 1
    return (
        name["score"][early].sum() / name["score"].sum(),
        last["score"][late].sum() / last["score"].sum(),
    )


pd.DataFrame(
    {"one gradient": shares(own), "integrated": shares(averaged)},
    index=[
        "MLPs of the lower half, at the name",
        "attention of the upper half, at the last token",
    ],
).style.format("{:.0%}")

# %% [markdown]
# ### Whose fact, and what the state already carries
#
# The wrong entity's state should give the *wrong entity's* fact; a placeholder left alone, no
# fact. And a state may already carry answers that no block need recall: a linear probe, trained on
# other houses' states, reads off the answer as often as given in the last column.

# %%
arms = (
    late_write[late_write["layer"].notna()]
    .groupby(["arm", "state", "layer"])["follows"]
    .value_counts(normalize=True)
    .unstack(fill_value=0)
)
arms.reindex(
    columns=["right", "donor", "neither"], fill_value=0
).style.format("{:.0%}")

# %%
relations = {}
for q in everyone.questions:
    relations.setdefault(q.relation, {})[q.entity_id] = q.answers[0]
all_states = probes.name_states(backbone, houses)
carried = []
for s in states:
    hits = [
        probes.fact_probe(
            all_states[:, s],
            [relations[key].get(h.entity_id, "") for h in houses],
        )
        for key in relations
    ]
    carried.append(
        {
            "state after": s,
            "recalled on arrival": entity[
                (entity["state"] == s) & (entity["layer"] == s)
            ]["correct"].mean(),
            "read off by a probe": float(np.mean(np.concatenate(hits)))
            if sum(map(len, hits))
            else float("nan"),
        }
    )
pd.DataFrame(carried).style.hide(axis="index").format(
    "{:.0%}", subset=["recalled on arrival", "read off by a probe"]
)

# %% tags=["remove-cell"]
for key, scores in (("", own), ("_integrated", averaged)):
    for name, share in zip(
        ("early_mlp", "late_attn"), shares(scores), strict=True
    ):
        glue(name + key, f"{100 * share:.0f}")
glue("correlation", r.words(2))
glue("correlation_integrated", r_integrated.words(2))
glue("n_places", str(len(truth)))
glue("signs", f"{100 * agree:.0f}")
glue("finite", f"{r_finite:.3f}")
glue("s_main", str(s_main))
glue("at_start", f"{100 * main.iloc[0]:.0f}")
for layer in (4, 6):
    glue(f"at_{layer}", f"{100 * main.get(layer, float('nan')):.0f}")
rising = entity[entity["state"] == s_main].assign(
    lost=lambda f: 1 - f["correct"].astype(float)
)
turn = depth.switch(rising, "lost", x="layer")
glue("deadline", turn.words(1))
worst = arrivals.loc[off.idxmax()]
glue(
    "prediction_sentence",
    f"Read off at the layer where each organism's picture becomes name-like, the deadline predicts "
    f"the facts it answers by picture within {100 * off.mean():.0f} points on average (r = "
    f"{linked:.2f} over {len(arrivals)} organisms in three worlds); it is furthest off, by "
    f"{100 * off.max():.0f} points, for {worst['model']} (seed {int(worst['seed'])}).",
)
name = models[0]
glue(
    "model_asked",
    f"{name}, with {len(questions.entities())} entities of the benchmark {questions.name}",
)
glue(
    "model_deadline",
    "An entity's state that arrives at layer "
    f"{s_main} of its backbone is turned into its fact in {100 * main.iloc[0]:.0f} % of cases; "
    f"half of them are gone at layer "
    f"{'none' if turn.estimate is None else f'{turn.estimate:.1f}'} of {backbone.n_blocks}.",
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report the three parts of recall in the backbones (early MLPs at
# entity tokens, late attention at the last token, transfer between), and that VLMs with a large gap
# use other, later components for pictures. Their title's claim, that entities arrive *too late to
# recall*, is measured here as a quantity: until which layer the backbone can still recall an entity
# that arrives, and whether that predicts what its VLMs miss.

# %% [markdown] tags=["organisms"]
# The organisms were made to differ in arrival (cross-early, cross and cross-late differ in nothing
# else), so a prediction that holds here says that the measure measures what it should. Late never
# becomes name-like, and misses its facts for that reason; middle arrives in time and misses some all
# the same, which lateness does not explain.

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
