"""The one exception that users see, and how it words a guess."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TwohopError(Exception):
    """A failure told in one sentence that says what to do."""


def suggest(given: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? (known: …)``: the nearest known name, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1)
    listed = ", ".join(known)
    return f"did you mean {near[0]!r}? (known: {listed})" if near else f"known: {listed}"
