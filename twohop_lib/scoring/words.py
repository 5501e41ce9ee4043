"""Texts as words, numbers and dates, and accepted answers as phrases of them.

The ground of :mod:`twohop_lib.scoring.matching`: what counts as the same word is decided here,
what counts as an answer there.
"""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import regex as re
from babel import Locale
from babel.core import get_global

from twohop_lib.scoring.leaks import APOSTROPHES

# ---- word lists ------------------------------------------------------------------------------


def word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ARTICLES = word_set("the a an")
FOREIGN_ARTICLES = word_set("l la le les el los las il lo der die das het")
PARTICLES = word_set("van von der den de da di del della dos du la le bin ibn al el ter ten y")
BE = word_set("is are was were be been being am s re")
AUX = BE | word_set(
    "do does did has have had can could will would shall should may might must cannot"
)
PRONOUNS = word_set(
    "i you he she it we they me him her us them this that these those there here who whom whose "
    "which what where when why how his its their my our your one"
)
PREPOSITIONS = word_set(
    "in at on by of for from to with as into onto within during about around circa approximately "
    "roughly nearly like near over under after before between"
)
MAYBE = word_set("maybe perhaps possibly could might may alternatively potentially")
LEADS = word_set(
    "either both also think believe guess suppose say would answer answers final correct right "
    "yes yeah yep no nope ok okay sure well so hmm oh then probably likely actually certainly "
    "else definitely clearly obviously presumably mostly mainly called named known if option "
    "choice please thanks sorry course just simply or and even too again indeed however"
)
FUNCTION = (
    ARTICLES | AUX | PRONOUNS | PREPOSITIONS | MAYBE | LEADS | word_set("not but nor than than")
)
NEGATORS = word_set(
    "not no never neither nor cannot without none nobody hardly doubt unlike except excluding "
    "wrong incorrect false untrue mistaken nothing"
)
MODIFIERS = word_set(
    "new north south east west northern southern eastern western northeast northwest southeast "
    "southwest central upper lower great greater grand little old big saint st san santa sao sto "
    "papua united real inner outer mid"
)
GENERIC = word_set(
    "tower bridge palace castle city town village river lake mountain mount mt island islands "
    "isle museum gallery church cathedral basilica abbey temple mosque street square house park "
    "university college school ocean sea bay gulf desert forest region province state county "
    "fc afc cf building stadium airport station hotel company corporation corp inc ltd llc "
    "group band painting music prize award republic kingdom empire"
)
_TEAMS = word_set("united rovers wanderers club team league union league association society")
COMMON = (
    GENERIC
    | MODIFIERS
    | word_set(
        "british royal national american french german italian imperial holy white black red blue "
        "green golden silver night day sun moon star starry world war girl boy woman man lady king "
        "queen last first second third supper birth garden general club team league union society "
        "association center centre motors airlines bank hill hills beach valley wall gate "
        "court hall opera theatre theater library institute academy "
        "fair games cup states army navy of and"
    )
)
TITLES = word_set(
    "mr mrs ms miss dr prof professor sir dame lord lady king queen prince princess president pope "
    "saint st emperor empress duke duchess count countess earl baron captain general senator "
    "chancellor minister mayor governor judge chief father mother brother sister uncle aunt "
    "founder artist painter architect author actor singer director house"
)
SUFFIXES = {"junior": "jr", "senior": "sr"} | {
    s: s for s in "jr sr ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii i".split()
}
KIN = word_set(
    "son daughter child father mother parent brother sister sibling husband wife widow spouse "
    "partner nephew niece uncle aunt cousin grandson granddaughter grandfather grandmother friend "
    "rival student pupil teacher successor predecessor assistant follower heir"
)
_REGIONS = (
    "USA|US|U.S.|United States of America|America|UK|U.K.|Great Britain|Britain|Ivory Coast"
    "|Turkey|Czech Republic|Congo|Holland|Korea|Burma|Macedonia|East Timor|UAE|Swaziland|Palestine"
    "|Hong Kong|Macau|USSR|Soviet Union|Russian Federation|Republic of Ireland|PRC"
)
_SUBREGIONS = (
    "England|Scotland|Wales|Northern Ireland|Alabama|Alaska|Arizona|Arkansas|California|Colorado"
    "|Connecticut|Delaware|Florida|Hawaii|Idaho|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana"
    "|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri|Montana|Nebraska|Nevada"
    "|New Hampshire|New Jersey|New Mexico|New York|North Carolina|North Dakota|Ohio|Oklahoma"
    "|Oregon|Pennsylvania|Rhode Island|South Carolina|South Dakota|Tennessee|Texas|Utah|Vermont"
    "|Virginia|Washington|West Virginia|Wisconsin|Wyoming|D.C.|DC|Ontario|Quebec|British Columbia"
    "|Alberta|Nova Scotia|Bavaria|Saxony|Hesse|Tuscany|Lombardy|Sicily|Veneto|Provence|Normandy"
    "|Brittany|Île-de-France|Catalonia|Andalusia|Castile|Galicia|Flanders|Wallonia|Tyrol"
    "|New South Wales|Victoria|Queensland|Tasmania|Punjab|Maharashtra|Kerala|Gujarat|West Bengal"
    "|Uttar Pradesh|Bihar|Tamil Nadu|Crimea|Siberia|Transylvania|Bohemia|Moravia|Hokkaido|Yorkshire"
    "|Cornwall|Kent|Middlesex|CA|NY|TX|FL|IL|MA|PA|WA|NJ|OH|MI"
)
#: Those that look like a person's first and last name, beside the zones that CLDR names.
_CITIES = (
    "Abu Dhabi|Addis Abeba|Andorra la Vella|Baile Átha Cliath|Bandar Seri Begawan|Ciudad de México"
    "|Cape Town|Ha Noi|Ho Chi Minh City|Krung Thep|Kuala Lumpur|La Habana|La Paz|Las Vegas"
    "|Nay Pyi Taw|Phnom Penh|Port Louis|Port Moresby|Port Vila|Porto Alegre|Porto Novo"
    "|Rio de Janeiro|Saint Petersburg|San Francisco|Santiago de Chile|Tel Aviv"
)
_CONTINENTS = "Africa|Asia|Europe|Oceania|North America|South America|Earth|Middle East"
_MONTHS = {m: i for i, m in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {w: i for i, w in enumerate(_ONES)} | {w: 10 * i for i, w in enumerate(_TENS, 2)}
_LARGE = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "mn": 10**6,
    "billion": 10**9, "bn": 10**9, "trillion": 10**12,
}  # fmt: skip
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12,
    **{w + "th": n for w, n in _SMALL.items() if n > 3},
    **{w[:-1] + "ieth": n for w, n in _SMALL.items() if n > 19},
}  # fmt: skip
_UNITS = {
    name: names.split()[0]
    for names in (
        "m metre metres meter meters|km kilometre kilometres kilometer kilometers|cm "
        "centimetre centimetres centimeter centimeters|mm millimetre millimetres millimeter "
        "millimeters|mi mile miles|ft foot feet ′|inch inches|yd yard yards|g gram grams "
        "gramme grammes|kg kilo kilos kilogram kilograms|t ton tons tonne tonnes|pound pounds "
        "lb lbs £ gbp quid|l litre litres liter liters|% percent pct|$ dollar dollars usd|€ "
        "euro euros eur|¥ yen jpy|₹ rupee rupees inr|year years|day days|hour hours h "
        "hrs|minute minutes min mins|week weeks|month months|century centuries|people persons "
        "inhabitants residents|° degree degrees|bc bce|ad ce"
    ).split("|")
    for name in names.split()
}

# ---- words -----------------------------------------------------------------------------------

_FOLDED_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW")
_LETTERS = str.maketrans(
    {
        "ø": "o",
        "ł": "l",
        "đ": "d",
        "ð": "d",
        "þ": "th",
        "æ": "ae",
        "œ": "oe",
        "ı": "i",
        "ħ": "h",
        "ة": "ه",
        "ى": "ي",
    }
)
_KOREAN_ENDING = re.compile(
    r"(?<=\p{Hangul})(?:입니다|이에요|예요|이다|에서|으로|은|는|이|가|을|를|의|에|로)$"
)
_MONTH = r"(?P<mon>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{3,4})(?!\d)"
_DATES = [
    re.compile(p, re.I)
    for p in (
        rf"[+]?{_YEAR}-(?P<month>\d\d)-(?P<day>\d\d)(?:T[\d:.]+Z?)?(?!\d)",
        rf"{_DAY}(?: of)? {_MONTH},? (?:in )?{_YEAR}",
        rf"{_MONTH} {_DAY},? (?:in )?{_YEAR}",
        rf"(?P<a>\d{{1,2}})[./-](?P<b>\d{{1,2}})[./-]{_YEAR}",
        rf"{_MONTH},? (?:of )?{_YEAR}",
        rf"{_DAY}(?: of)? {_MONTH}(?!\w)",
        rf"{_MONTH} {_DAY}(?!\w)",
    )
]
_NUMBER = (
    r"(?:(?<![\w)\]])[-−+])?(?:\d{1,3}(?:[,\u202f\u00a0 ]\d{3})+(?![\d])(?:\.\d+)?"
    r"|\d{1,3}(?:\.\d{3}){2,}"
    r"|\d+\.\d+|\d+,\d{1,2}(?![\d,])|\d+)"
)
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = re.compile(
    rf"(?P<decade>\d{{3,4}}'?s\b)|(?P<ordinal>\d+(?:st|nd|rd|th)\b)|(?P<number>{_NUMBER})"
    rf"|[\p{{Katakana}}ー]+|[{_NO_SPACES}]\p{{M}}*|[ld]'(?=\p{{L}}{{3}})"
    rf"|(?:(?![{_NO_SPACES}\p{{Katakana}}])[\p{{L}}\p{{M}}])+(?:'(?=\p{{L}})"
    rf"(?:(?![{_NO_SPACES}])[\p{{L}}\p{{M}}])+)*(?:[+]{{1,2}}|\#)?|[%$€£¥₹°&♭♯]",
    re.I,
)

Date = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Token:
    """One word, number or date: its spellings, and the text between it and the word before."""

    raw: str
    gap: str
    forms: frozenset[str]
    value: float | None = None
    unit: str = ""
    dates: tuple[Date, ...] = ()
    article: bool = False

    @cached_property
    def word(self) -> str:
        return min(self.forms, key=lambda form: (len(form), form), default="")

    @property
    def capital(self) -> bool:
        return self.raw[:1].isupper()

    @property
    def numeric(self) -> bool:
        return self.value is not None or bool(self.dates)


def _fold(word: str) -> str:
    """Case, accents and special letters folded; marks that spell a letter are kept."""
    out, base = [], ""
    for char in unicodedata.normalize("NFKD", word.casefold()):
        if not unicodedata.combining(char):
            base = char
        elif base != "и" and unicodedata.name(base or " ").startswith(_FOLDED_SCRIPTS):
            continue
        out.append(char)
    return unicodedata.normalize("NFC", "".join(out)).translate(_LETTERS)


def _forms(raw: str) -> frozenset[str]:
    folded = _fold(raw)
    german = _fold(re.sub("[äöü]", lambda m: {"ä": "ae", "ö": "oe", "ü": "ue"}[m[0]], raw.lower()))
    forms = {folded, german} if len(raw) > 1 else {folded}
    forms |= {f.removesuffix("'s") for f in forms}
    forms |= {k for f in forms if len(k := _KOREAN_ENDING.sub("", f)) > 1}
    return frozenset(f.replace("'", "") for f in forms)


def _plurals(word: str) -> set[str]:
    if len(word) < 3 or not word.isalpha():
        return {word}
    found = {word, word + ("es" if re.search("(s|x|z|ch|sh)$", word) else "s")}
    if re.search("[^aeiou]y$", word):
        found.add(word[:-1] + "ies")
    if re.search("[^aeiou]ies$", word):
        found.add(word[:-3] + "y")
    if re.search("(s|x|z|ch|sh)es$", word):
        found.add(word[:-2])
    if re.search("[^sui]s$", word) and len(word) > 3:
        found.add(word[:-1])
    return found


def _parse_number(raw: str) -> float:
    raw = re.sub("[−]", "-", raw).lstrip("+")
    if re.fullmatch(r"-?\d{1,3}(\.\d{3}){2,}", raw):
        raw = raw.replace(".", "")
    if re.fullmatch(r"-?\d+,\d{1,2}", raw):
        return float(raw.replace(",", "."))
    return float(re.sub(r"[^\d.-]", "", raw))


def _dates_in(text: str) -> list[tuple[int, int, tuple[Date, ...]]]:
    """(start, end, readings) of each date; 4/8/1961 has two readings."""
    found: list[tuple[int, int, tuple[Date, ...]]] = []
    for pattern in _DATES:
        for m in pattern.finditer(text):
            inside = any(m.start() < end and start < m.end() for start, end, _ in found)
            if inside or re.search(r"[\w.-]$", text[: m.start()]):
                continue
            g = {k: v for k, v in m.groupdict().items() if v}
            year = int(g["year"]) if "year" in g else None
            if "a" in g:
                a, b = int(g["a"]), int(g["b"])
                readings = tuple((year, x, y) for x, y in {(a, b), (b, a)} if x <= 12)
            else:
                month = _MONTHS[g["mon"].lower()] if "mon" in g else int(g["month"])
                day = int(g.get("day", 0)) or None
                readings = ((year, month, day),)
            if readings:
                found.append((m.start(), m.end(), readings))
    return sorted(found)


def _raw_tokens(text: str) -> Iterator[Token]:
    dates = _dates_in(text)
    done = at = 0
    while at <= len(text):
        if dates and dates[0][0] <= at:
            start, end, readings = dates.pop(0)
            yield Token(text[start:end], text[done:start], frozenset(), dates=readings)
            done = at = end
            continue
        m = _TOKEN.search(text, at)
        if m is None or (dates and m.end() > dates[0][0]):
            if not dates:
                return
            at = dates[0][0]
            continue
        raw, gap = m[0], text[done : m.start()]
        if m["number"]:
            yield Token(raw, gap, frozenset({raw}), value=_parse_number(raw))
        elif m["ordinal"]:
            yield Token(raw, gap, frozenset({"#" + raw[:-2]}))
        else:
            yield Token(raw, gap, _forms("and" if raw == "&" else raw))
        done = at = m.end()


def _numbers(tokens: list[Token]) -> Iterator[Token]:
    """Number words and multipliers as values, ordinal words as ordinals."""
    i = 0
    while i < len(tokens):
        total = current = 0.0
        j, seen, sign = i, False, 1.0
        if tokens[i].word in ("minus", "negative") and i + 1 < len(tokens):
            sign, j = -1.0, i + 1
        ordinal = False
        while j < len(tokens) and not ordinal:
            t, close = tokens[j], j == i or re.fullmatch(r"[\s-]*", tokens[j].gap)
            word = t.word if t.forms else ""
            if not close:
                break
            if t.value is not None and not seen:
                current = t.value
            elif word in _SMALL and (
                not seen
                or (current % 100 == 0 and current >= 100)
                or (current % 100 >= 20 and current % 10 == 0 and 0 < _SMALL[word] < 10)
                or (total and not current)
            ):
                current += _SMALL[word]
            elif word in _LARGE and (seen or not re.search(r"s$", word)):
                current = (current if seen and current else 1) * _LARGE[word]
                if _LARGE[word] > 100:
                    total, current = total + current, 0
            elif word in _ORDINALS and (j == i or (seen and current % 10 == 0)):
                current += _ORDINALS[word]
                ordinal = True
            elif (
                word == "and"
                and seen
                and tokens[j - 1].word in _LARGE
                and j + 1 < len(tokens)
                and tokens[j + 1].word in _SMALL
            ):
                pass
            else:
                break
            seen, j = True, j + 1
        if not seen:
            yield tokens[i]
            i += 1
            continue
        raw = " ".join(t.raw for t in tokens[i:j])
        value = sign * (total + current)
        if ordinal:
            forms = frozenset({f"#{value:.0f}"}) | (tokens[i].forms if j == i + 1 else frozenset())
            yield replace(tokens[i], raw=raw, forms=forms)
        else:
            forms = tokens[i].forms if j == i + 1 else frozenset({raw})
            yield replace(tokens[i], raw=raw, forms=forms, value=value)
        i = j


def _with_units(tokens: list[Token]) -> Iterator[Token]:
    i = 0
    while i < len(tokens):
        t, after = tokens[i], tokens[i + 1] if i + 1 < len(tokens) else None
        if t.raw in "$€£¥₹" and after and after.value is not None and after.gap.strip() == "":
            yield replace(after, gap=t.gap, unit=_UNITS[t.raw], raw=t.raw + after.raw)
            i += 2
        elif (
            t.value is not None
            and after
            and re.fullmatch(r"[\s-]?", after.gap)
            and (unit := next((_UNITS[f] for f in after.forms if f in _UNITS), ""))
        ):
            yield replace(t, unit=unit, raw=t.raw + after.gap + after.raw)
            i += 2
        else:
            yield t
            i += 1


def _is_article(t: Token, after: Token | None) -> bool:
    """Whether a token is an article before a word, not the letter A."""
    if after is None or t.word not in ARTICLES or not re.fullmatch(r"[ \t\"'“”‘’«»]+", after.gap):
        return False
    if t.word != "a" or t.raw == "a":
        return True
    if after.word in AUX | word_set("or and because since as"):
        return False
    return not t.gap.strip() and not t.gap.endswith(" ") or bool(re.search(r"[.!?\n]\s*$", t.gap))


def tokenise(text: str) -> list[Token]:
    found = list(_with_units(list(_numbers(list(_raw_tokens(text))))))
    kept: list[Token] = []
    carried, dropped = "", False
    for t, after in itertools.zip_longest(found, found[1:]):
        if _is_article(t, after):
            carried, dropped = carried + t.gap, True
        else:
            gap = carried + t.gap if carried.strip() or not carried else carried
            kept.append(replace(t, gap=gap, article=dropped))
            carried, dropped = "", False
    return kept


def _dates_agree(a: Date, b: Date) -> bool:
    """Whether b gives the year of a, or else a month or day of it, and contradicts nothing."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return bool(pairs) and all(x == y for x, y in pairs) and (a[0] is None or b[0] is not None)


def same(want: Token, said: Token) -> bool:
    """Whether one word says another: equal spellings, values, or dates that do not contradict."""
    if want.dates or said.dates:
        wants = want.dates or (((int(want.value), None, None),) if want.value else ())
        says = said.dates or (((int(said.value), None, None),) if said.value else ())
        if {want.unit, said.unit} & set(_UNITS.values()) - {"ad"}:
            return False
        return any(_dates_agree(a, b) for a in wants for b in says)
    if want.value is not None and said.value is not None:
        if want.value != said.value:
            return False
        if "bc" in (want.unit, said.unit):
            return want.unit == said.unit or not said.unit
        return not (want.unit and said.unit) or want.unit == said.unit or want.unit == "ad"
    return not want.forms.isdisjoint(said.forms)


# ---- accepted answers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A person's name in parts, as words."""

    first: tuple[str, ...]
    middle: tuple[str, ...]
    last: tuple[str, ...]
    suffix: str


@dataclass(frozen=True)
class Phrase:
    """One accepted answer, ready for matching."""

    text: str
    tokens: tuple[Token, ...]
    name: Name | None = None
    acronym: str = ""
    exact_case: bool = False


def key(tokens: Sequence[Token]) -> str:
    return " ".join(t.word if t.forms else t.raw for t in tokens)


@lru_cache(maxsize=1)
def places() -> tuple[dict[str, int], frozenset[str], frozenset[str]]:
    """Level of each region (1 within a country, 2 country, 3 continent), all places, cities."""
    levels: dict[str, int] = {}
    for code, name in Locale("en").territories.items():
        levels[key(tokenise(re.sub(r"\s*\(.*\)| SAR China", "", name)))] = (
            3 if code.isdigit() else 2
        )
    groups = ((_REGIONS, 2), (_SUBREGIONS, 1), (_CONTINENTS, 3))
    for names, level in groups:
        for name in names.split("|"):
            levels.setdefault(key(tokenise(name)), level)
    zones = [z.split("/") for z in get_global("zone_territories")]
    cities = {key(tokenise(z[-1].replace("_", " "))) for z in zones if z[0] not in ("Antarctica",)}
    cities |= {key(tokenise(name)) for name in _CITIES.split("|")}
    people = {"washington", "victoria", "kent", "virginia", *(p for p in levels if len(p) < 3)}
    known = frozenset(cities | {*levels} - people)
    return levels, known, frozenset(c for c in cities if levels.get(c, 0) < 2)


def level(tokens: Sequence[Token]) -> int:
    return places()[0].get(key(tokens), 0)


def is_place(tokens: Sequence[Token]) -> bool:
    return key(tokens) in places()[1]


def parse_name(tokens: Sequence[Token]) -> Name | None:
    words = [t.word for t in tokens]
    suffix = ""
    if len(words) > 1 and words[-1] in SUFFIXES:
        suffix = SUFFIXES[words.pop()]
    if not words:
        return None
    start = len(words) - 1
    while start > 1 and words[start - 1] in PARTICLES:
        start -= 1
    last = tuple(words[start:])
    return Name(tuple(words[:1]), tuple(words[1:start]), last if start else (), suffix)


def _person(tokens: Sequence[Token]) -> Name | None:
    """The parts of a name that looks like a person's, else None."""
    words = [t.word for t in tokens]
    looks = 2 <= len(tokens) <= 6 and all(
        t.forms and t.value is None and (t.capital or t.word in PARTICLES) for t in tokens
    )
    if not looks or is_place(tokens) or words[0] in MODIFIERS or set(words) & {"of", "and"}:
        return None
    if any(w in GENERIC | _TEAMS for w in words) or all(t.gap == "-" for t in tokens[1:]):
        return None
    if "," in "".join(t.gap for t in tokens[1:-1]):
        return None
    name = parse_name(tokens)
    return name if name and name.last and len(name.first[0]) >= 1 else None


@lru_cache(maxsize=4096)
def phrases(text: str) -> tuple[Phrase, ...]:
    """An accepted answer and the forms of it that are as good."""
    shown = unicodedata.normalize("NFKC", html.unescape(text)).strip()
    shown = re.sub(f"[`{APOSTROPHES}]", "'", shown)
    tokens = tokenise(shown)
    if not tokens:
        return (Phrase(shown, ()),)
    if shown == shown.lower() and any(c.isalpha() for c in shown):
        tokens = [
            replace(t, forms=frozenset(p for f in t.forms for p in _plurals(f)))
            if t.value is None
            else t
            for t in tokens
        ]
    elif len(tokens) > 1 and tokens[-1].raw.islower() and tokens[-1].value is None:
        # Indian rupees, German shepherds
        last = frozenset(p for f in tokens[-1].forms for p in _plurals(f))
        tokens[-1] = replace(tokens[-1], forms=last)
    acronym = shown.replace(".", "")
    whole = Phrase(
        shown,
        tuple(tokens),
        _person(tokens),
        acronym.lower() if re.fullmatch(r"\p{Lu}{2,5}", acronym) else "",
    )
    found = [whole]
    words = [t.word if t.forms else "" for t in tokens]
    capitals = [t for t in tokens if t.capital and t.value is None]
    if len(capitals) >= 2 and all(t.capital or t.word in ("of", "and") for t in tokens if t.forms):
        short = "".join(t.raw[0] for t in capitals)
        found.append(Phrase(shown, tuple(tokenise(short)), exact_case=True))
    if len(tokens) > 1 and words[0] in FOREIGN_ARTICLES and not is_place(tokens):
        found.append(Phrase(shown, tuple(tokens[1:])))
    if len(tokens) > 1 and "of" not in words and not is_place(tokens):
        cores = []
        if words[-1] in GENERIC:
            cores.append(tokens[:-1])
        if words[0] in GENERIC:
            cores.append(tokens[1:])
        for core in cores:
            club = {words[0], words[-1]} & {"fc", "afc", "cf"}
            place = (
                not club
                and is_place(core)
                and not (words[-1] == "city" and key(core) in places()[2])
            )
            if not place and not {t.word for t in core} <= COMMON and core[0].capital:
                found.append(Phrase(shown, tuple(core), _person(core)))
    return tuple(found)


def is_city(tokens: Sequence[Token]) -> bool:
    """Whether words name a large city (and no country)."""
    return key(tokens) in places()[2]


def members_of(phrase: Phrase) -> list[str]:
    """The members of an accepted answer that is itself a list, such as "red and white"."""
    if len(phrase.tokens) < 2:
        return []
    members = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*", phrase.text)
    return members if len(members) > 1 and all(m.strip() for m in members) else []


def same_words(tokens: Sequence[Token], words: Sequence[str]) -> bool:
    """Whether tokens are these words, in this order."""
    return [t.word for t in tokens] == list(words)
