"""What the interventions mean, in nnsight: one whole run each.

``blocks`` are the model's (:class:`twohop_lib.models.blocks.Blocks`), ``at`` the positions of the
picture (or of the name), inputs those of a batch of one without padding. ``resid[l]`` enters
block l: in a trace, ``decoder_blocks(traced, blocks)[l].input`` ``[1, pos, d_model]``. All
interventions return the next-token logits ``[vocab]`` (float32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nnsight
import torch
from nnsight import NNsight
from torch import Tensor, nn

from twohop_lib.models.blocks import Blocks, keys_and_values


def decoder_blocks(traced: NNsight, blocks: Blocks) -> Any:
    """Return a traced model's decoder blocks; ``[l].input`` is ``resid[l]`` in a trace."""
    return traced.get(blocks.name)


def traced_module(traced: NNsight, blocks: Blocks, module: nn.Module) -> Any:
    """Return any module of a traced model (``blocks.mlp(b)``, say); ``.output`` is what it adds."""
    return traced.get(next(name for name, m in blocks.model.named_modules() if m is module))


def states(
    blocks: Blocks, inputs: Mapping[str, Any], at: Sequence[int], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Return ``resid[l]`` at ``at``, ``[1, len(at), d_model]`` for each of ``layers``."""
    traced, at = NNsight(blocks.model), list(at)
    resid = decoder_blocks(traced, blocks)
    with torch.no_grad(), traced.trace(**inputs, use_cache=False):
        # In the order in which blocks run, which a trace asks for.
        found = nnsight.save({b: resid[b].input[:, at].clone() for b in sorted(layers)})
    return found


def cross_patch(
    blocks: Blocks, target: Mapping[str, Any], at: Sequence[int], donor: Mapping[int, Tensor]
) -> Tensor:
    """Cross-patching (Cohen et al. 2025): the donor's ``resid[l]`` at ``at``, then all runs free.

    ``donor`` holds its states (:func:`states`) at layer l, and at those above l (if any) at which
    the model adds more of the picture to the stream.
    """
    traced, at = NNsight(blocks.model), list(at)
    resid = decoder_blocks(traced, blocks)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for b in sorted(donor):
            resid[b].input[:, at] = donor[b]
        logits = traced.output.logits[0, -1].save()
    return logits.float()


def cross_patch_beside(
    blocks: Blocks, target: Mapping[str, Any], donor: Mapping[str, Any], layer: int
) -> Tensor:
    """Cross-patching where the picture is no part of the stream, but keys and values of its own.

    Those of the cross-attention blocks from ``layer`` on are the donor's; both are inputs.
    """
    traced = NNsight(blocks.model)
    made = [m for b in blocks.cross if b >= layer for m in keys_and_values(blocks.blocks[b])]
    sites = [traced_module(traced, blocks, module) for module in made]
    with torch.no_grad(), traced.trace(**donor, use_cache=False):
        theirs = nnsight.save([site.output.clone() for site in sites])
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for site, state in zip(sites, theirs, strict=True):
            site.output[:] = state
        logits = traced.output.logits[0, -1].save()
    return logits.float()


def freeze(
    blocks: Blocks, target: Mapping[str, Any], at: Sequence[int], layer: int, until: int
) -> Tensor:
    """Freezing (Cohen et al. 2025): ``resid[layer]`` at ``at`` enters blocks layer + 1 … until."""
    traced, at = NNsight(blocks.model), list(at)
    resid = decoder_blocks(traced, blocks)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        held = resid[layer].input[:, at].clone()
        for b in range(layer + 1, until + 1):
            resid[b].input[:, at] = held
        logits = traced.output.logits[0, -1].save()
    return logits.float()


def knockout(
    blocks: Blocks,
    target: Mapping[str, Any],
    queries: Sequence[int],
    keys: Sequence[int],
    start: int,
    stop: int,
) -> Tensor:
    """Attention knockout (Geva et al. 2023): ``queries`` do not attend to ``keys`` in a window.

    The attention mask ``[1, 1, pos, pos]`` of blocks [start, stop) is minus infinity there.
    """
    model, n = blocks.model, target["input_ids"].shape[1]
    traced = NNsight(model)
    resid = decoder_blocks(traced, blocks)
    lowest = torch.finfo(model.dtype).min
    cut = torch.zeros(n, n, dtype=torch.bool, device=target["input_ids"].device)
    cut[torch.tensor(queries)[:, None], torch.tensor(keys)[None]] = True
    causal = torch.full((n, n), lowest, dtype=model.dtype, device=cut.device).triu(1)
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for b in range(start, stop):
            args, kwargs = resid[b].inputs
            mask = kwargs["attention_mask"]
            mask = causal[None, None] if mask is None else mask
            mask = mask & ~cut if mask.dtype == torch.bool else mask.masked_fill(cut, lowest)
            resid[b].inputs = (args, {**kwargs, "attention_mask": mask})
        logits = traced.output.logits[0, -1].save()
    return logits.float()


def mlp_patch(
    blocks: Blocks, target: Mapping[str, Any], at: Sequence[int], values: Mapping[int, Tensor]
) -> Tensor:
    """MLP patching (Venhoff et al. 2025): ``values[b]`` ``[at, d_model]`` for ``mlp_out[b]``."""
    traced, at = NNsight(blocks.model), list(at)
    mlp_out = {b: traced_module(traced, blocks, blocks.mlp(b)) for b in values}
    with torch.no_grad(), traced.trace(**target, use_cache=False):
        for b in sorted(values):
            mlp_out[b].output[0, at] = values[b]
        logits = traced.output.logits[0, -1].save()
    return logits.float()
