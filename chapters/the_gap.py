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
# # The gap
#
# A model that answers a question when the entity is *named* is asked the same question with the
# entity *shown*. How much is lost, and how much of the loss is the two-hop problem?

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional world.
#
# - Of the facts that each organism knows by name, about houses that it recognises, it loses
#   {glue:text}`gap_late` points (late), {glue:text}`gap_middle` points (middle),
#   {glue:text}`gap_early` points (early) and {glue:text}`gap_cross` points (cross) when the house
#   is shown.
# - Neither hop alone explains it: each organism names at least
#   {glue:text}`recognition_lowest` % of the houses from their pictures and answers
#   {glue:text}`text_lowest` of the questions by name. With a blank picture it answers at most
#   {glue:text}`blind_highest` %.
# - Three papers define the gap in three ways. On the same answers of the middle organism they
#   give {glue:text}`middle_degradation` %, {glue:text}`middle_difference` points and
#   {glue:text}`middle_controlled` %.
# - The scoring rule matters: {glue:text}`rule_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
#
# - {glue:text}`model_gap`
# - {glue:text}`model_hops`
# - Three papers define the gap in three ways. On the same answers they give
#   {glue:text}`model_definitions`.
# - The scoring rule matters: {glue:text}`rule_sentence`
# ```

# %% [markdown]
# ## What is asked
#
# A question by picture takes two hops: from the picture to the entity, and from the entity to the
# fact. A model can fail at either. The *cascade* tells them apart:
#
# 1. **recognised**: shown the picture, the model names the entity;
# 2. **known**: asked by name, without a picture, it gives the fact;
# 3. **not blind-solvable**: with a blank picture it does not.
#
# A question that passes all three and is still answered wrongly by picture is a **linking
# failure**: both hops work alone, and the chain of the two does not.

# %% [markdown]
# ## Setup and parameters
#
# Change these in the next cell, or from the command line. The defaults run on a laptop.

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
split = "test"  # houses never used for any choice in making the organisms; "" for all
wording = "standard"  # how the questions are worded; "" for every way
max_entities = 0  # ask about so many entities; 0 asks about all
batch_size = 64
work = ""  # a folder that keeps finished work; "" keeps none

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import pandas as pd
from twohop_lib import records
from twohop_lib.chapter.show import glue, show
from twohop_lib.chapter.study import (
    keep_records,
    open_pairs,
    open_questions,
)
from twohop_lib.figures.bars import cascade_bars, failure_bars
from twohop_lib.figures.dots import (
    accuracy_by_arm,
    gap_by_model,
    gap_definitions,
    rule_effect,
)
from twohop_lib.figures.theme import ARM_OF_CONDITION, caption_n
from twohop_lib.organisms import STUDY, suited_benchmark
from twohop_lib.readouts import gap
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
# Before any gap, the two hops apart. The backbone is asked by name; each VLM is asked to name the
# {glue:text}`noun` from its picture, and asked by name without a picture.

# %%
pairs = open_pairs(vlm, llm, organisms, seed, load)
models = list(pairs)
able = {
    name: evaluate(
        pair.vlm,
        pair.backbone,
        questions,
        conditions=("llm_by_name", "identify", "by_name"),
        model_name=name,
        seed=seed,
        batch_size=batch_size,
        folder=work or None,
    )
    for name, pair in pairs.items()
}

# %%
baseline = pd.concat(
    [gap.accuracy_table(answers) for answers in able.values()]
)
baseline = baseline.pivot(
    index="model", columns="condition", values="accuracy"
).loc[models]
baseline.rename(
    columns={
        "llm_by_name": "backbone, by name",
        "identify": f"names the {noun}",
        "by_name": "VLM, by name",
    }
).style.format("{:.1%}")

# %% tags=["remove-cell"]
glue("noun", noun)
glue("recognition_lowest", f"{100 * baseline['identify'].min():.0f}")
text = baseline[["by_name", "llm_by_name"]].min().min()
glue(
    "text_lowest", "all" if text == 1 else f"at least {100 * text:.1f} %"
)

# %% [markdown] tags=["organisms"]
# All of them recognise the houses and know the facts. They share world and backbone, and were
# taught the same things about pictures. Late, middle and early are given pictures as image tokens,
# and differ in what these were before the language model learnt to use them: nothing like names
# (late), names behind other, free tokens (middle), or names and little else (early). Cross is given
# pictures through cross-attention layers, half-way up a backbone that was left as it was.
# *Growing a two-hop model* says exactly how.

# %% [markdown] tags=["model"]
# {glue:text}`model_hops` {glue:text}`model_notes`

# %% [markdown]
# ## The method
#
# Both arms ask for the same fact and accept the same answers. A question is worded by the model's
# own chat template, the answer is generated greedily, and only the new tokens are scored. This is
# the whole of it, for one question:

# %%
question = questions.questions[0]
pair = pairs.get("middle") or next(iter(pairs.values()))
picture = questions.image(question)
model, processor = pair.vlm.model, pair.vlm.processor
tokenizer = processor.tokenizer

for text, shown in [
    (question.question_by_name, []),
    (question.question_by_picture, [picture]),
]:
    parts = [{"type": "image"} for _ in shown]
    parts.append({"type": "text", "text": text})
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    begun = tokenizer.bos_token and prompt.startswith(tokenizer.bos_token)
    options = {"return_tensors": "pt", "add_special_tokens": not begun}
    if shown:
        inputs = processor(text=prompt, images=shown, **options)
        inputs = inputs.to(model.device, model.dtype)
    else:
        inputs = tokenizer(prompt, **options).to(model.device)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = tokenizer.decode(
        output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True
    )
    print(
        f"{text}  →  {answer.strip()}   {matches(answer, question.answers)}"
    )

# %% [markdown]
# ## The sweep
#
# The library asks every question in the conditions that are left: by picture, with a blank picture,
# with picture and name together (*full information*), and with the name first.

# %%
conditions = (
    "by_picture",
    "blank_by_name",
    "blank_by_picture",
    "full_information",
    "name_first",
)
answers = {
    name: pd.concat(
        [
            able[name],
            evaluate(
                pair.vlm,
                pair.backbone,
                questions,
                conditions=conditions,
                model_name=name,
                seed=seed,
                batch_size=batch_size,
                folder=work or None,
            ),
        ],
        ignore_index=True,
    )
    for name, pair in pairs.items()
}
keep_records(pd.concat(answers.values()), work, "the_gap", pairs)

# A model that recognises nothing leaves no such slice; then all count.
recognises = baseline["identify"].gt(0).all()
population = "recognised" if recognises else "full"
among = (
    "entities that the model recognises"
    if recognises
    else "all entities (some model recognises none)"
)
accuracy = pd.concat(
    [gap.accuracy_table(rows, population) for rows in answers.values()]
)

# %% [markdown]
# ## Results
#
# ### By name and by picture
#
# {numref}`fig-arms` puts the arms side by side, for entities that the model recognises.

# %% tags=["hide-input"]
arms = accuracy.assign(
    arm=accuracy["condition"].map(ARM_OF_CONDITION)
).dropna(subset=["arm"])
show(
    accuracy_by_arm(arms),
    "fig-arms",
    f"Accuracy on {among}, by arm. {caption_n(arms)}. "
    "Bars: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### The cascade
#
# {numref}`fig-cascade` counts what is left at each step, and {numref}`fig-types` gives every
# question one of five outcomes.

# %% tags=["hide-input"]
counts = pd.concat(
    [gap.cascade_counts(rows) for rows in answers.values()]
)
show(
    cascade_bars(counts),
    "fig-cascade",
    "Questions left at each step of the cascade. The last two split what is left: right by "
    "picture, or a linking failure.",
)

# %% tags=["hide-input"]
shares = pd.concat(
    [gap.failure_shares(rows) for rows in answers.values()]
)
show(
    failure_bars(shares),
    "fig-types",
    f"Every question has one of five outcomes. {caption_n(shares)}.",
)

# %% [markdown]
# ### Three definitions of the gap
#
# The papers do not measure the same thing:
#
# | | arm 1 | arm 2 | reported as |
# |---|---|---|---|
# | {cite:t}`venhoff2025toolate` | text **backbone**, by name | VLM, by picture | relative degradation |
# | {cite:t}`cohen2025performance` | same VLM, by name, no picture | VLM, by picture | points, mean over entities that the VLM names |
# | {cite:t}`ashok2025recall` | same VLM, by name, *blank* picture | VLM, by picture | relative drop, where picture and name together succeed and a blank picture fails |

# %% [markdown]
# On {glue:text}`these_models`, {numref}`fig-definitions` shows how far apart the definitions lie.

# %% tags=["hide-input"]
table = gap.gap_table(answers)
own = table[table["population"] == population]
show(
    gap_definitions(own),
    "fig-definitions",
    f"The gap by three definitions, on {among}. "
    f"{caption_n(own[own.definition == 'difference'])}. Bars: 95 % intervals.",
)

# %% tags=["remove-cell"]
for definition, value in (
    own[own["model"] == "middle"].set_index("definition")["gap"].items()
):
    glue(f"middle_{definition}", f"{100 * value:.0f}")

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The organisms above belong to one world. The same recipes were run on two more, each with its own
# houses, facts and backbone, when the project's study was made. Their answers were recorded then;
# only seed 0 is computed on this page
# ({numref}`fig-seeds`).

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of two more worlds. They say nothing about
# {glue:text}`these_models`, which is shown here alone ({numref}`fig-seeds`).

# %% tags=["hide-input"]
recorded = records.read(STUDY / "answers.parquet")
recorded = recorded[
    (recorded["wording"] == wording)
    & (recorded["seed"] != seed)
    & (vlm == "")
]
by_model = {
    name: pd.concat([answers[name], recorded[recorded["model"] == name]])
    for name in models
}
by_seed = gap.gap_by_seed(by_model)
by_seed = by_seed[
    (by_seed.definition == "difference")
    & (by_seed.population == population)
]
by_seed["from"] = by_seed["seed"].map(
    lambda s: "this page" if s == seed else "the study's records"
)
worlds = (
    f" in {by_seed.seed.nunique()} worlds. Seed {seed} is computed here, the others are read "
    "from the study's records"
    if by_seed.seed.nunique() > 1
    else ""
)
show(
    gap_by_model(by_seed),
    "fig-seeds",
    f"Gap in points (same VLM, by name against by picture){worlds}. "
    f"n = {by_seed.n_items.min()}–{by_seed.n_items.max()} questions a point. "
    "Bars: 95 % intervals from resampling entities.",
)

# %%
columns = [
    "model",
    "seed",
    "from",
    "reference",
    "picture",
    "gap",
    "low",
    "high",
    "p_value",
]
by_seed[[*columns, "n_items", "n_entities"]].rename(
    columns={
        "reference": "by name",
        "picture": "by picture",
        "p_value": "Wilcoxon p",
    }
).style.hide(axis="index").format(
    {
        **dict.fromkeys(
            ["by name", "by picture", "gap", "low", "high"], "{:.1%}"
        ),
        "Wilcoxon p": "{:.1e}",
    }
)

# %% tags=["remove-cell"]
live = by_seed[by_seed["seed"] == seed].set_index("model")
for name in models:
    glue(f"gap_{name}", f"{100 * live.loc[name, 'gap']:.1f}")
    glue(f"by_name_{name}", f"{100 * live.loc[name, 'reference']:.1f}")
    glue(f"by_picture_{name}", f"{100 * live.loc[name, 'picture']:.1f}")
    glue(f"names_{name}", f"{100 * baseline.loc[name, 'identify']:.1f}")
glue("n_least", str(live["n_items"].min()))

# %% [markdown]
# ## Controls
#
# ### A blank picture
#
# If questions by picture could be answered without the picture, the gap would be too small. With a
# grey rectangle in place of the picture, a model can only guess.

# %%
blank = accuracy[
    accuracy["condition"].isin(["blank_by_picture", "blank_by_name"])
]
blank.pivot(index="model", columns="condition", values="accuracy").loc[
    models
].rename(
    columns={
        "blank_by_picture": "blank, by picture",
        "blank_by_name": "blank, by name",
    }
).style.format("{:.1%}")

# %% tags=["remove-cell"]
guesses = blank[blank["condition"] == "blank_by_picture"]["accuracy"]
glue("blind_highest", f"{100 * guesses.max():.1f}")

# %% [markdown]
# ### The scoring rule
#
# The same answers can be scored by the rules that two of the papers released. *popvqa* compares
# words of four letters or more; *inclusion* accepts an answer that contains, or is contained in,
# an accepted one. Both err, as *Building the benchmark* shows; {numref}`fig-rules` shows what
# that does to the gap.


# %% tags=["hide-input"]
def rescored(rows: pd.DataFrame, rule: str) -> pd.DataFrame:
    right = [
        matches(r.answer, r.accepted, rule) for r in rows.itertuples()
    ]
    return rows.assign(correct=right)


rules = pd.concat(
    [
        gap.gap_table(
            {n: rescored(a, rule) for n, a in answers.items()}
        ).assign(rule=rule)
        for rule in ("twohop", "popvqa", "inclusion")
    ]
)
rules = rules[
    (rules.definition == "difference") & (rules.population == population)
]
show(
    rule_effect(rules),
    "fig-rules",
    "Gap in points under three scoring rules, same answers. Each rule also decides which entities "
    f"count as recognised. {caption_n(rules[rules.rule == 'twohop'])}.",
)

# %% tags=["remove-cell"]
moved = rules.groupby("model")["gap"].agg(
    lambda g: 100 * (g.max() - g.min())
)
glue(
    "rule_sentence",
    "on the same answers, the three rules' gaps lie up to "
    f"{moved.max():.1f} points apart ({moved.idxmax()}).",
)

# %% tags=["remove-cell"]
# What the page says where it is about one model and not about the organisms.
name, pair = next(iter(pairs.items()))


def points(fraction: float, unit: str = "points") -> str:
    return (
        "not measured"
        if pd.isna(fraction)
        else f"{100 * fraction:.1f} {unit}"
    )


asked = (
    f"{len(questions.questions)} questions about {len(questions.entities())} entities of the "
    f"benchmark {questions.name}"
)
glue("these_models", name if vlm else "the organisms")
glue("model_asked", f"{name}, with {asked}")
glue("model_asked_here", f"{name} was asked {asked}")
glue("model_notes", " ".join(pair.notes))
row = live.loc[name]
glue(
    "model_gap",
    f"On {row['n_items']} facts about {row['n_entities']} entities ({among}), it loses "
    f"{points(row['gap'])} when the entity is shown and not named: by name it answers "
    f"{points(row['reference'], '%')}, by picture {points(row['picture'], '%')}.",
)
alone = baseline.loc[name]
blind = blank.set_index(["model", "condition"])["accuracy"]
glue(
    "model_hops",
    f"It names {points(alone['identify'], '%')} of the entities from their pictures. Asked by "
    f"name it answers {points(alone['by_name'], '%')} of the questions, and its backbone "
    f"{points(alone['llm_by_name'], '%')}; with a blank picture, "
    f"{points(blind[name, 'blank_by_picture'], '%')}.",
)
gaps = own[own["model"] == name].set_index("definition")["gap"]
glue(
    "model_definitions",
    f"{points(gaps.get('degradation'), '%')} (against the backbone), "
    f"{points(gaps.get('difference'))} (against the same model by name) and "
    f"{points(gaps.get('controlled'), '%')} (on the controlled slice)",
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# - {cite:t}`venhoff2025toolate` report that 11 of 14 VLMs degrade against their text backbones, by
#   up to 43.9 %, on about 15,000 questions. Whether entities that a model does not recognise were
#   left out is not known, so the table below gives the degradation over all entities as well.
# - {cite:t}`cohen2025performance` report gaps of 4.3 to 17.7 points between the same model's two
#   arms, on the entities that it names: 4 to 20 % of their data set, different ones for each model.
# - {cite:t}`ashok2025recall` report a mean relative drop of 58.95 % on their controlled slice.

# %% [markdown] tags=["organisms"]
# The organisms are not those models. They are measured here with every control in place, on houses
# whose facts were never asked about in pictures during training, so their gaps say what *can*
# cause a gap, not how large it is in a published model.

# %% [markdown] tags=["model"]
# {glue:text}`model_asked_here`, with the same controls. The papers asked other questions about
# other entities, so their figures and this page's are not the same measurement.

# %%
table[
    [
        "model",
        "definition",
        "population",
        "gap",
        "low",
        "high",
        "n_items",
        "n_entities",
    ]
].style.hide(axis="index").format(
    {"gap": "{:.1%}", "low": "{:.1%}", "high": "{:.1%}"}
)

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` to a published model's id: the page is about that model then.
# - Set `wording = "held-out-2"`: the questions are worded in ways no organism was trained on.
# - Set `split = "seen"`: houses whose facts *were* asked about in pictures. Does late still fail?
# - Set `seed = 1` after `twohop organism train late --seed 1` (and middle, early): another world.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
