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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.attribution import image_relevance
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair, follows
from twohop_lib.interventions.recorder import Recorder, own_blocks, receiving
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep
from twohop_lib.models.blocks import early_blocks

#: Where the backbone's outputs are written: the window that attribution picks, one drawn at
#: random, all positions of the picture (each gets the last name token's), the last ones.
Span = Literal["heuristic", "random", "all", "last"]
SPANS: tuple[Span, ...] = get_args(Span)
#: Variants of the patch, besides the spans; each on the heuristic span.
CONTROLS = ("wrong entity", "late blocks", "noise", "residual stream", "added")


@dataclass(frozen=True)
class Patch:
    """One way of patching: what of the backbone's run is written where.

    ``taken`` are the blocks of the backbone whose MLP outputs are taken (with ``site`` "resid" one
    layer, whose stream is), and ``layer`` the block that gets the first of them (None: the same);
    the others follow it. ``whose`` run they are from; "noise" has the norms of the entity's.
    """

    method: str
    taken: range
    layer: int | None = None
    span: Span = "heuristic"
    whose: Literal["entity", "wrong entity", "noise"] = "entity"
    site: Literal["mlp", "resid"] = "mlp"
    add: bool = False

    @property
    def at(self) -> int:
        return self.taken.start if self.layer is None else self.layer

    @property
    def run(self) -> str:
        """Whose run the values are taken from; noise takes its norms from there."""
        return "entity" if self.whose == "noise" else self.whose


def standard(n_blocks: int, early: int) -> list[Patch]:
    """The patch of the paper on each of :data:`SPANS`, and the variants of :data:`CONTROLS`."""
    first, last = range(early), range(n_blocks - early, n_blocks)
    entering = _above(n_blocks, early)
    return [
        *(Patch(span, first, span=span) for span in SPANS),
        Patch("wrong entity", first, whose="wrong entity"),
        Patch("late blocks", last),
        Patch("noise", first, whose="noise"),
        Patch("residual stream", entering, site="resid"),
        Patch("added", first, add=True),
    ]


def sliding(n_blocks: int, early: int) -> list[Patch]:
    """Which blocks, and how late: over all of the picture.

    "mlp": windows of ``early`` blocks, every second one. "mlp later": the first window's outputs,
    written further up. "residual stream": the name's own ``resid[l]`` at l. Of the first window
    and of the stream above it, the wrong entity's too; noise.
    """
    late = n_blocks - early
    windows = [range(b, b + early) for b in range(0, late + 1, 2)]
    first, above = windows[0], _above(n_blocks, early)
    heights = [b for b in (early, 2 * early, 3 * early) if b <= late]
    return [
        *(Patch("mlp", taken, span="all") for taken in windows),
        *(Patch("mlp later", first, layer, span="all") for layer in heights),
        Patch("wrong entity", first, span="all", whose="wrong entity"),
        Patch("noise", first, span="all", whose="noise"),
        *(
            Patch("residual stream", range(b, b + 1), span="all", site="resid")
            for b in sorted({*heights, late})
        ),
        Patch("wrong residual", above, span="all", whose="wrong entity", site="resid"),
    ]


def _above(n_blocks: int, early: int) -> range:
    """The first block above the early ones, or the last of a model that has no more."""
    block = min(early, n_blocks - 1)
    return range(block, block + 1)


def mlp_patch(
    engine: Engine,
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    early: int | None = None,
    seed: int = 0,
    patches: Callable[[int, int], list[Patch]] = standard,
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the backbone's early MLP outputs at the name into the VLM's run on the picture.

    ``early`` are how many blocks (None: :func:`~twohop_lib.models.blocks.early_blocks`), and
    ``patches`` (:func:`standard`, :func:`sliding`) says what is written, of the number of blocks
    and of early ones. A pair's donor is the *wrong entity*, asked the same relation.

    Returns answer records of the fact questions, one row a pair and patch, and one "unpatched";
    with ``method``, ``start, stop`` (blocks taken, or the layer), ``layer`` (the first that is
    written), ``follows`` ("right", "donor" or "neither": whose fact is given) and ``span``
    (positions written).

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
    chosen = patches(n_blocks, early)
    named = Recorder(backbone, benchmark, "llm_by_name", from_start=True)

    def edits(pair: Pair, recorded: Recorder) -> Iterator[Trial]:
        target, rng = recorded(pair.target), _generator(seed, pair)
        runs = {"entity": named(pair.target), "wrong entity": named(pair.donor, pair.target)}
        values = {
            whose: _taken(backbone, run, [patch for patch in chosen if patch.run == whose])
            for whose, run in runs.items()
        }
        at = receiving(engine, target)
        spans = {"all": at}
        if any(patch.span != "all" for patch in chosen):
            scores = image_relevance(engine, target, at, pair.target)
            spans = _spans(at, scores, runs["entity"], rng)
        for patch in chosen:
            span, fitted = spans[patch.span], {}
            for i, b in enumerate(patch.taken):
                value = values[patch.run][patch.site, b]
                value = _noise_like(value, rng) if patch.whose == "noise" else value
                fitted[own[patch.at + i]] = _fitted(value, len(span), span == at)
            site = {"start": patch.taken.start, "stop": patch.taken.stop, "layer": patch.at}
            edit = Write(target, patch.site, span, fitted, patch.add)
            yield Trial(edit, {"method": patch.method, **site, "span": list(span)})
        nothing = Write(target, "resid", (target.n - 1,), {})
        site = dict.fromkeys(("start", "stop", "layer"))
        yield Trial(nothing, {"method": "unpatched", **site, "span": []})

    def control(pair: Pair, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        target, span = trials[0].edit.target, trials[0].edit.positions
        blocks = [own[b] for b in range(early)]
        ours = _at(target, span, engine.outputs(target, "mlp", blocks))
        itself = Write(target, "mlp", span, ours)
        yield Control(itself, target, "Writing a run's own MLP outputs back changed it")
        yield Control(trials[-1].edit, target, "A run that was left alone changed")

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        return follows(pair, "by_picture", outcome.said)

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
        settings={"patches": [str(patch) for patch in chosen], "draw": seed},
        types={"start": "Int64", "stop": "Int64", "layer": "Int64"},
        others=[backbone],
        **kept,
    )


def _taken(
    backbone: Engine, run: Recording, patches: Sequence[Patch]
) -> dict[tuple[str, int], Tensor]:
    """What patches take from a named run, ``[name token, d_model]``, by site and block."""
    needed = {(patch.site, b) for patch in patches for b in patch.taken}
    stream = {b: run.resid[b] for site, b in needed if site == "resid"}
    added = backbone.outputs(run, "mlp", sorted(b for site, b in needed if site == "mlp"))
    return {
        (site, b): value
        for site, values in (("mlp", added), ("resid", stream))
        for b, value in _at(run, run.roles.entity, values).items()
    }


def _at(
    run: Recording, positions: Sequence[int], values: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """Values ``[n - first, d_model]`` of a recording at some positions alone."""
    return {b: v[[p - run.first for p in positions]] for b, v in values.items()}


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
