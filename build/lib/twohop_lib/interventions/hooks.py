"""The interventions as plain hooks on whole runs: slow, exact on any decoder.

What the engine falls back to where splicing is not exact, and what it is compared with. Shapes and
the index frame (``resid[l]`` enters block l) are those of :mod:`twohop_lib.models.blocks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twohop_lib.interventions.edits import CrossPatch, Edit, Freeze, Knockout, Site, Write
from twohop_lib.interventions.recording import Recording
from twohop_lib.models.blocks import (
    UnsupportedSite,
    as_unsupported,
    hooked,
    keys_and_values,
    stream_out,
    with_stream_out,
)
from twohop_lib.models.decoder import Decoder
from twohop_lib.models.inputs import END, GREEDY, decoded, stop_ids
from twohop_lib.models.prefix import keeping

#: Takes the stream ``[1, pos, d_model]`` and returns what takes its place (None: leave it).
Change = Callable[[Tensor], Tensor | None]


#: ``resid[layer]`` ``[n, d_model]`` of undisturbed runs, by recording (its id) and layer.
States = Mapping[tuple[int, int], Tensor]


def logits(decoder: Decoder, edit: Edit) -> Tensor:
    """Return the next-token logits ``[vocab]`` (float32) of a whole run under an edit."""
    return runs(decoder, [edit])[0][0]


@torch.inference_mode()
def runs(
    decoder: Decoder, edits: Sequence[Edit], max_new_tokens: int = 0
) -> tuple[Tensor, list[str]]:
    """Return next-token logits ``[edit, vocab]`` (float32) and greedy answers, a whole run each.

    What edits take from undisturbed runs is read first, in one run for each recording. Answers
    are empty without ``max_new_tokens``.
    """
    states = _states(decoder, edits)
    found = []
    for edit in edits:
        with edited(decoder, edit, states), decoder.seeing(edit.target.inputs):
            found.append(_run(decoder, edit.target, max_new_tokens))
    return torch.stack([logits for logits, _ in found]), [said for _, said in found]


def _run(decoder: Decoder, target: Recording, max_new_tokens: int) -> tuple[Tensor, str]:
    if not max_new_tokens:
        inputs = keeping(decoder.model, target.inputs, 1)
        return decoder.model(**inputs, use_cache=False).logits[0, -1].float(), ""
    tokenizer = decoder.owner.tokenizer
    out = decoder.model.generate(
        **target.inputs,
        **GREEDY,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, target.n :].tolist()
    end = tokenizer.decode(target.ids[-END:])
    return out.logits[0][0].float(), decoded(tokenizer, new, stop_ids(decoder.owner), end)


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
    with hooked(**watch), decoder.seeing(recording.inputs):
        decoder.model(**keeping(decoder.model, recording.inputs, 1), use_cache=False)
    return found


@contextlib.contextmanager
def edited(decoder: Decoder, edit: Edit, states: States) -> Iterator[None]:
    """Put an edit on the model; runs of the target's prompt are under it meanwhile."""
    if isinstance(edit, Knockout):
        context = _knocked_out(decoder, edit)
    elif isinstance(edit, Write):
        context = hooked(**_writes(decoder, edit))
    elif isinstance(edit, CrossPatch) and _beside_the_stream(decoder, edit):
        context = hooked(after=_donors_keys_and_values(decoder, edit))
    else:
        context = hooked(before=_over_the_span(decoder, edit, states))
    with context:
        yield


def _beside_the_stream(decoder: Decoder, edit: CrossPatch) -> bool:
    """Whether the picture is no part of the stream, but keys and values of its own."""
    cross = decoder.site is not None and decoder.site.kind == "cross-attention"
    return cross and edit.target.span == (0, 0)


def _taken(decoder: Decoder, edit: Edit) -> dict[int, tuple[Recording, int]]:
    """Whose ``resid``, and of which layer, enters which block at the span."""
    if isinstance(edit, Freeze):
        blocks = range(edit.layer + 1, edit.until + 1)
        return dict.fromkeys(blocks, (edit.target, edit.layer))
    if not isinstance(edit, CrossPatch) or _beside_the_stream(decoder, edit):
        return {}
    n_blocks, late = decoder.n_blocks, decoder.site.late if decoder.site else ()
    until = n_blocks if edit.until is None else edit.until
    # Where more of the picture is added on the way up, it has to be the donor's.
    taken = {b: (edit.donor, b) for b in (edit.layer, *late) if edit.layer <= b < until}
    return taken | ({until: (edit.target, until)} if edit.layer < until < n_blocks else {})


def _states(decoder: Decoder, edits: Sequence[Edit]) -> States:
    needed: dict[int, tuple[Recording, set[int]]] = {}
    for edit in edits:
        for recording, layer in _taken(decoder, edit).values():
            needed.setdefault(id(recording), (recording, set()))[1].add(layer)
    return {
        (key, layer): state
        for key, (recording, layers) in needed.items()
        for layer, state in activations(decoder, recording, "resid", sorted(layers)).items()
    }


def _over_the_span(
    decoder: Decoder, edit: CrossPatch | Freeze, states: States
) -> dict[nn.Module, Change]:
    start, stop = edit.target.span

    def write(value: Tensor) -> Change:
        def change(x: Tensor) -> Tensor | None:
            if x.shape[1] < stop:
                return None  # A later token of an answer: the picture's keys are in the cache.
            x = x.clone()
            x[:, start:stop] = value
            return x

        return change

    return {
        decoder.blocks.blocks[b]: write(states[id(recording), layer][start:stop])
        for b, (recording, layer) in _taken(decoder, edit).items()
    }


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

    with hooked(after={m: keep(m) for m in sites}), decoder.seeing(edit.donor.inputs):
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
    kind = type(decoder.model).__name__
    try:
        with as_unsupported(f"Attention edges cannot be cut in every block of this {kind}"):
            yield
    finally:
        for handle in handles:
            handle.remove()
