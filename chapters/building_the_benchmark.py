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
# # Building the benchmark
#
# To measure what is lost between naming an entity and showing it, both ways of asking must ask for
# the same thing, accept the same answers, and give nothing else away.
#
# ```{admonition} Key takeaways
# :class: tip
#
# - Seed {glue:text}`bench_seed` of the fictional world has {glue:text}`n_entities` entities and
#   {glue:text}`n_facts` facts, each asked by name and by picture in {glue:text}`n_wordings`
#   wordings.
# - No question by picture contains a name ({glue:text}`n_leaks` leaks in
#   {glue:text}`n_questions` questions), and no quarter of a coat of arms tells more than that it
#   is one of {glue:text}`smallest_group` houses or more.
# - Against {glue:text}`n_labelled` answers labelled by hand, our scoring rule (tuned on them)
#   agrees in {glue:text}`agree_twohop` %, the two published rules in {glue:text}`agree_popvqa` % and
#   {glue:text}`agree_inclusion` %.
# ```

# %% [markdown]
# ## What is asked
#
# A benchmark for the two-hop problem is a list of *facts*. Each is asked twice:
#
# - **by name**: *Who founded the house of Valric?*
# - **by picture**: a picture, and *Who founded the house in this picture?*
#
# This chapter builds one, looks at it, and checks what could spoil the comparison: names that leak
# into the question, pictures that give the entity away too cheaply, answers that can be guessed,
# and rules that score the answers wrongly.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
benchmark = "heraldry"  # which source
seed = 0  # which world; the same seed gives the same files, byte for byte

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import tempfile
from pathlib import Path

import pandas as pd
from twohop_lib import charts
from twohop_lib.benchmark import heraldry, sources
from twohop_lib.benchmark.leaks import leaks
from twohop_lib.nb import glue, show, show_picture
from twohop_lib.readouts import agreement, labelled_cases, matches
from twohop_lib.stats import proportion_interval

built = sources.build(
    benchmark, Path(tempfile.mkdtemp()) / benchmark, seed
)
table = built.frame()
print(
    f"{len(built.entities())} entities, {len(table)} questions, hash {built.hash[:12]}"
)

# %% tags=["remove-cell"]
facts = table.drop_duplicates(["entity_id", "relation"])
glue("bench_seed", str(seed))
glue("n_entities", str(len(built.entities())))
glue("n_facts", str(len(facts)))
glue("n_questions", str(len(table)))
glue("n_wordings", str(table["wording"].nunique()))

# %% [markdown]
# ## What is in it
#
# *Heraldry* is a fictional world: noble houses with names, coats of arms, and one answer for each
# of five relations. It is closed and made from a seed, so nothing in it was ever on the internet.
# {numref}`fig-arms-sheet` shows some of it.

# %% tags=["hide-input"]
show_picture(
    heraldry.contact_sheet(heraldry.make_world(seed), n=12),
    "fig-arms-sheet",
    "Twelve of the houses: quartered shields, each with its name below.",
    alt="A grid of twelve quartered shields in red, blue, green and purple with white roundels, "
    "crosses and chevrons, each labelled with the name of a house.",
)

# %%
one = table[
    (table["entity_id"] == table["entity_id"].iloc[0])
    & (table["wording"] == "standard")
]
one[["question_by_name", "question_by_picture", "answers"]].style.hide(
    axis="index"
)

# %% [markdown]
# The same fact in all its wordings. Models are trained on some of them; the *held-out* ones test
# whether wording matters.

# %%
same = table[
    (table["entity_id"] == table["entity_id"].iloc[0])
    & (table["relation"] == "founder")
]
same[["wording", "question_by_name", "question_by_picture"]].style.hide(
    axis="index"
)

# %% [markdown]
# The houses are divided once: *seen* houses may be asked about in pictures during training, *dev*
# houses serve all choices, *test* houses only the figures of this book.

# %%
facts.groupby("split")["entity_id"].agg(["nunique", "count"]).rename(
    columns={"nunique": "houses", "count": "facts"}
)

# %% [markdown]
# ## The method
#
# A question by picture must not contain the entity's name, in any case or form. Replacing the name
# by string search, as has been done, is not enough: *Apple Pie* is not *apple pie*, and the *bee*
# in *beetle* is no leak. The check compares whole words, with case and accents folded.

# %%
print(
    leaks("What goes well with apple pie in this picture?", ["Apple Pie"])
)
print(leaks("Which beetle is in this picture?", ["bee"]))

# %%
found = [
    leak
    for row in table.itertuples()
    for text in (row.question_by_picture, row.identify_prompt)
    if (leak := leaks(text, [row.entity, *row.aliases]))
]
print(
    f"{len(found)} leaks in {len(table)} questions by picture and their identify prompts"
)

# %% tags=["remove-cell"]
glue("n_leaks", str(len(found)))

# %% [markdown]
# ## Results
#
# ### No patch gives a house away
#
# Each quarter of a shield has one of twelve looks. How many houses share the look of a quarter?

# %%
houses = pd.DataFrame(
    [
        (k, q)
        for h in heraldry.make_world(seed).houses
        for k, q in enumerate(h.quarters)
    ],
    columns=["quarter", "look"],
)
sharing = houses.groupby(["quarter", "look"]).size()
sharing.describe()[["min", "50%", "max"]].rename(
    "houses sharing a look"
).to_frame().T

# %% tags=["remove-cell"]
glue("smallest_group", str(int(sharing.min())))

# %% [markdown]
# ### Guessing gains little
#
# Answers are spread evenly, so the best guess without picture or name is right about as often as
# any other.

# %%
guess = facts.assign(answer=facts["answers"].str[0]).groupby("relation")[
    "answer"
]
pd.DataFrame(
    {
        "possible answers": guess.nunique(),
        "best guess right": guess.agg(
            lambda a: a.value_counts(normalize=True).max()
        ),
    }
).style.format({"best guess right": "{:.1%}"})

# %% [markdown]
# ### Scoring
#
# Models answer in sentences, and a rule decides what counts. Three rules are compared on answers
# labelled by hand ({numref}`fig-agreement`): ours, and the two that came with published code,
# emulated as they are ({cite:t}`cohen2025performance`; {cite:t}`ashok2025recall`).

# %% tags=["hide-input"]
cases = labelled_cases()
per_rule = []
for rule in ("twohop", "popvqa", "inclusion"):
    total = agreement(cases, rule).set_index("category").loc["all"]
    interval = proportion_interval(
        round(total["agreement"] * total["n"]), int(total["n"])
    )
    per_rule.append(
        {
            "rule": rule,
            "agreement": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "n": int(total["n"]),
            "wrongly accepted": int(total["false_positives"]),
            "wrongly refused": int(total["false_negatives"]),
        }
    )
rules = pd.DataFrame(per_rule)
show(
    charts.agreement_by_rule(rules),
    "fig-agreement",
    f"Agreement of three scoring rules with hand labels, n = {rules['n'].iloc[0]} answers. "
    "Bars: 95 % Wilson intervals. The set holds every kind of difficulty on purpose. Our rule was "
    "mended where it went wrong on them, so its agreement here flatters it.",
)

# %% tags=["remove-cell"]
glue("n_labelled", str(len(cases)))
for row in rules.itertuples():
    glue(f"agree_{row.rule}", f"{100 * row.agreement:.0f}")

# %% [markdown]
# What goes wrong, on answers that show it:

# %%
telling = [
    ("", ["Paris"]),
    ("The answer is not Paris.", ["Paris"]),
    ("Paris or Lyon or Nice", ["Paris"]),
    ("12", ["1"]),
    ("UK", ["UK"]),
    ("Barack", ["Barack Obama"]),
    ("1961", ["4 August 1961"]),
    ("Kingdom of United Arab", ["United Kingdom"]),
]
pd.DataFrame(
    [
        {
            "answer": answer or "(empty)",
            "accepted": accepted[0],
            **{
                rule: matches(answer, accepted, rule)
                for rule in ("twohop", "popvqa", "inclusion")
            },
        }
        for answer, accepted in telling
    ]
).style.hide(axis="index")

# %% [markdown]
# ## Controls
#
# The same seed gives the same files, another seed another world.

# %%
again = sources.build(
    benchmark, Path(tempfile.mkdtemp()) / benchmark, seed
)
other = sources.build(
    benchmark, Path(tempfile.mkdtemp()) / benchmark, seed + 1
)
print("same seed, same files:", again.hash == built.hash)
print("other seed, other world:", other.hash != built.hash)

# %% [markdown]
# ## What the papers report, and how this differs
#
# - {cite:t}`venhoff2025toolate` use about 15,000 questions (reported; the set is not released).
# - {cite:t}`cohen2025performance` release PopVQA: 15,395 pairs of entity and picture, more than
#   100,000 questions, each worded by name and by picture from templates.
# - {cite:t}`ashok2025recall` write questions with a language model and put *the object in the
#   image* for the name by string replacement, which lets some names through.
#
# Heraldry is far smaller and wholly artificial. What it offers in return is that everything about
# it is known.

# %% [markdown]
# ## Try it yourself
#
# - `twohop benchmark build heraldry --out my-world --seed 7`, then
#   `twohop benchmark show my-world --out sheet.html` for a sheet with every house.
# - Add your own answers to `telling` above. Where do you disagree with our rule?
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
