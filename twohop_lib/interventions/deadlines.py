"""Two deadlines: until when can a state that arrives be turned into its fact, or be read at all?

In the text backbone alone. A prompt with a placeholder where the name would be is run, and a state
of the named run, at the last token of the name, is written over the placeholder at layer l:

    resid_placeholder[l][p] ← resid_named[s][last token of the name]        l ≥ s,  [d_model]

**Recall deadline**: s is fixed, so that the state carries the same however late it arrives; what it
lacks is the blocks that it missed, which enrich an entity with its facts (Geva et al. 2023).
**Reading deadline**: s = l, the run's own state, which missed nothing; what fails then is that
later blocks no longer read the position. (The two are ours.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair, Task, condition_of, follows
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep
from twohop_lib.models.prompts import Prompt
from twohop_lib.runs.conditions import prompt_of

#: Words that stand where a name would, tried in this order.
PLACEHOLDERS = ("X", "it", "here", "that", "one")


def recall_deadline(
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    states: Sequence[int] = (2,),
    routes: Sequence[tuple[int, int]] | None = None,
    task: Task = "fact",
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write an entity's state after s blocks over a placeholder, at one layer after another.

    ``routes`` are (s, layer) with layer ≥ s (None: each of ``states`` at all layers from there
    on). ``task`` "identify" asks for the name. Returns answer records with ``state`` (s),
    ``layer``, ``arm`` ("entity", "wrong entity": the pair's donor, or "nothing": the placeholder's
    own state, with neither state nor layer) and ``follows`` ("right", "donor" or "neither": whose
    answer is given).

    Raises ControlFailed if a state written where it comes from changes its run, or writing nothing
    that of the placeholder; TwohopError as :func:`placeholder` does.
    """
    every = [(s, layer) for s in states for layer in range(s, backbone.n_blocks)]
    return _written(backbone, benchmark, pairs, routes or every, "deadline", task, kept)


def reading_deadline(
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    layers: Sequence[int] | None = None,
    task: Task = "fact",
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the named run's own ``resid[l]`` over a placeholder at l, one layer after another.

    As :func:`recall_deadline` with ``state`` = ``layer``.
    """
    every = range(backbone.n_blocks) if layers is None else layers
    routes = [(layer, layer) for layer in every]
    return _written(backbone, benchmark, pairs, routes, "reading-deadline", task, kept)


def _written(
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    routes: Sequence[tuple[int, int]],
    experiment: str,
    task: Task,
    kept: Kept,
) -> pd.DataFrame:
    """Records of states written over a placeholder by ``routes`` of (state, layer)."""
    condition = condition_of(task, "name")

    def edits(pair: Pair, named: Recorder) -> Iterator[Trial]:
        empty = placeholder_run(backbone, pair.target, named.max_new_tokens, condition)
        at = (empty.roles.entity[-1],)
        runs = {"entity": named(pair.target), "wrong entity": named(pair.donor, pair.target)}
        for s, layer in routes:
            for arm, run in runs.items():
                edit = Write(empty, "resid", at, {layer: run.resid[s, _last(run)]})
                yield Trial(edit, {"arm": arm, "state": s, "layer": layer})
        nothing = {"arm": "nothing", "state": None, "layer": None}
        yield Trial(Write(empty, "resid", at, {}), nothing)

    def control(pair: Pair, named: Recorder, trials: list[Trial]) -> Iterator[Control]:
        run, empty = named(pair.target), trials[-1].edit.target
        says = "A state written where it comes from changed the run"
        states = sorted({s for s, _ in routes})
        for s in states[:: max(1, len(states) // 2)]:
            itself = Write(run, "resid", run.roles.entity[-1:], {s: run.resid[s, _last(run)]})
            yield Control(itself, run, says, empty)
        yield Control(trials[-1].edit, empty, "Writing nothing changed the run", run)

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        return follows(pair, condition, outcome.said)

    return sweep(
        backbone,
        benchmark,
        pairs,
        experiment=experiment,
        condition=condition,
        from_start=True,
        edits=edits,
        control=control,
        record=record,
        settings={"routes": [list(route) for route in routes], "word": placeholder(backbone)},
        types={"state": "Int64", "layer": "Int64"},
        **kept,
    )


def _last(named: Recording) -> list[int]:
    """Where ``resid[s]`` of a recording has the name's last token."""
    return [named.roles.entity[-1] - named.first]


def placeholder_run(
    backbone: Engine,
    question: Question,
    max_new_tokens: int = 0,
    condition: str = "llm_by_name",
) -> Recording:
    """The backbone's run on a question whose name is a :func:`placeholder`."""
    word = placeholder(backbone)
    text = prompt_of(condition, question).text.replace(question.entity, word)
    prompt = Prompt("by_name", text, False)
    return backbone.record(prompt, None, word, max_new_tokens, from_start=True)


def placeholder(backbone: Engine) -> str:
    """A word that stands for no entity, of known tokens.

    Raises TwohopError if the tokenizer knows none of :data:`PLACEHOLDERS`.
    """
    tokenizer = backbone.owner.tokenizer
    for word in PLACEHOLDERS:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.unk_token_id not in ids:
            return word
    raise TwohopError(f"The tokenizer knows none of {', '.join(PLACEHOLDERS)}.")
