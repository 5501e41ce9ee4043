"""Until which layer can a state that arrives still be turned into its fact?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import (
    LENGTH,
    ControlFailed,
    _told,
    named_recording,
    stored,
    together,
)
from twohop_lib.models.prompts import Prompt

#: Words that stand where a name would, tried in this order.
PLACEHOLDERS = ("X", "it", "here", "that", "one")


def deadline(
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    states: Sequence[int] = (2,),
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Until which layer can the backbone turn an arriving entity into its fact?

    A question with a placeholder instead of the name is run; the entity's own state, ``resid[s]``
    at its last name token, is written over the placeholder at ``resid[l]``, for each s of
    ``states`` and l ≥ s. Returns answer records with ``state`` (s), ``layer`` (l), ``arm``
    ("entity", "wrong entity": the pair's donor, or "nothing": the placeholder's own state) and
    ``follows``.

    Raises ControlFailed if the entity's state, written into its own prompt where it comes from,
    changes the run.
    """

    word = placeholder(backbone)

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        planned = []
        for pair in part:
            asked = pair.target
            text = asked.question_by_name.replace(asked.entity, word)
            empty = backbone.record(
                Prompt("by_name", text, False), None, word, length, from_start=True
            )
            at = (empty.roles.entity[-1],)
            runs = {
                "entity": named_recording(backbone, asked),
                "wrong entity": named_recording(backbone, asked, pair.donor),
            }
            values = {
                arm: hooks.activations(backbone, r, "resid", list(states))
                for arm, r in runs.items()
            }
            for s in states:
                _same_layer(backbone, runs["entity"], values["entity"][s], s, ControlFailed)
                for layer in range(s, backbone.n_blocks):
                    for arm, r in runs.items():
                        state = values[arm][s][[r.roles.entity[-1]]]
                        row = Write(empty, "resid", at, {layer: state})
                        planned.append((pair, arm, s, layer, row))
            planned.append((pair, "nothing", -1, -1, Write(empty, "resid", at, {})))
        said = backbone.answers([row for *_, row in planned], length)[1]
        return [
            _told(pair, text) | {"condition": "llm_by_name", "arm": arm, "state": s, "layer": layer}
            for (pair, arm, s, layer, _), text in zip(planned, said, strict=True)
        ]

    what = {"experiment": "deadline", "task": "fact", "states": list(states), "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    return stored(backbone, benchmark, groups, work, what | {"word": word}, labels, folder)


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


def _same_layer(
    backbone: Engine, named: Recording, state: Tensor, layer: int, failed: Callable[[str], Any]
) -> None:
    last = named.roles.entity[-1]
    row = Write(named, "resid", (last,), {layer: state[[last]]})
    if not backbone.close(backbone.logits([row])[0], named.logits):
        raise failed("A state written where it comes from changed the run; results mean nothing.")
