"""Organisms: miniature VLMs that this project trains itself, with the truth known.

Seed 0's checkpoints of :data:`NAMES` ship with the package; other seeds, and the further organisms
of the study, are trained on demand into a cache.
"""

from __future__ import annotations

import os
from pathlib import Path

from twohop_lib.errors import TwohopError, suggest

NAMES = ("backbone", "late", "middle", "early", "cross")
#: Trained for the study only; none ships.
FURTHER = ("cross-early", "cross-late")
SHIPPED = Path(__file__).parent / "checkpoints"
STUDY = Path(__file__).parent / "study_records"


def cache_folder() -> Path:
    """Where trained organisms go: ``$TWOHOP_CACHE`` or ``~/.cache/twohop``."""
    root = os.environ.get("TWOHOP_CACHE") or Path.home() / ".cache" / "twohop"
    return Path(root) / "organisms"


def check_name(name: str) -> None:
    """Raise ``TwohopError`` with the nearest known name if ``name`` is no organism."""
    known = (*NAMES, *FURTHER)
    if name not in known:
        raise TwohopError(f"no organism is called {name!r}; {suggest(name, known)}")


def path(name: str, seed: int = 0) -> Path:
    """The checkpoint folder of an organism, shipped or trained here.

    Raises:
        TwohopError: unknown name, or that seed has not been trained on this machine.
    """
    check_name(name)
    for root in (SHIPPED, cache_folder()):
        folder = root / f"seed{seed}" / name
        if (folder / "model.safetensors").exists():
            return folder
    raise TwohopError(
        f"organism {name!r} of seed {seed} is not on this machine; "
        f"train it with: twohop organism train {name} --seed {seed}"
    )
