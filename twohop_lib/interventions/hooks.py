"""The interventions as plain hooks on whole runs: slow, exact on any decoder.

What the engine falls back to where splicing is not exact, and what it is compared with. Shapes and
the index frame (``resid[l]`` enters block l) are those of :mod:`twohop_lib.models.blocks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twohop_lib.interventions.edits import CrossPatch, Edit, Freeze, Knockout, Site, Write
from twohop_lib.interventions.recording import Recording
from twohop_lib.models.blocks import (
    UnsupportedSite,
    hooked,
    keys_and_values,
    stream_out,
    with_stream_out,
)
from twohop_lib.models.decoder import Decoder
from twohop_lib.models.inputs import GREEDY, decoded, stop_ids

#: Takes the stream ``[1, pos, d_model]`` and returns what takes its place (None: leave it).
Change = Callable[[Tensor], Tensor | None]


@torch.inference_mode()
def logits(decoder: Decoder, edit: Edit) -> Tensor:
    """Return the next-token logits ``[vocab]`` (float32) of a whole run under an edit."""
    with edited(decoder, edit):
        out = decoder.model(**edit.target.inputs, use_cache=False)
    return out.logits[0, -1].float()


@torch.inference_mode()
def answer(decoder: Decoder, edit: Edit, max_new_tokens: int) -> str:
    """Return the greedy answer of a whole run under an edit."""
    with edited(decoder, edit):
        out = decoder.model.generate(
            **edit.target.inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=decoder.owner.tokenizer.pad_token_id,
        )
    new = out[0, edit.target.n :].tolist()
    return decoded(decoder.owner.tokenizer, new, stop_ids(decoder.owner))


@torch.inference_mode()
def activations(
    decoder: Decoder, recording: Recording, site: Site, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Return ``resid``, ``mlp_out`` or ``attn_out`` of an undisturbed run, ``[n, d_model]`` each.

    Raises UnsupportedSite if a block is no sum of its parts.
    """
    found: dict[int, Tensor] = {}
    blocks = decoder.blocks

    def keep(layer: int) -> Change:
        return lambda x: found.update({layer: x.clone().reshape(-1, x.shape[-1])[: recording.n]})

    if site == "resid":
        watch = {"before": {blocks.blocks[b]: keep(b) for b in layers if b < blocks.n_blocks}}
    else:
        part = blocks.mlp if site == "mlp" else blocks.attn
        watch = {"after": {part(b): keep(b) for b in layers}}
    with hooked(**watch):
        decoder.model(**recording.inputs, use_cache=False)
    return found


@contextlib.contextmanager
def edited(decoder: Decoder, edit: Edit) -> Iterator[None]:
    """Put an edit on the model; runs of the target's prompt are under it meanwhile."""
    cross = decoder.site is not None and decoder.site.kind == "cross-attention"
    if isinstance(edit, Knockout):
        context = _knocked_out(decoder, edit)
    elif isinstance(edit, Write):
        context = hooked(**_writes(decoder, edit))
    elif isinstance(edit, Freeze):
        context = hooked(before=_frozen(decoder, edit))
    elif cross and edit.target.span == (0, 0):
        context = hooked(after=_donors_keys_and_values(decoder, edit))
    else:
        context = hooked(before=_donors_stream(decoder, edit))
    with context:
        yield


def _donors_stream(decoder: Decoder, edit: CrossPatch) -> dict[nn.Module, Change]:
    n_blocks, late = decoder.n_blocks, decoder.site.late if decoder.site else ()
    until = n_blocks if edit.until is None else edit.until
    # Where more of the picture is added on the way up, it has to be the donor's.
    layers = [b for b in (edit.layer, *late) if edit.layer <= b < until]
    values = activations(decoder, edit.donor, "resid", layers) if layers else {}
    if edit.layer < until < n_blocks:
        values |= activations(decoder, edit.target, "resid", [until])
    span = slice(*edit.target.span)
    return _over_the_span(decoder, edit, {b: value[span] for b, value in values.items()})


def _frozen(decoder: Decoder, edit: Freeze) -> dict[nn.Module, Change]:
    held = activations(decoder, edit.target, "resid", [edit.layer])[edit.layer]
    values = dict.fromkeys(range(edit.layer + 1, edit.until + 1), held[slice(*edit.target.span)])
    return _over_the_span(decoder, edit, values)


def _over_the_span(
    decoder: Decoder, edit: CrossPatch | Freeze, values: dict[int, Tensor]
) -> dict[nn.Module, Change]:
    """``values[b]`` ``[span, d_model]`` over ``resid[b]`` at the span."""
    start, stop = edit.target.span

    def write(value: Tensor) -> Change:
        def change(x: Tensor) -> Tensor | None:
            if x.shape[1] < stop:
                return None  # A later token of an answer: the picture's keys are in the cache.
            x = x.clone()
            x[:, start:stop] = value
            return x

        return change

    return {decoder.blocks.blocks[b]: write(value) for b, value in values.items()}


def _writes(decoder: Decoder, edit: Write) -> dict[str, dict[nn.Module, Change]]:
    def write(block: int) -> Change:
        def change(x: Tensor) -> Tensor | None:
            y = x.clone().reshape(-1, x.shape[-1])  # A batch of one.
            if len(y) <= max(edit.positions):
                return None  # A later token of an answer.
            edit.onto(y, block, edit.positions)
            return y.reshape(x.shape)

        return change

    blocks = decoder.blocks
    if edit.site == "resid":
        return {"before": {blocks.blocks[b]: write(b) for b in edit.values}}
    part = blocks.mlp if edit.site == "mlp" else blocks.attn
    return {"after": {part(b): write(b) for b in edit.values}}


def _donors_keys_and_values(decoder: Decoder, edit: CrossPatch) -> dict[nn.Module, Change]:
    """The donor's keys and values of the picture, in cross-attention blocks of the band."""
    until = decoder.n_blocks if edit.until is None else edit.until
    inside = [b for b in decoder.blocks.cross if edit.layer <= b < until]
    sites = [part for b in inside for part in keys_and_values(decoder.blocks.blocks[b])]
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module) -> Change:
        return lambda x: found.update({module: x.clone()})

    with hooked(after={m: keep(m) for m in sites}), torch.inference_mode():
        decoder.model(**edit.donor.inputs, use_cache=False)
    return {m: (lambda x, m=m: found[m]) for m in sites}


@contextlib.contextmanager
def _knocked_out(decoder: Decoder, edit: Knockout) -> Iterator[None]:
    n = edit.target.n
    queries, keys = list(edit.queries), list(edit.keys)

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
    for b in range(edit.start, edit.stop):
        block = decoder.blocks.blocks[b]
        if b not in decoder.blocks.cross:
            handles.append(block.register_forward_pre_hook(before(b), with_kwargs=True))
        elif not keys:
            handles.append(block.register_forward_hook(past, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
