"""Scoring every answer of a relation behind every prompt: what likelihood ranking compares.

A prompt, with its picture, is run once; its keys and values are read by all candidates, which are
rows of a batch. Where that does not give what whole runs give (:func:`.generate.score`), as with
cross-attention or linear attention, whole runs are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.models import prefix
from twohop_lib.models.blocks import UnsupportedSite, as_unsupported
from twohop_lib.models.inputs import continued, encode, shown_pictures, special_tokens
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.memory import in_batches
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.runs import evaluate, generate, store
from twohop_lib.runs.conditions import CONDITIONS as CONDITION
from twohop_lib.runs.conditions import accepted, prompt_of
from twohop_lib.runs.generate import BATCH_SIZE, Progress
from twohop_lib.scoring.normal_form import normal

#: Conditions in which an answer follows the prompt at once, and is free.
CONDITIONS = tuple(c for c in evaluate.CONDITIONS if CONDITION[c].judged == "plain")
#: Questions whose candidates are scored, and stored, at once.
CHUNK = 32
#: Candidates that tell whether reading a prompt's keys and values is exact.
PROBED = 4
#: The largest difference allowed there, in nats a token, by dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}

#: The tokens of a candidate: ids, and their log-probabilities (nats).
Scored = list[tuple[int, float]]


def score_candidates(
    model: Vlm | Llm,
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image | None] | None = None,
    candidates: Sequence[Sequence[str]] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[list[Scored]]:
    """Score ``candidates[i]``, all of them, as answers to ``prompts[i]``.

    Each is scored as :func:`.generate.score_tokens` does, whose errors are raised here too.
    """
    if len(candidates) != len(prompts):
        raise TwohopError(
            f"{len(prompts)} prompts need as many lists of candidates, not {len(candidates)}."
        )
    shown = shown_pictures(prompts, images)
    bar = progress(total=len(prompts)) if progress else None
    ways: dict[tuple[bool, bool], Callable[..., list[Scored]]] = {}
    scored = []
    for prompt, picture, texts in zip(prompts, shown, candidates, strict=True):
        layout = (picture is not None, bool(prompt.prefill))
        if layout not in ways:
            exact = _is_exact(model, prompt, picture, texts[:PROBED], batch_size)
            ways[layout] = _behind if exact else _whole_runs
        scored.append(ways[layout](model, prompt, picture, texts, batch_size))
        if bar is not None:
            bar.update(1)
    if bar is not None:
        bar.close()
    return scored


def _whole_runs(
    model: Vlm | Llm,
    prompt: Prompt,
    picture: Image.Image | None,
    texts: Sequence[str],
    batch_size: int,
) -> list[Scored]:
    n = len(texts)
    return generate.score_tokens(model, [prompt] * n, [picture] * n, texts, batch_size)


def _is_exact(
    model: Vlm | Llm,
    prompt: Prompt,
    picture: Image.Image | None,
    texts: Sequence[str],
    batch_size: int,
) -> bool:
    """Whether reading the prompt's keys and values gives what whole runs give."""
    wanted = _whole_runs(model, prompt, picture, texts, batch_size)
    try:
        got = _behind(model, prompt, picture, texts, batch_size)
    except UnsupportedSite:
        return False
    same_ids = [[i for i, _ in a] == [i for i, _ in b] for a, b in zip(got, wanted, strict=True)]
    allowed = TOLERANCE.get(model.model.dtype, TOLERANCE[torch.bfloat16])
    return all(same_ids) and all(
        abs(a - b) <= allowed
        for one, other in zip(got, wanted, strict=True)
        for (_, a), (_, b) in zip(one, other, strict=True)
    )


class _Shared(DynamicLayer):
    """A prompt's keys and values ``[1, heads, pos, d_head]``: read by every row, added to by none.

    So all rows together need the memory of one prompt, and of one block's own at a time.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows = (len(keys), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(rows), keys], dim=-2),
            torch.cat([self.values.expand(rows), values], dim=-2),
        )


@torch.inference_mode()
def _behind(
    model: Vlm | Llm,
    prompt: Prompt,
    picture: Image.Image | None,
    texts: Sequence[str],
    batch_size: int,
) -> list[Scored]:
    """Score texts behind one run of the prompt."""
    before = render(model.front, prompt)
    ids, lengths, shared = _continuations(model, prompt, before, texts)
    inputs = encode(model, [before], [picture], "right")
    own = model.tokenizer(before, **special_tokens(model, before))["input_ids"]
    # A tokenizer may join the prompt's last tokens to an answer's first: those are run again.
    again = len(own) - shared
    for part in model.model.modules():
        # What Qwen-VL models remember of an earlier picture would shift the words behind this one.
        if hasattr(part, "rope_deltas"):
            part.rope_deltas = None
    n = inputs["input_ids"].shape[1] - again
    out = model.model(**prefix.keeping(model.model, inputs, again + 1), use_cache=True)
    sharing = f"Rows cannot share a prompt's keys and values in this {type(model.model).__name__}"
    with as_unsupported(sharing):
        layers = out.past_key_values.layers
    layers = [(getattr(x, "keys", None), getattr(x, "values", None)) for x in layers]
    if any(keys is not None and keys.ndim != 4 for keys, _ in layers):
        raise UnsupportedSite(f"{sharing} (linear attention).")
    kept = [None if k is None else (k[:, :, :n], v[:, :, :n]) for k, v in layers]
    next_token = out.logits[0, -again - 1].float().log_softmax(-1).cpu()
    tails = [row[shared:] for row in ids]

    def run(rows: list[int]) -> list[Scored]:
        width = max(len(tails[i]) for i in rows) - 1
        later = torch.zeros(len(rows), 0)
        if width:
            # Padding on the right: no position reads what is behind it.
            padded = [(tails[i] + [0] * width)[: width + 1] for i in rows]
            behind = torch.tensor(padded, device=inputs["input_ids"].device)
            # Cross-attention keeps nothing where there is no picture.
            cache = Cache(layers=[_Shared(*own) if own else DynamicLayer() for own in kept])
            with as_unsupported(sharing):
                made = model.model(input_ids=behind[:, :-1], past_key_values=cache, use_cache=True)
            logits = made.logits.float()
            said = logits.gather(-1, behind[:, 1:, None].to(logits.device))[..., 0]
            later = (said - logits.logsumexp(-1)).cpu()
        found = []
        for row, i in enumerate(rows):
            tail = tails[i]
            values = [float(next_token[tail[0]]), *later[row, : len(tail) - 1].tolist()]
            found.append(list(zip(tail, values, strict=True))[-lengths[i] :])
        return found

    # Like lengths together, so that nothing is run on padding; those of one token come at no cost.
    of_length: dict[int, list[int]] = {}
    for i in sorted(range(len(texts)), key=lambda i: -len(tails[i])):
        of_length.setdefault(len(tails[i]), []).append(i)
    results: dict[int, Scored] = {}
    for rows in of_length.values():
        done, batch_size = in_batches(run, rows, batch_size)
        results |= dict(zip(rows, done, strict=True))
    return [results[i] for i in range(len(texts))]


def _continuations(
    model: Vlm | Llm, prompt: Prompt, before: str, texts: Sequence[str]
) -> tuple[list[list[int]], list[int], int]:
    """Token ids of prompt and text, how many are each text's own, and how many all have in common
    with the prompt (a picture counted as in the text alone)."""
    whole, _ = continued(model, prompt, texts[0])
    stem = whole.removesuffix(texts[0].strip())
    options = special_tokens(model, before)
    ids = model.tokenizer([stem + text.strip() for text in texts], **options)["input_ids"]
    own = model.tokenizer(before, **options)["input_ids"]
    common = []
    for row in ids:
        pairs = zip(own, row, strict=False)
        common.append(
            next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(own), len(row)))
        )
    return ids, [len(row) - k for row, k in zip(ids, common, strict=True)], min(common)


# --- all answers of a relation ----------------------------------------------------------------


def rank(
    vlm: Vlm | None,
    llm: Llm | Vlm | None,
    benchmark: Benchmark,
    conditions: Sequence[str] | None = None,
    offered: Mapping[str, Sequence[str]] | None = None,
    model_name: str | None = None,
    seed: int | None = None,
    batch_size: int = BATCH_SIZE,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Score every answer of a relation as the answer to every question about it.

    Arguments as in :func:`.evaluate.evaluate`; ``conditions`` None means all of
    :data:`CONDITIONS` that the given models can answer. ``offered`` are the candidates of each
    relation; None means :func:`answers_of` the benchmark (if that is a selection, give those of
    the whole).

    One row per question, condition and candidate: ``model, seed, entity_id, relation, question_id,
    wording, condition``, and :data:`twohop_lib.scoring.ranking.SCORES`, from which
    :func:`twohop_lib.scoring.ranking.likeliest` reads the verdicts.

    Raises TwohopError for a condition whose answer is not free, and as ``evaluate`` does.
    """
    asked = evaluate.conditions_asked(conditions, vlm, llm)
    bound = [condition for condition in asked if condition not in CONDITIONS]
    if conditions is not None and bound:
        raise TwohopError(
            f"Answers cannot be ranked in condition {bound[0]!r}, where others are offered or the "
            "naming comes first; leave it out."
        )
    candidates = answers_of(benchmark) if offered is None else offered
    questions = list(benchmark.questions)
    once = list({q.entity_id: q for q in reversed(questions)}.values())[::-1]
    labels = {
        "model": model_name or (vlm or llm).name,  # type: ignore[union-attr]
        "seed": benchmark.seed if seed is None else seed,
    }
    parts = []
    for condition in (c for c in asked if c in CONDITIONS):
        how = CONDITION[condition]
        model: Any = llm if how.answered_by == "backbone" else vlm
        items = once if how.names else questions
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            built = [prompt_of(condition, q, model.tokenizer) for q in chunk]
            texts = [list(candidates["" if how.names else q.relation]) for q in chunk]
            compute = partial(
                _ranked, model, condition, chunk, built, texts, benchmark, labels, batch_size
            )
            key: dict[str, Any] = {}
            if folder is not None:
                key = {
                    **labels,
                    **store.asked_key(model, benchmark, condition, chunk, built),
                    "candidates": store.digest({"texts": texts}),
                    "batch_size": batch_size,
                }
            parts.append(store.cached(folder, key, compute))
    return pd.concat(parts, ignore_index=True)


def answers_of(benchmark: Benchmark) -> dict[str, list[str]]:
    """All answers of each relation, one spelling each; those of "" are the entities' names."""
    found: dict[str, dict[str, str]] = {}
    for q in benchmark.questions:
        for relation, names in ((q.relation, q.answers), ("", (q.entity, *q.aliases))):
            for name in names:
                found.setdefault(relation, {}).setdefault(_spelling(name), name)
    return {relation: list(names.values()) for relation, names in found.items()}


def _spelling(name: str) -> str:
    return normal(name).lower()


def _ranked(
    model: Vlm | Llm,
    condition: str,
    questions: Sequence[Question],
    built: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    benchmark: Benchmark,
    labels: Mapping[str, Any],
    batch_size: int,
) -> pd.DataFrame:
    images = [
        benchmark.image(q) if p.image else None for p, q in zip(built, questions, strict=True)
    ]
    scored = score_candidates(model, built, images, texts, batch_size)
    names = CONDITION[condition].names
    rows = []
    for q, candidates, values in zip(questions, texts, scored, strict=True):
        right = set(map(_spelling, accepted(condition, q)))
        item = {
            **labels,
            "entity_id": q.entity_id,
            "relation": "" if names else q.relation,
            "question_id": "" if names else q.question_id,
            "wording": q.wording,
            "condition": condition,
        }
        rows += [
            {
                **item,
                "candidate": candidate,
                "accepted": _spelling(candidate) in right,
                "logprob": sum(value for _, value in tokens),
                "n_tokens": len(tokens),
                "first_logprob": tokens[0][1],
                "first_token": tokens[0][0],
            }
            for candidate, tokens in zip(candidates, values, strict=True)
        ]
    return pd.DataFrame(rows)
