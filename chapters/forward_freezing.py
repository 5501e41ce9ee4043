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
# # Forward freezing
#
# Hold the picture's part of the stream still from an early layer on, and let only the words go on
# thinking. What is still named, and what is still recalled, needed no further work on the picture.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional
# world {glue:text}`grafts_too`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - Frozen as it enters the first block, the picture still lets {glue:text}`named_late` % (late),
#   {glue:text}`named_middle` % (middle) and {glue:text}`named_early` % (early) of the recognised
#   houses be named, and a name in the backbone {glue:text}`named_backbone` %.
# - Half of the names are back when {glue:text}`depth_name_late` (late),
#   {glue:text}`depth_name_middle` (middle) and {glue:text}`depth_name_early` (early) blocks read the
#   picture as it is; in the backbone, with name tokens, {glue:text}`depth_name_backbone`.
# - Facts need more of that work: {glue:text}`fact_sentence`
# - {glue:text}`group_sentence`
# - A flag frozen as it enters the first block of a *graft of Gemma 3 270M* is still named in
#   {glue:text}`grafts_named`. Of its facts, {glue:text}`grafts_facts`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_freeze`
# ```

# %% [markdown]
# ## What is asked
#
# *Freeze k → T*: the picture's positions enter blocks k + 1 … T with the value of `resid[k]`, the
# stream that entered block k. Behind block T they run on from there. The words run freely
# throughout and read the frozen picture. With k = T nothing is frozen.
#
# A model that resolves the picture early keeps its answers from a small k on.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early"]  # miniature VLMs to ask
grafts = ["caption", "names"]  # a published LM, given eyes
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
batch_size = 64  # frozen runs at once; halved when memory runs out
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
from nnsight import NNsight
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures import lines
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.edits import Freeze
from twohop_lib.interventions.freeze import freeze, freeze_ends
from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.readouts import captions, freeze_words, selection, switch
from twohop_lib.readouts.tables import counted_table, joined

# %%
study = open_study(
    "forward_freezing",
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
able = study.ask("identify", "by_name", "by_picture")
study.able("identify", "by_name", "by_picture")

# %% [markdown]
# ## The method
#
# In nnsight, for one picture: keep what enters block k at the picture's positions, and write it
# over what enters the next blocks.

# %%
one = study.example("middle")
engine = study.engine(one)
record = Recorder(engine, study.questions, "identify", 8, from_start=True)
question = study.asked(one)[0]
target = record(question)
image, top = list(range(*target.span)), engine.n_blocks - 1


# %%
def frozen(k, last):
    model = NNsight(engine.model)
    blocks = decoder_blocks(model, engine.blocks)
    with model.trace(**target.inputs, use_cache=False):
        held = blocks[k].input[:, image].clone()
        for block in range(k + 1, last + 1):
            blocks[block].input[:, image] = held
        logits = model.output.logits[0, -1].save()
    return logits.detach().float()


# %% [markdown]
# The library reads the frozen positions' keys and values off each block without running the rest
# of it, and runs the words alone until block T. Both ways, side by side:

# %%
print(f"shown: {question.entity}")
for k in range(0, engine.n_blocks, max(1, engine.n_blocks // 8)):
    if not image:  # shown through cross-attention: nothing to freeze
        break
    fast = engine.logits([Freeze(target, k, top)])[0]
    study.assert_same(fast, frozen(k, top), engine, target)
    p, first = fast.softmax(-1).max(-1)
    said = engine.owner.tokenizer.decode(first)
    print(f"frozen at resid[{k}]: {said} … (p = {p:.2f})")

# %% [markdown]
# ## The sweep
#
# Every k, for three depths T: the layer at which cross-patching turns from donor to target,
# two thirds of the blocks, and the top. Naming and facts. The backbone's name tokens are frozen in
# the same way, so that "later than text" is measured and not assumed.


# %%
def ends_of(study, name, engine, labels):
    """The last frozen blocks to try, for pictures also where cross-patching turns."""
    if name == "backbone":
        return freeze_ends(engine.n_blocks)
    pairs = study.pairs_of(name, "identify")
    crossed = cross_patch(engine, study.questions, pairs, **labels)
    crossed["blocks_read"] = switch.blocks_read(crossed)
    crossed["balance"] = switch.balance(crossed)
    turn = switch.switch_layer(crossed, "balance").estimate
    return freeze_ends(engine.n_blocks, turn)


# %%
def to_the_top(study, name, engine, labels):
    """The last block alone."""
    return [engine.n_blocks - 1]


# %%
def swept(study, task, ends_of, every=1):
    def of_a_model(name, engine, labels):
        if engine.site.kind != "stream":
            print(f"{name}: its pictures have no positions to freeze.")
            return None
        ends = ends_of(study, name, engine, labels)
        asked = study.asked(name)
        labels = {"until": ends, "every": every, **labels}
        return freeze(engine, study.questions, asked, task, **labels)

    def of_the_backbone(engine, labels):
        ends = ends_of(study, "backbone", engine, labels)
        asked = one_per_entity(study.questions.questions)
        labels = {"until": ends, "every": every, **labels}
        return freeze(
            engine, study.questions, asked, task, "name", **labels
        )

    return joined(
        study.sweep(of_a_model), study.sweep_backbone(of_the_backbone)
    )


# %%
both = joined(
    swept(study, "identify", ends_of), swept(study, "fact", ends_of)
)
freeze_words.something(both)
study.keep(able, both)
top = switch.to_the_top(both)
naming, facts = (
    top[top["task"] == task] for task in ("identify", "fact")
)

# %% [markdown]
# ## Results
#
# ### Naming with a frozen picture
#
# {numref}`fig-freeze-names` freezes the picture up to the top. The first point is the picture as it
# enters the model.


# %% tags=["hide-input"]
show(
    lines.lines_by_layer(
        switch.curve(naming, "correct", x="layer"),
        freeze_words.named_at_the_door(naming),
        y_title="Still named (%)",
        x_title="Layer k at which the picture is frozen",
    ),
    "fig-freeze-names",
    "Entities that are still named when the picture's positions (backbone: the name's) are held at "
    f"resid[k] up to the last block; {study.among()}. {captions.n_words(naming, 'entities')}. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### Facts with a frozen picture
#
# {numref}`fig-freeze-facts` asks for a fact under the same freeze.

# %% tags=["hide-input"]
show(
    lines.lines_by_layer(
        switch.curve(facts, "correct", x="layer"),
        freeze_words.work_for_facts(facts),
        y_title="Facts answered (%)",
        x_title="Layer k at which the picture is frozen",
    ),
    "fig-freeze-facts",
    "Facts answered when the picture's positions (backbone: the name's) are held at resid[k] up "
    f"to the last block. {captions.n_words(facts, 'entities')}, one fact each. "
    "Bands: 95 % intervals from resampling entities.",
)

# %% [markdown]
# ### How much work the picture needs
#
# The table gives the number of blocks that have to read the picture as it is before half of the
# answers that there are without freezing are back.

# %%
both["blocks_read"] = switch.blocks_read(both)
kept = switch.retained(both)
table = switch.switch_table(kept, "retained", ("model", "task", "until"))
freeze_words.readable(table).style.hide(axis="index")

# %% [markdown]
# "None" means that half of the answers are there from the first point on, or that there are too few
# answers without freezing to speak of.

# %% [markdown]
# ### Early and late identified
#
# *Early identified* are entities named although the picture is frozen from layer 1 on; *late
# identified* need more. If late resolution costs facts, late entities should lose more of them, at
# equal knowledge by name.

# %%
known = selection.keep(able, selection.answered(able, "by_name"))
known = known[known["condition"] == "by_picture"]
groups = freeze_words.by_identification(naming, known)
freeze_words.readable_groups(groups).style.hide(axis="index")

# %% tags=["remove-cell"]
needed = freeze_words.blocks_needed(kept, table)
start = naming[naming["layer"] == 0].groupby("model")["correct"].mean()
glue_all({f"named_{m}": captions.percent(v) for m, v in start.items()})
for model in start.index:
    glue(
        f"depth_name_{model}",
        needed.get((model, "identify"), switch.NEVER),
    )
glue("fact_sentence", freeze_words.facts_back(needed))
glue("group_sentence", freeze_words.early_against_late(groups))
glue("answers_cut", study.answers_cut)
glue("model_asked", study.subject)
glue(
    "model_freeze",
    freeze_words.about_one(study.models[0], start, needed),
)

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same freeze in two more worlds, as recorded when the project's study was made: blocks until
# half of the answers are back, frozen up to the last block.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = study.recorded("sweeps", experiment="freeze")
worlds = switch.to_the_top(joined(both, recorded))
worlds["blocks_read"] = switch.blocks_read(worlds)
worlds = switch.retained(worlds, ("model", "task", "seed"))
switch.switches_by_world(worlds, "retained", ("task", "model"))

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The same freeze, up to the last block, in *grafts of Gemma 3 270M*: a published language model,
# left as it was, that sees flags through a small tower and projector grown onto it.
# {numref}`fig-grafts-freeze-names` asks for the country's name, {numref}`fig-grafts-freeze-facts`
# for a fact that the language model gives by name.

# %% tags=["grafts"]
published = open_grafts("forward_freezing", grafts, study.given, 12)
if published:
    named = published.frame(
        "identify",
        lambda study: swept(study, "identify", to_the_top, every=3),
    )
    recalled = published.frame(
        "fact", lambda study: swept(study, "fact", to_the_top, every=3)
    )
    named, recalled = (
        switch.to_the_top(named),
        switch.to_the_top(recalled),
    )
    seen, told = (
        found[found["model"] != "backbone"] for found in (named, recalled)
    )

# %% tags=["grafts", "hide-input"]
if published:
    show(
        lines.lines_by_layer(
            switch.curve(named, "correct", x="layer"),
            published.title(freeze_words.named_at_the_door(seen)),
            y_title="Still named (%)",
            x_title="Layer k at which the picture is frozen",
        ),
        "fig-grafts-freeze-names",
        published.caption(
            "Countries that are still named when the picture's positions (backbone: the name's) "
            f"are held at resid[k] up to the last block; {published.study.among()}. "
            f"{captions.n_words(named, 'entities')}. "
            "Bands: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["grafts", "hide-input"]
if published:
    show(
        lines.lines_by_layer(
            switch.curve(recalled, "correct", x="layer"),
            published.title(freeze_words.work_for_facts(told)),
            y_title="Facts answered (%)",
            x_title="Layer k at which the picture is frozen",
        ),
        "fig-grafts-freeze-facts",
        published.caption(
            "Facts answered when the picture's positions (backbone: the name's) are held at "
            f"resid[k] up to the last block. {captions.n_words(recalled, 'entities')}, one fact "
            "each. Bands: 95 % intervals from resampling countries."
        ),
    )

# %% tags=["remove-cell", "grafts"]
published.glue(
    named=lambda: freeze_words.at_the_door(seen),
    facts=lambda: freeze_words.facts_at_the_door(told),
)

# %% [markdown]
# ## Controls
#
# Freezing nothing (k = T) must leave a run as it is; the sweep stops if it does not. The table
# shows how many answers are word for word unchanged, at k = T and at k = 0, and how they were
# computed.

# %%
edges = both[both["layer"].isin([0]) | (both["layer"] == both["until"])]
where = edges["layer"].eq(0).map({True: "k = 0", False: "k = T"})
by = ["model", "computation"]
counted_table(edges.assign(frozen=where), by, "frozen", "unchanged")

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`cohen2025performance` freeze LLaVA-type models from layers 0 to 19 up to block 20, and
# report that the two LLaVA-MORE models keep about 30 to 50 % of their identified entities even from
# layer 0. Their layer 0 is the stream *behind* block 0, here k = 1. They fix T at 20; here it is the
# measured switch layer, and others beside it. Facts under the freeze, and names frozen alike in the
# text backbone, are not reported there.
#
# They also report that entities identified early are the better known ones. Here the two groups are
# compared on facts that the same model knows by name.

# %% [markdown] tags=["organisms"]
# The organisms are tiny, and all of their facts are known by name, so that the comparison of early
# and late identified houses needs no correction for knowledge here.

# %% [markdown]
# ## Try it yourself
#
# - Set `vlm` to a published model's id: the page is about that model then.
# - Freeze up to another block: `until=[2]` in `freeze`.
# - Is the last image token enough? Freeze it alone, with the nnsight form above.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
