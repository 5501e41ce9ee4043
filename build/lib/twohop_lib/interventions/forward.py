"""Edits as rows of one batch, each run from the block at which it departs from its recording.

With equal prompts, replacing the residual stream at all positions of the picture at layer l gives
the keys and values of the donor's own run from block l on, and leaves the target's below. So only
the positions behind the picture are run again, from block l on, reading the donor's keys and
values; runs for all layers and several donors are rows of one batch, each of which enters at its
own block. Nothing here knows a model's name: blocks are called as the model itself called them.

All edits of a batch have one :func:`~twohop_lib.interventions.edits.layout`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from twohop_lib.interventions.edits import Edit, Freeze, Knockout, Write
from twohop_lib.interventions.recording import Recording, between
from twohop_lib.models.blocks import UnsupportedSite, as_unsupported, hooked, stream_out
from twohop_lib.models.decoder import Decoder
from twohop_lib.models.inputs import END, decoded, stop_ids

#: Keys and values, ``[batch, heads, pos, d_head]`` each.
Pair = tuple[Tensor, Tensor]
#: Neighbouring rows of a batch, and the keys and values that they read before their own.
Kept = list[tuple[slice, Pair]]

#: How far a block that is run again may come out from where it did, as a share of what it adds.
SAME_BLOCK = 0.05


@torch.inference_mode()
def run(
    decoder: Decoder, edits: Sequence[Edit], max_new_tokens: int = 0
) -> tuple[Tensor, list[str]]:
    """Return next-token logits ``[edit, vocab]`` (float32) and the greedy answers under edits.

    Edits come in the order of the blocks that they enter at. Answers are empty without
    ``max_new_tokens``.

    Raises UnsupportedSite if the model's blocks cannot be run on a part of a prompt.
    """
    edits = list(edits)
    forward = _frozen if isinstance(edits[0], Freeze) else _forward
    last, own = forward(decoder, edits, max_new_tokens > 0)
    found = head(decoder, last)
    if not max_new_tokens:
        return found, [""] * len(edits)
    return found, _generate(decoder, edits, own, found, max_new_tokens)


@torch.inference_mode()
def head(decoder: Decoder, stream: Tensor) -> Tensor:
    """Return logits ``[batch, vocab]`` (float32) of ``resid[L]`` ``[batch, d_model]`` at the top.

    The model itself turns one into the other; its blocks merely pass the stream on.
    """
    stream = stream[:, None]
    ids = torch.zeros(stream.shape[:2], dtype=torch.long, device=_input_device(decoder))
    with _passing(decoder, stream):
        out = decoder.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return out.logits[:, -1].float()


@contextlib.contextmanager
def _passing(decoder: Decoder, stream: Tensor) -> Iterator[None]:
    blocks = decoder.blocks.blocks
    forwards = [(block, block.__dict__.get("forward")) for block in blocks]
    for block in blocks:
        block.forward = lambda hidden_states, *_, **__: hidden_states
    blocks[-1].forward = lambda *_, **__: stream
    try:
        yield
    finally:
        for block, forward in forwards:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _input_device(decoder: Decoder) -> torch.device:
    return decoder.blocks.embed.weight.device


# --- from the block of departure to the top ---------------------------------------------------


def _forward(decoder: Decoder, edits: list[Edit], keep: bool) -> tuple[Tensor, list[Pair | None]]:
    """Return the last position's ``resid[L]`` ``[batch, d_model]`` of each edit.

    With ``keep``, also each block's keys and values of the positions from ``since`` on.
    """
    since, n = edits[0].since, edits[0].target.n
    stream: Tensor | None = None
    own: list[Pair | None] = []
    for b in range(decoder.n_blocks):
        stream = _entering(stream, edits, b, since)
        active = [edit for edit in edits if edit.enters <= b]
        made = None
        if active:
            stream, made = run_block(decoder, b, stream, active, since, n)
        own.append(_with_the_idle(decoder, b, edits[len(active) :], made, since) if keep else None)
    return _top(decoder, edits, stream), own


def _frozen(decoder: Decoder, edits: list[Freeze], keep: bool) -> tuple[Tensor, list[Pair | None]]:
    """As :func:`_forward`, for freezes of one ``until``.

    While frozen, a block is run on the span only as far as its keys and values, and so is the
    last block, where nothing reads the span any more; from block ``until`` on, it is run along.
    """
    (start, stop), n, until = edits[0].target.span, edits[0].target.n, edits[0].until
    top = decoder.n_blocks - 1
    stream: Tensor | None = None  # Behind the span; above block ``until``, the span's before it.
    own: list[Pair | None] = []
    for b in range(decoder.n_blocks):
        stream = _entering(stream, edits, b, stop)
        active = [edit for edit in edits if edit.enters <= b]
        made = None
        if active:
            if b <= until:
                held = [edit.target.stream(edit.layer, start)[:, : stop - start] for edit in active]
                span = torch.cat(held)
            if until < b == top:
                span, stream = stream.split([stop - start, n - stop], dim=1)
            if b < until or b == top:
                at_span = _keys_and_values(decoder, b, span, active, start, stop)
                stream, made = run_block(decoder, b, stream, active, stop, n, at_span)
                made = tuple(torch.cat(pair, dim=2) for pair in zip(at_span, made, strict=True))
            else:
                stream = torch.cat([span, stream], dim=1) if b == until else stream
                stream, made = run_block(decoder, b, stream, active, start, n)
        own.append(_with_the_idle(decoder, b, edits[len(active) :], made, start) if keep else None)
    return _top(decoder, edits, stream), own


def _entering(stream: Tensor | None, edits: list[Edit], b: int, since: int) -> Tensor | None:
    """The stream of the edits under way, and below it that of those which enter at block b."""
    new = [edit.target.stream(b, since) for edit in edits if edit.enters == b]
    return torch.cat([*([] if stream is None else [stream]), *new]) if new else stream


def _top(decoder: Decoder, edits: list[Edit], stream: Tensor | None) -> Tensor:
    """The last position's ``resid[L]``; edits that never depart have the target's."""
    idle = [e.target.resid[decoder.n_blocks, -1:] for e in edits if e.enters >= decoder.n_blocks]
    return torch.cat([*([] if stream is None else [stream[:, -1]]), *idle])


def _with_the_idle(
    decoder: Decoder, b: int, idle: list[Edit], made: Pair | None, since: int
) -> Pair | None:
    """A block's keys and values from ``since`` on: edits not under way have the target's."""
    if b in decoder.blocks.cross:
        return None
    own = [] if made is None else [made]
    own += [(e.target.keys[b][:, :, since:], e.target.values[b][:, :, since:]) for e in idle]
    keys, values = zip(*own, strict=True)
    return torch.cat(keys), torch.cat(values)


# --- one block --------------------------------------------------------------------------------


def run_block(
    decoder: Decoder,
    b: int,
    stream: Tensor,
    edits: Sequence[Edit],
    lo: int,
    hi: int,
    before: Pair | None = None,
) -> tuple[Tensor, Pair | None]:
    """Run block b on the positions [lo, hi) of each edit, as rows of one batch.

    ``stream`` is ``[batch, hi - lo, d_model]``. Positions below ``lo`` are read from the
    recordings that the edits name; ``before`` are keys and values of the last of them, if they
    are others. Returns what leaves the block, and its own keys and values (None: it attends to
    the picture alone).
    """
    call = _arguments(decoder, b, edits, lo, hi)
    stream = _written(b, stream, edits, lo)
    if b in decoder.blocks.cross:
        out = stream_out(_called(decoder, b, stream, call))
        return _past_cross(b, stream, out, edits, lo), None
    read = lo if before is None else lo - before[0].shape[2]
    cache = _Cache(_joined(_kept(b, edits, read), before))
    with hooked(after=_parts_written(decoder, b, edits, lo)):
        out = stream_out(_called(decoder, b, stream, call | {"past_key_values": cache}))
    return out, cache.made(b)


@torch.inference_mode()
def outputs(
    decoder: Decoder, recording: Recording, site: Literal["mlp", "attn"], blocks: Sequence[int]
) -> dict[int, Tensor] | None:
    """``mlp_out`` or ``attn_out`` of a recorded run from its ``first`` position on.

    ``[n - first, d_model]`` each. Each block is run again on the stream that was recorded; None if
    that does not give the recorded stream above it.

    Raises UnsupportedSite if a block cannot be run on a part of a prompt.
    """
    found: dict[int, Tensor] = {}
    lo, hi = recording.first, recording.n
    nothing = Write(recording, "resid", (hi - 1,), {})
    part = decoder.blocks.mlp if site == "mlp" else decoder.blocks.attn
    for b in blocks:

        def keep(x: Tensor, b: int = b) -> None:
            found[b] = x.clone().reshape(-1, x.shape[-1])

        with hooked(after={part(b): keep}):
            out, _ = run_block(decoder, b, recording.stream(b, lo), [nothing], lo, hi)
        below, above = (recording.resid[layer].float() for layer in (b, b + 1))
        if (out[0].float() - above).norm() > SAME_BLOCK * (above - below).norm():
            return None
    return found


def _keys_and_values(
    decoder: Decoder, b: int, stream: Tensor, edits: Sequence[Edit], lo: int, hi: int
) -> Pair:
    """Keys and values that block b makes of a stream at the positions [lo, hi)."""
    cache = _Cache([], stop=True)
    call = _arguments(decoder, b, edits, lo, hi, masked=False)
    with contextlib.suppress(_Enough):
        _called(decoder, b, stream, call | {"past_key_values": cache})
    return cache.made(b)


def _called(decoder: Decoder, b: int, stream: Tensor, call: dict[str, Any]) -> Any:
    """Call a block on part of a prompt; what its own code cannot do is the model's limit."""
    kind = type(decoder.model).__name__
    with as_unsupported(f"Block {b} of this {kind} cannot be run on part of a prompt"):
        return decoder.blocks.blocks[b](stream, **call)


def _arguments(
    decoder: Decoder, b: int, edits: Sequence[Edit], lo: int, hi: int, masked: bool = True
) -> dict[str, Any]:
    """What the model called block b with, for the positions [lo, hi)."""
    target = edits[0].target
    given = target.base, target.total
    call = {name: between(value, name, given, lo, hi) for name, value in target.calls[b].items()}
    if b in decoder.blocks.cross:
        for name, value in target.calls[b].items():
            if name.endswith("_states") and isinstance(value, Tensor):
                call[name] = torch.cat([edit.source(b).calls[b][name] for edit in edits])
    elif masked and "attention_mask" in call:
        call["attention_mask"] = _mask(decoder, call["attention_mask"], b, edits, lo, hi)
    return call


def _written(b: int, stream: Tensor, edits: Sequence[Edit], lo: int) -> Tensor:
    """The stream entering block b, with what edits write over it."""
    writes = [isinstance(e, Write) and e.site == "resid" and b in e.values for e in edits]
    if any(writes):
        stream = stream.clone()
        for row, edit in enumerate(edits):
            if writes[row]:
                edit.onto(stream[row], b, [p - lo for p in edit.positions])
    return stream


def _parts_written(decoder: Decoder, b: int, edits: Sequence[Edit], lo: int) -> dict[Any, Any]:
    """Hooks that write over what block b's MLP and attention add, row by row."""
    found = {}
    for site, part in (("mlp", decoder.blocks.mlp), ("attn", decoder.blocks.attn)):
        rows = [
            row
            for row, e in enumerate(edits)
            if isinstance(e, Write) and e.site == site and b in e.values
        ]
        if not rows:
            continue

        def write(x: Tensor, rows: list[int] = rows) -> Tensor:
            # Mixtures of experts hand their tokens back as one row.
            y = x.clone().reshape(len(edits), -1, x.shape[-1])
            for row in rows:
                edits[row].onto(y[row], b, [p - lo for p in edits[row].positions])
            return y.reshape(x.shape)

        found[part(b)] = write
    return found


# --- what is read from before -----------------------------------------------------------------


class _Cache:
    """A cache for one call of one block: keys and values kept earlier, then the call's own."""

    def __init__(self, kept: Kept, stop: bool = False) -> None:
        self.kept, self.stop = kept, stop
        self.own: Pair | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Pair:
        self.own = (keys, values)
        if self.stop:
            raise _Enough
        if not self.kept:
            return keys, values
        return _in_front(self.kept, keys, 0), _in_front(self.kept, values, 1)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.kept[0][1][0].shape[2] if self.kept else 0

    def made(self, b: int) -> Pair:
        if self.own is None:
            raise UnsupportedSite(f"Block {b} reads no keys and values from a cache.")
        return self.own


class _Enough(Exception):
    """Keys and values are there; the rest of the block is not needed."""


def _kept(b: int, edits: Sequence[Edit], lo: int) -> Kept:
    """What edits read in block b at positions below ``lo``, neighbours of one source together."""
    found: Kept = []
    for source, rows in itertools.groupby(range(len(edits)), lambda row: edits[row].source(b)):
        at = list(rows)
        pair = (source.keys[b][:, :, :lo], source.values[b][:, :, :lo])
        found.append((slice(at[0], at[-1] + 1), pair))
    return found if lo else []


def _joined(first: Kept, second: Pair | None) -> Kept:
    """Keys and values that were kept, and behind them others, one set a row."""
    if second is None:
        return first
    if not first:
        return [(slice(None), second)]
    return [(slice(None), (_in_front(first, second[0], 0), _in_front(first, second[1], 1)))]


def _in_front(kept: Kept, own: Tensor, which: int) -> Tensor:
    """What was kept, then a call's own, ``[batch, heads, pos, d_head]``; each copied once."""
    width = kept[0][1][which].shape[2]
    batch, heads, length, size = own.shape
    out = own.new_empty(batch, heads, width + length, size)
    out[:, :, width:] = own
    for rows, pair in kept:
        out[rows, :, :width] = pair[which].to(own.dtype)
    return out


def _mask(
    decoder: Decoder, mask: Tensor | None, b: int, edits: Sequence[Edit], lo: int, hi: int
) -> Tensor | None:
    """A block's attention mask for the queries [lo, hi), with each row's edges knocked out.

    It is ``[1 or batch, 1 or heads, hi - lo, hi]``; None stands for plain causal attention.
    """
    cut = [isinstance(e, Knockout) and e.start <= b < e.stop for e in edits]
    flash = "flash" in str(getattr(decoder.model.config, "_attn_implementation", ""))
    if flash and any(cut):
        raise UnsupportedSite(
            "Flash attention takes no mask that single edges can be cut from; load the model "
            "with attn_implementation='sdpa'."
        )
    if mask is None:
        # Without a mask, kernels take square attention for causal, and one query's for all.
        if not any(cut) and (hi - lo == 1 or lo == 0 or flash):
            return None
        target = edits[0].target
        queries = torch.arange(lo, hi)[:, None]
        mask = (torch.arange(hi)[None] <= queries)[None, None].to(target.resid.device)
    if not any(cut):
        return mask
    if mask.ndim != 4:
        raise UnsupportedSite("This attention takes no mask that single edges can be cut from.")
    mask = mask.expand(len(edits), -1, -1, -1).clone()
    nothing = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    for row, edit in enumerate(edits):
        if cut[row]:
            for query in _asked(edit, lo, hi):
                mask[row, :, query - lo, list(edit.keys)] = nothing
    return mask


def _asked(edit: Knockout, lo: int, hi: int) -> list[int]:
    """The queries among [lo, hi): a token generated later stands for the prompt's last position."""
    later = range(max(lo, edit.target.n), hi) if edit.target.n - 1 in edit.queries else ()
    return [*(q for q in edit.queries if lo <= q < hi), *later]


def _past_cross(b: int, stream: Tensor, out: Tensor, edits: Sequence[Edit], lo: int) -> Tensor:
    """Let queries that may not see the picture pass a cross-attention block unchanged.

    That is what such a block does to text without a picture.
    """
    out = out.clone()
    for row, edit in enumerate(edits):
        if isinstance(edit, Knockout) and edit.start <= b < edit.stop and not edit.keys:
            at = [q - lo for q in _asked(edit, lo, lo + stream.shape[1])]
            out[row, at] = stream[row, at]
    return out


# --- answers ----------------------------------------------------------------------------------


def _generate(
    decoder: Decoder,
    edits: list[Edit],
    own: list[Pair | None],
    logits: Tensor,
    max_new_tokens: int,
) -> list[str]:
    """Go on from a spliced run, greedily; edits whose answer has ended are dropped."""
    stops = stop_ids(decoder.owner)
    said: list[list[int]] = [[] for _ in edits]
    alive = list(range(len(edits)))
    since, n = edits[0].since, edits[0].target.n
    tokens = logits.argmax(-1)
    for t in range(max_new_tokens):
        for place, token in zip(alive, tokens.tolist(), strict=True):
            said[place].append(token)
        going = [i for i, place in enumerate(alive) if said[place][-1] not in stops]
        if not going or t + 1 == max_new_tokens:
            break
        if len(going) < len(alive):
            alive = [alive[i] for i in going]
            tokens = tokens[going]
            own = [None if pair is None else (pair[0][going], pair[1][going]) for pair in own]
        stream = decoder.blocks.embed(tokens[:, None].to(_input_device(decoder)))
        under_way = [edits[place] for place in alive]
        for b in range(decoder.n_blocks):
            stream, own[b] = _one_more(decoder, b, stream, under_way, own[b], since, n + t)
        tokens = head(decoder, stream[:, -1]).argmax(-1)
    tokenizer, end = decoder.owner.tokenizer, [tuple(edit.target.ids[-END:]) for edit in edits]
    ends = {ids: tokenizer.decode(ids) for ids in set(end)}
    return [decoded(tokenizer, ids, stops, ends[tail]) for ids, tail in zip(said, end, strict=True)]


def _one_more(
    decoder: Decoder,
    b: int,
    stream: Tensor,
    edits: list[Edit],
    own: Pair | None,
    since: int,
    at: int,
) -> tuple[Tensor, Pair | None]:
    """Run block b on one generated token, at position ``at``; its keys and values join ``own``."""
    call = _arguments(decoder, b, edits, at, at + 1)
    if b in decoder.blocks.cross:
        out = stream_out(_called(decoder, b, stream, call))
        return _past_cross(b, stream, out, edits, at), None
    cache = _Cache(_joined(_kept(b, edits, since), own))
    out = stream_out(_called(decoder, b, stream, call | {"past_key_values": cache}))
    keys, values = cache.made(b)
    return out, (torch.cat([own[0], keys], dim=2), torch.cat([own[1], values], dim=2))
