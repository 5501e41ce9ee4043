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
# facts known by name and missed by picture. Those on *grafts of Gemma 3 270M*, on facts known by
# name, were {glue:text}`grafts_words`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - Naming first brings back {glue:text}`first_late` % (late), {glue:text}`first_middle` % (middle)
#   and {glue:text}`first_cross` % (cross) of them; a given name {glue:text}`given_late`,
#   {glue:text}`given_middle` and {glue:text}`given_cross` %.
# - A sentence of equal length that names nothing brings back {glue:text}`neutral_late`,
#   {glue:text}`neutral_middle` and {glue:text}`neutral_cross` %: it is the name, and not the time,
#   that helps.
# - {glue:text}`override_sentence`
# - A *graft of Gemma 3 270M* is a published language model with eyes grown onto it.
#   {glue:text}`grafts_back`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
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
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "cross"]  # which miniature VLMs to ask
grafts = ["caption", "names"]  # published LM with eyes grown on it
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
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
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures import dots
from twohop_lib.interventions.given_name import given_name
from twohop_lib.models.prompts import build, count_tokens, naming, render
from twohop_lib.readouts import repairs, tables
from twohop_lib.readouts.captions import counted, n_of
from twohop_lib.readouts.shares import share_table
from twohop_lib.runs.generate import answer

# %%
study = open_study(
    "thinking_out_loud",
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
# What is asked below is asked of entities that the model names from their pictures.

# %%
study.able("identify", "llm_by_name", "by_picture")

# %% [markdown]
# ## The method
#
# What is sent, for one question, and what comes back. It is the first that the model misses when it
# is asked directly and answers when it names first.

# %%
name = study.example("middle")
pair = study.pairs[name]
question = study.missed(name, known_in="name_first")
picture = study.questions.image(question)
print("Accepted:", ", ".join(question.answers))
for kind in ("by_picture", "name_first", "name_given", "neutral"):
    prompt = build(kind, question, pair.vlm.tokenizer)
    sent = render(pair.vlm.processor, prompt).replace("\n", " / ")
    said = answer(pair.vlm, [prompt], [picture])[0]
    print(f"{kind}:\n  {sent}  →  {said}")

# %% [markdown]
# ## The sweep

# %%
answers = study.ask(
    "identify", "llm_by_name", "by_picture", *repairs.SPOKEN
)
study.keep(answers)

# %% [markdown]
# ## Results
#
# ### What comes back
#
# {numref}`fig-cot` is on facts that the backbone knows by name and the VLM misses by picture.

# %% tags=["hide-input"]
missed = repairs.spoken(answers)
back = share_table(missed, "correct", ["model", "method"])
first = back[back["method"] == "name first"]
if len(back):
    show(
        dots.by_method(
            back,
            list(repairs.SPOKEN.values()),
            f"Naming first brings back {tables.range_words(first)} of missed facts",
        ),
        "fig-cot",
        "Facts known by name and missed by picture that are right in another way of asking. "
        f"{n_of(back, 'facts')}. Bars: 95 % intervals from resampling entities.",
    )
else:
    print("No fact is known by name and missed by picture.")

# %% [markdown]
# ### Was the name right?
#
# Naming first can only help if the name is right. And if it is right, does the fact follow it?

# %%
tables.counted_table(
    answers.assign(
        named=answers["named_right"].map(
            {True: "named rightly", False: "named wrongly"}
        )
    ).dropna(subset=["named"]),
    "model",
    "named",
    words=tables.share_and_n,
)

# %% [markdown]
# ### Does the picture override the written name?
#
# With the right name *given*, a model that misses the fact all the same must be reading something
# else. Cutting the last position off from the picture, in all blocks, shows whether it is the
# picture; cutting it off from the name, whether the name was used.

# %%
cut = study.sweep(
    lambda name, engine, labels: given_name(
        engine, study.questions, study.asked(name), **labels
    )
)
tables.counted_table(cut, "model", "edge", words=tables.share_and_n)

# %% tags=["remove-cell"]
glue("answers_cut", study.answers_cut)
glue("model_asked", study.subject)
glue("override_sentence", repairs.override_sentence(cut))
glue_all(repairs.cot_values(back, study.models))
told = {
    row.method: counted(row.value, row.n_items)
    for row in back[back["model"] == study.models[0]].itertuples()
}
glue(
    "model_cot",
    f"Of the facts known by name and missed by picture, naming first brings back "
    f"{told.get('name first', '–')}, a given name "
    f"{told.get('name given', '–')}, a neutral sentence "
    f"{told.get('neutral sentence', '–')}.",
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
recorded = study.recorded("answers", wording="standard")
worlds = repairs.spoken(pd.concat([answers, recorded]))
tables.counted_table(
    worlds, ["model", "method"], "seed", words=tables.share_words(0)
)

# %% [markdown] tags=["organisms"]
# ### All repairs side by side
#
# From the study's records, so that all are on the same houses: what each way of repair brings back,
# how much it harms, and what it costs.

# %% tags=["organisms"]
both = repairs.side_by_side(
    study.everywhere("recall", experiment="mlp-patch"),
    study.everywhere("answers", wording="standard"),
)
missed = both[both["missed"]]
back = share_table(missed, "correct", ["model", "method"])
means = back.groupby("method")["value"].mean()

# %% tags=["hide-input", "organisms"]
if len(back):
    show(
        dots.by_method(
            back,
            list(repairs.COST),
            f"An MLP patch brings back {100 * means['MLP patch, heuristic']:.0f} %, naming first "
            f"{100 * means['name first']:.0f} % of missed facts, on average",
        ),
        "fig-repairs",
        "Missed facts that come back, by way of repair, in organisms of three worlds. "
        f"{n_of(back, 'facts')}; the study's records. "
        "Bars: 95 % intervals from resampling entities.",
    )

# %% tags=["organisms"]
repairs.harm(both)

# %% [markdown] tags=["organisms"]
# The columns give the *harm*: facts answered rightly without repair and wrongly with it. Beside the
# figure, {cite:t}`venhoff2025toolate` report about 35 % (heuristic), 16 % (random positions) and
# 13 % (back-patching) for three published models.

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The same ways of asking, put to *grafts*: a published language model, Gemma 3 270M, frozen, with a
# small vision tower and projector grown onto it. `caption` was trained on captions that name the
# country, `names` by matching the name's embeddings; no fact was in either's training. They are
# shown flags and asked what the language model gives by name ({numref}`fig-grafts-cot`). An answer
# that is the country's own name is no recall that was missed, and is counted apart; a name that is
# given, or said first, need not stop a graft from saying it again. This is a sample; *A language
# model grows eyes* has the study's records of all recipes and seeds.

# %% tags=["grafts"]
published = open_grafts("thinking_out_loud", grafts, study.given, 9)
if published:
    grafted = published.frame(
        "ways",
        lambda study: study.ask("identify", "llm_by_name", *repairs.WAYS),
    )

# %% tags=["grafts", "hide-input"]
if published:
    ways = repairs.of_known(grafted)
    spoken = share_table(ways, "correct", ["model", "method"])
    named = repairs.own_name_instead(grafted)
    show(
        dots.by_method(
            spoken,
            list(repairs.WAYS.values()),
            published.title(repairs.first_title(spoken)),
        ),
        "fig-grafts-cot",
        published.caption(
            "Facts that the language model gives by name, about countries that the graft names from "
            f"their flags, right in each way of asking. {n_of(spoken, 'facts')}. Asked directly, "
            f"it says the country's own name instead in {repairs.own_name_words(named)} of cases. "
            "Bars: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["remove-cell", "grafts"]
published.glue(back=lambda: repairs.ways_sentence(ways, "country"))

# %% [markdown]
# ## Controls
#
# The neutral sentence has as many tokens as the name that is given. Wordings that no organism was
# trained on are compared in *Growing a two-hop model*.

# %%
tokenizer = study.pairs[study.models[0]].vlm.tokenizer
asked = study.asked(study.models[0])
equal = sum(
    count_tokens(naming(q.entity), tokenizer)
    == count_tokens(build("neutral", q, tokenizer).prefill, tokenizer)
    for q in asked
)
print(f"equal lengths: {equal} of {len(asked)}")

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
