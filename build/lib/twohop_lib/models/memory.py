"""Work in batches that shrink when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from twohop_lib.errors import TwohopError

Item, Result = TypeVar("Item"), TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or here (which torch says in words)."""
    told = ("can't allocate memory", "not enough memory")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in told)


def in_batches(
    run: Callable[[list[Item]], Sequence[Result]],
    items: Sequence[Item],
    size: int,
    forget: Callable[[], None] = lambda: None,
) -> tuple[list[Result], int]:
    """Run items ``size`` at a time, and half as many from where memory runs out.

    ``run(part)`` gives one result an item. ``forget`` is called when memory has run out, to let
    go of what is kept for speed alone. Returns the results, and the size that memory lasted for.

    Raises TwohopError if one item is too much.
    """
    results: list[Result] = []
    while len(results) < len(items):
        part = list(items[len(results) : len(results) + size])
        done = _if_memory_lasts(run, part)
        if done is not None:
            results += done
            continue
        if len(part) == 1:
            raise TwohopError(
                "Memory runs out on a single prompt; load the model with a smaller dtype, "
                "quantised, or with device='auto'."
            )
        size = len(part) // 2
        forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results, size


def _if_memory_lasts(
    run: Callable[[list[Item]], Sequence[Result]], part: list[Item]
) -> Sequence[Result] | None:
    try:
        return run(part)
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Only out here is the failed run's memory free: the exception held on to its tensors.
    return None
