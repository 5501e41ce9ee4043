"""Attribution patching: what would patching each component do, from one gradient.

Nanda 2023; Syed et al. 2023. Two prompts differ in the entity alone: *clean*, and *corrupt* with
another entity in its place. The metric is logit(clean answer) − logit(corrupt answer) at the last
position of the *corrupt* run. A component's score at a position is

    (clean output − corrupt output) · ∂metric/∂output        outputs [n, d_model]

an estimate of how much the metric would *rise* if the clean output were written into the corrupt
run: positive scores restore the clean answer. Components are what each block's MLP and attention
add to the stream (``mlp_out[b]``, ``attn_out[b]``).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import By, NothingLeft, Pair, condition_of, first_tokens
from twohop_lib.interventions.recorder import Recorder, own_blocks
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import ControlFailed
from twohop_lib.models.blocks import hooked

COMPONENTS = ("mlp", "attn")
#: Points between corrupt and clean at which the integrated variant takes gradients.
STEPS = 5
#: The small steps of the finite difference (shares of the way to clean), and how far the gradient
#: may be off it, by dtype. Where the metric is bent (another expert is chosen, a gate turns), the
#: first step leaves its slope, and the second is within it; a tenth of that would be lost in
#: rounding, as is all but a large one in half precision.
STEP = {torch.float32: ((1e-2, 1e-3), 0.05)}
COARSE_STEP = ((0.25,), 0.5)


@dataclass(frozen=True, eq=False)
class Contrast:
    """A clean and a corrupt recording (of equal layout), and the first tokens of their answers."""

    clean: Recording
    corrupt: Recording
    right: int
    wrong: int
    entity_id: str = ""

    def metric(self, logits: Tensor) -> Tensor:
        """logit(clean answer) − logit(corrupt answer), of logits ``[…, vocab]``."""
        return logits[..., self.right] - logits[..., self.wrong]


def contrasts(
    engine: Engine, benchmark: Benchmark, pairs: Iterable[Pair], by: By
) -> Iterator[Contrast]:
    """A contrast of each pair's fact question; those whose prompts differ in length are left out.

    The target's picture (or name) is the clean one, the donor's in its place the corrupt.
    """
    condition = condition_of("fact", by)
    recorded = Recorder(engine, benchmark, condition, from_start=True)
    for pair in pairs:
        clean, corrupt = recorded(pair.target), recorded(pair.donor, pair.target)
        if (clean.n, clean.span) == (corrupt.n, corrupt.span):
            right, wrong = first_tokens(engine.owner, pair, condition)
            yield Contrast(clean, corrupt, right, wrong, pair.target.entity_id)


def attribute(engine: Engine, found: Iterable[Contrast], integrated: bool = False) -> pd.DataFrame:
    """Scores of all contrasts: ``contrast`` (its number), ``entity_id`` and as :func:`by_role`.

    The control is on the first contrast's largest score: it must be the slope of the metric over
    one of the small steps of :data:`STEP` (:func:`finite_difference`). Raises ControlFailed if it
    is not, NothingLeft without contrasts.
    """
    parts = []
    for number, contrast in enumerate(found):
        table = scores(engine, contrast, integrated)
        if not parts:
            _hold(engine, contrast)
        part = by_role(engine, contrast, table)
        parts.append(part.assign(contrast=number, entity_id=contrast.entity_id))
    if not parts:
        raise NothingLeft("No two prompts differ in the entity alone, so nothing is attributed.")
    return pd.concat(parts, ignore_index=True)


def _hold(engine: Engine, contrast: Contrast) -> None:
    steps, allowed = STEP.get(engine.model.dtype, COARSE_STEP)
    table = torch.stack([scores(engine, contrast)[kind] for kind in COMPONENTS])
    kind, block, at = np.unravel_index(int(table.abs().argmax()), table.shape)
    place = (COMPONENTS[kind], int(block), int(at))
    for step in steps:
        gradient, slope = finite_difference(engine, contrast, place, step)
        if abs(gradient - slope) <= allowed * max(abs(gradient), abs(slope)):
            return
    raise ControlFailed(
        f"An attribution ({gradient:.3g}) is not the slope of the metric ({slope:.3g}) at "
        f"{place[0]} {place[1]}, position {place[2]}; results would mean nothing."
    )


def scores(engine: Engine, contrast: Contrast, integrated: bool = False) -> dict[str, Tensor]:
    """Attribution of each component at each position, ``[n_blocks, n]`` for "mlp" and "attn".

    ``integrated`` averages the gradient over :data:`STEPS` runs whose stream at the entity (or
    picture) is moved from corrupt to clean in equal steps (Hanna et al. 2024).

    Raises TwohopError if the two prompts differ in length; UnsupportedSite if a block is no sum
    of its parts.
    """
    a, b = contrast.clean, contrast.corrupt
    if a.n != b.n:
        raise TwohopError(f"Clean ({a.n}) and corrupt ({b.n}) prompts differ in length.")
    own = own_blocks(engine)
    shares = [(i + 0.5) / STEPS for i in range(STEPS)] if integrated else [0.0]
    gradients = [_gradients(engine, contrast, own, share) for share in shares]
    found = {}
    for kind in COMPONENTS:
        clean, corrupt = (hooks.activations(engine, r, kind, own) for r in (a, b))
        found[kind] = torch.zeros(engine.n_blocks, b.n)
        for block in own:
            slope = sum(made[kind, block] for made in gradients) / len(gradients)
            moved = (clean[block] - corrupt[block]).float()
            found[kind][block] = (moved * slope).sum(-1).cpu()
    return found


def _gradients(
    engine: Engine, contrast: Contrast, own: Sequence[int], share: float
) -> dict[tuple[str, int], Tensor]:
    """∂metric/∂component ``[n, d_model]``, ``share`` of the way from corrupt to clean."""
    outputs: dict[tuple[str, int], Tensor] = {}

    def keep(*name: Any) -> Callable[[Tensor], Tensor]:
        def hook(x: Tensor) -> Tensor:
            outputs[name] = x if x.requires_grad else x.detach().clone().requires_grad_(True)
            outputs[name].retain_grad()
            return outputs[name]

        return hook

    blocks = engine.blocks
    after = {blocks.mlp(b): keep("mlp", b) for b in own}
    after |= {blocks.attn(b): keep("attn", b) for b in own}
    before = {blocks.blocks[0]: _towards_clean(contrast, share)} if share else {}
    with _differentiable(engine, before, after):
        contrast.metric(_next_logits(engine, contrast.corrupt)).backward()
    n = contrast.corrupt.n
    return {name: x.grad.reshape(-1, x.shape[-1])[:n].float() for name, x in outputs.items()}


@contextlib.contextmanager
def _differentiable(
    engine: Engine, before: Mapping[Any, Any], after: Mapping[Any, Any]
) -> Iterator[None]:
    """Hooks under which runs have gradients, none of them towards the weights."""
    needed = [p.requires_grad for p in engine.model.parameters()]
    engine.model.requires_grad_(False)
    try:
        with torch.enable_grad(), hooked(before, after):
            yield
    finally:
        for parameter, was in zip(engine.model.parameters(), needed, strict=True):
            parameter.requires_grad_(was)


def _next_logits(engine: Engine, recording: Recording) -> Tensor:
    return engine.model(**recording.inputs, use_cache=False).logits[0, -1].float()


def _towards_clean(contrast: Contrast, share: float) -> Callable[[Tensor], Tensor]:
    """Moves the corrupt ``resid[0]`` at the span part of the way to the clean one."""
    start, stop = contrast.corrupt.span
    if start == stop:
        raise TwohopError("The integrated variant needs a picture or name in the stream.")
    clean, corrupt = (
        r.resid[0, start - r.first : stop - r.first] for r in (contrast.clean, contrast.corrupt)
    )

    def move(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, start:stop] = corrupt + share * (clean - corrupt)
        return x

    return move


def by_role(engine: Engine, contrast: Contrast, table: Mapping[str, Tensor]) -> pd.DataFrame:
    """Scores summed over the positions of each role: ``component, block, role, score``."""
    roles = contrast.corrupt.roles
    start, stop = contrast.corrupt.span
    places = {
        "entity": range(start, stop),
        "question": [p for p in roles.question if p >= stop],
        "last": roles.last,
    }
    return pd.DataFrame(
        [
            {
                "component": kind,
                "block": block,
                "role": role,
                "score": float(table[kind][block, list(at)].sum()) if len(at) else 0.0,
            }
            for kind in COMPONENTS
            for block in range(engine.n_blocks)
            for role, at in places.items()
        ]
    )


# --- against true patching --------------------------------------------------------------------


def true_effects(
    engine: Engine, contrast: Contrast, places: Sequence[tuple[str, int, int]]
) -> list[float]:
    """How much the metric rises when clean outputs are really written, one run a place.

    ``places`` are (component, block, position).
    """
    needed = sorted({block for _, block, _ in places})
    clean = {kind: hooks.activations(engine, contrast.clean, kind, needed) for kind in COMPONENTS}
    edits = [
        Write(contrast.corrupt, kind, (at,), {block: clean[kind][block][[at]]})
        for kind, block, at in places
    ]
    base = contrast.metric(contrast.corrupt.logits)
    return (contrast.metric(engine.logits(edits)) - base).tolist()


def against_truth(
    engine: Engine, found: Iterable[Contrast], places: int = 12, seed: int = 0
) -> pd.DataFrame:
    """Both estimates beside what patching really does, at places drawn at random.

    Places are at the entity and at the last position, ``places`` of each contrast. Columns:
    ``component, block, position, contrast`` (its number), ``estimated`` (from one gradient),
    ``integrated`` and ``true``.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for number, contrast in enumerate(found):
        at = (*range(*contrast.corrupt.span), contrast.corrupt.n - 1)
        every = list(itertools.product(COMPONENTS, range(engine.n_blocks), at))
        drawn = rng.choice(len(every), size=min(places, len(every)), replace=False)
        here = [every[i] for i in sorted(drawn)]
        columns = {}
        for name in ("estimated", "integrated"):
            table = scores(engine, contrast, integrated=name == "integrated")
            columns[name] = [table[kind][block, p].item() for kind, block, p in here]
        part = pd.DataFrame(here, columns=["component", "block", "position"])
        parts.append(
            part.assign(contrast=number, **columns, true=true_effects(engine, contrast, here))
        )
    return pd.concat(parts, ignore_index=True)


def finite_difference(
    engine: Engine, contrast: Contrast, place: tuple[str, int, int], step: float = 1e-2
) -> tuple[float, float]:
    """A component's score by gradient, and by a small step towards the clean output."""
    kind, block, at = place
    clean, corrupt = (
        hooks.activations(engine, r, kind, [block])[block][[at]]
        for r in (contrast.clean, contrast.corrupt)
    )
    edits = [
        Write(contrast.corrupt, kind, (at,), {block: corrupt + sign * step * (clean - corrupt)})
        for sign in (1, -1)
    ]
    up, down = contrast.metric(engine.logits(edits)).tolist()
    return scores(engine, contrast)[kind][block, at].item(), (up - down) / (2 * step)


def small_steps(engine: Engine, found: Iterable[Contrast]) -> NDArray[np.float64]:
    """:func:`finite_difference` of block 1's MLP at the entity's last token, ``[contrast, 2]``."""
    at = [(contrast, ("mlp", 1, contrast.corrupt.span[1] - 1)) for contrast in found]
    return np.array([finite_difference(engine, contrast, place) for contrast, place in at])


# --- where the picture matters ----------------------------------------------------------------


def image_relevance(
    engine: Engine, target: Recording, at: Sequence[int], question: Question
) -> Tensor:
    """How much each position of the picture matters to the entity's name, ``[len(at)]``.

    |stream · gradient| at ``resid[1]``, of the logit of the entity's first name token against
    the mean of all logits, summed over the width. It asks for the *name*, which is known of a
    recognised entity, and never for the fact.
    """
    name = engine.owner.tokenizer(question.entity, add_special_tokens=False)["input_ids"][0]
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.detach().clone().requires_grad_(True))
        return kept[0]

    with _differentiable(engine, {engine.blocks.blocks[min(1, engine.n_blocks - 1)]: keep}, {}):
        logits = _next_logits(engine, target)
        (logits[name] - logits.mean()).backward()
    return (kept[0] * kept[0].grad)[0, list(at)].float().sum(-1).abs().detach().cpu()
