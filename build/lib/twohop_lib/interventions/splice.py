"""The engine: records prompts, and runs edits of them as rows of batches, where that is exact.

Whether it is exact is tried, once for each kind of edit and layout of positions: see
:meth:`Engine.computation`. Where it is not, edits are carried out by hooks on whole runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.interventions import forward, hooks
from twohop_lib.interventions.edits import CrossPatch, Edit, Freeze, layout
from twohop_lib.interventions.recording import Recording, extended, record
from twohop_lib.models import prefix
from twohop_lib.models.agreement import (
    Agreement,
    agreement,
    farthest,
    holds,
    trial_in_float32,
    ulps,
)
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.models.decoder import Decoder
from twohop_lib.models.inputs import encode
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.memory import in_batches
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.models.roles import TokenRoles, token_roles

#: Edits that are run at once, unless memory runs out; and how many positions of theirs.
BATCH_SIZE, POSITIONS = 64, 8192
#: Tokens of the answer that tells whether splicing is exact.
PROBE_LENGTH = 4

#: How an edit is carried out: by splicing, or by hooks on a whole run.
Computation = Literal["splice", "reference"]
#: Next-token logits ``[edit, vocab]`` and answers.
Results = tuple[Tensor, list[str]]


class Engine(Decoder):
    """A decoder that records prompts, and runs edits of them ``batch_size`` at once.

    ``like`` is an engine of a model of the same architecture and dtype: what splices there does
    here.
    """

    def __init__(
        self, model: Vlm | Llm, batch_size: int = BATCH_SIZE, like: Engine | None = None
    ) -> None:
        super().__init__(model)
        self.batch_size = batch_size
        # What was tried on a model of the same architecture and dtype need not be tried again.
        self._decided: dict[Hashable, Computation] = {} if like is None else like._decided
        self._causal: bool | None = None

    # --- recording ---

    def record(
        self,
        prompt: Prompt,
        picture: Image.Image | None = None,
        entity: str | None = None,
        max_new_tokens: int = 0,
        from_start: bool = False,
    ) -> Recording:
        """Run one prompt, with its picture or with the name ``entity`` in it.

        The span is the picture's, or the name's where there is no picture. ``max_new_tokens`` may
        be generated behind it; ``from_start`` keeps the stream at the span too, which freezes
        and writes need there.

        Raises TwohopError if there is neither picture nor name.
        """
        inputs = encode(self.owner, [render(self.owner.front, prompt)], [picture], "left")
        ids = inputs["input_ids"][0].tolist()
        roles = token_roles(self.owner, prompt, ids, self.site, entity)
        span = self._span(roles, picture)
        if max_new_tokens and self._causal is None:
            with self.seeing(inputs):
                self._causal = self._reads_back_only(inputs, roles)
        # Positions behind a prompt that is read in both directions would change it.
        further = max_new_tokens if self._causal else 0
        begun = self._begun(inputs, span, further)
        with self.seeing(inputs):
            return record(self.model, self.blocks, inputs, roles, span, further, from_start, begun)

    def _span(self, roles: TokenRoles, picture: Image.Image | None) -> tuple[int, int]:
        at = roles.image if picture is not None else roles.entity
        if at:
            return min(at), max(at) + 1
        if picture is not None and self.site is not None and self.site.kind == "cross-attention":
            return 0, 0
        raise TwohopError("The prompt shows no picture and names no entity; give one of them.")

    @torch.inference_mode()
    def _reads_back_only(self, inputs: dict[str, Any], roles: TokenRoles) -> bool:
        """Whether the prompt's own logits are the same whichever token stands behind it."""
        ids, n = inputs["input_ids"][0], inputs["input_ids"].shape[1]
        others = [ids[p] for p in roles.question if ids[p] != ids[-1]]
        one = extended(inputs, n, 1)
        two = one | {"input_ids": one["input_ids"].clone()}
        two["input_ids"][0, n] = others[-1] if others else ids[0]
        # Both runs are of one shape, so that they are rounded alike, in half precision too.
        one, two = (prefix.run(self.model, x, 2).logits[0, -2:].float() for x in (one, two))
        return agreement(two[0], one[0], two[1], torch.float32).ok

    # --- what prompts begin with ---

    def _begun(self, inputs: dict[str, Any], span: tuple[int, int], further: int) -> prefix.Kept:
        """What is kept of a prompt's beginning, up to the span, where reading that is exact."""
        ids = inputs["input_ids"][0].tolist()
        if span[0] < prefix.LEAST or not prefix.open_to(self.model, len(ids) + further):
            return ()
        known = prefix.verdicts(self.model)
        layout = ("recording", *prefix.layout(self.model, inputs, further))
        if layout not in known:
            known[layout] = holds(self.model, lambda: self._trial_behind(inputs, span))
        return prefix.kept(self.model, ids[: span[0]]) if known[layout] else ()

    @torch.inference_mode()
    def _trial_behind(self, inputs: dict[str, Any], span: tuple[int, int]) -> list[Agreement]:
        """Hold a run behind a kept beginning against the whole run."""
        inputs = _in(self.model.dtype, inputs)
        with self.seeing(inputs):
            begun = prefix.kept(self.model, inputs["input_ids"][0, : span[0]].tolist())
            whole, behind = (
                prefix.run(self.model, inputs, 1, kept).logits[0, -1] for kept in ((), begun)
            )
        other = _other(inputs, span)
        with self.seeing(other):
            away = prefix.run(self.model, other, 1).logits[0, -1]
        return [self.agreement(behind, whole, away)]

    # --- running edits ---

    def logits(self, edits: Sequence[Edit]) -> Tensor:
        """Return the next-token logits ``[edit, vocab]`` (float32) under each edit."""
        return self._run(edits, 0)[0]

    def answers(self, edits: Sequence[Edit], max_new_tokens: int) -> Results:
        """Return next-token logits ``[edit, vocab]`` and the greedy answer under each edit.

        The recordings must have been made for at least as many ``max_new_tokens``.
        """
        # A prompt that is read in both directions is recorded without positions behind it.
        short = any(e.target.total - e.target.n < max_new_tokens for e in edits)
        if self._causal is not False and short:
            raise TwohopError(
                "A recording has too few positions behind its prompt for an answer; record it with "
                f"max_new_tokens={max_new_tokens}."
            )
        return self._run(edits, max_new_tokens)

    def outputs(
        self, recording: Recording, site: Literal["mlp", "attn"], blocks: Sequence[int]
    ) -> dict[int, Tensor]:
        """What blocks of a recorded run add, ``[n - first, d_model]`` each, from ``first`` on.

        Raises UnsupportedSite if a block is no sum of its parts.
        """
        found = None
        if recording.keys:  # Not kept where a block has none of every position (linear attention).
            with contextlib.suppress(UnsupportedSite):
                found = forward.outputs(self, recording, site, blocks)
        if found is None:
            whole = hooks.activations(self, recording, site, blocks)
            found = {b: x[recording.first :] for b, x in whole.items()}
        return found

    def head(self, stream: Tensor) -> Tensor:
        """Return logits ``[batch, vocab]`` (float32) of ``resid[L]`` ``[batch, d_model]``."""
        return forward.head(self, stream)

    def _run(self, edits: Sequence[Edit], max_new_tokens: int) -> Results:
        """Run edits that are carried out alike together; results are in the order given."""
        groups: dict[Hashable, list[int]] = {}
        for i, edit in enumerate(edits):
            edit.check(self.n_blocks)
            groups.setdefault(_together(edit), []).append(i)
        logits: dict[int, Tensor] = {}
        texts: dict[int, str] = {}
        for group in groups.values():
            part = [edits[i] for i in group]
            # A run patched with itself would tell nothing.
            tells = next((e for e in part if getattr(e, "donor", None) is not e.target), part[0])
            run = {"splice": forward.run, "reference": hooks.runs}[self.computation(tells)]
            found, said = self._in_batches(part, max_new_tokens, run)
            logits |= zip(group, found, strict=True)
            texts |= zip(group, said, strict=True)
        every = range(len(edits))
        return torch.stack([logits[i] for i in every]), [texts[i] for i in every]

    def _in_batches(
        self, edits: Sequence[Edit], max_new_tokens: int, run: Callable[..., Results]
    ) -> Results:
        """Run edits of one kind and layout in batches, smaller ones where memory runs out."""
        size = max(1, min(self.batch_size, POSITIONS // (edits[0].target.n - edits[0].since)))
        # Neighbours in layer and donor share work.
        order = sorted(range(len(edits)), key=lambda i: edits[i].enters)

        def run_part(part: list[int]) -> list[tuple[Tensor, str]]:
            logits, texts = run(self, [edits[i] for i in part], max_new_tokens)
            return list(zip(logits, texts, strict=True))

        found, _ = in_batches(run_part, order, size, self.features.clear)
        done = [one for _, one in sorted(zip(order, found, strict=True), key=lambda x: x[0])]
        return torch.stack([logits for logits, _ in done]), [text for _, text in done]

    # --- is splicing exact? ---

    def agreement(self, got: Tensor, wanted: Tensor, away: Tensor) -> Agreement:
        """Hold logits ``[vocab]`` against those wanted; ``away`` is the run to be told from."""
        return agreement(got, wanted, away, self.model.dtype)

    def computation(self, edit: Edit) -> Computation:
        """Whether edits like this one are spliced, or carried out by hooks on whole runs.

        Decided once for each kind of edit and layout of positions, by trying: edits of its kind at
        all layers are spliced, and the two neighbouring layers that differ most are run whole. Of
        these, each must come out as its own whole run, and not as the other's (:meth:`agreement`);
        so must the likeliest tokens that follow. In half precision that shows an edit at a wrong
        layer, but not every other mistake, which rounding may hide. So it is tried once more in
        float32, on the same weights, where there is memory for them.
        """
        key = layout(edit)
        if key not in self._decided:
            exact = self._causal is not False and self._is_exact(edit)
            self._decided[key] = "splice" if exact else "reference"
        return self._decided[key]

    def _is_exact(self, edit: Edit) -> bool:
        return bool(edit.target.keys) and holds(
            self.model, lambda: self.trial(edit), lambda: self._trial_again(edit)
        )

    def trial(self, edit: Edit) -> list[Agreement]:
        """Splice edits of a kind at all layers, and hold those that tell most against whole runs.

        Raises UnsupportedSite if the model's blocks cannot be run on a part of a prompt.
        """
        edit = self._telling(edit)
        target, rungs = edit.target, edit.ladder(self.blocks)
        got = self._in_batches(rungs, 0, forward.run)[0]
        at = int((got[1:] - got[:-1]).abs().amax(-1).argmax())
        # Rounding may tip a word over in half precision; logits are compared with tolerance.
        words = min(PROBE_LENGTH, target.total - target.n)
        words = words if self.model.dtype == torch.float32 else 0
        wanted, texts = hooks.runs(self, rungs[at : at + 2], words)
        # Among rows of another kind they must come out the same: the donor's prompt, patched back.
        back = [CrossPatch(edit.donor, target, 0)] if isinstance(edit, CrossPatch) else []
        again, said = self._in_batches([rungs[at + 1], *back, rungs[at]], words, forward.run)
        pairs = [
            (got[at], wanted[0], wanted[1]),
            (got[at + 1], wanted[1], wanted[0]),
            (again[-1], wanted[0], wanted[1]),
            (again[0], wanted[1], wanted[0]),
        ]
        pairs += [(x, target.logits, edit.donor.logits) for x in again[1:-1]]
        # What becomes of the stream at the top, too, must be what the model makes of it.
        top = self.head(target.resid[self.n_blocks, -1:])[0]
        pairs.append((top, target.logits, farthest(target.logits, list(wanted))))
        held = [self.agreement(*three) for three in pairs]
        if [said[-1], said[0]] != texts:
            held.append(replace(held[0], same_top=False, ok=False))
        return held

    def trial_in_float32(self, edit: Edit) -> list[Agreement]:
        """As :meth:`trial`, in float32; empty where the model cannot be run in it here."""
        return trial_in_float32(self.model, lambda: self._trial_again(edit))

    def _trial_again(self, edit: Edit) -> list[Agreement]:
        return self.trial(self._recorded_again(edit))

    def _telling(self, edit: Edit) -> Edit:
        """An edit like this one, whose target and donor are told apart by their logits."""
        if not isinstance(edit, CrossPatch):
            return edit
        wanted, away = edit.target.logits, edit.donor.logits.to(edit.target.logits.device)
        if (wanted - away).abs().max() > ulps(wanted, self.model.dtype):
            return edit
        return replace(edit, donor=self._stranger(edit.target))

    def _stranger(self, target: Recording) -> Recording:
        """The same prompt with the negative of its picture, or with other tokens for the name."""
        return self._like(target, _other(target.inputs, target.span))

    def _recorded_again(self, edit: Edit) -> Edit:
        """The same edit of recordings in the model's present dtype."""
        names = ("target", "donor") if isinstance(edit, CrossPatch) else ("target",)
        new = {name: self._like(r, r.inputs) for name in names for r in [getattr(edit, name)]}
        return replace(edit, **new)

    def _like(self, like: Recording, inputs: Mapping[str, Any]) -> Recording:
        """A recording of inputs laid out as those of another, in the model's present dtype."""
        inputs = _in(self.model.dtype, inputs)
        from_start = like.first == like.span[0]
        with self.seeing(inputs):
            begun = prefix.kept(self.model, like.ids[: like.base]) if like.base else ()
            words = like.total - like.n
            return record(
                self.model, self.blocks, inputs, like.roles, like.span, words, from_start, begun
            )


def _in(dtype: torch.dtype, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs in another precision."""
    return {
        name: value.to(dtype) if torch.is_floating_point(value) else value
        for name, value in inputs.items()
    }


def _other(inputs: Mapping[str, Any], span: tuple[int, int]) -> dict[str, Any]:
    """The same prompt with the negative of its picture, or with other tokens for the name."""
    inputs, (start, stop) = dict(inputs), span
    shown = [name for name in inputs if "pixel_values" in name]
    for name in shown:
        inputs[name] = -inputs[name]
    if not shown:
        ids = inputs["input_ids"][0].tolist()
        others = ([*ids[stop:], *ids[:start]] * (stop - start))[: stop - start]
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][0, start:stop] = inputs["input_ids"].new_tensor(others)
    return inputs


def _together(edit: Edit) -> Hashable:
    """What edits of one batch have in common."""
    return (*layout(edit), edit.until if isinstance(edit, Freeze) else None)
