"""Asking a model: batched greedy answers and log-probabilities."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from twohop_lib.errors import TwohopError
from twohop_lib.models.inputs import (
    GREEDY,
    continued,
    decoded,
    encode,
    front,
    shown_pictures,
    stop_ids,
)
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.memory import in_batches
from twohop_lib.models.prompts import Prompt, render

BATCH_SIZE = 64
MAX_NEW_TOKENS = 32

#: Makes a progress bar: called with ``total=`` (prompts), returns what has ``update`` and
#: ``close``. ``tqdm`` is one.
Progress = Callable[..., Any]

_Result = TypeVar("_Result")


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
    texts = [render(front(model), prompt) for prompt in prompts]
    shown = shown_pictures(prompts, images)

    def run(rows: list[int]) -> list[str]:
        inputs = encode(model, [texts[i] for i in rows], [shown[i] for i in rows], "left")
        out = model.model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=model.tokenizer.pad_token_id,
        )
        new = out[:, inputs["input_ids"].shape[1] :].tolist()
        stops = stop_ids(model)
        return [
            decoded(model.tokenizer, row, stops, texts[i]) for i, row in zip(rows, new, strict=True)
        ]

    return _in_batches(model, texts, shown, batch_size, run, progress)


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

    def run(rows: list[int]) -> list[list[tuple[int, float]]]:
        # Padding on the right: every position is what it would be for the row alone.
        inputs = encode(model, [texts[i] for i in rows], [shown[i] for i in rows], "right")
        ids, ends = inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()
        first = min(end - lengths[i] for i, end in zip(rows, ends, strict=True)) - 1
        keep = ids.shape[1] - first
        if "logits_to_keep" in inspect.signature(model.model.forward).parameters:
            inputs["logits_to_keep"] = keep
        logits = model.model(**inputs, use_cache=False).logits[:, -keep:]
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
    run: Callable[[list[int]], list[_Result]],
    progress: Progress | None,
) -> list[_Result]:
    """Run rows in batches of similar length, halving the batch when memory runs out.

    Rows with and without picture are kept apart, and the longest come first, so that memory
    runs out early if it does.
    """
    if batch_size < 1:
        raise TwohopError(f"A batch needs at least one prompt, not {batch_size}.")
    results: dict[int, _Result] = {}
    bar = progress(total=len(texts)) if progress else None
    for with_picture in (True, False):
        group = [i for i in range(len(texts)) if (images[i] is not None) == with_picture]
        if not group:
            continue
        encoded = model.tokenizer([texts[i] for i in group], add_special_tokens=False)
        length = dict(zip(group, map(len, encoded["input_ids"]), strict=True))
        group.sort(key=lambda i: (-length[i], i))

        @torch.inference_mode()
        def told(rows: list[int]) -> list[_Result]:
            done = run(rows)
            if bar is not None:
                bar.update(len(rows))
            return done

        done, batch_size = in_batches(told, group, batch_size)
        results.update(zip(group, done, strict=True))
    if bar is not None:
        bar.close()
    return [results[i] for i in range(len(texts))]
