"""Is an answer right? One rule of ours, and the two that came with published code.

Our rule, ``twohop``, in order:

1. **Cut.** The answer ends where the model starts another turn; markup goes.
2. **Normalise.** Case, accents and width are folded, articles dropped, hyphens read as spaces,
   initials joined (*U.K.* is *UK*), number words, digit groups and units written one way, plurals
   in *-s* levelled. Chinese, Japanese and Korean are compared character by character.
3. **Correct.** After "… no, …", "wait", "I mean" only what follows counts.
4. **Claims.** The answer is split into claims at sentence ends, *but*, and *, not*. A claim that is
   negated does not count.
5. **Match.** An accepted answer matches a claim as a whole-word phrase that is not part of a longer
   name (*York* is not *New York*). A claim that is just the beginning or end of an accepted name
   (*Obama*), a date with the right year and nothing that contradicts, and a number without its unit
   match too.
6. **Hedge.** Listing another answer besides (*Paris or Lyon*) makes the answer wrong.

What it does not do: know synonyms, translations or nationalities that are not listed as accepted;
judge explanations around the answer; tell *Paris, France* from *Paris, Lyon* (the first of two
counts).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from twohop_lib.errors import TwohopError, suggest

Rule = Literal["twohop", "popvqa", "inclusion"]


def matches(answer: str, accepted: Sequence[str], rule: Rule = "twohop") -> bool:
    """Whether ``answer`` is right, given the accepted answers and their aliases.

    Args:
        answer: what the model wrote, without the prompt.
        accepted: at least one accepted answer.
        rule: ``twohop`` (ours); ``popvqa`` and ``inclusion`` emulate the released scoring of
            Cohen et al. 2025 (arXiv 2412.14133) and Ashok et al. 2025 (2508.18297), defects
            included.

    Raises:
        TwohopError: unknown rule, or nothing accepted.
    """
    if rule not in get_args(Rule):
        raise TwohopError(f"There is no scoring rule {rule!r}; {suggest(rule, get_args(Rule))}.")
    if isinstance(accepted, str) or not any(str(a).strip() for a in accepted):
        raise TwohopError("Give a list of at least one accepted answer that is not blank.")
    return {"twohop": _twohop, "popvqa": _popvqa, "inclusion": _inclusion}[rule](answer, accepted)


# ---- the published rules ---------------------------------------------------------------------


def _long_words(text: str) -> set[str]:
    folded = unicodedata.normalize("NFKC", text).lower()
    return {w for w in re.findall(r"\b\w+\b", folded) if len(w) >= 4}


def _popvqa(answer: str, accepted: Sequence[str]) -> bool:
    said = _long_words(answer)
    wanted = [_long_words(a) for a in accepted]
    return any(w and len(w & said) >= min(2, len(w)) for w in wanted)


def _inclusion(answer: str, accepted: Sequence[str]) -> bool:
    said = answer.lower()
    return any(a.lower() in said or said in a.lower() for a in accepted)


# ---- normalising -----------------------------------------------------------------------------

_TURN = re.compile(
    r"(?:^|\s)(?:USER|HUMAN|ASSISTANT|Human|User|Question|Q)\s*:|<\|?/?(?:im_|eot|end|s>|INST)"
    r"|\[/?INST\]|###"
)
_CJK = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]"
_TOKEN = re.compile(rf"{_CJK}|\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*[+#]*|%")
_ARTICLES = {"the", "a", "an"}
_UNITS = {
    **dict.fromkeys(("metre", "meter"), "m"),
    **dict.fromkeys(("kilometre", "kilometer"), "km"),
    **dict.fromkeys(("centimetre", "centimeter"), "cm"),
    **dict.fromkeys(("kilogram", "kilogramme", "kilo"), "kg"),
    **dict.fromkeys(("gram", "gramme"), "g"),
    **dict.fromkeys(("foot", "feet"), "ft"),
    **dict.fromkeys(("percent",), "%"),
    "mile": "mi",
    "litre": "l",
    "liter": "l",
    "&": "and",
}
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {w: i for i, w in enumerate(_ONES)} | {w: 10 * i for i, w in enumerate(_TENS, start=2)}
_LARGE = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}


def _fold(text: str) -> str:
    """Width, case, accents, quotes and digit groups, one way."""
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = re.sub(r"[’‘ʼ`´]", "'", text)
    text = unicodedata.normalize("NFKD", text.casefold())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = unicodedata.normalize("NFC", text)
    text = text.translate(str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe"}))
    text = re.sub(r"\bper cent\b", "percent", text)
    text = re.sub(r"(?<=\d),(?=\d{1,2}(?!\d))", ".", text)
    text = re.sub(r"(?<=\d)[,\u202f\u00a0 ](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(\d+\.\d*?)0+(?!\d)", r"\1", text)
    text = re.sub(r"(?<![\w)-])[-−](?=\d)", " negative ", text)
    return re.sub(r"(\d+)\.(?!\d)", r"\1 . ", text)


def _numbers(tokens: list[str]) -> list[str]:
    """Number words as digits: "twenty one" is "21", "1 million" is "1000000"."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        total = current = 0.0
        j = i
        while j < len(tokens):
            token = tokens[j]
            if token in _SMALL:
                current += _SMALL[token]
            elif token in _LARGE and j > i:
                current = max(current, 1) * _LARGE[token]
                if _LARGE[token] > 100:
                    total, current = total + current, 0
            elif re.fullmatch(r"\d+(\.\d+)?", token) and j == i:
                current = float(token)
            elif not (
                token == "and"
                and j > i
                and j + 1 < len(tokens)
                and tokens[j + 1] in _SMALL
                and tokens[j - 1] in _LARGE
            ):
                break
            j += 1
        if j > i:
            out.append(f"{total + current:.6f}".rstrip("0").rstrip("."))
            i = j
        else:
            out.append(tokens[i])
            i += 1
    return out


def _level(token: str) -> str:
    token = token.removesuffix("'s").replace("'", "")
    if len(token) > 3 and token.endswith("s") and not token.endswith("ss"):
        token = token[:-1]
    return _UNITS.get(token, token)


def _tokens(text: str) -> tuple[str, ...]:
    """Normalised words. Articles go unless they come last; single letters in a row are joined."""
    found = _TOKEN.findall(_fold(text).replace("&", " and "))
    found = [t for i, t in enumerate(found) if t not in _ARTICLES or i == len(found) - 1]
    joined: list[str] = []
    run = False
    for token in found:
        single = len(token) == 1 and token.isalpha() and not re.match(_CJK, token)
        if single and run:
            joined[-1] += token
        else:
            joined.append(token)
        run = single
    return tuple(_level(t) for t in _numbers(joined))


# ---- claims ----------------------------------------------------------------------------------

_NEGATION = re.compile(
    r"\b(?:not(?! sure| certain| entirely sure)|never|neither|nor|cannot|without|except|unlike"
    r"|rather than|instead of)\b|n't\b"
)
_BREAK = re.compile(
    r"(?<!\b[a-z])(?<!\b(?:mr|st|dr|jr|sr))(?<!\bmrs)[.!?]+(?=\s|$)|[;\n]|\s[-–—]+\s|…"
    r"|,?\s+\bbut\b\s*(?:rather|it is|it's)?"
    r"|,\s*(?:and |definitely |certainly )?(?=not\b|rather than\b|instead of\b|unlike\b)"
    r"|[()\[\]]"
)
_CORRECTION = re.compile(
    r"[.,;?!…—–-]\s*(?:no,|no wait|no\s*[-–—.]|wait\b|sorry\b|actually\b|i mean\b|correction\b"
    r"|scratch that\b|oh\b|i meant\b|or rather\b)[\s,:]*|\b(?:final )?answer\s*:\s*"
)
_LABEL = re.compile(r"(?:^|\s)\(?[A-Da-d][).:]\s")
_TITLES = set("president king queen sir dr mr mrs ms lord lady prof professor pope emperor".split())
_LEAD = re.compile(
    r"^(?:(?:no|yes|well|sure|ok|okay|so|hmm+|i think|i believe|probably|certainly|answer"
    r"|final answer)\b[,:]?\s*|"
    r"(?:the|its|his|her|their)?\s*(?:correct |right |final )?(?:answer|name|option|choice)\s*"
    r"(?:is|was|:)\s*|(?:it|this|that|he|she|they)(?:'s| is| was| are| were)\s*"
    r"|[\"'*_#>\s:]+|-+\s)+"
)
_CONTRAST = re.compile(
    r"\bbut (?:in fact |actually |really )?(?:it|this|that|he|she|the answer)(?:'s| is| was)\b"
    r"(?! also| not| often)"
)
_MAYBE = re.compile(
    r"\b(?:could|might|may)\s+(?:also\s+|well\s+)?be\b|\b(?:maybe|perhaps|possibly|alternatively)\b"
    r"|^\s*or\b"
)


def _cut(answer: str) -> str:
    """The answer up to where the model starts another turn, markup taken out."""
    turn = _TURN.search(answer)
    if turn and answer[: turn.start()].strip():
        answer = answer[: turn.start()]
    return re.sub(r"</?think>|[*_#>\"“”«»`]+", " ", html.unescape(answer)).strip()


def _claims(text: str) -> list[str]:
    folded = re.sub(r"[’‘ʼ´]", "'", text.casefold())
    folded = re.sub(r"\bnot (?:only|just)\b", " ", folded)
    folded = re.sub(r"^\s*no\s*[,.!]\s*", "", folded)
    kept = folded
    for marker in (_CORRECTION, _CONTRAST):
        after = marker.split(kept)[-1]
        kept = after if after.strip() else kept
    return [c.strip() for c in _BREAK.split(kept) if c and c.strip(" ,.!?'")]


# ---- matching --------------------------------------------------------------------------------

_MODIFIERS = set(
    "new north south east west northern southern eastern western papua equatorial upper lower "
    "old great little united saint st san santa mount negative".split()
)
_GENERIC = _MODIFIERS | set(
    "tower bridge palace castle city river lake mountain island university museum church "
    "cathedral street house park state republic kingdom union sea ocean bay of de da di van von "
    "and hall coast emirate empire dynasty king queen prince princess lord lady sir".split()
)
_SUFFIXES = set("jr sr junior senior i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi".split())
_WHOLE_NAMES = {
    tuple(n.split())
    for n in (
        "costa rica|ivory coast|sierra leone|sri lanka|burkina faso|hong kong|el salvador"
        "|cape verde|saudi arabia|puerto rico|czech republic|marshall island|solomon island"
        "|cook island|faroe island|french guiana|vatican city|buenos aire|rio de janeiro"
        "|los angele|las vega|kuala lumpur|tel aviv|abu dhabi|guinea bissau|trinidad and tobago"
        "|bosnia and herzegovina|antigua and barbuda|hewlett packard|coca cola"
    ).split("|")
}
_MONTHS = {
    m: i
    for i, ms in enumerate(
        "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug"
        "|september sep sept|october oct|november nov|december dec".split("|"),
        start=1,
    )
    for m in ms.split()
}
Date = tuple[int, int | None, int | None]


def _date(tokens: Sequence[str]) -> Date | None:
    """(year, month, day) as far as given; None without a year of four digits."""
    year = month = day = None
    for token in tokens:
        plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", token)
        if re.fullmatch(r"\d{4}", plain) and year is None:
            year = int(plain)
        elif token in _MONTHS:
            month = _MONTHS[token]
        elif re.fullmatch(r"\d{1,2}", plain):
            if month is None and day is not None or (year is not None and month is None):
                month = int(plain)
            else:
                day = int(plain)
    return None if year is None else (year, month, day)


def _same_date(claim: tuple[str, ...], accepted: tuple[str, ...]) -> bool:
    wanted, said = _date(accepted), _date(claim)
    if wanted is None or said is None or wanted[1] is None and wanted[2] is None:
        return False
    return all(a is None or b is None or a == b for a, b in zip(wanted, said, strict=True))


def _find(claim: tuple[str, ...], phrase: tuple[str, ...]) -> list[int]:
    n = len(phrase)
    return [i for i in range(len(claim) - n + 1) if claim[i : i + n] == phrase]


def _stands_alone(claim: tuple[str, ...], at: int, phrase: tuple[str, ...], raw: str) -> bool:
    """Whether the phrase is not part of a longer name in the claim."""
    if at and claim[at - 1] in _MODIFIERS and phrase[0] not in _MODIFIERS:
        return False
    after = claim[at + len(phrase)] if at + len(phrase) < len(claim) else ""
    if (*phrase, after) in _WHOLE_NAMES:
        return False
    return not (phrase[-1] in _SUFFIXES and after in _SUFFIXES) and not re.search(
        rf"\b{re.escape(phrase[-1])}-{re.escape(after or '-')}", raw
    )


def _partial(claim: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    """Whether the claim is just the beginning or the end of a longer accepted name.

    A title before it, or middle names within it, do no harm.
    """
    if len(phrase) == 2 and len(claim) == 3 and (claim[0], claim[2]) == phrase:
        return phrase[0].isalpha()
    if claim and claim[0] in _TITLES:
        claim = claim[1:]
    n = len(claim)
    if not 0 < n < len(phrase) or phrase in _WHOLE_NAMES:
        return False
    if phrase == (*claim, "city"):
        return True
    if set(phrase) & _MODIFIERS:
        return False
    left = phrase[n:] if phrase[:n] == claim else phrase[:-n] if phrase[-n:] == claim else None
    if left is None or left[-1] == "of" or set(left) & _SUFFIXES or set(claim) <= _GENERIC:
        return False
    if phrase[0].replace(".", "").isdigit():
        return claim == phrase[:1] and all(t in _UNITS.values() for t in left)
    return all(len(t) >= 3 and t.isalpha() for t in claim if t not in _GENERIC)


_CONTAINERS = {
    _tokens(name)
    for name in (
        "USA|US|United States|United States of America|UK|United Kingdom|England|Scotland|Wales"
        "|Ireland|France|Germany|Italy|Spain|Portugal|Netherlands|Belgium|Switzerland|Austria"
        "|Poland|Greece|Turkey|Russia|Ukraine|Sweden|Norway|Denmark|Finland|Canada|Mexico|Brazil"
        "|Argentina|Chile|Peru|Egypt|Morocco|South Africa|Kenya|Nigeria|India|Pakistan|China"
        "|Japan|South Korea|Thailand|Vietnam|Indonesia|Australia|New Zealand|Israel|Iran|Iraq"
        "|Europe|Asia|Africa|North America|South America|California|Texas|Florida|New York"
    ).split("|")
}
_MARK = "\u2713"
_AFTER_AND = set(
    "his her its their it he she they is was has have had in on at by for with so then also "
    "that which who this these those other many much not".split()
)


def _hedged(claim: str, marked: tuple[str, ...]) -> bool:
    """Whether a claim that holds an accepted answer (``marked``) lists another one beside it."""
    for i, token in enumerate(marked):
        around = marked[max(0, i - 1) : i] + marked[i + 1 : i + 2]
        if token == "or" and _MARK in marked and len(around) == 2:
            other = [t for t in around if t != _MARK]
            if other and other[0] not in ("so", "more", "les", "about", "rather"):
                return True
        if token == "and" and _MARK in around and len(around) == 2:
            other = [t for t in around if t != _MARK]
            if other and other[0] not in _AFTER_AND:
                return True
    if " / " in claim or re.search(r"\w/\w", claim) and not re.search(r"\d/\d", claim):
        return sum(t == _MARK for t in marked) < len(marked)
    return False


def _list_of_others(claim: str, accepted: list[tuple[str, ...]]) -> bool:
    """Whether a claim is a bare list: three items or more, or two with the right one second."""
    items = [i for i in re.split(r",\s*(?:and\s+|or\s+)?", _LEAD.sub("", claim)) if i.strip()]
    parts = [_tokens(i) for i in items]
    if len(parts) < 2 or any(not p or len(p) > 4 for p in parts):
        return False
    if set(parts[0]) & (_AFTER_AND | {"according", "well", "ye", "of", "a", "from", "like"}):
        return False
    right = [p in accepted for p in parts]
    if all(right) or not any(right):
        return False
    if any(_find(p, a) for p, ok in zip(parts, right, strict=True) if not ok for a in accepted):
        return False
    # Paris, France; Springfield, Illinois, USA: a place and what it lies in.
    return len(parts) > 2 and parts[-1] not in _CONTAINERS if right[0] else True


def _said(claim: str, accepted: list[tuple[str, ...]]) -> tuple[bool, bool]:
    """Whether a claim gives an accepted answer, and whether it hedges."""
    tokens = _tokens(claim)
    bare = _tokens(_LEAD.sub("", claim))
    marked, hit = tokens, False
    for phrase in sorted(accepted, key=len, reverse=True):
        for at in reversed(_find(marked, phrase)):
            if _stands_alone(marked, at, phrase, claim):
                marked, hit = (*marked[:at], _MARK, *marked[at + len(phrase) :]), True
    if not hit:
        hit = any(
            "".join(bare) == "".join(p) or _partial(bare, p) or _same_date(bare, p)
            for p in accepted
        )
        return hit, False
    contradicted = any(
        _date(p) and _date(tokens) and _date(p)[0] != _date(tokens)[0] for p in accepted
    )
    return True, contradicted or _hedged(claim, marked) or _list_of_others(claim, accepted)


def _enumerated(text: str, accepted: list[tuple[str, ...]]) -> bool:
    """Whether an answer is three bare names or more, a line or sentence each, not all accepted."""
    items = [_tokens(i) for i in re.split(r"[\n;.]+", text) if _tokens(i)]
    if len(items) < 3 or any(len(i) > 3 for i in items):
        return False
    return any(i not in accepted for i in items) and any(i in accepted for i in items)


def _without_article(tokens: tuple[str, ...]) -> tuple[str, ...]:
    foreign = {"la", "le", "el", "los", "der", "die", "das", "il", "lo", "les", "l"}
    return tokens[1:] if len(tokens) > 1 and tokens[0] in foreign else tokens


def _twohop(answer: str, accepted: Sequence[str]) -> bool:
    text = _cut(answer)
    phrases = [p for a in accepted if (p := _tokens(a))]
    phrases += [q for p in phrases if (q := _without_article(p)) != p]
    whole = _tokens(text)
    if not whole:
        return text.strip() in {a.strip() for a in accepted} and bool(text.strip())
    if whole in phrases or _without_article(whole) in phrases:
        return True
    if len(_LABEL.findall(text)) > 1 or _enumerated(text, phrases):
        return False
    found = False
    for claim in _claims(text):
        said, hedges = _said(claim, phrases)
        if said and hedges:
            return False
        negation = _NEGATION.search(claim)
        if said and negation is None:
            found = True
        elif not said and negation is None and _MAYBE.search(claim):
            return False
    return found


# ---- agreement with labels given by hand -----------------------------------------------------


def labelled_cases() -> pd.DataFrame:
    """Answers labelled by hand.

    Columns ``question, answer, accepted`` (a list), ``right`` (boolean) and ``category``.
    """
    file = Path(__file__).parent / "labelled_answers.csv"
    cases = pd.read_csv(file, dtype=str, keep_default_na=False)
    return cases.assign(accepted=cases["accepted"].str.split("|"), right=cases["right"] == "1")


def agreement(cases: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """How often a rule agrees with the labels, by category and over ``all``.

    Columns: ``category, n, agreement, false_positives, false_negatives``.
    """
    judged = [matches(r.answer, r.accepted, rule) for r in cases.itertuples()]
    scored = cases.assign(judged=judged)
    groups = [*scored.groupby("category"), ("all", scored)]
    return pd.DataFrame(
        [
            {
                "category": name,
                "n": len(rows),
                "agreement": (rows["judged"] == rows["right"]).mean(),
                "false_positives": int((rows["judged"] & ~rows["right"]).sum()),
                "false_negatives": int((~rows["judged"] & rows["right"]).sum()),
            }
            for name, rows in groups
        ]
    )
