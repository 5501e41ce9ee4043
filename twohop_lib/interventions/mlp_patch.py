"""LLM-to-VLM MLP patching (Venhoff et al. 2025, §5): the backbone's early recall, written in.

The text backbone is asked the question with the entity's name. What its early blocks' MLPs add to
the stream at the name's tokens is written over what the VLM's own MLPs add at some positions P of
the picture, and everything later runs free:

    mlp_out_vlm[b][P] ← mlp_out_backbone[b][name]        b = 0 … m − 1,  [len(P), d_model]

P is a window as wide as the name. Name and window are aligned at their ends: a shorter window gets
the last name tokens, a longer one the first of them in its rest, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.attribution import image_relevance
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair, whose
from twohop_lib.interventions.recorder import Recorder, own_blocks, receiving
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep
from twohop_lib.models.blocks import early_blocks

#: Where the backbone's outputs are written: the window that attribution picks, one drawn at
#: random, all positions of the picture (each gets the last name token's), the last ones.
SPANS = ("heuristic", "random", "all", "last")
#: Variants of the patch, besides the spans; each on the heuristic span.
CONTROLS = ("wrong entity", "late blocks", "noise", "residual stream", "added")


def mlp_patch(
    engine: Engine,
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    early: int | None = None,
    seed: int = 0,
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the backbone's early MLP outputs at the name into the VLM's run on the picture.

    ``early`` are how many blocks (None: :func:`~twohop_lib.models.blocks.early_blocks`). A pair's
    donor is the *wrong entity* of that control, asked the same relation.

    Returns answer records of the fact questions, one row a pair and ``method``: "unpatched", one
    for each of :data:`SPANS` and :data:`CONTROLS`; with ``follows`` ("right", "donor" or
    "neither": whose fact is given) and ``span`` (positions written).

    Raises ControlFailed if writing a run's own MLP outputs back changes it; TwohopError if VLM
    and backbone differ in depth or width.
    """
    own, n_blocks = own_blocks(engine), backbone.n_blocks
    if len(own) != n_blocks or engine.blocks.d_model != backbone.blocks.d_model:
        raise TwohopError(
            f"The VLM has {len(own)} blocks of width {engine.blocks.d_model}, the backbone "
            f"{n_blocks} of {backbone.blocks.d_model}; patching needs the same of both."
        )
    early = early or early_blocks(n_blocks)
    first, last = range(early), range(n_blocks - early, n_blocks)
    named = Recorder(backbone, benchmark, "llm_by_name", from_start=True)

    def edits(pair: Pair, recorded: Recorder) -> Iterator[Trial]:
        target = recorded(pair.target)
        name, wrong = named(pair.target), named(pair.donor, pair.target)
        mlp = _at_name(name, hooks.activations(backbone, name, "mlp", [*first, *last]))
        others = _at_name(wrong, hooks.activations(backbone, wrong, "mlp", list(first)))
        entering = {early: name.resid[early, [p - name.first for p in name.roles.entity]]}
        low = {b: mlp[b] for b in first}
        rng = _generator(seed, pair)
        at = receiving(engine, target)
        spans = _spans(at, image_relevance(engine, target, at, pair.target), name, rng)
        best = spans["heuristic"]

        def write(
            method: str, values: Mapping[int, Tensor], span: tuple[int, ...] = best, **how: Any
        ) -> Trial:
            fitted = {own[b]: _fitted(v, len(span), span == at) for b, v in values.items()}
            edit = Write(target, how.pop("site", "mlp"), span, fitted, **how)
            return Trial(edit, {"method": method, "span": list(span)})

        for method, span in spans.items():
            yield write(method, low, span)
        yield write("wrong entity", others)
        yield write("late blocks", {b: mlp[b] for b in last})
        yield write("noise", {b: _noise_like(v, rng) for b, v in low.items()})
        yield write("residual stream", entering, site="resid")
        yield write("added", low, add=True)
        nothing = Write(target, "resid", (target.n - 1,), {})
        yield Trial(nothing, {"method": "unpatched", "span": []})

    def control(pair: Pair, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        target, span = trials[0].edit.target, list(trials[0].edit.positions)
        blocks = [own[b] for b in first]
        ours = hooks.activations(engine, target, "mlp", blocks)
        itself = Write(target, "mlp", tuple(span), {b: ours[b][span] for b in blocks})
        yield Control(itself, target, "Writing a run's own MLP outputs back changed it")
        yield Control(trials[-1].edit, target, "A run that was left alone changed")

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        told = whose(pair, "by_picture", outcome.said)
        return {"follows": "right" if told == "target" else told}

    return sweep(
        engine,
        benchmark,
        pairs,
        experiment="mlp-patch",
        condition="by_picture",
        from_start=True,
        edits=edits,
        control=control,
        record=record,
        settings={"early": early, "draw": seed},
        others=[backbone],
        **kept,
    )


def _at_name(named: Recording, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Values ``[n, d_model]`` at the name's tokens alone."""
    return {b: v[list(named.roles.entity)] for b, v in values.items()}


def _generator(seed: int, pair: Pair) -> np.random.Generator:
    """Chance that depends on the question, and not on which others are asked beside it."""
    digest = hashlib.sha256(pair.target.question_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:4], "big")])


def _spans(
    at: tuple[int, ...], relevance: Tensor, named: Recording, rng: np.random.Generator
) -> dict[str, tuple[int, ...]]:
    """The positions of each of :data:`SPANS`."""
    best = window(at, relevance, len(named.roles.entity))
    start = int(rng.integers(len(at) - len(best) + 1))
    chance = tuple(at[start : start + len(best)])
    return {"heuristic": best, "random": chance, "all": at, "last": tuple(at[-len(best) :])}


def window(positions: Sequence[int], scores: Tensor, width: int) -> tuple[int, ...]:
    """The run of ``width`` neighbouring ``positions`` with the largest sum of scores."""
    width = min(width, len(positions))
    sums = scores.unfold(0, width, 1).sum(-1)
    start = int(sums.argmax())
    return tuple(positions[start : start + width])


def _fitted(value: Tensor, width: int, everywhere: bool) -> Tensor:
    """Rows for ``width`` positions: aligned at their ends, or the last one everywhere."""
    if everywhere:
        return value[-1:].expand(width, -1)
    missing = max(0, width - len(value))
    return torch.cat([value[-1:].expand(missing, -1), value])[-width:]


def _noise_like(value: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise with the norms of ``value``'s rows."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(value.shape))).to(value.device, value.dtype)
    return drawn * (value.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
