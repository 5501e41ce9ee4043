"""What the interventions mean, in nnsight: one whole run for each layer.

``at`` are the positions of the picture (or of the name), ``path`` where the blocks sit
(:class:`twohop_lib.models.blocks.Blocks`), inputs those of a batch of one without padding.
``resid[l]`` enters block l. All return the next-token logits ``[vocab]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch
from nnsight import NNsight
from torch import Tensor


def states(
    model: Any, path: str, inputs: dict[str, Any], at: Sequence[int], layers: Sequence[int]
) -> list[Tensor]:
    """Return ``resid[layer]`` at ``at``, ``[1, len(at), d_model]`` for each layer, from one run."""
    traced, at = NNsight(model), list(at)
    with torch.no_grad(), traced.trace(**inputs, use_cache=False):
        found = nnsight.save([envoy(traced, path)[b].input[:, at].clone() for b in sorted(layers)])
    return [found[sorted(layers).index(layer)] for layer in layers]


def cross_patch(
    model: Any,
    path: str,
    target: dict[str, Any],
    at: Sequence[int],
    layers: Sequence[int],
    donor: Sequence[Tensor],
) -> Tensor:
    """Cohen et al. 2025, cross-patching: the donor's ``resid[layer]`` at ``at``, then run free.

    ``layers`` is that layer, and above it those (if any) at which the model adds more of the
    picture to the stream; ``donor`` are the donor's states there (:func:`states`).
    """
    traced, at = NNsight(model), list(at)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for layer, state in zip(layers, donor, strict=True):
            envoy(traced, path)[layer].input[:, at] = state
        logits = traced.output.logits[0, -1].save()
    return logits.detach().float()


def freeze(
    model: Any, path: str, target: dict[str, Any], at: Sequence[int], layer: int, until: int
) -> Tensor:
    """Cohen et al. 2025, forward patching: ``resid[layer]`` enters blocks layer + 1 … until."""
    traced, at = NNsight(model), list(at)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        held = envoy(traced, path)[layer].input[:, at].clone()
        for b in range(layer + 1, until + 1):
            envoy(traced, path)[b].input[:, at] = held
        logits = traced.output.logits[0, -1].save()
    return logits.detach().float()


def knockout(
    model: Any,
    path: str,
    target: dict[str, Any],
    queries: Sequence[int],
    keys: Sequence[int],
    start: int,
    stop: int,
) -> Tensor:
    """Geva et al. 2023, attention knockout: ``queries`` do not attend to ``keys`` in a window.

    The attention mask of blocks [start, stop) is minus infinity at these edges.
    """
    traced, n = NNsight(model), target["input_ids"].shape[1]
    block = envoy(traced, path)
    cut = torch.zeros(n, n, dtype=torch.bool, device=target["input_ids"].device)
    cut[torch.tensor(queries)[:, None], torch.tensor(keys)[None]] = True
    lower = torch.finfo(model.dtype).min
    causal = torch.full((n, n), lower, dtype=model.dtype, device=cut.device).triu(1)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for b in range(start, stop):
            args, kwargs = block[b].inputs
            mask = kwargs["attention_mask"]
            mask = causal[None, None] if mask is None else mask
            mask = mask & ~cut if mask.dtype == torch.bool else mask.masked_fill(cut, lower)
            block[b].inputs = (args, {**kwargs, "attention_mask": mask})
        logits = traced.output.logits[0, -1].save()
    return logits.detach().float()


def mlp_patch(
    model: Any,
    places: Sequence[str],
    target: dict[str, Any],
    at: Sequence[int],
    values: Sequence[Tensor],
) -> Tensor:
    """Venhoff et al. 2025, MLP patching: ``values[i]`` ``[len(at), d_model]`` written at ``at``.

    ``places`` are the modules (dotted paths, lowest first) whose outputs they take the place of.
    """
    traced, at = NNsight(model), list(at)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for place, value in zip(places, values, strict=True):
            envoy(traced, place).output[0, at] = value
        logits = traced.output.logits[0, -1].save()
    return logits.detach().float()


def envoy(traced: Any, path: str) -> Any:
    """Return the part of a traced model at a dotted path."""
    for name in path.split("."):
        traced = traced[int(name)] if name.isdigit() else getattr(traced, name)
    return traced
