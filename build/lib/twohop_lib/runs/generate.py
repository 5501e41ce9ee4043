"""Asking a model: batched greedy answers and log-probabilities.

Prompts that begin alike (solved exemplars, a long system text) share what they begin with, where
that is exact (:mod:`twohop_lib.models.prefix`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.models import prefix
from twohop_lib.models.agreement import Agreement, agreement, farthest, holds
from twohop_lib.models.blocks import as_unsupported
from twohop_lib.models.inputs import (
    GREEDY,
    continued,
    decoded,
    encode,
    shown_pictures,
    special_tokens,
    stop_ids,
)
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.memory import in_batches
from twohop_lib.models.prompts import Prompt, render

BATCH_SIZE = 64
MAX_NEW_TOKENS = 32
#: Tokens of the answers that tell whether sharing what prompts begin with is exact.
PROBED = 4

#: Makes a progress bar: called with ``total=`` (prompts), returns what has ``update`` and
#: ``close``. ``tqdm`` is one.
Progress = Callable[..., Any]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Group:
    """Rows, all with a picture or none, whose texts have ``shared`` tokens at the start in common.

    0: they are not known to have any.
    """

    rows: list[int]
    shared: int


def answer(
    model: Vlm | Llm,
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image | None] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """Return the model's greedy answer to each prompt, in order: new text only, stripped.

    ``images[i]`` (RGB) is the picture of ``prompts[i]``, ignored where the prompt shows none and
    replaced by a grey one of the same size where it shows a blank. Neither the prompt nor its
    prefill is part of an answer, which ends at the model's own end of turn or after
    ``max_new_tokens``.

    Raises TwohopError if a picture is missing, or memory does not suffice for a single prompt.
    """
    texts = [render(model.front, prompt) for prompt in prompts]
    shown = shown_pictures(prompts, images)
    # What is asked twice, of the same picture, is answered once.
    keys = [(text, _digest(picture)) for text, picture in zip(texts, shown, strict=True)]
    once: dict[tuple[str, str], int] = {}
    for i, key in enumerate(keys):
        once.setdefault(key, i)
    texts, shown = [texts[i] for i in once.values()], [shown[i] for i in once.values()]
    stops = stop_ids(model)

    def encoded(rows: Sequence[int]) -> dict[str, Any]:
        return encode(model, [texts[i] for i in rows], [shown[i] for i in rows], "left")

    def run(rows: list[int], group: Group) -> list[str]:
        inputs = encoded(rows)
        first = prefix.beginning(model.model, inputs, group.shared)
        # Two rows tell whether that is exact; one of them is padded, if any is.
        others = [i for i in (*reversed(rows), *reversed(group.rows)) if i != rows[0]]
        begun: prefix.Kept = ()
        if first and _is_exact(model, inputs, first, max_new_tokens, encoded, [rows[0], others[0]]):
            begun = prefix.kept(model.model, first)
        new, _ = _generated(model, inputs, max_new_tokens, begun)
        return [
            decoded(model.tokenizer, row, stops, texts[i])
            for i, row in zip(rows, new.tolist(), strict=True)
        ]

    said = _in_batches(model, texts, shown, batch_size, run, progress)
    found = dict(zip(once, said, strict=True))
    return [found[key] for key in keys]


def _digest(picture: Image.Image | None) -> str:
    if picture is None:
        return ""
    return f"{picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}"


def _generated(
    model: Vlm | Llm,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    begun: prefix.Kept = (),
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """New tokens ``[batch, new]`` of greedy search, padded behind their end, and logits asked for.

    Rows that begin alike are run behind what was kept of that (``begun``).
    """
    out = model.model.generate(
        **(prefix.behind(model.model, inputs, begun) if begun else inputs),
        **GREEDY,
        max_new_tokens=max_new_tokens,
        pad_token_id=model.tokenizer.pad_token_id,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], getattr(out, "logits", None) or ()


def _is_exact(
    model: Vlm | Llm,
    inputs: Mapping[str, Any],
    first: Sequence[int],
    max_new_tokens: int,
    encoded: Callable[[Sequence[int]], dict[str, Any]],
    rows: Sequence[int],
) -> bool:
    """Whether rows that begin alike say the same behind what was kept of that; tried on two."""
    if not prefix.open_to(model.model, inputs["input_ids"].shape[1] + max_new_tokens):
        return False
    known = prefix.verdicts(model.model)
    layout = prefix.layout(model.model, inputs, max_new_tokens)
    if layout not in known:
        known[layout] = holds(model.model, lambda: _trial(model, encoded(rows), first))
    return known[layout]


@torch.inference_mode()
def _trial(model: Vlm | Llm, inputs: dict[str, Any], first: Sequence[int]) -> list[Agreement]:
    """Hold two rows' logits behind a kept beginning against whole runs', token by token.

    Each must be told from the other row's.
    """
    with as_unsupported(f"Rows cannot share keys and values in this {type(model.model).__name__}"):
        begun = prefix.kept(model.model, first)
        (own, wanted), (new, got) = (
            _generated(model, inputs, PROBED, kept, output_logits=True) for kept in ((), begun)
        )
    stops, held = stop_ids(model), []
    for row in range(2):
        for step, logits in enumerate(wanted[: len(got)]):
            away = farthest(logits[row], [one[1 - row] for one in wanted])
            held.append(agreement(got[step][row], logits[row], away, model.model.dtype))
            token = own[row, step].item()
            if token in stops or token != new[row, step].item():
                break
    return held


def score(
    model: Vlm | Llm,
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image | None] | None = None,
    continuations: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[float]:
    """Return the log-probability (nats) of each continuation as the answer to its prompt.

    ``continuations[i]`` follows ``prompts[i]`` (and its prefill) with the spacing of the model's
    own template; the sum runs over its tokens and leaves out the end of turn. Pictures as in
    :func:`answer`.

    Raises TwohopError if the lengths differ, a continuation is empty, or the model reads its
    prompt in both directions.
    """
    scored = score_tokens(model, prompts, images, continuations, batch_size, progress)
    return [sum(value for _, value in tokens) for tokens in scored]


def score_tokens(
    model: Vlm | Llm,
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image | None] | None = None,
    continuations: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[list[tuple[int, float]]]:
    """As :func:`score`, token by token: ids, and their log-probabilities (nats)."""
    if _reads_ahead(model):
        raise TwohopError(
            f"{model.name} reads its prompt in both directions, so the probability of a given "
            "continuation cannot be read off one run; use generated answers instead."
        )
    if len(continuations) != len(prompts):
        raise TwohopError(
            f"{len(prompts)} prompts need as many continuations, not {len(continuations)}."
        )
    shown = shown_pictures(prompts, images)
    texts, lengths = [], []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        text, length = continued(model, prompt, continuation)
        texts.append(text)
        lengths.append(length)

    def run(rows: list[int], _: Group) -> list[list[tuple[int, float]]]:
        # Padding on the right: every position is what it would be for the row alone.
        inputs = encode(model, [texts[i] for i in rows], [shown[i] for i in rows], "right")
        ids, ends = inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()
        first = min(end - lengths[i] for i, end in zip(rows, ends, strict=True)) - 1
        keep = ids.shape[1] - first
        run = prefix.keeping(model.model, inputs, keep)
        logits = model.model(**run, use_cache=False).logits[:, -keep:]
        scored = []
        for row, (i, end) in enumerate(zip(rows, ends, strict=True)):
            start = end - lengths[i]
            # Logits at a position are about the next one, hence the shift by one.
            steps = logits[row, start - 1 - first : end - 1 - first].float().log_softmax(-1)
            wanted = ids[row, start:end].to(steps.device)
            values = steps.gather(1, wanted[:, None])[:, 0]
            scored.append(list(zip(wanted.tolist(), values.tolist(), strict=True)))
        return scored

    return _in_batches(model, texts, shown, batch_size, run, progress)


@torch.inference_mode()
def _reads_ahead(model: Vlm | Llm) -> bool:
    """Whether what follows a token changes the logits at it (prefix language models)."""
    inputs = encode(model, ["Which one is it? This or that?"], [None], "left")
    length = inputs["input_ids"].shape[1]
    part = {name: value[:, : length // 2] for name, value in inputs.items()}
    whole = model.model(**inputs, use_cache=False).logits[0, length // 2 - 1].float()
    alone = model.model(**part, use_cache=False).logits[0, -1].float()
    return bool((whole - alone).abs().max() > 0.05 * max(1.0, whole.abs().max().item()))


def _in_batches(
    model: Vlm | Llm,
    texts: list[str],
    images: list[Image.Image | None],
    batch_size: int,
    run: Callable[[list[int], Group], list[_Result]],
    progress: Progress | None,
) -> list[_Result]:
    """Run rows in batches of similar length, halving the batch when memory runs out.

    Rows with and without picture, and such as begin otherwise, are kept apart, and the longest
    come first, so that memory runs out early if it does.
    """
    if batch_size < 1:
        raise TwohopError(f"A batch needs at least one prompt, not {batch_size}.")
    results: dict[int, _Result] = {}
    bar = progress(total=len(texts)) if progress else None
    ids = model.tokenizer(texts, **special_tokens(model, texts[0]))["input_ids"] if texts else []
    for group in _groups(model, ids, [image is not None for image in images]):
        rows = sorted(group.rows, key=lambda i: (-len(ids[i]), i))

        @torch.inference_mode()
        def told(part: list[int], group: Group = group) -> list[_Result]:
            done = run(part, group)
            if bar is not None:
                bar.update(len(part))
            return done

        done, batch_size = in_batches(told, rows, batch_size)
        results.update(zip(rows, done, strict=True))
    if bar is not None:
        bar.close()
    return [results[i] for i in range(len(texts))]


def _groups(
    model: Vlm | Llm, ids: Sequence[Sequence[int]], pictured: Sequence[bool]
) -> list[Group]:
    """Rows that begin alike together, and all others; those with a picture first."""
    groups, image = [], prefix.placeholder(model.model)
    for with_picture in (True, False):
        members = [i for i in range(len(ids)) if pictured[i] == with_picture]
        # What follows the picture's mark is nothing that rows can share.
        starts = [ids[i][: ids[i].index(image) + 1] if image in ids[i] else ids[i] for i in members]
        rest: list[int] = []
        for rows, shared in prefix.alike(starts):
            if shared:
                groups.append(Group([members[row] for row in rows], shared))
            else:
                rest += [members[row] for row in rows]
        if rest:
            groups.append(Group(rest, 0))
    return groups
