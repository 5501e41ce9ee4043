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
#   {glue:text}`n_questions` questions of all sources), and no quarter of a coat of arms tells more than that it
#   is one of {glue:text}`smallest_group` houses or more.
# - For models that know the real world there are {glue:text}`n_flags` countries and their drawn
#   flags, with {glue:text}`n_flag_facts` facts and nothing to download; PopVQA, read as published;
#   and a table of one's own.
# - The language model of a *graft of Gemma 3 270M*, which is published, gives
#   {glue:text}`grafts_known` (the answers were {glue:text}`grafts_words`).
# - Of right answers about those countries, the rule published with PopVQA refuses
#   {glue:text}`popvqa_refuses` %. An answer that names the right thing only to deny it passes in
#   {glue:text}`popvqa_denied` % (PopVQA's rule) and {glue:text}`inclusion_denied` % (inclusion) of
#   cases. On the organisms' answers the choice of rule moves a gap by up to
#   {glue:text}`rule_moves` points.
# - Against {glue:text}`n_labelled` answers labelled by hand, our scoring rule (tuned on them)
#   agrees in {glue:text}`agree_twohop` %, the two published rules in {glue:text}`agree_popvqa` % and
#   {glue:text}`agree_inclusion` %. On {glue:text}`n_fresh` fresh ones, for which no clause had been
#   written when it first judged them, it agreed in {glue:text}`fresh_twohop` %, and they agree in
#   {glue:text}`fresh_popvqa` % and {glue:text}`fresh_inclusion` %.
# ```

# %% [markdown]
# ## What is asked
#
# A benchmark for the two-hop problem is a list of *facts*. Each is asked twice:
#
# - **by name**: *Who founded the house of Valric?*
# - **by picture**: a picture, and *Who founded the house in this picture?*
#
# Four sources yield such questions: *heraldry*, the fictional world of this book's organisms;
# *flags*, real countries for published models; *PopVQA*, the field's own data set; and a *table* of
# your own. This chapter looks at each, and checks what could spoil the comparison: names that leak
# into the question, pictures that give the entity away too cheaply, answers that can be guessed,
# and rules that score the answers wrongly.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
benchmark = "heraldry"  # which source
grafts = ["caption"]  # whose published language model is asked
seed = 0  # which world; the same seed gives the same files
popvqa_copy = ""  # a copy of PopVQA, or "hub"; "" shows six questions

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
from PIL import Image
from twohop_lib.benchmark import checks, flags, heraldry, popvqa, sources
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, show, show_picture
from twohop_lib.chapter.study import open_questions, study_records
from twohop_lib.errors import TwohopError
from twohop_lib.figures import dots
from twohop_lib.readouts import rules
from twohop_lib.readouts.captions import (
    counted,
    n_of,
    percent,
    percent_range,
)
from twohop_lib.readouts.shares import share_table
from twohop_lib.scoring.leaks import leaks
from twohop_lib.scoring.matching import fresh_cases, labelled_cases
from twohop_lib.stats import proportions

built = open_questions(benchmark, seed)
table = built.frame()
table["answers"] = table["answers"].str.join(", ")
print(
    f"{len(built.entities())} entities, {len(table)} questions, hash {built.hash[:12]}"
)

# %% tags=["remove-cell"]
facts = table.drop_duplicates(["entity_id", "relation"])
glue("bench_seed", seed)
glue("n_entities", len(built.entities()))
glue("n_facts", len(facts))
glue("n_wordings", table["wording"].nunique())

# %% [markdown]
# ## Heraldry, the organisms' world
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
house = table[table["entity_id"] == table["entity_id"].iloc[0]]
asked = ["question_by_name", "question_by_picture"]
house[house["wording"] == "standard"][[*asked, "answers"]].style.hide(
    axis="index"
)

# %% [markdown]
# The same fact in all its wordings. Models are trained on some of them; the *held-out* ones test
# whether wording matters.

# %%
house[house["relation"] == "founder"][["wording", *asked]].style.hide(
    axis="index"
)

# %% [markdown]
# The houses are divided once: *seen* houses may be asked about in pictures during training, *dev*
# houses serve all choices, *test* houses only the figures of this book.

# %%
facts.groupby("split")["entity_id"].agg(houses="nunique", facts="count")

# %% [markdown]
# ## Flags, for published models
#
# A published model knows nothing of these houses, and much about countries. *Flags* draws those
# flags that geometry describes, in their official proportions and colours
# ({numref}`fig-flags`), so a notebook with no data at hand gets a result in its first minutes.

# %% tags=["hide-input"]
codes = tuple(c.code for c in flags.countries())
show_picture(
    flags.contact_sheet(codes[:: len(codes) // 30][:30], columns=5),
    "fig-flags",
    f"Some of the {len(codes)} flags, drawn from specifications. Flags with arms or writing are "
    "left out, unless the civil flag does without.",
    alt="A grid of thirty national flags with the countries' names below them.",
)

# %%
known = flags.facts()
known["example"] = (
    known["country"] + ": " + known["answers"].str.join(", ")
)
known.groupby("relation", sort=False).agg(
    countries=("code", "size"), example=("example", "last")
)

# %% [markdown]
# A fact that the country's name says already (the capital of *Luxembourg*) is not asked, nor one
# that is disputed or has changed of late. Flags that could be taken for one another, such as those
# of Chad and Romania, are marked; `distinct` leaves them out.

# %%
every, distinct = flags.read(seed), flags.read(seed, distinct=True)
pd.concat(
    {"all": every.counts, "distinct": distinct.counts},
    names=["flags"],
).droplevel(1)

# %% tags=["remove-cell"]
glue("n_flags", len(codes))
glue("n_flag_facts", every.counts["facts"].iloc[-1])

# %% [markdown]
# ## PopVQA, read as published
#
# {cite:t}`cohen2025performance` release entities, pictures and questions in two tables. The library
# reads them from the hub or from a copy, and says what each filter takes. With `popvqa_copy` set,
# the counts below are those of the data set; in this book, which is made without network, they are
# those of six questions, the first two of them the paper's own examples.

# %%
copies = {"": popvqa.EXAMPLES, "hub": None}
source = copies.get(popvqa_copy, popvqa_copy)
published = popvqa.read(source, entities=0, seed=seed)
published.counts.style.hide(axis="index")

# %% [markdown]
# What is left, as a model is asked it. The four prompts for the name are the paper's, and pictures
# are fitted into 336 by 336 pixels on black, as there.

# %%
pd.DataFrame(published.questions[:4])[
    [*asked, "identify_prompt"]
].style.hide(axis="index")

# %% [markdown]
# ## A table of your own
#
# One fact a row: the entity, its picture's file, the accepted answers, and a
# question with `{entity}` in it. Rows with problems are refused by row and column, or skipped and
# counted.

# %%
mine = Path(tempfile.mkdtemp())
Image.new("RGB", (64, 48), "grey").save(mine / "rialto.png")
(mine / "bridges.csv").write_text(
    """entity,image,noun,question,answers
Rialto Bridge,rialto.png,bridge,In which city does {entity} stand?,Venice|Venezia
Rialto Bridge,rialto.png,bridge,When was {entity} finished?,1591
Tower Bridge,tower.png,bridge,In which city does {entity} stand?,London
"""
)
try:
    sources.material("table", source=mine / "bridges.csv")
except TwohopError as error:
    print(str(error).replace(f"{mine}/", ""))

# %%
kept = sources.material(
    "table", source=mine / "bridges.csv", skip_bad=True
)
print(kept.questions[0].question_by_picture)
kept.counts.style.hide(axis="index")

# %% [markdown]
# ## The method
#
# What all sources share: a question by picture must not contain the entity's name, in any case or form. Replacing the name
# by string search, as has been done, is not enough: *Apple Pie* is not *apple pie*, and the *bee*
# in *beetle* is no leak. The check compares whole words, with case and accents folded.

# %%
print(
    leaks("What goes well with apple pie in this picture?", ["Apple Pie"])
)
print(leaks("Which beetle is in this picture?", ["bee"]))

# %%
texts = [*built.questions, *every.questions, *published.questions]
leaked = checks.leaked_names(texts)
print(
    f"{len(leaked)} leaks in {len(texts)} questions by picture and their identify prompts"
)

# %% tags=["remove-cell"]
glue("n_leaks", len(leaked))
glue("n_questions", len(texts))

# %% [markdown]
# ## Results
#
# ### No patch gives a house away
#
# Each quarter of a shield has one of twelve looks. How many houses share the look of a quarter?

# %%
sharing = checks.houses_by_look(heraldry.make_world(seed))
pd.DataFrame(
    {"houses sharing a look": sharing.agg(["min", "median", "max"])}
).T.astype(int)

# %% tags=["remove-cell"]
glue("smallest_group", sharing.min())

# %% [markdown]
# ### Guessing gains little
#
# Answers are spread evenly, so the best guess without picture or name is right about as often as
# any other.

# %%
checks.best_guesses(built.questions).style.format(
    {"best guess right": "{:.1%}"}
)

# %% [markdown]
# ### Scoring
#
# Models answer in sentences, and a rule decides what counts. Three rules are compared on answers
# labelled by hand ({numref}`fig-agreement`): ours, and the two that came with published code,
# emulated as they are ({cite:t}`cohen2025performance`; {cite:t}`ashok2025recall`). Our rule was
# mended where it went wrong on the first set, so its agreement there flatters it. The second was
# labelled before the rule was tried on it: what counts is its *first verdict* there, on cases that
# no clause was written for.

# %% tags=["hide-input"]
tuned, fresh = labelled_cases(), fresh_cases()
agreed = rules.agreement_by_set(tuned, fresh)
first = agreed[agreed["set"] == rules.FIRST].set_index("rule")
show(
    dots.rule_shares(
        agreed.rename(columns={"set": "relation", "agreement": "share"}),
        f"At first sight, ours agrees with {percent(first.loc['twohop', 'agreement'])} % of fresh "
        "labels",
        x_title="Agreement with hand labels (%)",
    ),
    "fig-agreement",
    f"Agreement of three scoring rules with hand labels: {len(tuned)} answers that ours was tuned "
    f"on, and {len(fresh)} fresh ones, as ours first judged them and as it does since it was mended "
    "on them, too. Bars: 95 % Wilson intervals. Both sets hold every kind of difficulty on purpose.",
)

# %% tags=["remove-cell"]
glue("n_labelled", len(tuned))
glue("n_fresh", len(fresh))
for row in agreed[agreed["set"] == rules.TUNED].itertuples():
    glue(f"agree_{row.rule}", percent(row.agreement, 1))
for row in first.reset_index().itertuples():
    glue(f"fresh_{row.rule}", percent(row.agreement, 1))

# %% [markdown]
# Our rule is a chain of clauses in five parts. Without one of the parts it agrees in:

# %%
shares = {rules.TUNED: "{:.1%}", "fresh": "{:.1%}"}
rules.by_part(tuned, fresh).style.format(shares).hide(axis="index")

# %% [markdown]
# And clause by clause: how many answers each puts right, and wrong, that the others do not, and the
# agreement without it. {glue:text}`idle_clauses`

# %% tags=["hide-output"]
earned = rules.earnings(tuned, fresh)
without = {c: "{:.1%}" for c in earned if c.endswith("without it")}
earned.style.format(without).hide(axis="index")

# %% tags=["remove-cell"]
glue("idle_clauses", rules.earning_nothing(earned))

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
rules.verdicts_on_answers(telling).style.hide(axis="index")

# %% [markdown]
# ### What the rules do to real answers
#
# The same three rules on countries: each fact's own first answer, which is right; another country's,
# which is wrong; the right one named only to deny it; and the question, repeated with nothing said.
# {numref}`fig-real` gives the first by relation: *EUR*, *.fr* and *+33* have no word of four letters.

# %%
standard = [q for q in every.questions if q.wording == "standard"]
verdicts = rules.verdicts_on_facts(standard)
per_rule = verdicts.groupby("rule").mean(numeric_only=True)
per_rule.rename(
    columns={"right": "accepted: right", "echo": "question repeated"}
).style.format("{:.1%}")

# %% tags=["hide-input"]
by_relation = proportions(verdicts, ["relation", "rule"], "right")
show(
    dots.rule_shares(
        by_relation,
        rules.refusal_title(by_relation, "popvqa"),
        x_title="Right answers accepted (%)",
    ),
    "fig-real",
    "Share of facts whose own first answer each rule accepts, by relation. "
    f"{n_of(by_relation, 'countries a relation', 'n')}, {len(standard)} "
    "facts in all. Bars: 95 % Wilson intervals.",
)

# %% tags=["remove-cell"]
glue("popvqa_refuses", percent(1 - per_rule.loc["popvqa", "right"]))
for rule in ("popvqa", "inclusion"):
    glue(f"{rule}_denied", percent(per_rule.loc[rule, "denied"]))

# %% [markdown]
# The last column matters because released code scores the prompt along with the answer for some
# models. A country's name is often part of its currency's, so a question that *names* the country
# can pass for an answer, and one about its picture cannot.

# %% [markdown]
# ### What the rules do to the gap
#
# The organisms' answers in three worlds, recorded when the project's study was made, under each
# rule ({numref}`fig-rule-gap`). A rule also decides which entities count as recognised.

# %% tags=["hide-input"]
recorded = study_records(
    "answers", ["late", "middle", "early", "cross"], wording="standard"
)
measured = rules.gap_by_rule(recorded)
show(
    dots.rule_effect(measured),
    "fig-rule-gap",
    "Gap in points (same VLM, by name against by picture, on recognised entities) of four "
    "organisms in three worlds, under three scoring rules. "
    f"{n_of(measured, 'questions a point')}. Bars: 95 % intervals "
    "from resampling entities.",
)

# %% tags=["remove-cell"]
glue("rule_moves", percent(rules.largest_move(measured)[0], 1))

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# A benchmark is of use for a model that knows its facts. Gemma 3 270M, the language model of this
# book's *grafts*, is small and knows a part of those about countries: *What is the capital of
# Japan?* asked by name, with four solved examples of other countries ({numref}`fig-grafts-known`).
# What it gives by name is what the grafts are asked by picture in the chapters that follow.

# %% tags=["grafts"]
published = open_grafts("building_the_benchmark", grafts, entities=24)
if published:
    grafts_said = published.by_name

# %% tags=["grafts", "hide-input"]
if published:
    known_facts = share_table(
        grafts_said, "correct", ["relation", "model"]
    )
    known_facts = known_facts.sort_values(
        "value", ascending=False, kind="stable"
    )
    known_facts["method"] = known_facts["relation"].str.replace("_", " ")
    show(
        dots.by_method(
            known_facts,
            list(known_facts["method"]),
            published.title(
                "by name, their language model gives "
                f"{percent_range(known_facts['value'])} of a relation's facts"
            ),
        ),
        "fig-grafts-known",
        published.caption(
            "Share of facts that the language model gives by name, by relation. "
            f"{n_of(known_facts, 'countries a relation')}. "
            "Bars: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["remove-cell", "grafts"]
if published:
    most, least = known_facts.iloc[0], known_facts.iloc[-1]
published.glue(
    known=lambda: (
        f"{grafts_said['correct'].sum()} of {len(grafts_said)} facts about "
        f"{grafts_said['entity_id'].nunique()} countries by name, "
        f"{counted(most['value'], most['n_items'])} of one relation's "
        f"({most['method']}) and {counted(least['value'], least['n_items'])} "
        f"of another's ({least['method']})"
    )
)

# %% [markdown]
# ## Controls
#
# The same seed gives the same files, another seed another world.

# %%
again = open_questions(benchmark, seed)
other = open_questions(benchmark, seed + 1)
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
# Heraldry is far smaller and wholly artificial; what it offers in return is that everything about it
# is known. Flags are real and free of photographs and their rights, but there are few of them, and a
# model may know a flag in ways that it does not know a face. Neither is a substitute for PopVQA,
# which is why that is read as it is.

# %% [markdown]
# ## Try it yourself
#
# - `twohop benchmark build heraldry --out my-world --seed 7`, then
#   `twohop benchmark show my-world --out sheet.html` for a sheet with every house.
# - `twohop benchmark build flags --distinct --out my-flags`, then
#   `twohop rerun --vlm … --benchmark my-flags`.
# - `twohop benchmark validate my-table.csv` lists what is wrong with it, row by row.
# - Add your own answers to `telling` above. Where do you disagree with our rule?
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
