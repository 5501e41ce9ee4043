"""Does an answer commit to what is accepted? The comparison behind :mod:`.matching`.

The extracted and normalised answer is rewritten step by step: each place where an accepted answer
stands becomes ``@``; places that do not count become ``§``; what is left must offer no alternative.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex as re
from babel import Locale

from twohop_lib.scoring.final_answer import EXTRACTION, PART, clean, final_answer
from twohop_lib.scoring.normal_form import NORMALISATION, UNITS, any_of, normal

# ---- what is accepted ------------------------------------------------------------------------

_MODIFIERS = (
    "New|North|South|East|West|Northern|Southern|Eastern|Western|Central|Papua|Equatorial|Saint|San"
    "|African|American|British|Democratic|Upper|Lower"
)
_GENERIC = (
    "mount|mountain|mt|lake|river|sea|ocean|bay|gulf|desert|island|isle|tower|bridge|palace|castle"
    "|museum|gallery|church|cathedral|temple|university|college|school|park|airport|stadium|hotel"
    "|company|corporation|corp|inc|ltd|group|band|prize|house|language|republic|kingdom|music"
)
#: Words that are also a code, a letter or a name.
_COMMON = frozenset(
    "a all am and any are as at be by can do for go he her his how i if in is it its may me must "
    "my no not of on one or our out she so that them they this to top try us was we what when "
    "where which who why will you your".split()
)
_CONTINENTS = frozenset(
    "africa|asia|europe|oceania|antarctica|north america|south america".split("|")
)


@lru_cache(maxsize=1)
def _regions() -> dict[str, bool]:
    """Countries and wider regions (CLDR) in normal form and lower case: is it a country?"""
    territories = Locale("en").territories.items()
    named = {re.sub(r" \(.*|&", "", name): not code.isdigit() for code, name in territories}
    named |= dict.fromkeys(("USA", "US", "UK", "UAE", "DR Congo", "Congo"), True)
    return {normal(name).lower().replace("- ", ""): c for name, c in named.items()}


def _longer_names(form: str) -> tuple[str, str]:
    """What comes before or after a name in names of other countries: *South* (Sudan)."""
    names = [name for name, country in _regions().items() if country]
    before = [n.removesuffix(form) for n in names if n.endswith(f" {form}")]
    after = [n.removeprefix(f"{form} ") for n in names if n.startswith(f"{form} ")]
    return any_of(before) or "$", any_of(after) or "^"


@dataclass(frozen=True)
class _Wanted:
    """Accepted answers, ready to be looked for."""

    kind: str  # "number", "name" or "word"
    place: str  # "continent", "country" or ""
    common: bool  # words of any sentence
    exact: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    people: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=4096)
def _wanted(accepted: tuple[str, ...], without: frozenset[str]) -> _Wanted:
    texts = [clean(a) for a in accepted]
    normals = [n for t in texts if (n := normal(t, without))]
    forms = set(normals)
    for name, clause in FORMS.items():
        forms |= set() if name in without else {f for n in normals for f in clause(n)}
    low = {f.lower() for f in forms}
    kind = "name" if any(f[:1].isupper() or f[:1] == "." for f in forms) else "word"
    kind = "number" if normals and re.match(r"[+-]?\d", normals[0]) else kind
    place = "continent" if low & _CONTINENTS else "country" if any(map(_regions().get, low)) else ""
    shown = (f.lstrip(".") for f in (*forms, *texts))
    names = [n for t in texts if t[:4] != "The " and _is_person(n := normal(t, without))]
    return _Wanted(
        kind,
        place,
        low <= _COMMON,
        frozenset({*map(_squeezed, shown), *map(_any_order, normals)}) - {""},
        tuple(_pattern(f, f in normals) for f in sorted(forms, key=len, reverse=True)),
        () if place else tuple(tuple(n.split()) for n in names),
    )


def _squeezed(text: str) -> str:
    """A text's letters, digits and signs of value, as one word without case."""
    return re.sub(r"[^\w.+#$€£¥%-]|_|(?<!^)[.-](?!\d)", "", text).casefold()


def _any_order(form: str) -> str:
    """The words of a name or a list, in the alphabet's order: *University of Oxford*."""
    words = sorted(w for w in form.lower().split() if w not in "of,and.()-")
    return "" if len(words) < 2 else " ".join(words)


def _pattern(form: str, as_accepted: bool) -> re.Pattern[str]:
    """Where a form stands as whole words; a date as it is accepted may be given more exactly."""
    number, _, unit = form.partition(" ")
    if re.fullmatch(r"-?[\d.]+", number) and unit in UNITS - {"bc"}:
        bare = rf"(?!\S)(?! (?:{any_of(UNITS - {unit})})(?!\S))"
        return re.compile(rf"(?<!\S){number}(?: {re.escape(unit)}(?!\S)|{bare})")
    if re.fullmatch(r"\+\d+", form):
        return re.compile(rf"(?<!\S)\+?{form[1:]}(?!\S)")
    if re.fullmatch(r"-?[\d.]+|\d{3,4}-\d\d", form):
        exact = r"(?:-\d\d|th|nd|rd|(?<!\b1)st)*" if as_accepted else ""
        return re.compile(rf"(?<!\S){form}{exact}(?!\S)(?! bc\b)")
    words = [w for w in form.split() if w not in "-,."] or [form]
    body = r"(?: (?:[-,.] )?)?".join(map(re.escape, words))
    before, after = _longer_names(form.lower())
    if form.lower() in _CONTINENTS:
        part = r"(?:(?:sub|north|south|east|west|middle|central|saharan)\w* (?:- )?)*"
        body = rf"{part}(?<!\b(?:{before})){body}(?:a?n continent)?"
    if re.fullmatch(r"\p{Lu}", form):  # a choice: (b), option b
        body += rf"|{form.lower()}(?= \))|(?<=ption ){form.lower()}"
    more = r"(?: - \p{Lu}\S*)?" if " " in form else ""  # Knowles-Carter
    code = form.isupper() and len(form) <= 4 or form.lower() in _COMMON
    alone = rf"(?<!\b(?:{before})(?:- )?)(?:{body}){more}(?!\S)(?! (?:- )?(?:{after}|\d+)(?!\S))"
    return re.compile(rf"(?<!\S){alone}", 0 if code else re.I)


def _without_generic(form: str) -> set[str]:
    """*Everest* for *Mount Everest*, *Louvre* for *Louvre Museum*."""
    bare = rf"^(?:{_GENERIC}) (?:of )?(?=\p{{Lu}})|(?<=\w) (?:{_GENERIC})$"
    core = re.sub(bare, "", form, flags=re.I)
    apart = " of " in form or re.fullmatch(rf"(?:{_MODIFIERS}|United).*", core)
    return set() if apart or not core[:1].isupper() else {core}


def _date_in_part(form: str) -> set[str]:
    """The year, and the month of the year, of a date."""
    return {form[:k] for k in (4, 7) if re.fullmatch(r"\d{4}-\d\d(?:-\d\d)?", form)}


FORMS: dict[str, Callable[[str], set[str]]] = {
    "generic words": _without_generic,
    "dates in part": _date_in_part,
}

# ---- people ----------------------------------------------------------------------------------

_TITLES = (
    "Mr|Mrs|Ms|Dr|Prof|Professor|Sir|Dame|Lord|Lady|King|Queen|Prince|Princess|President|Pope|Saint"
    "|Emperor|Empress|Duke|Duchess|Count|General|Senator|Chancellor|Minister|Mayor|Captain"
)
#: What names of places begin with, and those of people do not.
_PLACES = (
    "Abu|Addis|Bandar|Buenos|Cape|Ciudad|Fort|Ho|Kuala|La|Las|Los|Phnom|Port|Puerto|Rio|Santa|Santo"
    "|Sao|Tel"
)
_PARTICLES = "van|von|der|den|de|da|di|del|du|la|le|bin|ibn|al"
_RUN = re.compile(
    r"(?<!\S)\p{Lu}[^\s\p{P}]*"
    rf"(?: (?:(?:{_PARTICLES}) )*(?:- )?(?:\p{{Lu}}[^\s\p{{P}}]*|\d+(?!\S)))*(?: , [JS]r)?"
    r"(?!\S)(?! of \p{Lu})"
)


def _is_person(form: str) -> bool:
    """Whether a name looks like a person's: two to six capitalised words, none a place's."""
    return (
        2 <= len(form.split()) <= 6
        and all(re.fullmatch(rf"\p{{Lu}}.*|{_PARTICLES}|\d+", w) for w in form.split())
        and not re.search(rf"^(?:{_MODIFIERS}|{_PLACES}) |\bUnited\b|\b(?i:{_GENERIC})\b", form)
        and not form.split()[-1].isupper()
        and not {form.lower(), form.split()[-1].lower()} & _regions().keys()
    )


def _mark_people(said: str, want: _Wanted) -> str:
    def mark(m: re.Match[str]) -> str:
        return "@" if any(_same_person(w, m[0].split()) for w in want.people) else m[0]

    return _RUN.sub(mark, said) if want.people else said


def _name(words: Sequence[str]) -> tuple[list[str], str, str]:
    """Given names, last name and suffix, in lower case, initials apart and particles dropped."""
    words = [w for w in words if w not in "-,"]
    suffix = words.pop() if len(words) > 1 and re.fullmatch(r"\d+|[JS]r|I", words[-1]) else ""
    initials = [p for w in words for p in (w if w.isupper() and len(w) < 4 else [w])]
    kept = [w.lower() for w in initials if not re.fullmatch(_PARTICLES, w, re.I)]
    return kept[:-1], (kept or [""])[-1], suffix.replace("Jr", "")


def _same_person(want: Sequence[str], said: Sequence[str]) -> bool:
    """Whether a name is that person's, given what it leaves out or abbreviates."""

    def like(a: str, b: str) -> bool:
        return a == b or (min(len(a), len(b)) == 1 and a[0] == b[0])

    while len(said) > 1 and re.fullmatch(_TITLES, said[0]):
        said = said[1:]
    given, last, suffix = _name(want)
    got, got_last, got_suffix = _name(said)
    if got_suffix != suffix and (got or got_suffix):
        return False
    if not got:
        return len(got_last) > 1 and got_last in (last, *given[:1])
    if got_last != last or not given:
        return False
    if not like(got[0], given[0]):
        return got == given[-len(got) :]
    fewer = len(got) == 1 or len(given) == 1
    return fewer or (len(got) == len(given) and all(map(like, got, given)))


# ---- which places count ----------------------------------------------------------------------

_W = r"(?:(?![@,;:.!?()\n=|]|but\b)\S+ )"  # a word within a clause
_NEGATORS = (
    r"not|no|never|neither|nor|cannot|without|except|excluding|unlike|hardly|doubt|rather than"
    r"|instead of|opposed to|less likely|unlikely|anything but|whether|wrong|confused with"
    r"|mistaken for|formerly|previously|nothing|used to be|until \S+ it was"
    r"|(?:many|most|some)(?: people)? (?:think|believe|assume|say)"
)
_BE = "(?:is|are|was|were|be|do|does|did|has|had|can|could|would|should|must|cannot)"
_KIN = (
    "(?:son|daughter|child|father|mother|brother|sister|husband|wife|widow|spouse|partner|friend"
    "|student|pupil|follower|successor|nephew|uncle|aunt|school|circle|workshop)"
)


def _strike(pattern: str) -> Callable[[str, _Wanted], str]:
    compiled = re.compile(pattern, re.I)
    return lambda said, want: compiled.sub(lambda m: m[0].replace("@", "§"), said)


def _longer(said: str, want: _Wanted) -> str:
    if want.kind != "name" or want.place == "continent":
        return said
    more = "City|State" if want.place == "country" else "State"
    said = re.sub(rf"(?<!\S)(?:(?:{_MODIFIERS}) |\p{{L}}+ - )@", "§", said)
    return re.sub(rf"@(?= (?:- \p{{L}}|(?:{more})(?!\S)))", "§", said)


def _set_off(said: str, want: _Wanted) -> str:
    return re.sub(r"@(?= (?!is |because |and |or )\p{L})", "§", said) if want.common else said


STRIKES: dict[str, Callable[[str, _Wanted], str]] = {
    "part of a longer name": _longer,
    "a common word": _set_off,
    "not X": _strike(rf"(?<!\S)(?:{_NEGATORS}) {_W}{{0,8}}@(?: (?:or|nor) @)*"),
    "X is not": _strike(
        rf"@ {_BE} (?:\S+ )?(?:not|never)(?!\S)(?! (?:to be )?confused)(?! {_W}{{0,8}}, but)"
        rf"|@ (?:{_BE} (?:\S+ )?)?(?:not|wrong|incorrect|false)(?!\S)(?= [,.;]|$| right)"
    ),
    "near X": _strike(
        r"(?<!\S)(?:near|nearby|outside|than|(?<!look )like|before|after|while|whereas|similar to"
        r"|replaced(?: by)?|at least|at most|over|under|up to|(?:km|mile|far|different) from"
        rf"|(?<!in )(?:north|south|east|west) of) {_W}{{0,2}}@"
        rf"|(?:^|, )(?:{_W}{{0,2}})?{_KIN} of (?:{_TITLES} )?@"
    ),
    "if X": _strike(rf"(?<!\S)if (?!I (?:had|have) to){_W}{{0,8}}@"),
}

# ---- hedges ----------------------------------------------------------------------------------

_MAYBE = "(?:maybe|perhaps|possibly|could|might|may)"
_POLITE = re.compile(r"\W*(?:of )?(?:sure|yes|no|ok|okay|well|so|hmm|step|certainly|hi)\b", re.I)


def _other(want: _Wanted) -> str:
    """What an answer of the same kind looks like."""
    if want.kind == "number":
        return r"[+-]?\d\S*"
    return r"\p{L}\S*" if want.kind == "word" else r"(?:\p{Lu}\S*|\.\p{L}+)(?: \p{Lu}\S*){0,3}"


def _or_else(said: str, want: _Wanted) -> bool:
    """Whether another answer is joined to a match by *or*, *and*, a slash."""
    other = _other(want)
    either = r"(?:or|/|\||vs|to|–|-)" if want.kind == "number" else r"(?:or|/|\||vs)"
    maybe = r"(?:(?:perhaps|maybe|possibly|else|even|also) )?"
    after = rf"@ (?:[,.;(] )*{either} (?:(?:is|was) it )?{maybe}{other}"
    before = rf"{other} (?:[,.] )?{either} {maybe}(?:[^\s\p{{Lu}}@]+ )?@"
    if want.kind != "word":
        after += rf"|@ (?:, )?(?:and|along with|as well as) {other}"
        before += rf"|{other} (?:, )?(?:and|along with) @"
    return bool(re.search(f"{after}|{before}", said))


def _listed(said: str, want: _Wanted) -> bool:
    """Whether a match is an item of a list: *Paris, Rome, Oslo*, or items on lines of their own.

    *Ulm, Württemberg* and *Paris, Texas, USA* are places, *Finland, Helsinki* names the entity.
    """
    item, end = f"({_other(want)})", r"(?= [,;.?\n]|$)"
    more = rf"(?: (?:[,;?\n] (?:and |or )?|and |or ){item})*"
    after = re.search(rf"@ ([,;?\n]) {item}{more}{end}", said)
    before = re.search(rf"(?:^|[,;:\n.] |of ){item} [,;\n] (?:and |or )?@{end}", said)
    if after and want.kind == "name" and want.place != "country":
        place = after[1] == "," and not after[3]
        if not place and (after[3] or after[2]).lower() not in _regions():
            return True
    elif after:
        return True
    if not before or _POLITE.match(before[0]):
        return False
    region = _regions().get(before[1].lower())
    return bool(region) if want.place else region is None


def _maybe(said: str, want: _Wanted) -> bool:
    """Whether "it could be" something else, in the sentence of a match or after it."""
    maybe = rf"(?<!\S)(?i:{_MAYBE}) (?:also )?(?:be )?(?:in )?{_other(want)}"
    before = rf"{maybe} {_W}{{0,8}}(?:[,(] {_W}{{0,8}}){{0,2}}@"
    return bool(re.search(before, said) or re.search(maybe, said[said.index("@") :]))


def _ifs(said: str, want: _Wanted) -> bool:
    return len(re.findall(r"(?<!\S)if(?!\S)", said, re.I)) > 1


HEDGES: dict[str, Callable[[str, _Wanted], bool]] = {
    "X or Y": _or_else,
    "X, Y, Z": _listed,
    "maybe Y": _maybe,
    "if …, if …": _ifs,
}

# ---- the verdict -----------------------------------------------------------------------------

MARKING = ("word order", "people", "lower case", "glosses")
#: Every clause of our rule by name, with the part of the rule that it belongs to.
CLAUSES: dict[str, str] = {
    name: part
    for part, names in (
        ("extraction", EXTRACTION),
        ("normalisation", NORMALISATION),
        ("marking", (*FORMS, *MARKING)),
        ("striking", STRIKES),
        ("hedging", HEDGES),
    )
    for name in names
}


@lru_cache(maxsize=4096)
def _read(answer: str, without: frozenset[str]) -> tuple[str, str]:
    """The final answer and its words; the same answer is compared with many others."""
    text = final_answer(answer, without)
    return text, normal(text, without)


def commits(answer: str, accepted: Sequence[str], without: Collection[str] = ()) -> bool:
    """Whether a reply commits to an accepted answer; ``without`` names clauses to leave out."""
    without = frozenset(without)
    want = _wanted(tuple(accepted), without)
    text, said = _read(answer, without)
    whole = {*map(_squeezed, [*text.split(PART), *said.split(PART)])}
    whole |= {*map(_any_order, said.split(PART))} if "word order" not in without else set()
    if whole & want.exact:
        return True
    if "lower case" not in without and want.kind == "name":
        said = _recased(said)
    for pattern in want.patterns:
        said = pattern.sub("@", said)
    if "people" not in without:
        said = _mark_people(said, want)
    return any("@" in part and _claims(part.strip(), want, without) for part in said.split(PART))


def _claims(said: str, want: _Wanted, without: frozenset[str]) -> bool:
    """Whether a marked text claims an accepted answer and nothing else."""
    for name, strike in STRIKES.items():
        if name not in without:
            said = strike(said, want)
    if "glosses" not in without:
        said = re.sub(rf"\( (?!(?:or|{_MAYBE}) )[^()@]*\) ?", "", said)
    hedges = (hedge for name, hedge in HEDGES.items() if name not in without)
    return "@" in said and not any(hedge(said, want) for hedge in hedges)


def _recased(said: str) -> str:
    """A short answer all in lower or upper case, with the capitals of a name."""
    words = said.split()
    if len(words) > 4 or not (said.islower() or said.isupper()):
        return said
    short = 0 if said.islower() else 4
    return " ".join(w.capitalize() if w not in _COMMON and len(w) > short else w for w in words)
