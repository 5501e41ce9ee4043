"""LLM-to-VLM MLP patching (Venhoff et al. 2025)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.attribution import image_relevance
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import (
    LENGTH,
    ControlFailed,
    Recorder,
    _told,
    named_recording,
    own_blocks,
    receiving,
    stored,
    together,
)

#: Where the backbone's outputs are written: the window that attribution picks, one drawn at
#: random, all positions of the picture (each gets the last name token's), the last ones.
SPANS = ("heuristic", "random", "all", "last")


#: Variants of the patch, besides the spans; each on the heuristic span.
CONTROLS = ("wrong entity", "late blocks", "noise", "residual stream", "added")


def window(positions: Sequence[int], scores: Tensor, width: int) -> tuple[int, ...]:
    """The run of ``width`` neighbouring ``positions`` with the largest sum of scores."""
    width = min(width, len(positions))
    sums = scores.unfold(0, width, 1).sum(-1)
    start = int(sums.argmax())
    return tuple(positions[start : start + width])


def mlp_patch(
    engine: Engine,
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    early: int | None = None,
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    seed: int = 0,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Write the backbone's early MLP outputs at the name into the VLM's run on the picture.

    ``early`` are how many blocks, from the lowest (None: a quarter of them, at least two). A
    pair's donor is the *wrong entity* of that control, asked the same relation.

    Returns answer records of the fact questions, one row a pair and ``method``: "unpatched", one
    for each of :data:`SPANS` and :data:`CONTROLS`; with ``follows`` ("right", "donor" or
    "neither": whose fact is given), ``span`` (positions written) and ``computation``.

    Raises ControlFailed if writing a run's own MLP outputs back changes it; TwohopError if VLM
    and backbone differ in depth or width.
    """

    own = own_blocks(engine)
    if len(own) != backbone.n_blocks or engine.blocks.d_model != backbone.blocks.d_model:
        raise TwohopError(
            f"The VLM has {len(own)} blocks of width {engine.blocks.d_model}, the backbone "
            f"{backbone.n_blocks} of {backbone.blocks.d_model}; patching needs the same of both."
        )
    early = early or max(2, backbone.n_blocks // 4)
    first, late = list(range(early)), list(range(backbone.n_blocks - early, backbone.n_blocks))

    def to_vlm(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {own[b]: v for b, v in values.items()}

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, "fact", True, length, from_start=True)
        planned: list[tuple[Pair, str, Write]] = []
        rows = []
        for pair in part:
            target = record(pair.target)
            at = receiving(engine, target)
            named = named_recording(backbone, pair.target)
            other = named_recording(backbone, pair.target, pair.donor)
            mlp, wrong = (
                _at_name(hooks.activations(backbone, r, "mlp", [*first, *late]), r)
                for r in (named, other)
            )
            resid = _at_name(hooks.activations(backbone, named, "resid", [early]), named)
            width = len(named.roles.entity)
            rng = np.random.default_rng([seed, _number(pair.target.question_id)])
            best = window(at, image_relevance(engine, target, at, pair.target), width)
            start = int(rng.integers(len(at) - len(best) + 1))
            spans = {
                "heuristic": best,
                "random": tuple(at[start : start + len(best)]),
                "all": at,
                "last": tuple(at[-len(best) :]),
            }

            def write(
                values: dict[int, Tensor],
                span: tuple[int, ...],
                site: Any = "mlp",
                add: bool = False,
                target: Recording = target,
                at: tuple[int, ...] = at,
            ) -> Write:
                fitted = {b: _fitted(v, len(span), span == at) for b, v in values.items()}
                return Write(target, site, span, to_vlm(fitted), add)

            low = {b: mlp[b] for b in first}
            noise = {b: _like(v, rng) for b, v in low.items()}
            writes = {name: write(low, span) for name, span in spans.items()} | {
                "wrong entity": write({b: wrong[b] for b in first}, best),
                "late blocks": write({b: mlp[b] for b in late}, best),
                "noise": write(noise, best),
                "residual stream": write(resid, best, "resid"),
                "added": write(low, best, add=True),
            }
            if pair is part[0]:
                _nothing_written(engine, target, best, [own[b] for b in first], ControlFailed)
            planned += [(pair, method, row) for method, row in writes.items()]
            rows.append((pair, target))
        logits, said = engine.answers([row for *_, row in planned], length)
        found = [
            _told(pair, text)
            | {
                "method": method,
                "span": list(row.positions),
                "computation": engine.computation(row),
            }
            for (pair, method, row), text in zip(planned, said, strict=True)
        ]
        free = [Write(t, "resid", (t.n - 1,), {}) for _, t in rows]
        texts = engine.answers(free, length)[1]
        found += [
            _told(pair, text) | {"method": "unpatched", "span": [], "computation": "splice"}
            for (pair, _), text in zip(rows, texts, strict=True)
        ]
        return found

    what = {"experiment": "mlp-patch", "task": "fact", "early": early, "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    weights = {"backbone": backbone}
    return stored(engine, benchmark, groups, work, what | {"draw": seed}, labels, folder, weights)


def _at_name(values: Mapping[int, Tensor], recording: Recording) -> dict[int, Tensor]:
    return {b: v[list(recording.roles.entity)] for b, v in values.items()}


def _fitted(value: Tensor, width: int, everywhere: bool) -> Tensor:
    """Rows for ``width`` positions: aligned at their ends, or the last one everywhere."""
    if everywhere or width > len(value):
        repeated = value[-1:].expand(width, -1)
        if everywhere:
            return repeated
        return torch.cat([repeated[: width - len(value)], value])
    return value[-width:]


def _like(value: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise with the norms of ``value``'s rows."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(value.shape))).to(value.device, value.dtype)
    return drawn * (value.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))


def _number(text: str) -> int:

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _nothing_written(
    engine: Engine, target: Recording, span: Sequence[int], blocks: list[int], failed: Any
) -> None:
    """Writing a run's own MLP outputs back must change nothing."""
    ours = hooks.activations(engine, target, "mlp", blocks)
    row = Write(target, "mlp", tuple(span), {b: ours[b][list(span)] for b in blocks})
    if not engine.close(engine.logits([row])[0], target.logits):
        raise failed("Writing a run's own MLP outputs back changed it; results mean nothing.")
