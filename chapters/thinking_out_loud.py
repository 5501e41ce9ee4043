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
# # Thinking out loud
#
# If the picture becomes an entity too late, let the model *write down* the entity first: the name in
# its own answer is text, and goes through the blocks that recall. Does naming first bring the facts
# back?

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world, on
# facts known by name and missed by picture.
#
# - Naming first brings back {glue:text}`first_late` % (late), {glue:text}`first_middle` % (middle)
#   and {glue:text}`first_cross` % (cross) of them; a given name {glue:text}`given_late`,
#   {glue:text}`given_middle` and {glue:text}`given_cross` %.
# - A sentence of equal length that names nothing brings back {glue:text}`neutral_late`,
#   {glue:text}`neutral_middle` and {glue:text}`neutral_cross` %: it is the name, and not the time,
#   that helps.
# - {glue:text}`override_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
#
# - {glue:text}`model_cot`
# ```

# %% [markdown]
# ## What is asked
#
# Four ways to be asked the same fact about a picture: directly; *name first* ("First name the house,
# then answer"); *name given* (the answer is begun with the right name); *neutral* (it is begun with
# a sentence of as many tokens that names nothing).

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
from twohop_lib import records, stats
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.dots import by_method
from twohop_lib.interventions.edits import Knockout
from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.prompts import build, naming, render
from twohop_lib.organisms import STUDY, suited_benchmark
from twohop_lib.runs.evaluate import evaluate
from twohop_lib.scoring.matching import matches

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
# What is sent, for one question, and what comes back.

# %%
name = "middle" if "middle" in pairs else models[0]
pair = pairs[name]
question = asked[name][0]
for kind in ("by_picture", "name_first", "name_given", "neutral"):
    prompt = build(kind, question, pair.vlm.tokenizer)
    text = render(pair.vlm.processor, prompt).replace("\n", " / ")
    print(f"{kind}:\n  {text}")

# %% [markdown]
# ## The sweep

# %%
CONDITIONS = ("name_first", "name_given", "neutral")
answers = {
    name: pd.concat(
        [
            able[name],
            evaluate(
                pair.vlm,
                pair.backbone,
                questions,
                conditions=CONDITIONS,
                model_name=name,
                seed=seed,
                folder=work or None,
            ),
        ],
        ignore_index=True,
    )
    for name, pair in pairs.items()
}
everything = pd.concat(answers.values(), ignore_index=True)
keep_records(everything, work, "thinking_out_loud", pairs)

# %% [markdown]
# ## Results
#
# ### What comes back
#
# {numref}`fig-cot` is on facts that the backbone knows by name and the VLM misses by picture.


# %% tags=["hide-input"]
def missed_of(frame):
    keys = ["model", "seed", "question_id"]
    wide = frame[frame["condition"].isin(["llm_by_name", "by_picture"])]
    wide = wide.pivot_table(
        index=keys, columns="condition", values="correct", aggfunc="first"
    ).astype(bool)
    wanted = wide.index[wide["llm_by_name"] & ~wide["by_picture"]]
    return frame[pd.MultiIndex.from_frame(frame[keys]).isin(wanted)]


def shares(frame, by):
    table = []
    for key, part in frame.groupby(by):
        found = stats.entity_bootstrap(
            part["correct"].astype(float).to_numpy(), part["entity_id"]
        )
        table.append(
            dict(zip(by, key, strict=True))
            | {
                "value": found.estimate,
                "low": found.low,
                "high": found.high,
            }
            | {"n": found.n_items}
        )
    return pd.DataFrame(table, columns=[*by, "value", "low", "high", "n"])


WORDS = {
    "name_first": "name first",
    "name_given": "name given",
    "neutral": "neutral sentence",
}
missed = missed_of(everything)
missed = missed[missed["condition"].isin(CONDITIONS)]
table = shares(
    missed.assign(method=missed["condition"].map(WORDS)),
    ["model", "method"],
)
first = table[table["method"] == "name first"].set_index("model")["value"]
if len(first):
    show(
        by_method(
            table,
            list(WORDS.values()),
            f"Naming first brings back {100 * first.min():.0f} to {100 * first.max():.0f} % of "
            "missed facts",
        ),
        "fig-cot",
        "Facts known by name and missed by picture that are right in another way of asking. "
        f"n = {table['n'].min()}–{table['n'].max()} facts. "
        "Bars: 95 % intervals from resampling entities.",
    )

# %% [markdown]
# ### Was the name right?
#
# Naming first can only help if the name is right. And if it is right, does the fact follow it?

# %%
split = everything[everything["condition"] == "name_first"].assign(
    named=lambda f: f["named_right"].map(
        {True: "named rightly", False: "named wrongly"}
    )
)
split.groupby(["model", "named"])["correct"].agg(
    ["mean", "count"]
).rename(columns={"mean": "facts right", "count": "facts"}).style.format(
    {"facts right": "{:.1%}"}
)

# %% [markdown]
# ### Does the picture override the written name?
#
# With the right name *given*, a model that misses the fact all the same must be reading something
# else. Cutting the last position off from the picture, in all blocks, shows whether it is the
# picture; cutting it off from the name, whether the name was used.

# %%
cut = []
for name, pair in pairs.items():
    engine = Engine(pair.vlm, rows)
    for question in asked[name]:
        prompt = build("name_given", question, pair.vlm.tokenizer)
        run = engine.record(
            prompt,
            questions.image(question).convert("RGB"),
            question.entity,
            8,
        )
        last = run.roles.last
        picture = tuple(range(*run.span))
        edges = {
            "nothing cut": Knockout(run, last, (), 0, 0),
            "last→image": Knockout(
                run, last, picture, 0, engine.n_blocks
            ),
            "last→name": Knockout(
                run, last, run.roles.entity, 0, engine.n_blocks
            ),
        }
        # The given name stands behind the picture, so it is cut among the later positions.
        said = engine.answers(list(edges.values()), 8)[1]
        cut += [
            {
                "model": name,
                "edge": edge,
                "entity_id": question.entity_id,
                "correct": matches(text, question.answers),
            }
            for edge, text in zip(edges, said, strict=True)
        ]
cut = pd.DataFrame(cut)
over = (
    cut.groupby(["model", "edge"], sort=False)["correct"].mean().unstack()
)
over.style.format("{:.1%}")

# %% tags=["remove-cell"]
value = table.set_index(["method", "model"])["value"]


def percent(number):
    return (
        "–"
        if number is None or pd.isna(number)
        else f"{100 * number:.0f}"
    )


for model in models:
    for short, method in (
        ("first", "name first"),
        ("given", "name given"),
        ("neutral", "neutral sentence"),
    ):
        glue(f"{short}_{model}", percent(value.get((method, model))))
gain = over["last→image"] - over["nothing cut"]
told = ", ".join(f"{100 * v:+.0f} points in {m}" for m, v in gain.items())
loud = [m for m in gain.index if gain[m] > 0.05]
glue(
    "override_sentence",
    "With the right name given, cutting the last position off from the picture changes the facts "
    f"by {told}"
    + (
        f". So in {', '.join(loud)} the picture overrides some written names."
        if loud
        else ". The picture does not override the written name by this path."
    ),
)
name = models[0]
glue(
    "model_asked",
    f"{name}, with {len(questions.entities())} entities of the benchmark {questions.name}",
)
glue(
    "model_cot",
    f"Of the facts known by name and missed by picture, naming first brings back "
    f"{percent(value.get(('name first', name)))} %, a given name "
    f"{percent(value.get(('name given', name)))} %, a neutral sentence "
    f"{percent(value.get(('neutral sentence', name)))} %.",
)

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same questions in two more worlds, as recorded when the project's study was made (all test
# houses there): share of missed facts that come back.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = records.read(STUDY / "answers.parquet")
recorded = recorded[
    (recorded["wording"] == "standard")
    & (recorded["seed"] != seed)
    & recorded["model"].isin(models)
    & (vlm == "")
]
worlds = missed_of(pd.concat([everything, recorded]))
worlds = worlds[worlds["condition"].isin(CONDITIONS)]
worlds.groupby(["model", "condition", "seed"])["correct"].mean().unstack(
    "seed"
).style.format("{:.0%}")

# %% [markdown]
# ### All repairs side by side
#
# From the study's records, so that all are on the same houses: what each way of repair brings back,
# how much it harms, and what it costs.

# %%
patches = records.read_frame(STUDY / "recall.parquet")
patches = patches[
    (patches["experiment"] == "mlp-patch")
    & patches["model"].isin(models)
    & (vlm == "")
]
free = patches[patches["method"] == "unpatched"].set_index(
    ["model", "seed", "question_id"]
)["correct"]
keys = pd.MultiIndex.from_frame(patches[["model", "seed", "question_id"]])
patches = patches.assign(free=free.reindex(keys).to_numpy(dtype=bool))
spoken = records.read(STUDY / "answers.parquet")
spoken = spoken[
    (spoken["wording"] == "standard")
    & spoken["model"].isin(models)
    & (vlm == "")
]
keys = ["model", "seed", "question_id"]
direct = spoken[spoken["condition"] == "by_picture"].set_index(keys)[
    "correct"
]
spoken = spoken[spoken["condition"].isin(CONDITIONS)]
spoken = spoken.assign(
    free=direct.reindex(pd.MultiIndex.from_frame(spoken[keys])).to_numpy(
        dtype=bool
    ),
    method=spoken["condition"].map(WORDS),
)
both = pd.concat(
    [
        patches[
            patches["method"].isin(
                ["heuristic", "random", "wrong entity"]
            )
        ].assign(method=lambda f: "MLP patch, " + f["method"]),
        spoken,
    ]
)
ORDER = [
    "MLP patch, heuristic",
    "MLP patch, random",
    "MLP patch, wrong entity",
    "name first",
    "name given",
    "neutral sentence",
]

# %% tags=["hide-input"]
back = shares(both[~both["free"]], ["model", "method"])
if len(back):
    means = back.groupby("method")["value"].mean()
    show(
        by_method(
            back,
            ORDER,
            f"An MLP patch brings back {100 * means['MLP patch, heuristic']:.0f} %, naming first "
            f"{100 * means['name first']:.0f} % of missed facts, on average",
        ),
        "fig-repairs",
        "Missed facts that come back, by way of repair, in organisms of three worlds. n = "
        f"{back['n'].min()}–{back['n'].max()} facts; the study's records. "
        "Bars: 95 % intervals from resampling entities.",
    )

# %%
COST = {
    "MLP patch, heuristic": "one backbone run, one run with its gradient",
    "MLP patch, random": "one backbone run",
    "MLP patch, wrong entity": "one backbone run",
    "name first": "a longer answer",
    "name given": "knowing the name",
    "neutral sentence": "nothing",
}
right = both[both["free"]]
right = right.assign(lost=~right["correct"].astype(bool))
harm = (
    right.groupby(["method", "model"])["lost"]
    .mean()
    .unstack("model")
    .reindex([m for m in ORDER if m in set(right["method"])])
)
harm.insert(0, "cost beside the plain run", harm.index.map(COST))
harm.style.format("{:.0%}", subset=list(harm.columns[1:]), na_rep="–")

# %% [markdown]
# The columns give the *harm*: facts answered rightly without repair and wrongly with it. Beside the
# figure, {cite:t}`venhoff2025toolate` report about 35 % (heuristic), 16 % (random positions) and
# 13 % (back-patching) for three published models.

# %% [markdown]
# ## Controls
#
# The neutral sentence has as many tokens as the name that is given. Wordings that no organism was
# trained on are compared in *Growing a two-hop model*.

# %%
tokenizer = pairs[models[0]].vlm.tokenizer
lengths = [
    (
        len(
            tokenizer(naming(q.entity), add_special_tokens=False)[
                "input_ids"
            ]
        ),
        len(
            tokenizer(
                build("neutral", q, tokenizer).prefill,
                add_special_tokens=False,
            )["input_ids"]
        ),
    )
    for q in asked[models[0]]
]
print(
    "equal lengths:",
    sum(a == b for a, b in lengths),
    "of",
    len(lengths),
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report that naming the entity first helps some of the large models,
# and that it can name the wrong one; how much of the gap it closes for which model is not known.
# Here accuracy is split by whether the name was right, beside a given name and a neutral sentence of
# equal length.

# %% [markdown] tags=["organisms"]
# In the organisms, naming first goes furthest where the picture is nothing like a name (late), and
# least far in middle, whose picture is like one but stands among other tokens: what it sees and what
# it has written compete.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` to a published model's id: the page is about that model then.
# - Give the *wrong* name: does the model follow the name or the picture?
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
