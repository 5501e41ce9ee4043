"""Reading residual-stream states as words of the model's own vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.recorder import receiving
from twohop_lib.interventions.splice import Engine
from twohop_lib.runs.conditions import prompt_of


def nearest_tokens(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The vocabulary entry whose embedding is most similar (cosine) to each state.

    Args:
        states: ``[..., d_model]``, for instance ``resid[0]`` at the image positions.
        table: the input embeddings, ``[vocab, d_model]``.

    Returns:
        Token ids ``[...]``.
    """
    unit = torch.nn.functional.normalize
    return (unit(states, dim=-1) @ unit(table, dim=-1).T).argmax(-1)


def picture_as_words(engine: Engine, benchmark: Benchmark, question: Question) -> torch.Tensor:
    """:func:`nearest_tokens` of what enters block 0 for a picture, under the identify prompt.

    Returns token ids ``[image_token]``.
    """
    picture = benchmark.image(question).convert("RGB")
    shown = engine.record(prompt_of("identify", question), picture, from_start=True)
    image = shown.resid[0, torch.tensor(receiving(engine, shown)) - shown.first]
    return nearest_tokens(image, engine.model.get_input_embeddings().weight)


def pieces_found(nearest: torch.Tensor, pieces: Sequence[int]) -> float:
    """The share of a name's pieces that is found at the end of its picture's tokens.

    ``nearest`` ``[image_token]`` are token ids (:func:`nearest_tokens`), ``pieces`` those of the
    name; the last piece is compared with the last image token, and so on.
    """
    return (nearest[-len(pieces) :].cpu() == torch.tensor(pieces)).float().mean().item()


def names_spelled(
    engines: Mapping[str, Engine], benchmark: Benchmark, questions: Sequence[Question]
) -> pd.DataFrame:
    """How much of each entity's name the image tokens of its picture spell, in several models.

    One question an entity. Returns one row a model and entity: ``model, entity_id, found``, a share
    of the name's pieces (:func:`pieces_found`).
    """
    rows = []
    for model, engine in engines.items():
        tokenizer = engine.owner.tokenizer
        for question in questions:
            words = picture_as_words(engine, benchmark, question)
            pieces = tokenizer(question.entity, add_special_tokens=False).input_ids
            rows.append((model, question.entity_id, pieces_found(words, pieces)))
    return pd.DataFrame(rows, columns=["model", "entity_id", "found"])
