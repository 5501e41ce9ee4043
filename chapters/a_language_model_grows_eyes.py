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
# # A language model grows eyes
#
# Gemma 3 270M is a small language model that Google published. It has read about Japan, and has
# never seen a flag. Here it stays as it is, and a small vision tower and a projector are grown onto
# it. Does it know by picture what it knows by name? No gap is designed into these *grafts*: whatever
# opens between name and picture comes of how they were trained to see.
#
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are of grafts of Gemma 3 270M (the Q4_K_M conversion), over {glue:text}`eyes_seeds`
# seeds of tower and projector.
#
# - {glue:text}`eyes_gap`.
# - **It is not all missed recall.** {glue:text}`eyes_own`. An answer that is the country's own name
#   is counted as an outcome of its own.
# - {glue:text}`eyes_dose`.
# - **Two deadlines.** In the language model alone: {glue:text}`eyes_deadlines`.
# - {glue:text}`eyes_patch`. With another country's outputs, that country's fact comes in
#   {glue:text}`eyes_wrong`.
# - {glue:text}`eyes_formats` {glue:text}`eyes_seeds_told`
# ```

# %% [markdown]
# ## What is asked
#
# The book's organisms are models of a fictional world, trained here from nothing. A reviewer may say
# that their gaps were put into them. So: does the gap come by itself, in a language model that others
# trained, with facts that it learnt from the web, when it is taught to see in the way that LLaVA
# {cite:p}`liu2023llava` was taught? And what does the way of teaching change?

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
recipe = "caption"  # the graft that is grown and shown live
seed = 0  # its tower and projector
entities = 12  # countries that are asked about live
steps = 30  # steps of the live run; recipes take hundreds
prompts = "chat"  # the prompt format of the figures: card or chat

# %% tags=["remove-cell"]
try:
    import twohop_lib  # noqa: F401
except ImportError:
    # %pip install -q "twohop @ git+https://github.com/twohop-book/twohop"
    pass

# %%
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import torch
from twohop_lib.benchmark import flag_views
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue_all, show, show_picture
from twohop_lib.figures import dots, lines, theme
from twohop_lib.grafts import LANGUAGE, NAMES, shipped
from twohop_lib.grafts.grow import training_benchmark
from twohop_lib.grafts.recipes import DOSES, RECIPES
from twohop_lib.grafts.train import read, reopened
from twohop_lib.readouts import (
    deadline_words,
    graft_example,
    graft_gap,
    graft_inside,
    graft_words,
)
from twohop_lib.readouts.captions import n_of, n_range

pd.set_option("display.max_colwidth", None)
grafts = open_grafts(
    "a_language_model_grows_eyes", [recipe], entities=entities, seed=seed
)
answers = graft_gap.recorded("answers")
shown = [name for name in NAMES if name in set(answers["model"])]
measured = graft_gap.measured(answers)
six = graft_gap.recipes_of(measured, shown)
in_format = six[six["format"] == prompts]

# %% [markdown]
# ## Is the model able at all?
#
# What does the language model know? It is a *base* model, and answers no bare question; so it is
# given four solved examples, of countries that are asked about nowhere, and its answer ends with
# the line. It is asked in two formats: on *cards* (`Country: Japan`, `Capital:`), and in *chat*
# (`Question: What is the capital of Japan?`, `Answer:`). By picture, image tokens stand in the
# examples' place of a name.

# %%
graft_gap.base_knowledge(answers)

# %% [markdown]
# {glue:text}`eyes_base`. What it does not know by name cannot be missed by picture: from here on, a
# fact counts only where the same language model, asked in the same format, gives it by name.

# %% [markdown]
# ### One country
#
# Of the countries that the graft names, and whose capital its language model gives by name, most
# end in one way; this is the first of them by name.

# %%
chosen = graft_example.example(answers, recipe, seed, prompts)
about = next(
    q
    for q in training_benchmark("flags").questions
    if q.question_id == chosen.question_id
)
chosen.table(about)

# %% tags=["hide-input"]
flag = flag_views.picture(chosen.entity_id)
show_picture(
    flag,
    "fig-eyes-example",
    f"What was shown. The answers above are of {recipe}, a graft of Gemma 3 270M, as its study "
    "recorded them.",
    alt=f"A drawn flag: {about.entity}.",
)

# %% [markdown]
# ## The method
#
# ### Growing eyes
#
# The tower, a small CLIP of 2 million parameters, learns first to tell the flags apart, on drawings
# that are turned, waved, shaded and blurred at random; then it is frozen, like the language model. What
# is left to train is LLaVA's projector: two layers that make of each patch one token for the
# language model. This is its training, step by step. No fact occurs in it.


# %%
def grow(study, rate=1e-3):
    folder = Path(shipped.path(recipe, seed))
    bench, projector = reopened(
        folder,
        folder / LANGUAGE,
        RECIPES[recipe].tower,
        training_benchmark("flags"),
        seed,
    )
    optimiser = torch.optim.AdamW(projector.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        texts = bench.corpus.step(
            "naming", rng, 16
        )  # one wording, 16 pictures
        features = bench.shown(
            rng, torch.tensor(texts.shown)
        )  # [row, patch, width]
        loss = read(
            bench, texts, projector(features)
        )  # nats a token of the name
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return pd.DataFrame(
        {"model": "live", "step": range(steps), "value": losses}
    )


# %% [markdown]
# ### Six ways of learning to see
#
# The recipes differ in what the projector is trained on. `facts` alone is ever asked a fact about a
# picture, of one half of the countries; it is measured on the other half.

# %%
graft_gap.recipe_table(shown)

# %% [markdown]
# ## The sweep
#
# Live, a projector is grown for a few steps behind the finished tower. The recipes took hundreds of
# steps, with three seeds each; what they say was recorded by `twohop graft study`.

# %% tags=["remove-output"]
if grafts:
    short = grafts.frame("growth", grow)

# %% tags=["hide-input"]
curves = graft_gap.losses(graft_gap.recorded("training"), shown, seed)
if grafts:
    curves = pd.concat([short, curves], ignore_index=True)
show(
    lines.line_by_step(
        curves,
        graft_words.growth_title(curves),
        y_title="Loss on replies (nats per token)",
    ),
    "fig-eyes-growth",
    f"Training of the projector (seed {seed}): as recorded when the grafts were made, the last "
    f"phase of each that runs the language model"
    + (f"; and {steps} steps, {grafts.words} (live)." if grafts else "."),
)

# %% [markdown]
# ## Results
#
# ### The gap
#
# {glue:text}`eyes_named`. A fact counts where its country is named. Of the facts that the language
# model gives by name, and not for a blank picture, {numref}`fig-eyes-gap` shows how many come by
# picture. Every recipe is measured on the half of the countries that `facts` was not asked about.

# %% tags=["hide-input"]
by_picture = six[six["measure"] == "by picture"]
show(
    dots.draw(
        by_picture,
        graft_words.gap_title(six, prompts),
        "Facts by picture, by recipe and prompt format",
        theme.shares(alt.X, "value", "Facts answered by picture (%)"),
        value="value",
        group="format",
        columns=(1, 2),
    ),
    "fig-eyes-gap",
    f"Facts given by picture, of those that the same language model gives by name in the same "
    f"format and not for a blank picture; countries that the graft names. {n_of(by_picture, 'facts')}, "
    f"{n_range(by_picture['n_entities'])} countries, {n_range(by_picture['n_seeds'])} seeds. "
    "Bars: 95 % intervals over countries and seeds.",
)

# %% [markdown]
# The same in numbers, with what else was measured. *Full information* shows the picture and names
# the country; *naming first* has the model say what it sees before it answers; *unseen renderings*
# are waving, photographed, cropped and off-centre flags for naming, photographed ones for facts.

# %%
graft_gap.as_texts(in_format, ["measure"], "model", order=shown)

# %% [markdown]
# The other format:

# %%
graft_gap.as_texts(
    six[six["format"] != prompts], ["measure"], "model", order=shown
)

# %% [markdown]
# {glue:text}`eyes_formats` {glue:text}`eyes_seeds_told`

# %%
graft_gap.seed_table(answers, shown, "by picture")

# %% [markdown]
# ### What it says instead
#
# An answer that misses may be another country's fact, or the shown country's own name: *What is the
# capital of the country with this flag?* *Japan.* The second is what {cite:t}`cohen2025performance`
# report of published models. It may not be missed recall at all: a projector trained to have a name
# said may have it said whatever is asked ({numref}`fig-eyes-outcomes`).

# %% tags=["hide-input"]
told = graft_gap.outcome_shares(
    graft_gap.recipes_of(answers, shown), prompts
)
show(
    dots.by_method(
        told.rename(columns={"outcome": "method"}),
        graft_gap.OUTCOMES,
        graft_words.outcome_title(told),
    ),
    "fig-eyes-outcomes",
    f"What is answered by picture, in the format {prompts}. Another's answer is one that is right "
    f"for another country. {n_of(told, 'facts')}. Bars: 95 % intervals over countries and seeds.",
)

# %% [markdown]
# Own names, seed by seed. {glue:text}`eyes_own_seeds`

# %%
graft_gap.seed_table(answers, shown, "its own name")

# %% [markdown]
# What the recipes say of the first facts that more than one of them misses:

# %%
graft_gap.examples(answers, shown, prompts)

# %% [markdown]
# The control that tells the two apart asks for something that a name cannot answer: *Which colours
# does this flag have?* A graft that answers it with the name says the name, whatever it is asked;
# nothing can be concluded about its recall. {glue:text}`eyes_own`.

# %%
graft_gap.as_texts(
    in_format[
        in_format["measure"].isin(
            ["colours", "its own name, asked for colours"]
        )
    ],
    ["model"],
    "measure",
)

# %% [markdown]
# ### From captions to names: the dose
#
# `caption` is taught by the language model's loss alone, `names` by regression on the embeddings of
# the name alone. Between them, the same number of caption steps with a little regression, and more
# ({numref}`fig-eyes-dose`).

# %% tags=["hide-input"]
dosed = ["caption", *DOSES, "names"]
dose = graft_gap.curve(measured, dosed, prompts)
show(
    dots.draw(
        dose,
        graft_words.curve_title(
            measured, dosed, prompts, "The more the name weighs"
        ),
        "Named flags, facts by picture and own names, by recipe",
        theme.shares(alt.X, "value", "Share (%)"),
        value="value",
        group="measure",
        bands=[name for name in dosed if name in set(dose["model"])],
        columns=(1, 3),
    ),
    "fig-eyes-dose",
    "The number in a recipe's name is the weight of regression beside the captions' loss; "
    f"regression is the name alone for as many steps. In the format {prompts}. "
    f"{n_of(dose, 'flags or facts')}. Bars: 95 % intervals over countries and seeds.",
)

# %% [markdown]
# ### The language model's two deadlines
#
# Now inside. A question is asked of a placeholder (*What is the capital of X?*), and a state of the
# run on *Japan*, at the name's last token, is written over it. If the state is that of block 2, it
# lacks the blocks that it missed: this is the **recall deadline**. If it is the run's own state at
# the layer where it is written, it has missed nothing, and fails only where later blocks no longer
# read the position: the **reading deadline** ({numref}`fig-eyes-deadlines`).

# %% tags=["hide-input"]
internals = graft_gap.recorded("internals")
deadlines = deadline_words.deadline_curves(internals)
show(
    lines.lines_by_layer(
        deadlines,
        deadline_words.two_deadlines_title(deadlines, 2),
        y_title="Facts answered (%)",
        x_title="Layer at which the state is written",
        group="arrives",
    ),
    "fig-eyes-deadlines",
    f"Gemma 3 270M alone, facts that it gives by name, of countries whose name is one token. "
    f"{n_of(deadlines, 'facts')}, {n_range(deadlines['n_entities'])} countries. Bands: 95 % "
    "intervals over countries.",
)

# %% [markdown]
# Controls: another country's state (its own fact should come), nothing written, and the question
# for the name in the fact's place.

# %%
graft_inside.deadline_controls(internals, (0, 2, 4, 8, 12, 14))

# %% [markdown]
# ### When does a picture become a name?
#
# How near is a picture's state to the state of its own name, in the same layer of the language
# model? No map is fitted: of all the names, the own one must be nearest
# ({numref}`fig-eyes-likeness`).

# %% tags=["hide-input"]
likeness = graft_gap.recipes_of(graft_gap.recorded("likeness"), shown)
near = graft_inside.likeness_curves(likeness)
peaks = graft_inside.likeness_peaks(likeness)
show(
    lines.lines_by_layer(
        near,
        graft_words.likeness_title(peaks),
        y_title="Pictures nearest to their own name (%)",
    ),
    "fig-eyes-likeness",
    f"The mean over a picture's tokens, against the names of all countries at the same layer "
    f"(cosine of centred states; chance: one in {n_range(near['n_entities'])}). "
    f"{n_of(near, 'pictures')}. Bands: 95 % intervals over countries and seeds.",
)

# %% [markdown]
# {glue:text}`eyes_likeness` The table adds the best single position and a ridge map that is fitted
# on half of the countries and tested on the other half, with the same map fitted on names dealt out
# at random. These are peaks over many places, so the shuffled map's peak, not chance, is what the
# map's is to be held against.

# %%
graft_inside.peak_table(peaks)

# %% [markdown]
# ### Writing the recall in
#
# What the language model's early MLPs add at the last token of the *name* is written over what they
# add at all of the picture's tokens ({cite:t}`venhoff2025toolate` patch so), and everything later
# runs free ({numref}`fig-eyes-patches`).

# %% tags=["hide-input"]
patches = graft_inside.patches(graft_gap.recipes_of(internals, shown))
order, right = graft_inside.shown(patches), graft_inside.patched(patches)
early = graft_inside.early_patch(patches)
show(
    dots.by_method(
        right.drop(columns="method").rename(columns={"patch": "method"}),
        order,
        graft_words.patch_title(right, early),
    ),
    "fig-eyes-patches",
    f"Right answers by picture after a patch, of facts that the language model gives by name and "
    f"the graft not for a blank picture. Stream: the name's residual stream in place of the "
    f"picture's. {n_of(right[right['patch'].isin(order)], 'facts')}. Bars: 95 % intervals over "
    "countries and seeds.",
)

# %% [markdown]
# ## Controls
#
# ### Whose fact comes, and what is lost
#
# The wrong country's outputs should bring the wrong country's fact. A patch can also do harm: the
# last two columns are over *all* known facts.

# %%
graft_inside.patch_table(patches)

# %% [markdown]
# ### Which blocks, and how late
#
# A window of blocks that slides upwards ({numref}`fig-eyes-windows`), and the first window's outputs
# written later.

# %% tags=["hide-input"]
sliding = graft_inside.windows(patches)
show(
    lines.lines_by_layer(
        sliding,
        graft_words.window_title(sliding),
        y_title="Facts answered (%)",
        x="start",
        x_title="First block of the window",
    ),
    "fig-eyes-windows",
    f"Right answers when the MLP outputs of {graft_inside.width(sliding)} neighbouring blocks are "
    f"written. {n_of(sliding, 'facts')}. Bands: 95 % intervals over countries and seeds.",
)

# %%
graft_gap.as_texts(
    graft_inside.later(patches), ["patch"], "model", order=shown
)

# %% tags=["remove-cell"]
glue_all(graft_words.takeaways(answers, measured, shown, prompts))
glue_all(chosen.told(about))
one_each = in_format[in_format["measure"] == "by picture"]
donor = graft_inside.patched(patches, "donor")
glue_all(
    graft_words.inner_takeaways(
        deadlines, near, right, early, one_each, donor
    )
)

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`venhoff2025toolate` report that models of LLaVA's kind resolve entities late and lose
# facts that their language model has, and that its early MLP outputs, written in, bring back about
# 35 % of what is lost (reported). {cite:t}`cohen2025performance` report that a published model often
# answers with the entity's name. Both are seen here, in models of which it is known what they were
# trained on; and so it is seen, too, that the first may be the second in disguise.
#
# **What may be concluded.** That captions alone, the first stage of LLaVA's training, can leave a
# frozen language model able to name what it sees and unable to say what it knows of it; that the way
# of teaching decides how far; and, from the patches, how much of what is missing is what early
# blocks add at a name.
#
# **What may not.** These are grafts of one model of 270 million parameters, converted to four bits
# (Q4_K_M) and back, with a tower that knows one kind of picture and nothing else. Its language model
# is frozen in all recipes but `tuned`; published models of LLaVA's kind train theirs on
# conversations about pictures, which no recipe here does. Levels depend on the prompt. How large the
# gap of a published VLM is cannot be read off them; what can produce one can.

# %% [markdown]
# ## Try it yourself
#
# - `twohop graft train --recipe described` grows another graft; `twohop graft train --llm FOLDER`
#   grows it on a language model of your own.
# - Set `recipe = "names"` and `steps = 200` and watch the loss: the recipe is never trained on it.
# - `twohop graft study --recipes caption,caption-0.3,names --seeds 0` measures part of a curve.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
