"""One prompt, run once: what every later intervention on it can take from there.

A causal model computes each position from earlier ones alone. So the keys and values up to the end
of the picture, and the residual stream behind it, are the same in every run that leaves them
alone; they are computed once and kept. What many prompts begin with is not even run again for each
of them (:mod:`twohop_lib.models.prefix`).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twohop_lib.models import prefix
from twohop_lib.models.blocks import Blocks, hooked
from twohop_lib.models.roles import TokenRoles

#: What blocks are called with that is theirs alone, and not a property of the positions.
_OWN = ("past_key_values", "past_key_value", "use_cache", "output_attentions", "hidden_states")


@dataclass(frozen=True, eq=False)
class Recording:
    """One unpadded prompt of ``n`` positions, run once.

    ``span`` are the positions [start, stop) of the picture (marks between its tokens counted) or
    of the name; cross-attention models have the empty span (0, 0). ``resid`` is
    ``[n_blocks + 1, n - first, d_model]``, the stream from position ``first`` on. ``keys[b]`` and
    ``values[b]`` are ``[1, heads, n, d_head]`` (none at all where a block keeps none of every
    position: linear attention, shared ones), ``logits`` ``[vocab]`` those of the next token.
    ``calls[b]`` is what block b was called with beside the stream, for the positions from ``base``
    on of ``total``: the prompt's and some behind it, which let answers be generated. Those below
    ``base``, which is no later than the span, were run with another prompt.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    ids: tuple[int, ...]
    roles: TokenRoles
    span: tuple[int, int]
    first: int
    base: int
    total: int
    resid: Tensor = field(repr=False)
    keys: tuple[Tensor, ...] = field(repr=False)
    values: tuple[Tensor, ...] = field(repr=False)
    calls: tuple[Mapping[str, Any], ...] = field(repr=False)
    logits: Tensor = field(repr=False)
    positions: str = field(repr=False)

    @property
    def n(self) -> int:
        """How many positions the prompt has."""
        return len(self.ids)

    @property
    def n_blocks(self) -> int:
        """How many blocks the model has."""
        return len(self.resid) - 1

    def stream(self, layer: int, since: int) -> Tensor:
        """Return ``resid[layer]`` from a position on, ``[1, n - since, d_model]``."""
        return self.resid[layer, since - self.first :].unsqueeze(0)


@torch.inference_mode()
def record(
    model: Any,
    blocks: Blocks,
    inputs: Mapping[str, Any],
    roles: TokenRoles,
    span: tuple[int, int],
    max_new_tokens: int = 0,
    from_start: bool = False,
    begun: prefix.Kept = (),
) -> Recording:
    """Run one encoded prompt (a batch of one, no padding) and keep what interventions need.

    ``max_new_tokens`` may be generated behind it. The stream is kept from the end of ``span`` on,
    or with ``from_start`` from its start. ``begun`` are keys and values of what the prompt begins
    with, before ``span``, which is not run again then.
    """
    n = inputs["input_ids"].shape[1]
    first = span[0] if from_start else span[1]
    base = prefix.length(begun)
    own = slice(first - base, n - base)
    entered: list[Tensor] = []
    left: list[Tensor] = []
    calls: list[dict[str, Any]] = []
    handles = [
        block.register_forward_pre_hook(_listen(calls), with_kwargs=True) for block in blocks.blocks
    ]
    try:
        with hooked(
            {b: lambda x: entered.append(x[0, own].clone()) for b in blocks.blocks},
            {blocks.blocks[-1]: lambda x: left.append(x[0, own].clone())},
        ):
            run = extended(inputs, n, max_new_tokens)
            out = prefix.run(model, run, max_new_tokens + 1, begun)
    finally:
        for handle in handles:
            handle.remove()
    keys, values = _kept(out.past_key_values, blocks, n, n + max_new_tokens)
    stream = [x.to(entered[0].device) for x in (*entered, *left)]
    return Recording(
        inputs=dict(inputs),
        ids=tuple(inputs["input_ids"][0].tolist()),
        roles=roles,
        span=span,
        first=first,
        base=base,
        total=n + max_new_tokens,
        resid=torch.stack(stream),
        keys=keys,
        values=values,
        calls=tuple(calls),
        logits=out.logits[0, -max_new_tokens - 1].float(),
        positions=_digest(calls[0]),
    )


def _listen(calls: list[dict[str, Any]]) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Unnamed arguments beside the stream (Gemma 4) are named as the block names them.
        named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False))
        named.pop(next(iter(named), ""), None)
        calls.append({k: v for k, v in (named | kwargs).items() if k not in _OWN})

    return hook


def extended(inputs: Mapping[str, Any], n: int, by: int) -> dict[str, Any]:
    """Return a prompt's inputs with its last position repeated ``by`` times behind it."""
    if not by:
        return dict(inputs)

    def longer(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[:2] != (1, n):
            return value
        return torch.cat([value, value[:, -1:].expand(-1, by, *value.shape[2:])], dim=1)

    return {name: longer(value) for name, value in inputs.items()}


def _kept(
    cache: Any, blocks: Blocks, n: int, total: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    layers = getattr(cache, "layers", [])
    keys, values = [], []
    for b in range(blocks.n_blocks):
        k = getattr(layers[b], "keys", None) if b < len(layers) else None
        v = getattr(layers[b], "values", None) if k is not None else None
        if k is None or k.ndim != 4 or (b not in blocks.cross and k.shape[2] != total):
            return (), ()
        # Copies: views would keep the positions behind the prompt alive.
        cut = b not in blocks.cross and total > n
        keys.append(k[:, :, :n].clone() if cut else k)
        values.append(v[:, :, :n].clone() if cut else v)
    return tuple(keys), tuple(values)


def between(value: Any, name: str, given: tuple[int, int], lo: int, hi: int) -> Any:
    """Return what a block is called with for the positions ``given``, cut to queries [lo, hi)."""
    if isinstance(value, tuple | list):
        return type(value)(between(part, name, given, lo, hi) for part in value)
    if not isinstance(value, Tensor):
        return value
    base, total = given
    own, at = total - base, slice(lo - base, hi - base)
    if not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool):
        return value[..., at] if value.ndim and value.shape[-1] == own else value
    if value.ndim >= 2 and value.shape[-2] == own:
        value = value[..., at, :]
    if name == "attention_mask" and value.shape[-1] == total:
        value = value[..., :hi]
    return value


def _digest(call: Mapping[str, Any]) -> str:
    """Return a hash of what block 0 was told about positions: equal for equal layouts."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, tuple | list):
            for part in value:
                add(part)
        elif isinstance(value, Tensor):
            total.update(repr(tuple(value.shape)).encode())
            value = torch.view_as_real(value) if value.is_complex() else value
            total.update(value.detach().float().cpu().numpy().tobytes())

    for name in sorted(call):
        if name.endswith(("_states", "_input")):
            continue  # The picture itself: in cross-attention models, or for each block again.
        total.update(name.encode())
        add(call[name])
    return total.hexdigest()[:16]
