"""The interventions as plain hooks on whole runs: slow, exact on any decoder.

What the engine falls back to where splicing is not exact, and what it is compared with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twohop_lib.interventions.edits import CrossPatch, Freeze, Knockout, Row, Write
from twohop_lib.models.blocks import (
    UnsupportedSite,
    hooked,
    keys_and_values,
    stream_out,
    with_stream_out,
)
from twohop_lib.models.inputs import GREEDY, decoded, stop_ids

if TYPE_CHECKING:
    from twohop_lib.interventions.edits import Site
    from twohop_lib.interventions.recording import Recording
    from twohop_lib.interventions.splice import Engine

Edit = Callable[[Tensor], Tensor | None]


@torch.inference_mode()
def logits(engine: Engine, row: Row) -> Tensor:
    """Return the next-token logits [vocab] (float32) under an intervention, from a whole run."""
    with edited(engine, row):
        out = engine.model(**row.target.inputs, use_cache=False)
    return out.logits[0, -1].float()


@torch.inference_mode()
def answer(
    engine: Engine, row: Row, max_new_tokens: int, positions: Sequence[int] | None = None
) -> str:
    """Return the greedy answer under an intervention, from a whole run.

    ``positions`` patches only these of the span's.
    """
    with edited(engine, row, positions):
        out = engine.model.generate(
            **row.target.inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=engine.owner.tokenizer.pad_token_id,
        )
    new = out[0, row.target.n :].tolist()
    return decoded(engine.owner.tokenizer, new, stop_ids(engine.owner))


@contextlib.contextmanager
def edited(engine: Engine, row: Row, positions: Sequence[int] | None = None) -> Iterator[None]:
    """Put an intervention on the model; runs of the target's prompt are under it meanwhile."""
    if isinstance(row, Knockout):
        with _knocked_out(engine, row):
            yield
        return
    if isinstance(row, Write):
        with _written(engine, row):
            yield
        return
    cross = engine.site is not None and engine.site.kind == "cross-attention"
    if isinstance(row, CrossPatch) and cross and row.target.span == (0, 0):
        with hooked(after=_donors_picture(engine, row)):
            yield
        return
    with hooked(before=_writes(engine, row, positions)):
        yield


def _writes(
    engine: Engine, row: CrossPatch | Freeze, positions: Sequence[int] | None
) -> dict[nn.Module, Edit]:
    """What is written over the span, at the entry of which block."""
    start, stop = row.target.span
    blocks, late = engine.blocks.blocks, engine.site.late if engine.site else ()
    if isinstance(row, Freeze):
        held = states(engine, row.target, [row.layer])[row.layer]
        values = dict.fromkeys(range(row.layer + 1, row.until + 1), held)
    else:
        until = row.until if row.until is not None else engine.n
        # Where more of the picture is added on the way up, it has to be the donor's.
        layers = [row.layer, *(b for b in late if row.layer < b < until)]
        layers = [b for b in layers if b < until]
        values = states(engine, row.donor, layers) if layers else {}
        if until < engine.n and until > row.layer:
            values |= states(engine, row.target, [until])

    def write(value: Tensor) -> Edit:
        def edit(x: Tensor) -> Tensor | None:
            if x.shape[1] < stop:
                return None  # A later token of an answer: the picture's keys are in the cache.
            x = x.clone()
            if positions is None:
                x[:, start:stop] = value
            else:
                x[:, list(positions)] = value[:, [p - start for p in positions]]
            return x

        return edit

    return {blocks[b]: write(value) for b, value in values.items() if b < engine.n}


@contextlib.contextmanager
def _written(engine: Engine, row: Write) -> Iterator[None]:
    def write(block: int) -> Edit:
        def edit(x: Tensor) -> Tensor | None:
            y = x.clone().reshape(-1, x.shape[-1])  # A batch of one.
            if len(y) <= max(row.positions):
                return None  # A later token of an answer.
            row.onto(y, block, row.positions)
            return y.reshape(x.shape)

        return edit

    blocks = engine.blocks
    if row.site == "resid":
        with hooked(before={blocks.blocks[b]: write(b) for b in row.values}):
            yield
        return
    part = blocks.mlp if row.site == "mlp" else blocks.attn
    with hooked(after={part(b): write(b) for b in row.values}):
        yield


@torch.inference_mode()
def states(engine: Engine, recording: Recording, layers: list[int]) -> dict[int, Tensor]:
    """Return ``resid[layer]`` at the span ``[1, span, d_model]`` of an undisturbed run."""
    start, stop = recording.span
    found: dict[int, Tensor] = {}
    blocks = engine.blocks.blocks

    def keep(layer: int) -> Edit:
        return lambda x: found.update({layer: x[:, start:stop].clone()})

    with hooked({blocks[layer]: keep(layer) for layer in layers if layer < engine.n}):
        engine.model(**recording.inputs, use_cache=False)
    return found


def _donors_picture(engine: Engine, row: CrossPatch) -> dict[nn.Module, Edit]:
    """The donor's keys and values of the picture, in cross-attention blocks of the band."""
    until = row.until if row.until is not None else engine.n
    inside = [b for b in engine.blocks.cross if row.layer <= b < until]
    sites = [part for b in inside for part in keys_and_values(engine.blocks.blocks[b])]
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module) -> Edit:
        return lambda x: found.update({module: x.clone()})

    with hooked(after={m: keep(m) for m in sites}), torch.inference_mode():
        engine.model(**row.donor.inputs, use_cache=False)
    return {m: (lambda x, m=m: found[m]) for m in sites}


@contextlib.contextmanager
def _knocked_out(engine: Engine, row: Knockout) -> Iterator[None]:
    n = row.target.n
    queries, keys = list(row.queries), list(row.keys)

    def asked(x: Tensor) -> list[int]:
        # A token generated later stands for the last position of the prompt.
        return queries if x.shape[1] >= n else [0] * (n - 1 in queries)

    def before(b: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            mask = kwargs.get("attention_mask")
            if mask is None:
                cache = kwargs.get("past_key_values")
                first = cache.get_seq_length(b) if x.shape[1] < n else 0
                total = first + x.shape[1]
                rows = torch.arange(first, total, device=x.device)[:, None]
                mask = (torch.arange(total, device=x.device)[None] <= rows)[None, None]
            if mask.ndim != 4:
                raise UnsupportedSite(
                    "This attention takes no mask that single edges can be cut from."
                )
            mask = mask.clone()
            nothing = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            for q in asked(x):
                mask[:, :, q, keys] = nothing
            return args, kwargs | {"attention_mask": mask}

        return hook

    def past(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        out = stream_out(output).clone()
        out[:, asked(x)] = x[:, asked(x)]
        return with_stream_out(output, out)

    handles = []
    for b in range(row.start, row.stop):
        block = engine.blocks.blocks[b]
        if b not in engine.blocks.cross:
            handles.append(block.register_forward_pre_hook(before(b), with_kwargs=True))
        elif not keys:
            handles.append(block.register_forward_hook(past, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def added(
    engine: Engine, recording: Recording, site: Site, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Return ``resid``, ``mlp_out`` or ``attn_out`` of an undisturbed run, ``[n, d_model]`` each.

    Raises UnsupportedSite if a block is no sum of its parts.
    """
    found: dict[int, Tensor] = {}
    blocks = engine.blocks

    def keep(layer: int) -> Edit:
        return lambda x: found.update({layer: x.clone().reshape(-1, x.shape[-1])[: recording.n]})

    if site == "resid":
        watch = {"before": {blocks.blocks[b]: keep(b) for b in layers if b < blocks.n}}
    else:
        part = blocks.mlp if site == "mlp" else blocks.attn
        watch = {"after": {part(b): keep(b) for b in layers}}
    with hooked(**watch):
        engine.model(**recording.inputs, use_cache=False)
    return found
