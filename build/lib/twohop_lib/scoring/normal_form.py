"""One spelling for what may be written in many ways.

``NORMALISATION`` is a chain of named clauses, applied to replies and accepted answers alike. The
outcome is words and signs with one space between them, capitals kept: *about 1.5 million Kenyan
shillings* becomes ``about 1500000 Kenyan shilling``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from functools import cache

import regex as re


def any_of(words: Collection[str]) -> str:
    """A pattern of alternatives, the longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


# ---- numbers, dates, units -------------------------------------------------------------------

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {w: i for i, w in enumerate(_ONES)} | {w: 10 * i for i, w in enumerate(_TENS, 2)}
_ORDINAL = {w + "th": n for w, n in _SMALL.items() if n > 3}
_ORDINAL |= {w[:-1] + "ieth": n for w, n in _SMALL.items() if n > 19}
_ORDINAL |= {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9}
_ORDINAL |= {"twelfth": 12}
_LARGE = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_LARGE |= {"trillion": 10**12, "mn": 10**6, "bn": 10**9}
_UNIT_WORD = any_of({*_ONES, *_ORDINAL})
_BELOW_100 = rf"(?:(?:{any_of(_TENS)})(?:[ -](?:{_UNIT_WORD}))?|{_UNIT_WORD})"
_TIMES = rf"(?:[ -]?(?:{any_of(_LARGE)})(?:(?: and)?[ -]{_BELOW_100})?)"
_IN_WORDS = re.compile(
    rf"(?<![\w.-])(?:{_BELOW_100}(?: and a half)?{_TIMES}*"
    rf"|(?:(?:half )?an?|\d+(?:\.\d+)?){_TIMES}+)(?!\w)",
    re.I,
)
_UNITS = (
    "m metre metres meter meters|km kilometre kilometres kilometer kilometers|cm centimetre "
    "centimetres centimeter centimeters|mm millimetre millimetres millimeter millimeters|mi mile "
    "miles|ft foot feet|inch inches|yd yard yards|g gram grams|kg kilogram kilograms kilo kilos"
    "|t ton tons tonne tonnes|lb lbs pound pounds £ gbp|l litre litres liter liters|% percent pct"
    "|$ dollar dollars usd|€ euro euros eur|¥ yen jpy|year years|day days|hour hours|minute minutes"
    "|week weeks|month months|people persons inhabitants|° degree degrees|bc|ad ce"
)
_UNIT_OF = {name: names.split()[0] for names in _UNITS.split("|") for name in names.split()}
UNITS = frozenset(_UNIT_OF.values())
_WITH_UNIT = re.compile(rf"(?<=\d)[ -]?({any_of(_UNIT_OF)})(?!\w)", re.I)
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?"
_DAY, _YEAR = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{3,4})(?!\d)"
_DATES = [
    re.compile(rf"(?<![\w.-]){pattern}", re.I)
    for pattern in (
        rf"\+?{_YEAR}[-/](?P<month>\d\d)[-/](?P<day>\d\d)(?:T[\d:.]+Z?)?(?!\d)",
        rf"{_DAY}(?: of)? {_MONTH},? {_YEAR}",
        rf"{_MONTH} {_DAY},? {_YEAR}",
        rf"(?P<day>\d{{1,2}})[./-](?P<month>\d{{1,2}})[./-]{_YEAR}",
        rf"{_MONTH},? (?:of )?{_YEAR}",
        rf"{_DAY}(?: of)? {_MONTH}(?!\w)",
        rf"{_MONTH} {_DAY}(?!\w)",
    )
]


#: A pattern that is given as a text is looked up anew each time, which takes longer than its use.
_compiled = cache(re.compile)


def _sub(pattern: str, by: str | Callable[[re.Match[str]], str], text: str) -> str:
    return _compiled(pattern).sub(by, text)


def _undotted(m: re.Match[str]) -> str:
    return m[0].replace(".", "")


def _figures(text: str) -> str:
    """Digits of any script, without separators of thousands, with a decimal point."""
    text = _sub(r"\d", lambda m: str(unicodedata.digit(m[0])), text.replace("−", "-"))
    text = _sub(r"(?<=\d)[,' \u202f\u00a0](?=\d{3}(?!\d))", "", text)
    text = _sub(r"(?<![\d.])\d{1,3}(?:\.\d{3}){2,}(?![\d.])", _undotted, text)
    text = _sub(r"(?<=\d),(?=\d{1,2}(?!\d))", ".", text)
    text = _sub(r"(?<=\d)\.0+(?!\d)|(?<=\d0)'(?=s\b)", "", text)
    date = r"\b\d{4}-\d\d(?:-\d\d)?(?!\d)"
    return _sub(rf"({date})|(?<=\w)-(?=\d)", lambda m: m[1] or " - ", text)  # ranges


def _value(words: list[str]) -> float:
    total = current = 0.0
    for word in words:
        if word in _LARGE:
            current = (current or 1) * _LARGE[word]
            if _LARGE[word] > 100:
                total, current = total + current, 0
        elif word not in ("a", "an", "and"):
            named = {"half": 0.5, **_SMALL, **_ORDINAL}
            current += named[word] if word in named else float(word)
    return total + current


def _in_words(text: str) -> str:
    """Numbers in words as figures, ordinal ones as *1st*, *22nd*."""

    def figure(m: re.Match[str]) -> str:
        words = re.findall(r"[a-z]+|[0-9.]+", m[0].lower())
        value = f"{_value(words):.15g}"
        endings = {"1": "st", "2": "nd", "3": "rd"}
        ending = endings.get(value[-1], "th") if value[-2:-1] != "1" else "th"
        return value + ending * (words[-1] in _ORDINAL)

    return _sub(r"\b(?:minus|negative) (?=\w)", "-", _IN_WORDS.sub(figure, text))


def _roman(text: str) -> str:
    """Roman numerals as figures from II on; *Elizabeth the Second* and *Elizabeth 2nd* alike."""

    def figure(m: re.Match[str]) -> str:
        values = [{"I": 1, "V": 5, "X": 10, "L": 50}[c] for c in m[0]]
        return str(sum(-v if v < w else v for v, w in zip(values, [*values[1:], 0], strict=True)))

    text = _sub(r"\b(?=[IVXL]{2})(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?!\w)", figure, text)
    text = _sub(r"(?<=\p{Lu}\p{Ll}+ )[VX](?![\w.])", figure, text)
    regnal = r"(?<=\p{Lu}\p{Ll}+ )the (\d+)(?:st|nd|rd|th)\b"
    return _sub(regnal, lambda m: "I" if m[1] == "1" else m[1], text)


def _dates(text: str) -> str:
    """Dates as year-month-day, as far as they are given."""

    def iso(m: re.Match[str]) -> str:
        date = {k: v.lower() for k, v in m.groupdict().items() if v}
        month, day = date["month"], int(date.get("day", 0))
        number = _MONTHS.index(month) + 1 if month in _MONTHS else int(month)
        if number > 12:  # 7/20/1969
            number, day = day, number
        year = [f"{int(date['year'])}"] if "year" in date else []
        return "-".join([*year, f"{number:02d}", *([f"{day:02d}"] if day else [])])

    for pattern in _DATES:
        text = pattern.sub(iso, text)
    return text


def _units(text: str) -> str:
    text = _sub(r"\bBCE?\b|\bB\.C\.(?:E\.)?", "bc", text)
    text = _sub(r"([$€£¥])\s?(-?[\d.]*\d)", r" \2 \1", text)
    return _WITH_UNIT.sub(lambda m: f" {_UNIT_OF[m[1].lower()]}", text)


# ---- words -----------------------------------------------------------------------------------

_FOLDED_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW")
_PLAIN = str.maketrans(
    dict(zip("øØłŁđðıħةى", "oOlLddihهي", strict=True))
    | {"þ": "th", "æ": "ae", "Æ": "Ae", "œ": "oe", "ß": "ss"}
)
_IDIOMS = re.compile(
    r"\b(?:there(?:'s| is) )?(?:no|without(?: an?y?)?) (?:doubt|question)\b"
    r"|\b(?:none|no) other than\b|\bnot (?:only|just)\b|\bnothing but\b|\bwhy not\b"
    r"|\b(?:is|are|was|were|does|did)n't (?=(?:it|he|she|they|this|that)\b)",
    re.I,
)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = re.compile(
    rf"[+-]?\d+(?:[.-]\d+)*(?:(?:s|st|nd|rd|th)\b)?|(?:\.\p{{L}}{{2,}})+|[\p{{Katakana}}ー]+|[{_UNSPACED}]\p{{M}}*"
    rf"|(?:(?![{_UNSPACED}\p{{Katakana}}])[\p{{L}}\p{{M}}\d])+[+#]*|\n|[^\s\w'\"]"
)
_KOREAN = re.compile(
    r"(?<=\p{Hangul}{2})(?:입니다|이에요|예요|이다|에서|으로|은|는|이|가|을|를|의|에|로)(?!\p{Hangul})"
)


def _accents(text: str) -> str:
    """Accents folded, but where the mark spells another letter (й, が)."""
    out, base = [], ""
    for char in "" if text.isascii() else unicodedata.normalize("NFKD", text):
        if not unicodedata.combining(char):
            base = char
        elif base not in "Ии" and unicodedata.name(base or " ", "").startswith(_FOLDED_SCRIPTS):
            continue
        out.append(char)
    return unicodedata.normalize("NFC", "".join(out)).translate(_PLAIN) or text


def _initials(text: str) -> str:
    """Initials and abbreviations without dots: *D.C.*, *J. R. R.*, *Jr.*"""
    text = _sub(r"\b(\p{Lu}|Jr|Sr|Dr|Mrs?|Ms|Prof|Mt)\.(?=\s?\p{Lu}|[,.]|$)", r"\1", text)
    return _sub(r"\b(\p{Lu}) (?=\p{Lu}\b)", r"\1", text)


def _addresses(text: str) -> str:
    """A phone number as one number, an address on the web as its top-level domain."""
    text = _sub(
        r"(?:\+ ?|\b00)([1-9](?:\d|[ ()-]+(?=\d))*)", lambda m: "+" + _sub(r"\D", "", m[1]), text
    )
    text = _sub(r"\b(?:https?://)?www\.(?:[\w-]+\.)+(?=\p{Ll}{2,3}\b)", " .", text)
    return _sub(r"\bdot (?=\p{L}{2,3}\b)", ".", text)


def _apostrophes(text: str) -> str:
    """Possessives and elided articles dropped, contractions opened, other apostrophes dropped."""
    text = _sub(r"n't\b", " not", text)
    return _sub(r"(?<=\w)'s\b|(?<=\w)'(?=\w)|\b[ldLD]'(?=\p{L}{3})", "", text)


def _plurals(text: str) -> str:
    text = _sub(r"(?<=\p{Ll}{2})ies\b", "y", text)
    return _sub(r"(?<=\p{Ll}{3})(?<![sui]|\bperhap|\bdoe)s\b", "", text)


NORMALISATION: dict[str, Callable[[str], str]] = {
    "accents": _accents,
    "Saint": lambda text: _sub(r"\bSt\.? (?=\p{Lu})", "Saint ", text),
    "initials": _initials,
    "phone and web addresses": _addresses,
    "figures": _figures,
    "numbers in words": _in_words,
    "Roman numerals": _roman,
    "dates": _dates,
    "units": _units,
    "idioms": lambda text: _IDIOMS.sub(" ", text),
    "apostrophes": _apostrophes,
    "plurals": _plurals,
    "Korean endings": lambda text: _KOREAN.sub("", text),
    "and": lambda text: text.replace("&", " and "),
    "articles": lambda text: _sub(r"\b(?:[Tt]he|an|a)\s+(?=\S)", "", text),
}


def normal(text: str, without: Collection[str] = ()) -> str:
    """A text's words and signs in one spelling; ``without`` names clauses to leave out."""
    for name, clause in NORMALISATION.items():
        if name not in without:
            text = clause(text)
    text = _sub(r"(?<!\w)-(?!\d)|-(?!\w)", "–", text)  # a dash, no hyphen
    return " ".join(_TOKEN.findall(_sub(r"\s*\n\s*", "\n", text.strip())))
