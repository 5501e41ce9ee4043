"""A training stage: a counted loop of steps that can be cut off and taken up again."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from twohop_lib.errors import TwohopError

SAVE_EVERY = 100


def run_stage(
    title: str,
    steps: int,
    step: Callable[[int], dict[str, float]],
    state: Mapping[str, Any],
    folder: Path,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Run ``step(0) … step(steps − 1)``, saving ``state`` every 100 steps.

    ``state`` holds modules and optimisers (anything with ``state_dict``). ``step`` must draw its
    randomness from the step number alone, so that a stage taken up again ends as if it had never
    been cut off. A finished stage is loaded and not run again.

    Returns:
        One row of figures per 10 steps (``step``, ``stage`` and what ``step`` returned).
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{title.replace(' ', '-')}.pt"
    with FileLock(file.with_suffix(".lock")):  # Models trained side by side share stages.
        return _run(title, steps, step, state, file, progress)


def _run(
    title: str,
    steps: int,
    step: Callable[[int], dict[str, float]],
    state: Mapping[str, Any],
    file: Path,
    progress: bool,
) -> list[dict[str, float]]:
    done, rows = 0, []
    if file.exists():
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            for key, part in state.items():
                part.load_state_dict(saved["state"][key])
            done, rows = saved["done"], saved["rows"]
        except (RuntimeError, OSError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise TwohopError(
                f"{file} is damaged or of another version; delete it to run the stage afresh."
            ) from error
    bar = tqdm(
        range(done, steps),
        initial=done,
        total=steps,
        desc=title,
        disable=not progress,
        mininterval=5,
    )
    for i in bar:
        figures = step(i)
        if i % 10 == 0 or i == steps - 1:
            rows.append({"stage": title.rsplit("-", 1)[0], "step": i, **figures})
            bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
        if (i + 1) % SAVE_EVERY == 0 or i == steps - 1:
            saved = {k: part.state_dict() for k, part in state.items()}
            partial = file.with_suffix(".partial")
            torch.save({"done": i + 1, "rows": rows, "state": saved}, partial)
            os.replace(partial, file)
    return rows


def schedule(i: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then linear decay to zero: the factor on the learning rate at step i."""
    return min(1.0, (i + 1) / warmup) * (1 - i / steps)
