"""Many short answers from a base model, fast: what prompts share is run once.

The same answers as :func:`twohop_lib.runs.generate.answer` with the graft's chat template (a test
holds them together), and any other prompt around a picture besides. The text before the picture
is the same for all prompts of a relation; its keys and values are kept. Answers end with the line.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twohop_lib.grafts.fewshot import Asked
from twohop_lib.models.loading import Llm, Vlm

MAX_NEW_TOKENS = 12
#: Candidates of the low-precision head that are scored again in full precision.
CANDIDATES = 32


@dataclass
class Reader:
    """A text stack ready to be asked: model, tokenizer, and what ends an answer."""

    owner: Vlm | Llm

    @property
    def tokenizer(self) -> Any:
        return self.owner.tokenizer

    @cached_property
    def stack(self) -> Any:
        """The decoder without its head: ids or embeddings in, states out."""
        model = self.owner.model
        return model.model.language_model if isinstance(self.owner, Vlm) else model.base_model

    @cached_property
    def head(self) -> Tensor:
        return self.owner.model.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        return self.head.device

    @cached_property
    def stops(self) -> Tensor:
        return torch.tensor(line_ends(self.tokenizer), device=self.device)

    def embed(self, ids: Tensor) -> Tensor:
        return self.stack.get_input_embeddings()(ids)


def line_ends(tokenizer: Any) -> list[int]:
    """The ids of the tokens that end an answer: the end of text, and all that start a new line."""
    vocabulary = tokenizer.get_vocab()
    likely = [i for token, i in vocabulary.items() if token[:1] in "\nĊ▁Ġ <" or "\n" in token]
    found = {i for i in likely if tokenizer.decode([i]).lstrip(" ").startswith("\n")}
    return sorted(found | {tokenizer.eos_token_id})


@torch.inference_mode()
def answers(
    reader: Reader,
    asked: Sequence[Asked],
    shown: Sequence[Tensor | str | None],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
) -> list[str]:
    """Greedy answers, one to a prompt, stripped, up to the end of the line.

    ``shown[i]`` stands between ``asked[i].before`` and ``.after``: image tokens
    ``[pos, d_model]`` (all of one length), a name, or None for nothing.
    """
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
    first: dict[tuple[Asked, str | int | None], int] = {}
    keys = [
        (prompt, id(what) if isinstance(what, Tensor) else what)
        for prompt, what in zip(asked, shown, strict=True)
    ]
    for i, key in enumerate(keys):
        if first.setdefault(key, i) == i:  # What was asked before is not asked again.
            groups[asked[i].before, isinstance(shown[i], Tensor)].append(i)
    said: dict[int, str] = {}
    for (before, pictured), members in groups.items():
        kept = prefix(reader, before)
        members.sort(key=lambda i: len(_text(asked[i], shown[i])))
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            images = torch.stack([shown[i] for i in rows]) if pictured else None
            texts = [_text(asked[i], shown[i]) for i in rows]
            new = _generate(reader, kept, images, texts, max_new_tokens)
            said.update(zip(rows, new, strict=True))
    return [said[first[key]] for key in keys]


def _text(prompt: Asked, what: Tensor | str | None) -> str:
    name = f" {what}" if isinstance(what, str) else ""
    return name + prompt.after


@torch.no_grad()
def prefix(reader: Reader, before: str) -> Any:
    """The cache of what all prompts begin with: the beginning of text, and ``before``."""
    ids = reader.tokenizer(before, add_special_tokens=False).input_ids
    begin = reader.tokenizer.bos_token_id
    ids = ([] if begin is None else [begin]) + ids
    if not ids:
        return None
    given = torch.tensor([ids], device=reader.device)
    return reader.stack(input_ids=given, use_cache=True).past_key_values


def repeated(kept: Any, rows: int) -> Any:
    """A copy of a cache of one row for ``rows`` rows."""
    if kept is None:
        return None
    cache = copy.deepcopy(kept)
    cache.batch_repeat_interleave(rows)
    return cache


def _generate(
    reader: Reader, kept: Any, images: Tensor | None, texts: list[str], max_new_tokens: int
) -> list[str]:
    n, past = len(texts), 0 if kept is None else kept.get_seq_length()
    given = reader.tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(reader.device)
    embeds = reader.embed(given.input_ids)
    mask = torch.cat([given.attention_mask.new_ones(n, past), given.attention_mask], 1)
    if images is not None:
        # Padding stands before the picture too, so that rows end together.
        embeds, mask = _with_images(embeds, mask, images, past)
    position = (mask.cumsum(1) - 1)[:, past:].clamp_min(0)
    cache = repeated(kept, n)
    done = torch.zeros(n, dtype=torch.bool, device=reader.device)
    new: list[Tensor] = []
    for _ in range(max_new_tokens):
        out = reader.stack(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        token = best(reader.head, out.last_hidden_state[:, -1])
        done |= torch.isin(token, reader.stops)
        new.append(torch.where(done, reader.tokenizer.eos_token_id, token))
        if done.all():
            break
        embeds = reader.embed(token[:, None])
        mask = torch.cat([mask, mask.new_ones(n, 1)], 1)
        position = position[:, -1:] + 1
    rows = torch.stack(new, 1).tolist()
    eos = reader.tokenizer.eos_token_id
    cut = [row[: row.index(eos)] if eos in row else row for row in rows]
    return [reader.tokenizer.decode(row, skip_special_tokens=True).strip() for row in cut]


def _with_images(embeds: Tensor, mask: Tensor, images: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """Rows of padding, picture, text: embeddings ``[row, pos, d_model]``, mask with ``past``."""
    n, width, tokens = *embeds.shape[:2], images.shape[1]
    text = mask[:, past:]
    made = embeds.new_zeros(n, width + tokens, embeds.shape[2])
    seen = mask.new_zeros(n, width + tokens)
    for row in range(n):
        pad = width - int(text[row].sum())
        made[row, pad : pad + tokens] = images[row].to(embeds.dtype)
        made[row, pad + tokens :] = embeds[row, pad:]
        seen[row, pad:] = 1
    return made, torch.cat([mask[:, :past], seen], 1)


def best(head: Tensor, states: Tensor) -> Tensor:
    """The likeliest token after each state ``[row, d_model]``.

    Logits in bfloat16 tie often, so the best few are scored again in float32.
    """
    states = states.contiguous()
    logits = torch.nn.functional.linear(states, head)
    if head.dtype == torch.float32:
        return logits.argmax(-1)
    few = logits.topk(min(CANDIDATES, logits.shape[-1])).indices
    again = torch.einsum("rd,rcd->rc", states.float(), head[few].float())
    return few.gather(1, again.argmax(-1, keepdim=True))[:, 0]
