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
# facts that the backbone knows and the VLM misses.
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
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
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
benchmark = ""  # what is asked: a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "cross"]  # which miniature VLMs to ask
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
from nnsight import NNsight
from twohop_lib import records, stats
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.dots import by_method
from twohop_lib.interventions import hooks
from twohop_lib.interventions.back_patch import back_patch
from twohop_lib.interventions.mlp_patch import mlp_patch
from twohop_lib.interventions.pairs import one_per_entity, pairs_for
from twohop_lib.interventions.recorder import (
    Recorder,
    named_recording,
    own_blocks,
    receiving,
)
from twohop_lib.interventions.reference import traced_module
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import early_blocks
from twohop_lib.organisms import STUDY, suited_benchmark
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

# %% [markdown]
# ## The method
#
# In nnsight, for one house: the backbone's MLP outputs at the name, written over the VLM's own at
# the last positions of the picture.

# %%
name = "late" if "late" in pairs else models[0]
engine, llm_engine = (
    Engine(pairs[name].vlm, rows),
    Engine(pairs[name].backbone, rows),
)
question = asked[name][0]
target = Recorder(engine, questions, "by_picture", 8, from_start=True)(
    question
)
named = named_recording(llm_engine, question)
early = early_blocks(llm_engine.n_blocks)
mlp_out = hooks.activations(llm_engine, named, "mlp", range(early))
at = receiving(engine, target)[-len(named.roles.entity) :]
names = list(named.roles.entity)[-len(at) :]

# %%
own = own_blocks(engine)
model = NNsight(engine.model)
with model.trace(**target.inputs, use_cache=False):
    for block in range(early):
        mlp = traced_module(
            model, engine.blocks, engine.blocks.mlp(own[block])
        )
        mlp.output[0, list(at)] = mlp_out[block][names]
    logits = model.output.logits[0, -1].save()
tokenizer = pairs[name].vlm.tokenizer
print(question.question_by_picture, "→", question.answers[0])
print("alone:  ", tokenizer.decode(target.logits.argmax()), "…")
print("patched:", tokenizer.decode(logits.argmax()), "…")

# %% [markdown]
# ## The sweep
#
# Every method, on one question for each entity that the model recognises; the donor of the *wrong
# entity* control is another entity asked the same relation.

# %%
patched, backed = [], []
for name, pair in pairs.items():
    engine, llm_engine = (
        Engine(pair.vlm, rows),
        Engine(pair.backbone, rows),
    )
    chosen = pairs_for(
        pair.backbone, questions, "fact", recognised[name], 1
    )
    patched.append(
        mlp_patch(
            engine,
            llm_engine,
            questions,
            chosen,
            labels={"model": name, "seed": seed},
            folder=work or None,
        )
    )
    backed.append(
        back_patch(
            engine,
            questions,
            [p.target for p in chosen],
            labels={"model": name, "seed": seed},
            folder=work or None,
        )
    )
patched = pd.concat(patched, ignore_index=True)
backed = pd.concat(backed, ignore_index=True)

# %% [markdown]
# What counts: facts that the backbone answers by name (*known*) and the VLM misses by picture
# (*missed*). Facts that it gets right anyway tell whether a patch does *harm*.

# %%
by_name = pd.concat(able.values())
by_name = by_name[by_name["condition"] == "llm_by_name"]
known = by_name.loc[by_name["correct"], ["model", "question_id"]]
patched = patched.merge(known, on=["model", "question_id"])
free = patched[patched["method"] == "unpatched"].set_index(
    ["model", "question_id"]
)["correct"]
keys = pd.MultiIndex.from_frame(patched[["model", "question_id"]])
patched["missed"] = ~free.reindex(keys).to_numpy(dtype=bool)
backed = backed.merge(known, on=["model", "question_id"])
keys = pd.MultiIndex.from_frame(backed[["model", "question_id"]])
backed["missed"] = ~free.reindex(keys).to_numpy(dtype=bool)
missed = patched[patched["missed"]]
keep_records(
    pd.concat([*able.values(), patched.drop(columns="span"), backed]),
    work,
    "patching_recall",
    pairs,
)
missed[missed["method"] == "unpatched"].groupby("model").size().rename(
    "missed facts"
).to_frame()

# %% [markdown]
# ## Results
#
# ### What comes back
#
# {numref}`fig-recovery` is on missed facts: unpatched, none of them is right.


# %% tags=["hide-input"]
#: Half of the entities fix the pair of layers, the other half is measured.
def fixed_route(rows_):
    dev = sorted(rows_["entity_id"].unique())[::2]
    on_dev = rows_[
        rows_["entity_id"].isin(dev) & (rows_["source"] > rows_["layer"])
    ]
    best = on_dev.groupby(["source", "layer"])["correct"].mean().idxmax()
    rest = rows_[~rows_["entity_id"].isin(dev)]
    return rest[
        (rest["source"] == best[0]) & (rest["layer"] == best[1])
    ], best


pieces = [missed[["model", "method", "entity_id", "correct", "follows"]]]
routes = {}
for model, rows_ in backed[backed["missed"]].groupby("model"):
    if rows_["entity_id"].nunique() > 3:
        fixed, routes[model] = fixed_route(rows_)
        pieces.append(fixed.assign(method="back-patching"))
    best_of_all = rows_.groupby(["model", "entity_id"])["correct"].max()
    pieces.append(
        best_of_all.reset_index().assign(
            method="back-patching, best of all"
        )
    )
recovered = pd.concat(pieces, ignore_index=True)
ORDER = [
    "heuristic",
    "all",
    "last",
    "random",
    "residual stream",
    "added",
    "back-patching",
    "back-patching, best of all",
    "late blocks",
    "noise",
    "wrong entity",
]


def shares(frame, value):
    table = []
    for (model, method), part in frame.groupby(["model", "method"]):
        found = stats.entity_bootstrap(
            part[value].astype(float).to_numpy(), part["entity_id"]
        )
        table.append(
            {"model": model, "method": method}
            | {
                "value": found.estimate,
                "low": found.low,
                "high": found.high,
            }
            | {"n": found.n_items}
        )
    return pd.DataFrame(
        table, columns=["model", "method", "value", "low", "high", "n"]
    )


table = shares(recovered[recovered["method"] != "unpatched"], "correct")
best = table[table["method"] == "heuristic"].set_index("model")["value"]
if len(best):
    show(
        by_method(
            table,
            ORDER,
            f"Early MLP outputs of the backbone bring back {100 * best.min():.0f} to "
            f"{100 * best.max():.0f} % of the missed facts",
        ),
        "fig-recovery",
        "Missed facts (known to the backbone, unanswered by picture) that are right after a patch. "
        f"n = {table['n'].min()}–{table['n'].max()} facts. Back-patching: measured on the half of "
        "the entities that did not fix its layers; best of all is an upper bound. "
        "Bars: 95 % intervals from resampling entities.",
    )

# %% [markdown]
# ### Whose fact?
#
# With the wrong entity's outputs, does the answer follow the entity that was written in?

# %%
(
    missed.groupby(["model", "method"])["follows"]
    .value_counts(normalize=True)
    .unstack(fill_value=0)
    .reindex(columns=["right", "donor", "neither"], fill_value=0)
    .loc[
        lambda t: t.index.get_level_values("method").isin(
            [
                "unpatched",
                "heuristic",
                "wrong entity",
                "late blocks",
                "noise",
            ]
        )
    ]
    .style.format("{:.0%}")
)

# %% [markdown]
# ### Harm
#
# The same patches on facts that the model gets right without them: the share that is lost.

# %%
right = patched[~patched["missed"] & (patched["method"] != "unpatched")]
harm = shares(right.assign(lost=~right["correct"]), "lost")
harm.pivot(index="method", columns="model", values="value").reindex(
    [m for m in ORDER if m in set(harm["method"])]
).style.format("{:.0%}", na_rep="–")

# %% tags=["remove-cell"]
value = table.set_index(["method", "model"])["value"]
follows = (
    missed[missed["method"] == "wrong entity"]
    .assign(donor=lambda f: f["follows"].eq("donor"))
    .groupby("model")["donor"]
    .mean()
)


def percent(number):
    return (
        "–"
        if number is None or pd.isna(number)
        else f"{100 * number:.0f}"
    )


for model in models:
    for short, method in (
        ("heuristic", "heuristic"),
        ("random", "random"),
        ("late", "late blocks"),
        ("back", "back-patching"),
    ):
        glue(f"{short}_{model}", percent(value.get((method, model))))
    glue(f"donor_{model}", percent(follows.get(model)))
name = models[0]
glue(
    "model_asked",
    f"{name}, with {len(questions.entities())} entities of the benchmark {questions.name}",
)
glue(
    "model_patch",
    f"Of the facts that the backbone knows and {name} misses, "
    f"{percent(value.get(('heuristic', name)))} % come back with the heuristic span, "
    f"{percent(value.get(('random', name)))} % with a random one, and "
    f"{percent(value.get(('back-patching', name)))} % with back-patching.",
)

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
recorded = records.read_frame(STUDY / "recall.parquet")
recorded = recorded[
    (recorded["experiment"] == "mlp-patch")
    & (recorded["seed"] != seed)
    & recorded["model"].isin(models)
    & (vlm == "")
]
worlds = pd.concat([patched, recorded])
free = worlds[worlds["method"] == "unpatched"].set_index(
    ["model", "seed", "question_id"]
)["correct"]
keys = pd.MultiIndex.from_frame(worlds[["model", "seed", "question_id"]])
worlds = worlds[~free.reindex(keys).to_numpy(dtype=bool)]
worlds = worlds.assign(
    wanted=worlds["follows"]
    .eq("right")
    .where(
        worlds["method"] != "wrong entity", worlds["follows"].eq("donor")
    ),
    house=worlds["seed"].astype(str) + " " + worlds["entity_id"],
)


def written(found):
    return (
        f"{100 * found.estimate:.0f} "
        f"[{100 * found.low:.0f}, {100 * found.high:.0f}] (n={found.n_items})"
        if found.low is not None
        else "–"
    )


KEPT = ["heuristic", "random", "late blocks", "noise", "wrong entity"]
by_world = [
    {
        "model": model,
        "method": method,
        "seed (%)": world,
        "share": written(
            stats.entity_bootstrap(
                part["wanted"].astype(float).to_numpy(), part["house"]
            )
        ),
    }
    for (model, method, world), part in worlds[
        worlds["method"].isin(KEPT)
    ].groupby(["model", "method", "seed"])
]
pd.DataFrame(
    by_world, columns=["model", "method", "seed (%)", "share"]
).pivot(index=["model", "method"], columns="seed (%)", values="share")

# %% [markdown]
# All worlds together, fact by fact: how much more comes back at the positions that attribution
# picks than at random ones, and at random ones than with the wrong entity's outputs?

# %%
wide = (
    worlds.assign(right=worlds["follows"].eq("right").astype(float))
    .pivot_table(
        index=["model", "house", "question_id"],
        columns="method",
        values="right",
    )
    .reset_index()
)
differences = [
    {
        "model": model,
        "difference": f"{more} − {less}",
        "points [95 %]": written(
            stats.entity_bootstrap(
                (part[more] - part[less]).to_numpy(), part["house"]
            )
        ),
    }
    for model, part in wide.groupby("model")
    for more, less in (
        ("heuristic", "random"),
        ("random", "wrong entity"),
        ("heuristic", "late blocks"),
    )
]
pd.DataFrame(differences).style.hide(axis="index")

# %% tags=["remove-cell"]
told = [
    f"{d['points [95 %]']} in {d['model']}"
    for d in differences
    if d["difference"] == "heuristic − random"
]
glue(
    "random_sentence",
    "Fact by fact and over all worlds, the heuristic brings back so many points more than random "
    f"positions: {', '.join(told)}."
    if told
    else "No fact is missed that the backbone knows.",
)

# %% [markdown]
# ## Controls
#
# Writing a run's own MLP outputs back must leave it as it is; the sweep stops if it does not. Noise
# has the norms of what is written; *late blocks* writes the topmost blocks' outputs. The table says
# which pair of layers back-patching took, and how answers were computed.

# %%
print(
    "back-patching (source, layer):",
    {
        model: tuple(int(x) for x in pair)
        for model, pair in routes.items()
    },
)
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
