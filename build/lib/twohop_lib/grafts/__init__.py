"""Grafts: a published language model, frozen, with a small vision tower and projector grown here.

What the model knows of the world it learnt from text; what it sees, it sees through a few image
tokens trained by captioning. A recipe (:mod:`.recipes`) says how; the adapters of :data:`SHIPPED`
come with the package and are joined to the language model in the user's cache.
"""

from __future__ import annotations

import os
from pathlib import Path

from twohop_lib.errors import TwohopError, suggest
from twohop_lib.grafts.recipes import RECIPES

NAMES = ("caption", "described", "facts", "aligned", "names", "tuned")
ADAPTERS = Path(__file__).parent / "adapters"
STUDY = Path(__file__).parent / "study_records"
#: What the chapters' pages measured, kept for pages that cannot.
RECORDED = STUDY / "pages"
#: Beside a graft's checkpoint: its language model as a text model, with the same chat template.
LANGUAGE = "language"


def cache_folder() -> Path:
    """Where language models and grafts go: ``$TWOHOP_CACHE`` or ``~/.cache/twohop``."""
    return Path(os.environ.get("TWOHOP_CACHE") or Path.home() / ".cache" / "twohop")


def check_name(name: str) -> None:
    """Raise ``TwohopError`` with the nearest known name if ``name`` is no recipe."""
    if name not in RECIPES:
        raise TwohopError(f"no graft is called {name!r}; {suggest(name, tuple(RECIPES))}")
