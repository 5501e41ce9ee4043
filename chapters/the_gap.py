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
# All figures are measured on this page, on miniature models (*organisms*) of a fictional
# world {glue:text}`grafts_too`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
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
# - A *graft of Gemma 3 270M* knows what the web taught a published language model. Of the facts
#   that this gives by name and nothing gives away, about countries whose flags the graft names, it
#   gives by picture: {glue:text}`grafts_gap`. {glue:text}`grafts_scorings`
# - The scoring rule matters: {glue:text}`rule_sentence` {glue:text}`scorings_sentence`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_gap`
# - {glue:text}`model_hops`
# - Three papers define the gap in three ways. On the same answers they give
#   {glue:text}`model_definitions`.
# - The scoring rule matters: {glue:text}`rule_sentence` {glue:text}`scorings_sentence`
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
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early", "cross"]  # miniature VLMs
grafts = ["caption", "names"]  # a published LM, given eyes
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded; "" for every way
max_entities = 0  # ask about so many entities; 0 asks about all
batch_size = 64  # prompts at once; halved when memory runs out
work = ""  # a folder that keeps finished work; "" keeps none
max_new_tokens = 32  # budget of an answer; those it cuts are counted
instruction = ""  # after every question: "Answer with the name only."

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
import pandas as pd
from IPython.display import display
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures import bars, dots, theme
from twohop_lib.models.thinking import switched_off
from twohop_lib.readouts import (
    cascade,
    gap,
    gap_ranked,
    gap_words,
    rules,
)
from twohop_lib.readouts.captions import n_of
from twohop_lib.readouts.cut import cut_by_arm
from twohop_lib.readouts.tables import counted_table, each_model

# %%
study = open_study(
    "the_gap",
    vlm,
    llm,
    load,
    benchmark,
    organisms,
    seed,
    split,
    wording,
    max_entities,
    batch_size,
    work,
    max_new_tokens,
    instruction,
)

# %% [markdown]
# ## Is the model able at all?
#
# Before any gap, the two hops apart. The backbone is asked by name; each VLM is asked to name the
# {glue:text}`noun` from its picture, and asked by name without a picture.

# %%
study.able("llm_by_name", "identify", "by_name")

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
# own chat template, with its reasoning switched off where the template has a switch; the answer is
# generated greedily, and only the new tokens are scored. This is
# the whole of it, in plain `transformers`. The example is the first question that the model answers
# by name and misses by picture (its first question, should it miss none); the library's own answer
# to it stands beside.

# %%
name = study.example("middle")
question = study.missed(name)
processor, model = (
    study.pairs[name].vlm.processor,
    study.pairs[name].vlm.model,
)
switches = dict(switched_off(processor.chat_template))


def answer(text: str, pictures: list) -> str:
    content = [{"type": "image", "image": p} for p in pictures]
    content.append({"type": "text", "text": text})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **switches,
    ).to(model.device, model.dtype)
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False
    )
    new = output[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip()


# %%
picture = study.questions.image(question)
by_hand = {
    "by_name": answer(question.question_by_name, []),
    "by_picture": answer(question.question_by_picture, [picture]),
}
said = study.ask(*by_hand).query(
    "model == @name and question_id == @question.question_id"
)
print("Accepted:", ", ".join(question.answers))
said[["condition", "answer", "correct"]].assign(
    **{"by hand": said["condition"].map(by_hand)}
).style.hide(axis="index")

# %% [markdown]
# ## The sweep
#
# The library asks every question in the conditions that are left: by picture, with a blank picture,
# with picture and name together (*full information*), and with the name first.

# %%
answers = study.ask(
    *("llm_by_name", "identify", "by_name", "by_picture"),
    *("blank_by_name", "blank_by_picture"),
    *("full_information", "name_first"),
)
study.keep(answers)
accuracy = gap_words.accuracy_of_recognised(answers)

# %% [markdown]
# ## Results
#
# ### By name and by picture
#
# {numref}`fig-arms` puts the arms side by side, for {glue:text}`among`.

# %% tags=["hide-input"]
arms = gap_words.by_arm(accuracy)
show(
    dots.accuracy_by_arm(arms),
    "fig-arms",
    f"Accuracy on {study.among()}, by arm. {theme.caption_n(arms)}. "
    "Bars: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### The cascade
#
# {numref}`fig-cascade` counts what is left at each step, and {numref}`fig-types` gives every
# question one of six outcomes.

# %% tags=["hide-input"]
show(
    bars.cascade_bars(each_model(answers, cascade.cascade_counts)),
    "fig-cascade",
    "Questions left at each step of the cascade. The last three split what is left: right by "
    "picture, its own name instead, or a linking failure.",
)

# %% tags=["hide-input"]
shares = each_model(answers, cascade.failure_shares)
show(
    bars.failure_bars(shares),
    "fig-types",
    f"Every question has one of six outcomes. {theme.caption_n(shares)}.",
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
table = gap.gap_table(gap.split_models(answers))
own = gap_words.of_recognised(table)
difference = own[own["definition"] == "difference"]
show(
    dots.gap_definitions(own),
    "fig-definitions",
    f"The gap by three definitions, on {study.among()}. "
    f"{theme.caption_n(difference)}. Bars: 95 % intervals.",
)

# %% [markdown]
# ### By what is said, and by what is likelier
#
# Matching judges what a model *says*, and a model may say what it knows in ways that no rule
# foresees. *Likelihood ranking* cannot be tipped by wording: an answer is right if an accepted one
# is likelier than every other answer of its relation, by the mean log-probability of its tokens, or
# by its first token alone (where a right and a wrong answer begin alike, that decides nothing, and
# the fact is left out). {numref}`fig-scorings` takes all over the same facts, about
# {glue:text}`among`.

# %%
ranked = study.ranked("by_name", "by_picture")
judged = gap_ranked.judged(gap_words.recognised_rows(answers), ranked)
by_scoring = gap_ranked.gap_by_scoring(judged)
gap_ranked.as_read(by_scoring).style.hide(axis="index")

# %% tags=["hide-input"]
show(
    dots.scoring_effect(by_scoring, gap_ranked.title(judged)),
    "fig-scorings",
    f"Gap in points by matching and by two ways of ranking, same facts. {n_of(by_scoring, 'facts a point')}. "
    "Bars: 95 % intervals from resampling entities.",
)

# %% [markdown]
# Where the two part, by arm, and the first answer of each kind:

# %%
gap_ranked.counts(judged).style.hide(axis="index")

# %%
gap_ranked.partings(judged).style.hide(axis="index")

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
recorded = study.recorded("answers", wording=wording)
recorded = recorded[recorded["model"] != "backbone"]
worlds = gap_words.difference_by_world(pd.concat([answers, recorded]))
show(
    dots.gap_by_model(worlds),
    "fig-seeds",
    f"Gap in points (same VLM, by name against by picture){study.worlds(worlds)}. "
    f"{n_of(worlds, 'questions a point')}. "
    "Bars: 95 % intervals from resampling entities.",
)

# %%
gap_words.by_world(worlds, seed).style.hide(axis="index")

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The organisms' gaps were trained into them. A *graft* is a published language model, Gemma 3 270M,
# frozen, with a small vision tower and projector grown onto it: `caption` by captions that name the
# country alone, `names` by matching the embeddings of the name without ever running the language
# model. They are shown flags, and asked what the language model gives by name.
# {numref}`fig-grafts-arms` puts the arms side by side, and {numref}`fig-grafts-types` tells the
# outcomes apart: a graft may say the country's own name whatever it is asked, which is no recall
# that failed. {numref}`fig-grafts-scorings` ranks the answers of their relation by likelihood, too
# (of facts chosen because the language model *says* them by name): an answer that is the country's
# name may hide a fact that is likelier than its rivals. *A language model grows eyes* has more
# recipes, seeds and countries.

# %% tags=["grafts"]
published = open_grafts("the_gap", grafts, study.given, 16)
if published:
    grafted = published.frame(
        "arms",
        lambda study: study.ask(
            *("identify", "llm_by_name", "by_picture", "name_first"),
            "blank_by_picture",
        ),
    )

# %% tags=["grafts", "hide-input"]
if published:
    arms = gap_words.by_arm(gap_words.accuracy_of_recognised(grafted))
    show(
        dots.accuracy_by_arm(
            arms, published.title(gap_words.by_picture(arms))
        ),
        "fig-grafts-arms",
        published.caption(
            "Accuracy by arm on facts that the language model gives by name; "
            f"{published.study.among()}. {theme.caption_n(arms)}. "
            "Bars: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["grafts", "hide-input"]
if published:
    shares = each_model(grafted, cascade.failure_shares, known_by="llm")
    show(
        bars.failure_bars(
            shares, published.title(gap_words.own_names(shares))
        ),
        "fig-grafts-types",
        published.caption(
            "What comes by picture of facts that the language model gives by "
            f"name. {theme.caption_n(shares)}."
        ),
    )

# %% tags=["grafts"]
if published:
    arms_of_grafts = ("llm_by_name", "by_picture")
    grafts_ranked = published.frame(
        "ranked", lambda study: study.ranked(*arms_of_grafts)
    )
    grafts_judged = gap_ranked.judged(
        gap_words.recognised_rows(grafted), grafts_ranked, arms_of_grafts
    )
    grafts_scored = gap_ranked.gap_by_scoring(
        grafts_judged, arms_of_grafts
    )

# %% tags=["grafts", "hide-input"]
if published:
    show(
        dots.scoring_effect(
            grafts_scored,
            published.title(gap_ranked.title(grafts_judged)),
        ),
        "fig-grafts-scorings",
        published.caption(
            "Gap in points (language model by name against graft by picture) by matching and by "
            f"two ways of ranking, on facts given by name. {n_of(grafts_scored, 'facts a point')}. "
            "Bars: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["grafts"]
if published:
    for shown in (
        gap_ranked.as_read(grafts_scored),
        gap_ranked.counts(grafts_judged),
        gap_ranked.partings(grafts_judged),
    ):
        display(shown.style.hide(axis="index"))

# %% tags=["remove-cell", "grafts"]
published.glue(
    gap=lambda: gap_words.outcomes_sentence(
        gap_words.outcomes_of_known(grafted, "llm"), "country"
    ),
    scorings=lambda: gap_ranked.move_sentence(
        grafts_judged, arms_of_grafts
    ),
)

# %% [markdown]
# ## Controls
#
# ### A blank picture
#
# If questions by picture could be answered without the picture, the gap would be too small. With a
# grey rectangle in place of the picture, a model can only guess.

# %%
blank = ["blank_by_picture", "blank_by_name"]
counted_table(
    gap_words.recognised_rows(answers).query("condition in @blank"),
    "model",
    "condition",
    labels={blank[0]: "blank, by picture", blank[1]: "blank, by name"},
)

# %% [markdown]
# ### Answers that were cut off
#
# An answer that the budget of new tokens cuts off may be scored as wrong for that alone, and a
# model that describes a picture before it answers would lose by picture only.

# %%
cut_by_arm(answers).pivot(
    index="model", columns="condition", values="cut"
)

# %% [markdown]
# ### The scoring rule
#
# The same answers can be scored by the rules that two of the papers released. *popvqa* compares
# words of four letters or more; *inclusion* accepts an answer that contains, or is contained in,
# an accepted one. Both err, as *Building the benchmark* shows; {numref}`fig-rules` shows what
# that does to the gap.

# %% tags=["hide-input"]
by_rule = rules.gap_by_rule(answers)
show(
    dots.rule_effect(by_rule),
    "fig-rules",
    "Gap in points under three scoring rules, same answers. Each rule also decides which entities "
    f"count as recognised. {theme.caption_n(by_rule[by_rule.rule == 'twohop'])}.",
)

# %% tags=["remove-cell"]
named = answers[answers["condition"] == "identify"]
named = named.groupby("model")["correct"].mean()
for row in difference.itertuples():
    glue(f"gap_{row.model}", f"{100 * row.gap:.1f}")
    glue(f"by_name_{row.model}", f"{100 * row.reference:.1f}")
    glue(f"by_picture_{row.model}", f"{100 * row.picture:.1f}")
    glue(f"names_{row.model}", f"{100 * named[row.model]:.1f}")
for row in own[own["model"] == "middle"].itertuples():
    glue(f"middle_{row.definition}", f"{100 * row.gap:.0f}")
glue("n_least", difference["n_items"].min())

# %% tags=["remove-cell"]
first = study.models[0]
asked = study.subject.replace(
    "with ", f"with {len(study.questions.questions)} questions about "
)
glue("noun", study.noun)
glue("among", study.among())
glue("these_models", first if study.given else "the organisms")
glue("answers_cut", study.answers_cut)
glue("model_asked", asked)
glue("model_asked_here", asked.replace(", with", " was asked"))
glue("model_notes", " ".join(study.pairs[first].notes))

# %% tags=["remove-cell"]
glue("rule_sentence", rules.move_sentence(by_rule))
glue("scorings_sentence", gap_ranked.move_sentence(judged))
glue_all(gap_words.hop_values(answers))
glue_all(
    gap_words.model_sentences(
        answers[answers["model"] == first],
        own[own["model"] == first],
        study.among([first]),
    )
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
gap_words.overview(table)

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
