"""The engine: interventions as rows of a batch, each begun where it first departs.

With equal prompts, replacing the residual stream at all positions of the picture at layer l gives
the keys and values of the donor's own run from block l on, and leaves the target's below. So only
the positions behind the picture are run again, from block l on, reading the donor's keys and
values; runs for all layers and several donors are rows of one batch, each of which enters at its
own block. Nothing here knows a model's name: blocks are called as the model itself called them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.edits import Edit, Freeze, Knockout, Write, check, telling
from twohop_lib.interventions.recording import Recording, between, extended, record
from twohop_lib.models.blocks import UnsupportedSite, hooked, stream_out
from twohop_lib.models.decoder import Decoder
from twohop_lib.models.inputs import decoded, encode, stop_ids
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.models.roles import token_roles

#: Edits that are run at once, unless memory runs out.
BATCH_SIZE = 64
#: Tokens of the answer that tells whether splicing is exact.
PROBE_LENGTH = 4
#: Pictures whose features are kept.
PICTURES = 256
#: Largest difference allowed, as a share of the largest logit (at least of 1), by dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

#: How an edit is carried out: by splicing, or as a whole run with plain hooks.
Computation = Literal["splice", "reference"]


#: Rows (a slice or their numbers), and the keys and values that they read before their own.
Kept = list[tuple[Any, tuple[Tensor, Tensor]]]


class _Splice:
    """A cache for one call of one block: keys and values kept earlier, then the call's own."""

    def __init__(self, kept: Kept, stop: bool = False) -> None:
        self.kept, self.stop = kept, stop
        self.own: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.own = (keys, values)
        if self.stop:
            raise _Enough
        if not self.kept:
            return keys, values
        return _in_front(self.kept, keys, 0), _in_front(self.kept, values, 1)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.kept[0][1][0].shape[2] if self.kept else 0


def _in_front(kept: Kept, own: Tensor, which: int) -> Tensor:
    """What was kept, then a call's own, ``[batch, heads, pos, d_head]``; each copied once."""
    width = kept[0][1][which].shape[2]
    batch, heads, length, size = own.shape
    out = own.new_empty(batch, heads, width + length, size)
    out[:, :, width:] = own
    for at, pair in kept:
        out[at, :, :width] = pair[which].to(own.dtype)
    return out


class _Enough(Exception):
    """Keys and values are there; the rest of the block is not needed."""


# --- the engine -------------------------------------------------------------------------------


class Engine(Decoder):
    """A decoder that records prompts, and runs edits of them ``batch_size`` at once."""

    def __init__(self, model: Vlm | Llm, batch_size: int = BATCH_SIZE) -> None:
        super().__init__(model)
        self.batch_size = batch_size
        self._features: OrderedDict[str, Any] = OrderedDict()
        self._exact: dict[str, Computation] = {}
        self._causal: bool | None = None

    @property
    def flash(self) -> bool:
        """Whether attention is computed without a mask that could be edited."""
        return "flash" in str(getattr(self.model.config, "_attn_implementation", ""))

    def record(
        self,
        prompt: Prompt,
        picture: Image.Image | None = None,
        entity: str | None = None,
        max_new_tokens: int = 0,
        from_start: bool = False,
    ) -> Recording:
        """Run one prompt, with its picture or with the name ``entity`` in it.

        The span is the picture's, or the name's where there is no picture.
        """
        front = getattr(self.owner, "processor", self.owner.tokenizer)
        inputs = encode(self.owner, [render(front, prompt)], [picture], "left")
        ids = inputs["input_ids"][0].tolist()
        roles = token_roles(self.owner, prompt, ids, self.site, entity)
        span = self._span(roles, picture)
        with self._vision_once(inputs):
            if max_new_tokens and self._causal is None:
                self._causal = self._reads_back_only(inputs)
            # Positions behind a prompt that is read in both directions would change it.
            further = max_new_tokens if self._causal else 0
            return record(self.model, self.blocks, inputs, roles, span, further, from_start)

    @torch.inference_mode()
    def _reads_back_only(self, inputs: dict[str, Any]) -> bool:
        """Whether a token behind the prompt leaves the prompt's own logits as they are."""
        n = inputs["input_ids"].shape[1]
        plain = self.model(**inputs, use_cache=False).logits[0, n - 1].float()
        longer = self.model(**extended(inputs, n, 1), use_cache=False).logits[0, n - 1].float()
        return self.close(plain, longer)

    def _span(self, roles: Any, picture: Image.Image | None) -> tuple[int, int]:
        at = roles.image if picture is not None else roles.entity
        if at:
            return min(at), max(at) + 1
        if picture is not None and self.site is not None and self.site.kind == "cross-attention":
            return 0, 0
        raise TwohopError("The prompt shows no picture and names no entity; give one of them.")

    # --- logits and answers ---

    def logits(self, edits: Sequence[Edit]) -> Tensor:
        """Return the next-token logits ``[batch, vocab]`` (float32) under each edit."""
        return self._in_batches(edits, lambda part: (self._run(part, 0)[0],))[0]

    def answers(self, edits: Sequence[Edit], max_new_tokens: int) -> tuple[Tensor, list[str]]:
        """Return next-token logits ``[batch, vocab]`` and the greedy answers under edits.

        The recordings must have been made for at least as many ``max_new_tokens``.
        """
        short = [r for r in edits if self._causal and r.target.total - r.target.n < max_new_tokens]
        if short:
            raise TwohopError(
                "A recording has too few positions behind its prompt for an answer; record it with "
                f"max_new_tokens={max_new_tokens}."
            )
        logits, texts = self._in_batches(edits, lambda part: self._run(part, max_new_tokens))
        return logits, texts

    def computation(self, edit: Edit) -> Computation:
        """Whether edits like this one are spliced, or carried out by hooks on whole runs.

        Decided once for each layout of positions, by running one edit both ways.
        """
        place = f"{edit.site} {edit.since}" if isinstance(edit, Write) else ""
        key = f"{type(edit).__name__} {place} {edit.target.positions}"
        if key not in self._exact:
            exact = self._causal is not False and self._agrees(edit)
            self._exact[key] = "splice" if exact else "reference"
        return self._exact[key]

    def _agrees(self, edit: Edit) -> bool:
        """Whether a telling edit of this kind comes out the same both ways."""
        edit = telling(edit, self.n_blocks)
        length = min(PROBE_LENGTH, edit.target.total - edit.target.n)
        # Rounding may tip a word over in half precision; logits are compared with tolerance.
        length = length if self.model.dtype == torch.float32 else 0
        try:
            logits, said = self._spliced([edit], length)
            own = self.head(edit.target.resid[self.n_blocks, -1:])[0]
        except (UnsupportedSite, RuntimeError, TypeError, ValueError, IndexError):
            return False
        same = self.close(logits[0], hooks.logits(self, edit)) and self.close(
            own, edit.target.logits
        )
        return same and (not length or said[0] == hooks.answer(self, edit, length))

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors of logits agree within rounding of the model's dtype."""
        scale = max(1.0, b.abs().max().item())
        tolerance = TOLERANCE.get(self.model.dtype, TOLERANCE[torch.bfloat16])
        return bool((a.to(b.device) - b).abs().max() <= tolerance * scale)

    def _run(self, edits: list[Edit], max_new_tokens: int) -> tuple[Tensor, list[str]]:
        if self.computation(edits[0]) == "splice":
            return self._spliced(edits, max_new_tokens)
        logits = torch.stack([hooks.logits(self, edit) for edit in edits])
        texts = (
            [hooks.answer(self, edit, max_new_tokens) for edit in edits] if max_new_tokens else []
        )
        return logits, texts

    def _in_batches(self, edits: Sequence[Edit], run: Callable[[list[Edit]], Any]) -> Any:
        """Run edits of like layout together, and hand results back in the order given."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, edit in enumerate(edits):
            check(edit, self.n_blocks)
            until = edit.until if isinstance(edit, Freeze) else None
            key = (type(edit), edit.target.n, edit.since, edit.target.positions, until)
            groups.setdefault(key, []).append(i)
        found: dict[int, Any] = {}
        size = self.batch_size
        for group in groups.values():
            # Neighbours in depth and donor share work.
            group.sort(key=lambda i: edits[i].enters)
            while group:
                part = group[:size]
                done = _or_out_of_memory(run, [edits[i] for i in part])
                if done is None:
                    if len(part) == 1:
                        raise TwohopError(
                            "The GPU runs out of memory on a single prompt; load the model with "
                            "a smaller dtype, quantised, or with device='auto'."
                        )
                    size = len(part) // 2
                    continue
                for place, values in zip(part, zip(*done, strict=True), strict=True):
                    found[place] = values
                group = group[len(part) :]
        columns = list(zip(*(found[i] for i in range(len(edits))), strict=True))
        return [torch.stack(columns[0]), *(list(column) for column in columns[1:])]

    # --- the splice ---

    @torch.inference_mode()
    def _spliced(self, edits: list[Edit], max_new_tokens: int) -> tuple[Tensor, list[str]]:
        forward = self._frozen if isinstance(edits[0], Freeze) else self._forward
        last, own = forward(edits, keep=max_new_tokens > 0)
        logits = self.head(last)
        if not max_new_tokens:
            return logits, [""] * len(edits)
        return logits, self._generate(edits, own, logits, max_new_tokens)

    def _forward(
        self, edits: list[Edit], keep: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """Run edits (sorted by the block they enter at) to the top.

        Returns the stream at the last position ``[batch, d_model]``, and with ``keep`` each block's
        keys and values of the positions from ``since`` on.
        """
        since, n = edits[0].since, edits[0].target.n
        order = sorted(range(len(edits)), key=lambda i: edits[i].enters)
        edits = [edits[i] for i in order]
        stream: Tensor | None = None
        own: list[tuple[Tensor, Tensor] | None] = []
        for b in range(self.n_blocks):
            new = [edit.target.stream(b, since) for edit in edits if edit.enters == b]
            if new:
                stream = torch.cat([*([] if stream is None else [stream]), *new])
            active = [edit for edit in edits if edit.enters <= b]
            made = None
            if active:
                stream, made = self.run_block(b, stream, active, since, n)
            own.append(self._all_rows(b, edits, len(active), made, since) if keep else None)
        return self._top(edits, order, stream, own)

    def _top(
        self, edits: list[Edit], order: list[int], stream: Tensor | None, own: list[Any]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """The last position's stream and what was kept, in the order in which edits were given."""
        ran = [] if stream is None else [stream[:, -1]]
        idle = [
            edit.target.resid[self.n_blocks, -1:] for edit in edits if edit.enters >= self.n_blocks
        ]
        last = torch.cat([*ran, *idle])
        back = torch.tensor(order, device=last.device).argsort()
        return last[back], [None if kv is None else (kv[0][back], kv[1][back]) for kv in own]

    def _frozen(
        self, edits: list[Freeze], keep: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """As :meth:`_forward`, for frozen edits of one ``until``.

        While frozen, a block is run on the span only as far as its keys and values; from block
        ``until`` on, the span is run along.
        """
        order = sorted(range(len(edits)), key=lambda i: edits[i].enters)
        edits = [edits[i] for i in order]
        (start, stop), n, until = edits[0].target.span, edits[0].target.n, edits[0].until
        width = stop - start
        stream: Tensor | None = None
        own: list[tuple[Tensor, Tensor] | None] = []
        for b in range(self.n_blocks):
            new = [edit.target.stream(b, stop) for edit in edits if edit.enters == b]
            if new:
                stream = torch.cat([*([] if stream is None else [stream]), *new])
            active = [edit for edit in edits if edit.enters <= b]
            made = None
            if active and b <= until:
                held = torch.cat(
                    [edit.target.stream(edit.layer, start)[:, :width] for edit in active]
                )
            if active and b < until:
                frozen = self._keys_and_values(b, held, active, start, stop)
                stream, made = self.run_block(b, stream, active, stop, n, frozen)
                made = tuple(torch.cat(pair, dim=2) for pair in zip(frozen, made, strict=True))
            elif active:
                if b == until:
                    stream = torch.cat([held, stream], dim=1)
                stream, made = self.run_block(b, stream, active, start, n)
            own.append(self._all_rows(b, edits, len(active), made, start) if keep else None)
        return self._top(edits, order, stream, own)

    def _keys_and_values(
        self, b: int, stream: Tensor, edits: Sequence[Edit], lo: int, hi: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that block b makes of a stream at the positions [lo, hi)."""
        cache = _Splice([], stop=True)
        with contextlib.suppress(_Enough):
            self.blocks.blocks[b](stream, past_key_values=cache, **self.call(b, edits, lo, hi))
        if cache.own is None:
            raise UnsupportedSite(f"Block {b} reads no keys and values from a cache.")
        return cache.own

    def _all_rows(
        self, b: int, edits: list[Edit], active: int, made: Any, since: int
    ) -> tuple[Tensor, Tensor] | None:
        """A block's keys and values from ``since`` on: edits not yet entered have the target's."""
        if b in self.blocks.cross:
            return None
        parts: list[list[Tensor]] = [[made[0]], [made[1]]] if made is not None else [[], []]
        for edit in edits[active:]:
            parts[0].append(edit.target.keys[b][:, :, since:])
            parts[1].append(edit.target.values[b][:, :, since:])
        return torch.cat(parts[0]), torch.cat(parts[1])

    def run_block(
        self,
        b: int,
        stream: Tensor,
        edits: Sequence[Edit],
        lo: int,
        hi: int,
        between: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Run block b on the positions [lo, hi) of each edit, as rows of one batch.

        ``stream`` is ``[batch, hi - lo, d_model]``. Positions before ``lo`` are read from the
        recordings that the edits name; ``between`` are keys and values of the last of them, if
        they are others. Returns what leaves the block, and its own keys and values.
        """
        call = self.call(b, edits, lo, hi)
        stream = self._written(b, stream, edits, lo)
        if b in self.blocks.cross:
            out = stream_out(self.blocks.blocks[b](stream, **call))
            return _past_cross(b, stream, out, edits, lo), None
        read = lo if between is None else lo - between[0].shape[2]
        cache = _Splice(_joined(self._kept(b, edits, read), between))
        with hooked(after=self._parts_written(b, edits, lo)):
            out = stream_out(self.blocks.blocks[b](stream, past_key_values=cache, **call))
        if cache.own is None:
            raise UnsupportedSite(f"Block {b} reads no keys and values from a cache.")
        return out, cache.own

    def _written(self, b: int, stream: Tensor, edits: Sequence[Edit], lo: int) -> Tensor:
        """The stream entering block b, with what edits write over it."""
        writes = [isinstance(r, Write) and r.site == "resid" and b in r.values for r in edits]
        if any(writes):
            stream = stream.clone()
            for i, edit in enumerate(edits):
                if writes[i]:
                    edit.onto(stream[i], b, [p - lo for p in edit.positions])
        return stream

    def _parts_written(self, b: int, edits: Sequence[Edit], lo: int) -> dict[Any, Any]:
        """Hooks that write over what block b's MLP and attention add, row by row."""
        found = {}
        for site in ("mlp", "attn"):
            at = [
                i
                for i, r in enumerate(edits)
                if isinstance(r, Write) and r.site == site and b in r.values
            ]
            if not at:
                continue

            def write(x: Tensor, at: list[int] = at) -> Tensor:
                # Mixtures of experts hand their tokens back as one row.
                y = x.clone().reshape(len(edits), -1, x.shape[-1])
                for i in at:
                    edits[i].onto(y[i], b, [p - lo for p in edits[i].positions])
                return y.reshape(x.shape)

            part = self.blocks.mlp(b) if site == "mlp" else self.blocks.attn(b)
            found[part] = write
        return found

    def call(self, b: int, edits: Sequence[Edit], lo: int, hi: int) -> dict[str, Any]:
        """What the model called block b with, for the positions [lo, hi)."""
        target = edits[0].target
        call = {
            name: between(value, name, target.total, lo, hi)
            for name, value in target.calls[b].items()
        }
        if b in self.blocks.cross:
            for name in target.calls[b]:
                if name.endswith("_states") and isinstance(target.calls[b][name], Tensor):
                    call[name] = torch.cat([edit.source(b).calls[b][name] for edit in edits])
            return call
        if "attention_mask" in call:
            call["attention_mask"] = _masked(
                call["attention_mask"], b, edits, lo, hi, target, self.flash
            )
        return call

    def _kept(self, b: int, edits: Sequence[Edit], lo: int) -> Kept:
        """What edits read in block b at positions before ``lo``, edits of one source together."""
        if not lo:
            return []
        at: dict[int, list[int]] = {}
        sources = {}
        for i, edit in enumerate(edits):
            source = edit.source(b)
            sources[id(source)] = source
            at.setdefault(id(source), []).append(i)
        return [
            (
                slice(None) if len(at) == 1 else at[key],
                (source.keys[b][:, :, :lo], source.values[b][:, :, :lo]),
            )
            for key, source in sources.items()
        ]

    # --- the model's own ends ---

    @torch.inference_mode()
    def head(self, stream: Tensor) -> Tensor:
        """Return logits ``[batch, vocab]`` (float32) of streams ``[batch, d_model]`` at the top.

        The model itself turns one into the other; its blocks merely pass the stream on.
        """
        stream = stream[:, None]
        ids = torch.zeros(
            stream.shape[:2], dtype=torch.long, device=self.blocks.embed.weight.device
        )
        with self._passing(stream):
            out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return out.logits[:, -1].float()

    @contextlib.contextmanager
    def _passing(self, stream: Tensor) -> Iterator[None]:
        forwards = []
        for b in self.blocks.blocks:
            forwards.append((b, b.__dict__.get("forward")))
            b.forward = lambda hidden_states, *_, **__: hidden_states
        last = self.blocks.blocks[-1]
        last.forward = lambda *_, **__: stream
        try:
            yield
        finally:
            for block, forward in forwards:
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    # --- answers ---

    def _generate(
        self,
        edits: list[Edit],
        own: list[tuple[Tensor, Tensor] | None],
        logits: Tensor,
        max_new_tokens: int,
    ) -> list[str]:
        """Go on from a spliced run, greedily; edits that have stopped are dropped."""
        stops = stop_ids(self.owner)
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
                own = [None if kv is None else (kv[0][going], kv[1][going]) for kv in own]
            stream = self.blocks.embed(tokens[:, None].to(self.blocks.embed.weight.device))
            parts = [edits[place] for place in alive]
            for b in range(self.n_blocks):
                stream, own[b] = self._one_more(b, stream, parts, own[b], since, n + t)
            tokens = self.head(stream[:, -1]).argmax(-1)
        return [decoded(self.owner.tokenizer, ids, stops) for ids in said]

    def _one_more(
        self, b: int, stream: Tensor, edits: list[Edit], own: Any, since: int, at: int
    ) -> tuple[Tensor, Any]:
        call = self.call(b, edits, at, at + 1)
        if b in self.blocks.cross:
            out = stream_out(self.blocks.blocks[b](stream, **call))
            return _past_cross(b, stream, out, edits, at), None
        cache = _Splice(_joined(self._kept(b, edits, since), own))
        out = stream_out(self.blocks.blocks[b](stream, past_key_values=cache, **call))
        grown = tuple(torch.cat([o, c], dim=2) for o, c in zip(own, cache.own, strict=True))
        return out, grown

    # --- the vision tower, once a picture ---

    @contextlib.contextmanager
    def _vision_once(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Let the model take a picture's features from an earlier run with the same pixels."""
        pixels = [v for k, v in inputs.items() if "pixel_values" in k and isinstance(v, Tensor)]
        inner = getattr(self.model, "model", None)
        if not pixels or not hasattr(inner, "get_image_features"):
            yield
            return
        total = hashlib.sha256()
        for value in pixels:
            total.update(value.detach().float().cpu().numpy().tobytes())
        key, compute = total.hexdigest(), inner.get_image_features

        def remembered(*args: Any, **kwargs: Any) -> Any:
            if key not in self._features:
                self._features[key] = compute(*args, **kwargs)
                while len(self._features) > PICTURES:
                    self._features.popitem(last=False)
            self._features.move_to_end(key)
            return self._features[key]

        inner.get_image_features = remembered
        try:
            yield
        finally:
            del inner.get_image_features


# --- parts ------------------------------------------------------------------------------------


def _masked(
    mask: Tensor | None,
    b: int,
    edits: Sequence[Edit],
    lo: int,
    hi: int,
    target: Recording,
    flash: bool,
) -> Tensor | None:
    """A block's attention mask for the queries [lo, hi), with each edit's edges knocked out."""
    cut = [isinstance(edit, Knockout) and edit.start <= b < edit.stop for edit in edits]
    if flash and any(cut):
        raise UnsupportedSite(
            "Flash attention takes no mask that single edges can be cut from; load the model "
            "with attn_implementation='sdpa'."
        )
    if mask is None:
        if not any(cut) and (hi - lo == 1 or flash):
            return None
        # None stands for plain causal attention, which holds for square masks alone.
        queries = torch.arange(lo, hi)[:, None]
        allowed = (torch.arange(hi)[None] <= queries)[None, None]
        mask = allowed.to(target.resid.device)
    if not any(cut):
        return mask
    if mask.ndim != 4:
        raise UnsupportedSite("This attention takes no mask that single edges can be cut from.")
    mask = mask.expand(len(edits), -1, -1, -1).clone()
    nothing = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    for r, edit in enumerate(edits):
        if cut[r]:
            # A token generated later stands for the last position of the prompt.
            queries = [q - lo for q in edit.queries if lo <= q < hi]
            queries += [
                p - lo for p in range(max(lo, target.n), hi) if target.n - 1 in edit.queries
            ]
            for q in queries:
                mask[r, :, q, list(edit.keys)] = nothing
    return mask


def _joined(first: Kept, second: tuple[Tensor, Tensor] | None) -> Kept:
    """Keys and values that were kept, and behind them others, one set a row."""
    if second is None:
        return first
    if not first:
        return [(slice(None), second)]
    return [(slice(None), (_in_front(first, second[0], 0), _in_front(first, second[1], 1)))]


def _past_cross(b: int, stream: Tensor, out: Tensor, edits: Sequence[Edit], lo: int) -> Tensor:
    """Let queries that may not see the picture pass a cross-attention block unchanged.

    That is what such a block does to text without a picture.
    """
    out = out.clone()
    for r, edit in enumerate(edits):
        if isinstance(edit, Knockout) and edit.start <= b < edit.stop and not edit.keys:
            at = [q - lo for q in edit.queries if 0 <= q - lo < stream.shape[1]]
            if lo >= edit.target.n and edit.target.n - 1 in edit.queries:
                at = list(range(stream.shape[1]))
            out[r, at] = stream[r, at]
    return out


def _or_out_of_memory(run: Callable[[list[Edit]], Any], edits: list[Edit]) -> Any:
    try:
        return run(edits)
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
