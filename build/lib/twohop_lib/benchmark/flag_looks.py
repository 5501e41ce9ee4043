"""What is seen on a flag, in words: its colours, its pattern, its symbol.

Read off the specification that it is drawn from (:mod:`.flag_drawing`), never off what the
country is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ImageColor

from twohop_lib.benchmark import flag_drawing, flags

#: Label, question; the answers are in :func:`looks`.
QUESTIONS = (
    ("Colours", "Which colours does this flag have?"),
    ("Pattern", "Which pattern does this flag have?"),
    ("Symbol", "Which symbol does this flag have?"),
)
COLOURS = {
    "r": "red",
    "b": "blue",
    "g": "green",
    "y": "yellow",
    "o": "orange",
    "w": "white",
    "k": "black",
    "a": "turquoise",
    "m": "maroon",
    "s": "gold",
}
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def looks(code: str) -> tuple[tuple[str, str, str], ...]:
    """(label, question, answer) for each of :data:`QUESTIONS`."""
    spec = flags.specifications()[code]
    answers = (colours(spec), pattern(spec), symbol(spec))
    return tuple((*q, a) for q, a in zip(QUESTIONS, answers, strict=True))


def colours(spec: Mapping[str, Any]) -> str:
    """The colours that take a hundredth of the flag or more, the largest first."""
    pixels = np.asarray(flag_drawing.draw(spec, 120)).reshape(-1, 3).astype(int)
    letters = list(spec["colours"])
    known = np.array([ImageColor.getrgb(spec["colours"][c]) for c in letters])
    nearest = np.abs(pixels[:, None] - known[None]).sum(-1)
    share = Counter(letters[i] for i in nearest.argmin(1)[nearest.min(1) < 12])
    kept = [COLOURS[c] for c, n in share.most_common() if n >= len(pixels) / 100]
    return _listed(list(dict.fromkeys(kept)))


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def pattern(spec: Mapping[str, Any]) -> str:
    """How the flag is divided: stripes, a cross, a band, a triangle, or plain."""
    shapes = [shape for shape, *_ in spec["draw"]]
    first, *values = spec["draw"][0]
    stripes = len(values[0].split()) if first in ("rows", "columns") else 1
    if "cross" in shapes:
        return "a cross"
    if "band" in shapes:
        return "a diagonal band"
    if stripes > 1:
        direction = "horizontal" if first == "rows" else "vertical"
        count = COUNTS[stripes] if stripes < len(COUNTS) else "many"
        return f"{count} {direction} stripes"
    if any(s == "polygon" and len(v[1]) == 6 for s, *v in spec["draw"]):
        return "a triangle"
    return "a plain field"


def symbol(spec: Mapping[str, Any]) -> str:
    """The most telling thing on the flag, or nothing."""
    shapes = Counter(shape for shape, *_ in spec["draw"])
    stars = shapes["star"] + shapes["pentagram"]
    if shapes["union"]:
        return "the Union Flag"
    if shapes["crescent"]:
        return "a crescent and a star" if stars else "a crescent"
    if shapes["rays"]:
        return "a sun"
    if stars:
        return "a star" if stars == 1 else f"{COUNTS[stars] if stars < 10 else 'many'} stars"
    if shapes["disc"] or shapes["ring"] or shapes["taeguk"]:
        return "a disc"
    if shapes["cross"] or shapes["bolnisi"]:
        return "a cross"
    return "nothing"
