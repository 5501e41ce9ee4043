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
# # Cross-patching
#
# Show a model one house, and half-way up exchange the picture's part of the stream for another
# house's. Which of the two does the model name? The layer at which the answer turns says how long
# the model still depends on the picture's own positions.

# %% [markdown] tags=["organisms"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on miniature models (*organisms*) of a fictional
# world {glue:text}`grafts_too`.
# {glue:text}`answers_cut` {glue:text}`grafts_answers_cut`
#
# - Asked to name the house, the organisms turn from the donor to the target at layer
#   {glue:text}`switch_late` (late), {glue:text}`switch_middle` (middle),
#   {glue:text}`switch_early` (early) and {glue:text}`switch_cross` (cross, which has
#   {glue:text}`blocks_cross` blocks).
# - {glue:text}`order_sentence`
# - A name in a text, patched in the same way in the backbone, turns at layer
#   {glue:text}`switch_backbone`.
# - Asked for a fact instead, {glue:text}`fact_sentence`
# - Between the two ends many answers are neither's: {glue:text}`neither_sentence`
# - In *grafts of Gemma 3 270M*, whose language model has 18 blocks, asked to name the country,
#   {glue:text}`grafts_names` Asked for a fact, {glue:text}`grafts_facts`
# ```

# %% [markdown] tags=["model"]
# ```{admonition} Key takeaways
# :class: tip
#
# All figures are measured on this page, on {glue:text}`model_asked`.
# {glue:text}`answers_cut`
#
# - {glue:text}`model_switch`
# ```

# %% [markdown]
# ## What is asked
#
# `resid[l]` is the residual stream that enters block l; `resid[0]` are the embeddings, with the
# picture's features among them. The *target* is the run that is patched, the *donor* the run whose
# states are written in. Patched from layer 0, the model sees the donor's picture; patched from the
# top, nothing changes. In between there is a layer from which on the picture's positions no longer
# decide the answer: the **switch layer**.

# %% [markdown]
# ## Setup and parameters

# %% tags=["parameters"]
vlm = ""  # one model to ask instead: a hub id or a folder
llm = ""  # its text backbone, if not the one it is known to have
load = {}  # how to load them, such as {"quantise": "4bit"}
benchmark = ""  # a source's name or a path; "" asks what suits the model
organisms = ["late", "middle", "early", "cross"]  # miniature VLMs
grafts = ["caption", "names"]  # a published LM, given eyes
seed = 0  # which world; others than 0 are trained on demand
split = "test"  # houses never used for any choice; "" for all
wording = "standard"  # how the questions are worded
max_entities = 48  # ask about so many entities; 0 asks about all
donors = 2  # for each target
batch_size = 64  # patched runs at once; halved when memory runs out
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
from twohop_lib.chapter.explorer import PatchExplorer
from twohop_lib.chapter.published import open_grafts
from twohop_lib.chapter.show import glue, glue_all, show
from twohop_lib.chapter.study import open_study
from twohop_lib.figures import dots, heat, lines
from twohop_lib.interventions.cross_patch import LEAST, cross_patch
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.part_patch import part_patch
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.reference import decoder_blocks
from twohop_lib.readouts import captions, switch, switch_words
from twohop_lib.readouts.tables import counted_table, joined, share_words

# %%
study = open_study(
    "cross_patching",
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
# Only entities that a model names from their pictures can be targets or donors.

# %%
able = study.ask("identify", "by_picture")
study.able("identify", "by_picture")

# %% [markdown]
# ## The method
#
# In nnsight, on one pair: save the donor's stream at the picture's positions as it enters block l,
# write it over the target's, and let everything later run free.

# %%
one = study.example("middle")
engine = study.engine(one)
pair = study.pairs_of(one, "identify")[0]
record = Recorder(engine, study.questions, "identify", 8)
target, donor = record(pair.target), record(pair.donor)
image = list(range(*target.span))
print(f"target: {pair.target.entity}; donor: {pair.donor.entity}")
print(f"{len(image)} image positions of {target.n}")


# %%
def patched(layer):
    model = NNsight(engine.model)
    blocks = decoder_blocks(model, engine.blocks)
    with model.trace(**donor.inputs, use_cache=False):
        state = blocks[layer].input[:, image].clone().save()
    with model.trace(**target.inputs, use_cache=False):
        blocks[layer].input[:, image] = state
        logits = model.output.logits[0, -1].save()
    return logits.detach().float()


# %% [markdown]
# That is two runs for each layer. The library gets the same results with less work: before the
# layer all is as in the target's run, and behind it the picture's keys and values are those of the
# donor's. So only the words behind the picture are run again, from the patched layer on, with all
# layers and donors as rows of one batch. Both ways, side by side:

# %%
for layer in range(0, engine.n_blocks, max(1, engine.n_blocks // 8)):
    fast = engine.logits([CrossPatch(target, donor, layer)])[0]
    if image:  # a picture shown through cross-attention has none
        study.assert_same(fast, patched(layer), engine, target, donor)
    p, first = fast.softmax(-1).max(-1)
    said = engine.owner.tokenizer.decode(first)
    print(f"layer {layer}: {said} … (p = {p:.2f})")

# %% [markdown]
# Where the fast way is not exact for a model, whole runs are made instead (column `computation`
# below). In cross-attention models, the picture's keys and values from the patched layer on are the
# donor's.

# %% [markdown]
# ## The sweep
#
# Every target gets donors whose answers begin with another token. Two prompts: name the entity,
# and answer a question about it. Beside them, the text backbone with the *name's* tokens patched
# in place of a picture.


# %%
def swept(study, task, donors, every=1):
    def bands(engine):
        return [(at, None) for at in range(0, engine.n_blocks + 1, every)]

    def of_a_model(name, engine, labels):
        pairs = study.pairs_of(name, task, donors)
        labels = {"bands": bands(engine), **labels}
        return cross_patch(engine, study.questions, pairs, task, **labels)

    def of_the_backbone(engine, labels):
        # Only names of as many tokens can be exchanged.
        pairs = study.pairs_of("backbone", task, donors, True)
        labels = {"by": "name", "bands": bands(engine), **labels}
        return cross_patch(engine, study.questions, pairs, task, **labels)

    return joined(
        study.sweep(of_a_model), study.sweep_backbone(of_the_backbone)
    )


# %%
def read_out(found):
    return found.assign(
        blocks_read=switch.blocks_read(found),
        own=switch.target_gained(found),
        balance=switch.balance(found),
    )


# %%
naming, facts = (
    swept(study, task, donors) for task in ("identify", "fact")
)
study.keep(able, naming, facts)
naming, facts = read_out(naming), read_out(facts)

# %% [markdown]
# ## Results
#
# ### Naming: from the donor to the target
#
# {numref}`fig-naming` shows how often the *target* is named although the donor's picture stands in
# its place from a layer on.


# %% tags=["hide-input"]
PAIR = ("seed", "entity_id", "donor_id")
named_at = switch.switch_table(naming, "balance")
show(
    lines.lines_by_layer(
        switch.curve(naming, "own"),
        switch_words.first_and_last_to_turn(named_at),
        y_title="Names the target (%)",
        x="blocks_read",
        x_title="Layer from which on the donor's picture stands",
    ),
    "fig-naming",
    "Share of answers that name the target after the picture's stream (backbone: the name's) was "
    f"exchanged from a layer on. {captions.n_words(naming, 'pairs', columns=PAIR)}; "
    f"{study.among()}. Bands: 95 % intervals from resampling targets and donors.",
)

# %% [markdown]
# Between the ends the answer is often neither's: a name pieced together from both. {numref}`fig-items`
# shows every pair of one model; hover to read what it says.

# %% tags=["hide-input"]
items = study.with_names(naming[naming["model"] == one])
most, _, where = switch_words.neither_at_its_highest(items)
show(
    heat.items_by_layer(
        items,
        f"In {one}, {100 * most:.0f} % of answers are neither's at layer {where}",
    ),
    "fig-items",
    f"What {one} answers for each pair of target and donor, by patched layer. "
    f"{captions.n_words(items, 'pairs', columns=PAIR)}. "
    "Rows are ordered by where the answer becomes the target's.",
)

# %% [markdown]
# ### Asked for a fact
#
# The same patch under a question about the entity. A model that answers few questions by picture
# leaves little to count, so {numref}`fig-facts` is on a calibrated scale: the difference between the
# logits of the two answers, 0 as in the target's own run and 1 as in the donor's.

# %% tags=["hide-input"]
means = switch.curve(facts, "calibrated")
show(
    lines.lines_by_layer(
        means,
        switch_words.leaves_the_donor(means),
        y_title="Calibrated logit difference (0 target, 1 donor)",
        x="blocks_read",
        x_title="Layer from which on the donor's picture stands",
        share=False,
    ),
    "fig-facts",
    "Calibrated difference of the answers' first-token logits under a question about the entity. "
    f"{captions.n_words(facts, 'pairs', columns=PAIR)}; pairs whose own runs differ by less than "
    f"{LEAST} nats are left out. Bands: 95 % intervals from resampling targets and donors.",
)

# %% [markdown]
# ### Switch layers
#
# The switch layer is where a logistic curve, fitted to target minus donor, passes the middle. None
# is given where the answer does not turn from one to the other.

# %%
n_blocks = study.n_blocks()
named_at = switch.switch_table(naming, "balance", n_blocks=n_blocks)
asked_at = switch.switch_table(facts, "balance", n_blocks=n_blocks)
table = joined(
    named_at.assign(asked="name"), asked_at.assign(asked="fact")
)
switch_words.readable(table, "asked", "model").style.hide(axis="index")

# %% tags=["remove-cell"]
at = table.set_index(["asked", "model"])["switch"].map(
    switch.switch_words
)
glue_all({f"switch_{m}": at["name", m] for m in named_at["model"]})
glue_all({f"blocks_{m}": n for m, n in n_blocks.items()})
if not study.given:
    glue("fact_sentence", switch_words.turns_at(asked_at))
    most, model, layer = switch_words.neither_at_its_highest(naming)
    glue(
        "neither_sentence",
        f"up to {100 * most:.0f} % ({model}, layer {layer}), most of them names pieced together "
        "from both.",
    )

# %% [markdown] tags=["organisms"]
# ### Three worlds
#
# The same sweeps were run on two more worlds when the project's study was made.

# %% [markdown] tags=["model"]
# ### Three worlds
#
# The project's study recorded the organisms of other worlds; they are not repeated here.

# %%
recorded = study.recorded("sweeps", experiment="cross-patch")
worlds = joined(naming, facts, recorded)
worlds["blocks_read"] = switch.blocks_read(worlds)
worlds["balance"] = switch.balance(worlds)
switch.switches_by_world(worlds, "balance", by=("task", "model"))

# %% tags=["remove-cell"]
gaps = ("early", "middle", "late")
if set(gaps) <= set(study.models):
    of_names = worlds[worlds["task"] == "identify"]
    each = switch.switch_table(of_names, "balance", by=("model", "seed"))
    order = switch.in_order(each, gaps)
    glue("order_sentence", switch_words.order_in_worlds(order, gaps))

# %% [markdown] tags=["grafts"]
# ## On a published language model
#
# The same exchange on *grafts of Gemma 3 270M*: a published language model, frozen, that sees flags
# through a small tower and projector grown onto it. Solved examples of the question stand before
# the picture; as they are the same in both runs, nothing is exchanged there.
# {numref}`fig-grafts-naming` asks for the country's name, {numref}`fig-grafts-facts` for a fact.

# %% tags=["grafts"]
published = open_grafts("cross_patching", grafts, study.given, 12)
if published:
    named = published.frame(
        "identify", lambda study: swept(study, "identify", 1, every=2)
    )
    recalled = published.frame(
        "fact", lambda study: swept(study, "fact", 1, every=2)
    )
    named, recalled = read_out(named), read_out(recalled)
    both_at = {
        "name": switch.switch_table(named, "balance"),
        "fact": switch.switch_table(recalled, "balance"),
    }

# %% tags=["grafts", "hide-input"]
if published:
    show(
        lines.lines_by_layer(
            switch.curve(named, "own"),
            published.title(
                switch_words.first_and_last_to_turn(both_at["name"])
            ),
            y_title="Names the target (%)",
            x="blocks_read",
            x_title="Layer from which on the donor's picture stands",
        ),
        "fig-grafts-naming",
        published.caption(
            "Share of answers that name the target after the picture's stream (backbone: the "
            "name's) was exchanged from a layer on. "
            f"{captions.n_words(named, 'pairs', columns=PAIR)}; {published.study.among()}. "
            "Bands: 95 % intervals from resampling targets and donors."
        ),
    )

# %% tags=["grafts", "hide-input"]
if published:
    means = switch.curve(recalled, "calibrated")
    show(
        lines.lines_by_layer(
            means,
            published.title(switch_words.leaves_the_donor(means)),
            y_title="Calibrated logit difference (0 target, 1 donor)",
            x="blocks_read",
            x_title="Layer from which on the donor's picture stands",
            share=False,
        ),
        "fig-grafts-facts",
        published.caption(
            "Calibrated difference of the answers' first-token logits under a question about the "
            "country that the language model answers by name. "
            f"{captions.n_words(recalled, 'pairs', columns=PAIR)}; pairs whose own runs differ by "
            f"less than {LEAST} nats are left out. "
            "Bands: 95 % intervals from resampling targets and donors."
        ),
    )

# %% tags=["remove-cell", "grafts"]
published.glue(
    names=lambda: switch_words.turns_at(both_at["name"]),
    facts=lambda: switch_words.turns_at(both_at["fact"]),
)

# %% [markdown]
# ## Controls
#
# Every sweep carries two, and stops if one fails: a run patched with *itself* is unchanged, and a
# run patched from layer 0 is the donor's. The table counts how answers were computed, and what the
# ends of the sweep say.

# %%
switch_words.ends_of_the_sweep(naming, n_blocks)

# %% [markdown]
# ### Bands of two layers
#
# A patch from l to the top says until when the picture matters; a patch of two layers says *which*
# blocks read it. In between, the target's own stream is put back.

# %%
bands = study.sweep(
    lambda name, engine, labels: cross_patch(
        engine,
        study.questions,
        study.pairs_of(name, "identify"),
        bands=[(at, at + 2) for at in range(engine.n_blocks - 1)],
        **labels,
    )
)
bands["moved"] = ~switch.target_gained(bands)

# %% tags=["hide-input"]
show(
    lines.lines_by_layer(
        switch.curve(bands, "moved", x="layer"),
        switch_words.blocks_that_read(bands),
        y_title="No longer names the target (%)",
        x_title="First of two blocks that see the donor",
    ),
    "fig-bands",
    "Share of answers that are no longer the target's when two neighbouring blocks read the "
    f"donor's picture. {captions.n_words(bands, 'pairs', columns=PAIR)}. "
    "Bands: 95 % intervals from resampling targets and donors.",
)

# %% [markdown]
# ### Part of the picture
#
# Only the last quarter of the picture's positions, or only the others. Here later positions of the
# picture see the exchanged ones, so these are whole runs.


# %%
def in_parts(name, engine, labels):
    if engine.site.kind != "stream":
        return None
    pairs = study.pairs_of(name, "identify")[:12]
    return part_patch(engine, study.questions, pairs, **labels)


parts = study.sweep(in_parts)
if len(parts):
    parts["names the donor"] = parts["says"].eq("donor")
(
    counted_table(
        parts,
        ["model", "part"],
        "layer",
        "names the donor",
        words=share_words(0),
    )
    if len(parts)
    else "The picture has no positions in this model's stream."
)

# %% [markdown]
# ### Donors of the same and of another type
#
# Where a benchmark has several types of entity, half of the donors are of another type.

# %%
types = {True: "donors of the same type", False: "of another type"}
by_type = naming.assign(donors=naming["same_type"].map(types))
counted_table(by_type, "model", "donors", "own")

# %% [markdown]
# ## What the papers report, and how this differs
#
# {cite:t}`cohen2025performance` report switch layers of 20, 17 and 24 of 32 for LLaVA-1.5 7B and
# the two LLaVA-MORE models, with naming prompts; they take layers 5 to 29 one at a time and read
# two yes/no answers, names the donor and names the target. Here every layer from 0 is taken,
# answers that are neither's are counted, and the fact prompt and the backbone's own names stand
# beside. Their positions were fixed numbers for each model; here they are found from the processor.

# %% [markdown] tags=["organisms"]
# The organisms have eight blocks (cross: ten), so their switch layers are not those models'. What
# they show is that the switch of the naming prompt and the size of the gap are different things:
# the fact prompt turns near the backbone's own, whatever the naming prompt does.

# %% tags=["remove-cell"]
name = study.models[0]
glue("answers_cut", study.answers_cut)
glue("model_asked", study.subject)
glue(
    "model_switch",
    f"Layer (of {n_blocks[name]}) at which {name} turns from the donor to the target: "
    f"{at['name', name]} when asked to name the entity, {at['fact', name]} when asked for a fact.",
)

# %% [markdown]
# ## Try it yourself
#
# With a kernel (Colab, Jupyter), the menu below asks the model itself, at any layer. In the built
# book, {numref}`fig-explorer` has the answers of some pairs.

# %%
PatchExplorer(engine, study.questions, study.asked(one)).widget()

# %% tags=["hide-input"]
few = items[items["entity"].isin(sorted(items["entity"].unique())[:8])]
show(
    dots.explorer(few, f"What {one} says, layer by layer"),
    "fig-explorer",
    f"Choose a pair below the figure; {one}'s answer when the donor's picture stands from that "
    f"layer on. {captions.n_words(few, 'pairs', columns=PAIR)}.",
)

# %% [markdown]
# - Set `vlm` to a published model's id: the page is about that model then.
# - Set `donors = 5`, or `max_entities = 0` for all test houses.
# - Patch a single block: `bands=[(3, 4)]` in `cross_patch`.
#
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
