"""The recall deadline: until which layer can a state that arrives still be turned into its fact?

In the text backbone alone. A question with a placeholder where the name would be is run, and the
named run's own state of block s, at the last token of the name, is written over the placeholder at
a later layer l:

    resid_placeholder[l][p] ← resid_named[s][last token of the name]        l ≥ s,  [d_model]

With s fixed, the state carries the same however late it arrives; what it lacks is the blocks that
it missed. (Ours; that early layers enrich an entity with its facts is Geva et al. 2023's finding.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair, whose
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep
from twohop_lib.models.prompts import Prompt

#: Words that stand where a name would, tried in this order.
PLACEHOLDERS = ("X", "it", "here", "that", "one")


def recall_deadline(
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    states: Sequence[int] = (2,),
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write an entity's state over a placeholder, at one layer after another.

    Returns answer records of the fact questions with ``state`` (s, each of ``states``), ``layer``
    (l, from s to the last block's), ``arm`` ("entity", "wrong entity": the pair's donor, or
    "nothing": the placeholder's own state, with neither state nor layer) and ``follows`` ("right",
    "donor" or "neither": whose fact is given).

    Raises ControlFailed if a state written where it comes from changes its run, or writing nothing
    that of the placeholder; TwohopError as :func:`placeholder` does.
    """

    def edits(pair: Pair, named: Recorder) -> Iterator[Trial]:
        empty = placeholder_run(backbone, pair.target, named.max_new_tokens)
        at = (empty.roles.entity[-1],)
        runs = {"entity": named(pair.target), "wrong entity": named(pair.donor, pair.target)}
        for s in states:
            for layer in range(s, backbone.n_blocks):
                for arm, run in runs.items():
                    edit = Write(empty, "resid", at, {layer: run.resid[s, _last(run)]})
                    yield Trial(edit, {"arm": arm, "state": s, "layer": layer})
        nothing = {"arm": "nothing", "state": None, "layer": None}
        yield Trial(Write(empty, "resid", at, {}), nothing)

    def control(pair: Pair, named: Recorder, trials: list[Trial]) -> Iterator[Control]:
        run, empty = named(pair.target), trials[-1].edit.target
        says = "A state written where it comes from changed the run"
        for s in states:
            itself = Write(run, "resid", run.roles.entity[-1:], {s: run.resid[s, _last(run)]})
            yield Control(itself, run, says, empty)
        yield Control(trials[-1].edit, empty, "Writing nothing changed the run", run)

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        told = whose(pair, "llm_by_name", outcome.said)
        return {"follows": "right" if told == "target" else told}

    return sweep(
        backbone,
        benchmark,
        pairs,
        experiment="deadline",
        condition="llm_by_name",
        from_start=True,
        edits=edits,
        control=control,
        record=record,
        settings={"states": list(states), "word": placeholder(backbone)},
        types={"state": "Int64", "layer": "Int64"},
        **kept,
    )


def _last(named: Recording) -> list[int]:
    """Where ``resid[s]`` of a recording has the name's last token."""
    return [named.roles.entity[-1] - named.first]


def placeholder_run(backbone: Engine, question: Question, max_new_tokens: int = 0) -> Recording:
    """The backbone's run on a question whose name is a :func:`placeholder`."""
    word = placeholder(backbone)
    text = question.question_by_name.replace(question.entity, word)
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
