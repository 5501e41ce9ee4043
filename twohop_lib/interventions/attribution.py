"""Attribution patching: what would patching each component do, from one gradient.

Nanda 2023; Syed et al. 2023. Two prompts differ in the entity alone: *clean*, and *corrupt* with
another entity in its place. The metric is logit(clean answer) − logit(corrupt answer) at the last
position of the *corrupt* run. A component's score at a position is

    (clean output − corrupt output) · ∂metric/∂output,

an estimate of how much the metric would *rise* if the clean output were written into the corrupt
run: positive scores restore the clean answer. Components are what each block's MLP and attention
add to the stream (``mlp_out[b]``, ``attn_out[b]``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from twohop_lib.benchmark.schema import Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import hooked

COMPONENTS = ("mlp", "attn")
#: Points between corrupt and clean at which the integrated variant takes gradients.
STEPS = 5


@dataclass(frozen=True, eq=False)
class Contrast:
    """A clean and a corrupt recording (of equal layout), and the first tokens of their answers."""

    clean: Recording
    corrupt: Recording
    right: int
    wrong: int

    def metric(self, logits: Tensor) -> Tensor:
        """logit(clean answer) − logit(corrupt answer), of logits ``[…, vocab]``."""
        return logits[..., self.right] - logits[..., self.wrong]


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
    own = [block for block in range(engine.n_blocks) if block not in engine.blocks.cross]
    found = {}
    gradient = _gradients(engine, contrast, own, integrated)
    for kind in COMPONENTS:
        clean, corrupt = (hooks.activations(engine, r, kind, own) for r in (a, b))
        table = torch.zeros(engine.n_blocks, b.n)
        for block in own:
            moved = (clean[block] - corrupt[block]).float()
            table[block] = (moved * gradient[kind][block]).sum(-1).cpu()
        found[kind] = table
    return found


def _gradients(
    engine: Engine, contrast: Contrast, own: Sequence[int], integrated: bool
) -> dict[str, dict[int, Tensor]]:
    """∂metric/∂component, ``[n, d_model]``, in the corrupt run (or averaged on the way)."""
    total: dict[str, dict[int, Tensor]] = {kind: {} for kind in COMPONENTS}
    shares = [(i + 0.5) / STEPS for i in range(STEPS)] if integrated else [0.0]
    for share in shares:
        made = _one_gradient(engine, contrast, own, share)
        for kind in COMPONENTS:
            for block, value in made[kind].items():
                total[kind][block] = total[kind].get(block, 0) + value / len(shares)
    return total


def _one_gradient(
    engine: Engine, contrast: Contrast, own: Sequence[int], share: float
) -> dict[str, dict[int, Tensor]]:
    outputs: dict[str, dict[int, Tensor]] = {kind: {} for kind in COMPONENTS}

    def keep(kind: str, block: int) -> Any:
        def hook(x: Tensor) -> Tensor:
            # A leaf: what lies below does not need its gradient.
            leaf = x.detach().clone().requires_grad_(True) if not x.requires_grad else x
            leaf.retain_grad()
            outputs[kind][block] = leaf
            return leaf

        return hook

    blocks = engine.blocks
    after = {blocks.mlp(b): keep("mlp", b) for b in own}
    after |= {blocks.attn(b): keep("attn", b) for b in own}
    before = _moved(engine, contrast, share) if share else {}
    was = [p.requires_grad for p in engine.model.parameters()]
    engine.model.requires_grad_(False)
    try:
        with torch.enable_grad(), hooked(before, after):
            inputs = contrast.corrupt.inputs
            logits = engine.model(**inputs, use_cache=False).logits[0, -1].float()
            contrast.metric(logits).backward()
    finally:
        for parameter, needed in zip(engine.model.parameters(), was, strict=True):
            parameter.requires_grad_(needed)
    n = contrast.corrupt.n
    return {
        kind: {
            block: leaf.grad.reshape(-1, leaf.shape[-1])[:n].float()
            for block, leaf in found.items()
            if leaf.grad is not None
        }
        for kind, found in outputs.items()
    }


def _moved(engine: Engine, contrast: Contrast, share: float) -> dict[Any, Any]:
    """Hooks that move the corrupt stream part of the way to the clean one at the span."""
    start, stop = contrast.corrupt.span
    if start == stop:
        raise TwohopError("The integrated variant needs a picture or name in the stream.")
    clean, corrupt = (
        hooks.activations(engine, r, "resid", [0])[0][start:stop]
        for r in (contrast.clean, contrast.corrupt)
    )
    between = corrupt + share * (clean - corrupt)

    def move(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, start:stop] = between
        return x

    return {engine.blocks.blocks[0]: move}


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


def true_effects(
    engine: Engine, contrast: Contrast, places: Sequence[tuple[str, int, int]]
) -> list[float]:
    """How much the metric rises when clean outputs are really written, one run a place.

    ``places`` are (component, block, position).
    """
    rows = []
    needed = sorted({block for _, block, _ in places})
    clean = {kind: hooks.activations(engine, contrast.clean, kind, needed) for kind in COMPONENTS}
    for kind, block, at in places:
        rows.append(Write(contrast.corrupt, kind, (at,), {block: clean[kind][block][[at]]}))
    base = contrast.metric(contrast.corrupt.logits)
    return (contrast.metric(engine.logits(rows)) - base.to(rows[0].target.logits.device)).tolist()


def against_truth(
    engine: Engine,
    contrasts: Sequence[Contrast],
    estimates: Mapping[str, Sequence[Mapping[str, Tensor]]],
    places: int = 12,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates beside what patching really does, at places drawn at random.

    ``estimates`` are :func:`scores` of each contrast, by the name of their column. Places are at
    the entity and at the last position, ``places`` of each contrast. Columns: ``component, block,
    position, contrast`` (its number), one for each of ``estimates``, and ``true``.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for number, contrast in enumerate(contrasts):
        at = (*range(*contrast.corrupt.span), contrast.corrupt.n - 1)
        every = list(itertools.product(COMPONENTS, range(engine.n_blocks), at))
        drawn = rng.choice(len(every), size=min(places, len(every)), replace=False)
        here = [every[i] for i in sorted(drawn)]
        part = pd.DataFrame(here, columns=["component", "block", "position"])
        parts.append(
            part.assign(
                contrast=number,
                **{
                    name: [tables[number][kind][block, p].item() for kind, block, p in here]
                    for name, tables in estimates.items()
                },
                true=true_effects(engine, contrast, here),
            )
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
    moved = clean - corrupt
    rows = [
        Write(contrast.corrupt, kind, (at,), {block: corrupt + sign * step * moved})
        for sign in (1, -1)
    ]
    up, down = contrast.metric(engine.logits(rows)).tolist()
    return scores(engine, contrast)[kind][block, at].item(), (up - down) / (2 * step)


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
        leaf = x.detach().clone().requires_grad_(True)
        kept.append(leaf)
        return leaf

    was = [p.requires_grad for p in engine.model.parameters()]
    engine.model.requires_grad_(False)
    try:
        block = engine.blocks.blocks[min(1, engine.n_blocks - 1)]
        with torch.enable_grad(), hooked({block: keep}):
            logits = engine.model(**target.inputs, use_cache=False).logits[0, -1].float()
            (logits[name] - logits.mean()).backward()
    finally:
        for parameter, needed in zip(engine.model.parameters(), was, strict=True):
            parameter.requires_grad_(needed)
    leaf = kept[0]
    return (leaf * leaf.grad)[0, list(at)].float().sum(-1).abs().detach().cpu()
