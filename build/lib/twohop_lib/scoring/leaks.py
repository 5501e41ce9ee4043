"""Does a text give a name away?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

#: What stands for an apostrophe, or for the letter that is written like one (Nukuʻalofa).
APOSTROPHES = "’‘‛′ʹʻʼʽʾʿ´＇"
_STRAIGHT = str.maketrans(dict.fromkeys(APOSTROPHES + "`", "'"))
# Letters that a reader takes for plain ones but that Unicode does not decompose.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"}
    | {"ħ": "h", "ŧ": "t"}
)
# Marks that are left out at will: accents, the vowel points of Hebrew and Arabic (whose tatweel
# only stretches a word), and what shows nothing (variation selectors, fillers).
_ACCENTS = re.compile(
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef\u180b-\u180f\u115f\u1160\u17b4\u17b5]"
)
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")
# Scripts written without spaces: there "a whole word" cannot be told from part of one.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# Korean writes its particles on to a name: "서울은".
_SUFFIXED = re.compile("[\uac00-\ud7a3]")
# Shorter names are too likely to arise by chance from pieces of neighbouring words.
_SHORTEST_JOINED = 4


def _fold(text: str) -> str:
    """Text without case, accents, invisible characters and possessives."""
    text = unicodedata.normalize("NFKD", text.translate(_STRAIGHT)).casefold()
    text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).translate(_PLAIN)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return _POSSESSIVE.sub("", unicodedata.normalize("NFC", text))


@lru_cache(maxsize=8192)
def words(text: str) -> tuple[str, ...]:
    """The words of a text, folded; hyphens and apostrophes separate ("Ann-Marie's": ann, marie).

    Marks count as letters, because the vowels of many scripts are marks.
    """
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in _fold(text))
    return tuple("".join(kept).split())


@lru_cache(maxsize=1024)
def _joined(text: str) -> tuple[str, frozenset[int]]:
    """A text's words written as one, and where in it words begin or end."""
    bounds, at = {0}, 0
    for word in words(text):
        at += len(word)
        bounds.add(at)
    return "".join(words(text)), frozenset(bounds)


@lru_cache(maxsize=8192)
def _spellings(name: str) -> tuple[str, ...]:
    """The name, without a closing "(…)", and without a leading "the" when a phrase is left."""
    bare = re.sub(r"\s*\([^()]*\)\s*$", "", name)
    found = [name] if bare == name else [name, bare]
    if words(bare)[:1] == ("the",) and len(words(bare)) > 2:
        found.append(" ".join(words(bare)[1:]))
    return (*found, *_unmarked(bare))


@lru_cache(maxsize=8192)
def _unmarked(text: str) -> tuple[str, ...]:
    """The text with its possessives written without apostrophe ("McDonalds"), if it has any."""
    plain = text.translate(_STRAIGHT)
    bare = re.sub(r"(?i)(?<=\w)'s\b", "s", plain)
    return () if bare == plain else (bare,)


@lru_cache(maxsize=8192)
def _runs(text: str) -> frozenset[str]:
    """What stands between spaces, without its signs: "U.S.A." is usa, "a-ha" is aha."""
    return frozenset("".join(words(run)) for run in re.split(r"[\s/,;:()–—]+", text))


def _written_on(joined: str) -> bool:
    """Whether other words may be written on to this one without a space."""
    return bool(_UNSPACED.search(joined)) or (len(joined) > 1 and bool(_SUFFIXED.match(joined[-1])))


def _stands_in(name: str, text: str) -> bool:
    wanted, there = words(name), words(text)
    if not wanted:  # a name of signs alone, such as "!!!"
        return bool(_fold(name).strip()) and _fold(name).strip() in _fold(text)
    joined = "".join(wanted)
    if len(joined) < _SHORTEST_JOINED and not _written_on(joined):
        n = len(wanted)
        if any(there[i : i + n] == wanted for i in range(len(there) - n + 1)):
            return True
        return len(name.split()) == 1 and len(joined) > 1 and joined in _runs(text)
    whole, bounds = _joined(text)
    if len(joined) > 1 and _UNSPACED.search(joined):
        return joined in whole
    suffixed = bool(_SUFFIXED.search(joined[-1]))
    at = whole.find(joined)
    while at >= 0:
        if at in bounds and (suffixed or at + len(joined) in bounds):
            return True
        at = whole.find(joined, at + 1)
    return False


def leaks(text: str, names: Iterable[str]) -> str | None:
    """The first of ``names`` that stands in ``text``, or None.

    Whole words are compared, without case, accents, invisible characters and possessives, and
    whatever the spaces and hyphens between them: "Apple Pie" leaks through "apple-pie's" and
    through "ApplePie", "bee" does not leak through "beetle". A name of several words leaks only
    as a phrase ("The Shown House" does not leak through "the house shown here"); give a part
    that is distinctive by itself as an alias of its own. "Mercury (planet)" also leaks as
    "Mercury", "The Mona Lisa" as "Mona Lisa", "McDonald's" as "McDonalds", "USA" as "U.S.A.".
    Names in scripts without spaces between words leak wherever they stand.

    Examples:
        >>> leaks("What is Apple-Pie served with?", ["tart", "apple pie"])
        'apple pie'
        >>> leaks("What does the beetle in this picture eat?", ["bee"])
    """
    texts = (text, *_unmarked(text))
    return next(
        (n for n in names if any(_stands_in(s, t) for s in _spellings(n) for t in texts)), None
    )
