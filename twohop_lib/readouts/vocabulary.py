"""Reading residual-stream states as words of the model's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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


def pieces_found(nearest: torch.Tensor, pieces: Sequence[Sequence[int]]) -> list[float]:
    """For each picture, the share of its entity's name pieces found at the end of its tokens.

    Args:
        nearest: ``[picture, image_token]``, from :func:`nearest_tokens`.
        pieces: token ids of each entity's name; the last piece is compared with the last image
            token, the one before it with the last but one, and so on.
    """
    return [
        (row[-len(name) :] == torch.tensor(name)).float().mean().item()
        for row, name in zip(nearest, pieces, strict=True)
    ]
