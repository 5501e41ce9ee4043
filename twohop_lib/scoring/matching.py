"""Is an answer right? One rule of ours, and the two that came with published code.

Our rule, ``twohop``, asks whether the answer *commits* to an accepted answer. In order:

1. **Clean.** Only the model's own turn counts: text from the next turn marker on (``USER:``,
   ``Q:``, a special token, a new question on its own line) goes, and so do reasoning blocks,
   Markdown, LaTeX boxes and HTML entities. If a sentence says "the answer is …", reading starts
   at the last such sentence. After a correction ("…, no, …", "wait", "I mean", "but it was") only
   what follows counts, if that names something.
2. **Words.** NFKC, case folded; accents folded in Latin, Greek, Cyrillic, Arabic and Hebrew only;
   articles dropped; possessives and hyphens optional (*Spider-Man*, *Spiderman*); common nouns
   (accepted answers in lower case, or the last word of one) match their plural in *-s*. Scripts
   without spaces are read character by character, a run of Katakana as one word. Numbers become
   values (*1,000,000*, *1 million*, *twenty-one*, *3.0*), with their unit if it is a known one;
   dates become (year, month, day).
3. **Match.** An accepted answer matches as whole words in order, on these terms:

   - not as part of a longer name: no hyphen, no *New* or *South* before it, no other regnal number
     or *Sr.* after it, and a place (country or large city, from CLDR) takes no further name
     (*Paris Hilton*, *Mexico City*), only what contains it (*Paris, France*);
   - a person may be given by the first or last name alone, by initials, and with or without middle
     names, but not by different ones (*George W. Bush* is not *George H. W. Bush*);
   - a generic word may be missing (*Everest* for *Mount Everest*), a capitalised acronym stands for
     its expansion, a list (*red and white*) may come in any order;
   - a number may lack its unit, a date its day or its day and month; nothing given may contradict;
   - an internet domain with its dot (*.is*) matches as written, and no other domain may be given;
   - *A*, *us* and other words that are also ordinary English words count only if they are all
     that is said, or are written and set off as the answer is (*A.*, *US*).
4. **Negation and comparison.** A match does not count within the scope of a negation (*not X*,
   *X is not*, *neither*, *rather than X*, *I doubt*) or where X merely locates or compares (*near
   X*, *400 km from X*, *larger than X*, *…, son of X*, *X's wife*). A scope ends with its clause.
5. **Hedge.** The answer is wrong if it lists, beside a match, an alternative of the same kind that
   is not accepted: joined by *or*, *and*, a slash or a comma, as a line or sentence of its own, or
   as a further *maybe*. A comma list that climbs to a containing region is a place, not a list.

What it does not do: know synonyms, translations, nationalities or places that are not listed as
accepted; convert units; understand negation, hedges or number words in languages other than
English; tell compounds in lower case apart (*sea lion* passes for *lion*); look at the question
(*Obama* passes for any of that name, and all parts of *singer and actor* must be accepted); judge
whether the explanation around a right answer is true.

How texts become words is in :mod:`twohop_lib.scoring.words`, how turns become clauses in
:mod:`twohop_lib.scoring.claims`.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import regex as re

from twohop_lib.errors import TwohopError, suggest
from twohop_lib.scoring.claims import CLAUSE_WORDS, Said, own_turn, read, stated
from twohop_lib.scoring.words import (
    ARTICLES,
    AUX,
    COMMON,
    FOREIGN_ARTICLES,
    FUNCTION,
    GENERIC,
    KIN,
    MAYBE,
    MODIFIERS,
    NEGATORS,
    PARTICLES,
    PREPOSITIONS,
    PRONOUNS,
    SUFFIXES,
    TITLES,
    Name,
    Phrase,
    Token,
    is_city,
    is_place,
    level,
    members_of,
    parse_name,
    phrases,
    same,
    same_words,
    word_set,
)

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


# ---- where an answer says a phrase -----------------------------------------------------------

Span = tuple[int, int]

#: Characters that may stand next to a Chinese or Japanese match without making it another word.
_FREE_HAN = "是在为為叫由于於的和与與有了国國市省県州都府区"
_OPTION = word_set("option choice letter")
_COMPARED = re.compile(
    r"(?:\b(?:near|nearby|outside|beside|than|unlike|opposite|resembl\w+|excluding|except)"
    r"|\b(?:close|next|similar|adjacent|compared|opposed|prior) to"
    r"|\b(?:instead|suburb|outskirts) of|\bexcept for|\b(?:apart|aside|different|far) from"
    r"|(?<!\bin )\b(?:north|south|east|west)\w* of"
    r"|\b(?:km|kilomet\w+|miles?|hours?|minutes?) (?:away )?from"
    rf"|, (?:his |her )?(?:\w+ )?(?:{'|'.join(sorted(KIN))}) of)"
    r"(?: (?:in|from|city|town|of|mr|king|queen|lord|lady|sir))* $",
    re.I,
)


def _spans(said: Said, phrase: Phrase) -> Iterator[Span]:
    """Where an answer says a phrase, denied or not."""
    for i in range(len(said)) if phrase.tokens else ():
        j = _end(said, i, phrase)
        if (
            j
            and not _within_longer(said, i, j, phrase)
            and (not phrase.exact_case or all(t.raw.isupper() for t in said.tokens[i:j]))
            and (not _is_common(phrase) or _set_off(said, i, j, phrase))
        ):
            yield i, j
    if phrase.name:
        yield from _person_spans(said, phrase.name)
    if phrase.acronym:
        yield from _expansions(said, phrase.acronym)


def _end(said: Said, at: int, phrase: Phrase) -> int:
    """Where the phrase ends if it starts at word ``at``, else 0."""
    wanted, end = phrase.tokens, at + len(phrase.tokens)

    def joins(k: int) -> bool:
        gap, own = said.tokens[at + k].gap.strip(), wanted[k].gap.strip()
        return said.linked(at + k) or gap == own or ("," in own and gap in ("", ","))

    if end <= len(said) and all(
        same(w, said.tokens[at + k]) and (k == 0 or joins(k)) for k, w in enumerate(wanted)
    ):
        return end
    return 0 if any(t.numeric for t in wanted) else _end_joined(said, at, wanted)


def _end_joined(said: Said, at: int, wanted: Sequence[Token]) -> int:
    """The same for words joined or split otherwise: Spiderman, U.K., and ParisParis."""
    target, joined = "".join(t.word for t in wanted), ""
    for k in range(at, len(said)):
        if not said.words[k] or (k > at and not said.linked(k)):
            return 0
        joined += said.words[k]
        if joined == target:
            letters = all(len(t.raw) == 1 for t in said.tokens[at : k + 1])
            return k + 1 if len(target) > 3 or len(wanted) > 1 or letters else 0
        if not target.startswith(joined):
            repeated = len(target) > 3 and re.fullmatch(rf"(?:{re.escape(target)})+", joined)
            return k + 1 if repeated else 0
    return 0


def _within_longer(said: Said, i: int, j: int, phrase: Phrase) -> bool:
    """Whether words i to j are part of a longer name or word, and so say something else."""
    t, first = said.tokens, said.tokens[i]
    if re.match(r"\p{Han}|\p{Katakana}", first.raw):
        sides = [t[k].raw for k in (i - 1, j) if 0 <= k < len(said) and not t[max(k, i)].gap]
        return any(re.match(r"\p{Han}", s) and s not in _FREE_HAN for s in sides)
    before = t[i - 1] if said.linked(i) else None
    after = t[j] if said.linked(j) else None
    if said.hyphen(i) or (said.hyphen(j) and t[j].word not in ("based", "born", "style")):
        return True
    if first.numeric:
        return False
    if _possessive_of(said, j) or (after and _other_suffix(said, i, j, phrase)):
        return True
    proper = phrase.tokens[0].capital or first.capital
    if before and (before.capital or not said.cased):
        if proper and said.words[i - 1] in MODIFIERS:
            return True
        if before.word == "african" and first.raw.isupper():  # the West African CFA franc
            return True
        if before.capital and first.word in GENERIC and before.word not in FUNCTION:
            return True
    return is_place(t[i:j]) and (_extends_left(said, i) or _extends_right(said, i, j))


def _possessive_of(said: Said, j: int) -> bool:
    """Whether a match that ends at j only says whose relative or mayor is meant."""
    own = said.tokens[j - 1].raw.lower().endswith(("'s", "s'"))
    return own and j < len(said) and said.words[j] in KIN | TITLES


def _other_suffix(said: Said, i: int, j: int, phrase: Phrase) -> bool:
    """Whether a regnal number or "Sr." after a name makes it another one's ("Jr." does not)."""
    suffix = SUFFIXES.get(said.words[j], "jr")
    if suffix == "jr" or not phrase.tokens[0].capital or said.words[j - 1] in SUFFIXES:
        return False
    speaks = said.words[j + 1 : j + 2] and said.words[j + 1] in AUX | _SPEAKING
    return (said.tokens[j].capital or not said.cased) and not (suffix == "i" and speaks)


_SPEAKING = word_set("think believe guess say know see")


def _names_more(said: Said, k: int) -> bool:
    """Whether word k would lengthen the name of a place beside it."""
    t = said.tokens[k]
    matters = t.capital if said.cased or t.capital else len(said) <= 3
    ordinary = FUNCTION | FOREIGN_ARTICLES | CLAUSE_WORDS
    return bool(said.words[k]) and matters and said.words[k] not in ordinary


def _extends_left(said: Said, i: int) -> bool:
    if not said.linked(i) or not _names_more(said, i - 1):
        return False
    opens = said.breaks[i - 1] and said.cased and said.words[i - 1].endswith(("ly", "ing"))
    return not opens and said.words[i - 1] != said.words[i]


def _extends_right(said: Said, i: int, j: int) -> bool:
    if not said.linked(j) or not _names_more(said, j) or said.words[j] == said.words[i]:
        return False
    if said.words[j] == "city":
        return not is_city(said.tokens[i:j])
    return not any(level(said.tokens[j : j + n]) for n in (1, 2, 3))


def _is_common(phrase: Phrase) -> bool:
    """Whether a phrase is a letter, or words that occur in any English sentence."""
    words = [t.word for t in phrase.tokens if t.forms and t.value is None]
    if len(words) < len(phrase.tokens):
        return False
    letter = len(words) == 1 and len(words[0]) == 1 and words[0].isascii()
    return letter or all(w in FUNCTION | NEGATORS for w in words)


def _set_off(said: Said, i: int, j: int, phrase: Phrase) -> bool:
    """Whether such a word is meant as the answer: all that is said, or written and set off so."""
    rest = said.words[:i] + said.words[j:]
    if all(w in FUNCTION | _OPTION for w in rest) and (
        said.tokens[i].capital or not rest or not said.cased
    ):
        ends = said.breaks[j] or said.words[j] in CLAUSE_WORDS
        return ends or (said.words[j] in AUX and said.words[i] != "i")
    raw = " ".join(t.raw for t in said.tokens[i:j])
    if raw.replace(".", "") != phrase.text.replace(".", "") or not raw.isupper():
        return raw == phrase.text and len(phrase.tokens) > 1
    if len(raw) > 1:
        return said.cased or len(said) < 4
    marked = j == len(said) or bool(re.match(r"\s*[.:),;\]–—-]", said.tokens[j].gap))
    named = i > 0 and said.words[i - 1] in _OPTION
    return marked or named or (said.cased and raw not in "AI")


# ---- people and acronyms ---------------------------------------------------------------------


def _in_name(said: Said, k: int) -> bool:
    """Whether word k could be part of a name."""
    if not said.words[k]:
        return False
    ordinary = FUNCTION | CLAUSE_WORDS
    if not any(t.capital for t in said.tokens):
        return said.words[k] not in ordinary | NEGATORS
    if said.tokens[k].capital:
        will = said.words[k] in ("will", "may") and k + 1 < len(said) and said.tokens[k + 1].capital
        return said.words[k] not in ordinary or len(said.tokens[k].raw) == 1 or will
    return said.words[k] in PARTICLES and k + 1 < len(said) and said.tokens[k + 1].capital


def _names(said: Said) -> list[Span]:
    """Maximal runs of words that could be one name, titles before it left out."""
    runs: list[Span] = []
    k = 0
    while k < len(said):
        start = k
        while k < len(said) and _in_name(said, k) and (k == start or said.linked(k)):
            k += 1
        if k > start:
            while start < k - 1 and said.words[start] in TITLES:
                start += 1
            runs.append((start, k))
        else:
            k += 1
    return runs


def _person_spans(said: Said, want: Name) -> Iterator[Span]:
    """Where an answer names a person, in part or in other words than accepted."""
    runs = _names(said)
    for (i, j), after in itertools.zip_longest(runs, runs[1:]):
        if said.hyphen(i) or said.hyphen(j) or _possessive_of(said, j):
            continue
        if _same_person(want, said.tokens[i:j]):
            yield i, j
        elif after and after[0] == j and said.has(j, ","):  # Smith, John
            given = said.tokens[j : after[1]]
            if same_words(given[:1], want.first) and _same_person(want, given + said.tokens[i:j]):
                yield i, after[1]


def _same_person(want: Name, said: Sequence[Token]) -> bool:
    """Whether a name is that person's, given what it leaves out or abbreviates."""
    got = parse_name(said)
    if got is None or (got.suffix != want.suffix and {got.suffix, want.suffix} != {"", "jr"}):
        return False
    words = (*got.first, *got.middle, *got.last)
    surname = tuple(w for w in want.last if w not in PARTICLES)
    if words == want.last and len(words) > 1:
        return True
    if words in (want.first, want.last, surname):
        distinct = not set(words) & (COMMON | TITLES) and not is_place(said)
        return distinct and len("".join(words)) > 1
    if len(words) > 1 and words == (*want.middle, *want.last)[-len(words) :]:
        return True
    if got.last not in (want.last, surname):
        return False
    if _abbreviates(got.first[0], want.first[0]):
        shorter = not got.middle or not want.middle
        return shorter or (
            len(got.middle) == len(want.middle) and all(map(_abbreviates, got.middle, want.middle))
        )
    # "JF Kennedy": initials written together.
    together = not got.middle and said[0].raw.isupper() and len(said[0].raw) > 1
    return together and got.first[0] == "".join(w[0] for w in want.first + want.middle)


def _abbreviates(a: str, b: str) -> bool:
    return a == b or (min(len(a), len(b)) == 1 and a[0] == b[0])


def _expansions(said: Said, acronym: str) -> Iterator[Span]:
    """Where capitalised words spell an accepted acronym with their initials."""
    for i in range(len(said)):
        letters, j = "", i
        while j < len(said) and len(letters) < len(acronym) and (j == i or said.linked(j)):
            if said.tokens[j].capital and said.words[j]:
                letters += said.words[j][0]
            elif j == i or said.words[j] not in ("of", "and", "for", "in"):
                break
            j += 1
        inside = (said.linked(i) and _in_name(said, i - 1)) or (
            said.linked(j) and said.tokens[j].capital
        )
        if letters == acronym and j - i >= len(acronym) and not inside:
            yield i, j


# ---- hedges ----------------------------------------------------------------------------------

_JOINERS = word_set("or and nor vs")
_COMPANY = word_set("inc ltd llc phd md esq")


def _hedged(said: Said, spans: Sequence[Span], good: Sequence[Span]) -> bool:
    """Whether an answer offers something that is not accepted beside what is."""
    # The first match of a clause is what the clause is about; what follows in it describes.
    heads = {said.clause[i]: (i, j) for i, j in sorted(good, reverse=True)}
    whole = [(i, max(b for a, b in spans if a <= i < b)) for i, _ in heads.values()]
    covered = {k for i, j in spans for k in range(i, j)}
    return any(
        _beside(said, (min(a for a, b in spans if a <= i < b), j), covered, step)
        for i, j in whole
        for step in (1, -1)
    ) or _maybe_else(said, _kind(said, good[0][0]), covered)


def _kind(said: Said, i: int) -> str:
    """What sort of answer begins at word i; without capitals, names look like words."""
    t = said.tokens[i]
    if t.numeric:
        return "number"
    if t.capital:
        return "name"
    return "word" if said.cased else "any"


def _maybe_else(said: Said, kind: str, covered: Collection[int]) -> bool:
    """Whether a clause of its own says "maybe" or "it could be" of something else."""
    for _, group in itertools.groupby(range(len(said)), key=lambda k: said.clause[k]):
        inside = list(group)
        maybe = next((k for k in inside if said.words[k] in MAYBE), None)
        if maybe is None or any(said.denied[k] or k in covered for k in inside):
            continue
        rest = [said.tokens[k] for k in inside if k > maybe and said.words[k] not in FUNCTION]
        numeric, short = any(t.numeric for t in rest), 0 < len(rest) <= 3
        if kind == "number":
            found = numeric
        elif kind == "name":
            found = short and any(t.capital for t in rest)
        else:
            found = 0 < len(rest) <= 2 and not numeric
        if found:
            return True
    return False


def _beside(said: Said, span: Span, covered: Collection[int], step: int) -> bool:
    """Whether the list that a match stands in offers an alternative, to its right or left.

    Items that are matches themselves, or places that contain one another, are passed over.
    """
    kind, bare = _kind(said, span[0]), _bare(said, span)
    inner = _without_lead(said, span)
    in_place = span[0] > 0 and said.words[span[0] - 1] in ("in", "at")
    edge = span[1] if step > 0 else span[0]
    while (found := _next_item(said, edge, step, bare)) is not None:
        item, joined = found
        edge = item[1] if step > 0 else item[0]
        words = _without_lead(said, item)
        if covered & set(range(*item)):
            inner = words
            continue
        if any(said.denied[k] for k in range(*item)):
            return False
        nested = _contains(words, inner) or _contains(inner, words)
        if (nested and joined in (",", ".")) or said.words[item[0]] in {*SUFFIXES, *_COMPANY}:
            inner = words
            continue
        if not _alternative(said, item, kind, step, joined):
            return False
        # "born in Ulm, Württemberg" is a place, "in Ulm, Munich, Bern" a list.
        listed = said.has(edge, ",、،") if 0 < edge < len(said) else False
        return not (joined == "," and in_place and step > 0 and not listed)
    return False


def _next_item(said: Said, edge: int, step: int, bare: bool) -> tuple[Span, str] | None:
    """The list item next to word ``edge``, and what joins it: "or", "and", "/", "," or "."."""
    n = len(said)
    if (end := _range_end(said, edge, step)) is not None:
        return (end, end + 1), "to"
    if step > 0:
        opened = said.has(edge, "(") and not said.has(edge, ")")
        if opened and said.words[edge] not in _JOINERS:  # a gloss in brackets
            edge += 1
            while edge < n and not said.has(edge, ")"):
                edge += 1
    else:
        led = ARTICLES | PREPOSITIONS | MAYBE | {"either", "also", "be", "it", "is"}
        while (
            edge > 0
            and not said.breaks[edge]
            and not said.has(edge, ",/|、،")
            and (said.words[edge - 1] in led)
        ):
            edge -= 1
    if not 0 < edge < n:
        return None
    beyond = edge if step > 0 else edge - 1
    joined = ""
    if said.words[beyond] in _JOINERS and (step > 0 or not said.breaks[edge]):
        joined = said.words[beyond]
    elif said.has(edge, "/|"):
        joined = "/"
    elif said.has(edge, ",、،"):
        joined = ","
    elif bare and said.breaks[edge] and said.has(edge, ";.!?\n…。।"):
        joined = "."
    if not joined or (said.breaks[edge] and joined in (",", "/")):
        return None
    start = beyond + step if joined in _JOINERS else beyond
    i = j = start if step > 0 else start + 1
    while 0 <= (k := j if step > 0 else i - 1) < n and said.words[k] not in _JOINERS:
        cut = k if step > 0 else k + 1
        if i != j and (said.breaks[cut] or said.has(cut, ",/|、،")):
            break
        i, j = (i, j + 1) if step > 0 else (i - 1, j)
    return ((i, j), joined) if i < j else None


def _range_end(said: Said, edge: int, step: int) -> int | None:
    """The other end of a range of numbers (1939 to 1945, 1939 – 1945) that one end is at edge."""
    own, other = (edge - 1, edge) if step > 0 else (edge, edge - 1)
    if 0 <= other < len(said) and said.words[other] == "to":
        other += step
    elif not said.has(max(own, other), "-–—"):
        return None
    if not 0 <= other < len(said):
        return None
    return other if said.tokens[own].numeric and said.tokens[other].numeric else None


def _alternative(said: Said, item: Span, kind: str, step: int, joined: str) -> bool:
    """Whether a list item is an answer of the same kind as the match it is listed with."""
    i, j = item
    loose = joined in ("or", "/") or any(said.words[k] in MAYBE for k in range(i, j))
    article = said.tokens[i].article
    if joined == "." and (j - i > 3 or FUNCTION & set(said.words[i + 1 : j]) or said.has(j, ":")):
        return False
    if joined == "and" and step > 0 and said.words[i] in PRONOUNS | AUX:
        return False
    lead = FUNCTION if loose else FUNCTION - PREPOSITIONS
    while (
        i < j
        and (said.words[i] in lead or (said.words[i].endswith("ly") and not said.tokens[i].capital))
        and not said.tokens[i].raw.isupper()
    ):
        i += 1
    words = said.tokens[i:j]
    if not words:
        return False
    if kind == "number":
        return words[0 if step > 0 else -1].numeric and len(words) <= 3
    if any(t.numeric for t in words):
        return False
    if joined == "," and article and len(words) > 1:  # a wolf, a fierce animal
        return False
    if kind == "name":
        if loose:
            near = words[0 if step > 0 else -1]
            return near.capital and (near.word not in FUNCTION or near.raw.isupper())
        titled = words[0].word in TITLES and len(words) > 2
        named = all(t.capital or t.word in PARTICLES | {"of"} for t in words)
        return named and not titled and len(words) <= 4
    longest = 3 if loose else 1 if joined == "and" else 2
    ordinary = FUNCTION | NEGATORS | CLAUSE_WORDS
    plain = len(words) <= longest and not any(t.word in ordinary for t in words)
    return plain and (kind == "any" or loose or not words[0].capital)


def _without_lead(said: Said, item: Span) -> Sequence[Token]:
    return [said.tokens[k] for k in range(*item) if said.words[k] not in PREPOSITIONS]


def _contains(inner: Sequence[Token], outer: Sequence[Token]) -> bool:
    """Whether ``outer`` is a region of a wider kind than ``inner``, as far as names tell."""
    return level(outer) > level(inner) or (level(outer) == 2 and is_city(inner))


def _bare(said: Said, span: Span) -> bool:
    """Whether a match is all of its sentence or line, but for what leads to it."""
    i, j = span
    while not said.breaks[i]:
        i -= 1
    while not said.breaks[j]:
        j += 1
    outside = (*range(i, span[0]), *range(span[1], j))
    return all(said.words[k] in FUNCTION | TITLES for k in outside if said.tokens[k].forms)


# ---- the verdict -----------------------------------------------------------------------------

_YES_NO = {"yes": 1, "yeah": 1, "yep": 1, "true": 1, "correct": 1, "no": 0, "nope": 0, "false": 0}


#: An internet domain written with its dot; many are ordinary words without it.
_DOMAIN = re.compile(r"(?<![\w.])\.[a-z]{2,6}\b(?!\.\w)")


def _twohop(answer: str, accepted: Sequence[str]) -> bool:
    text = own_turn(answer)
    shown = [own_turn(a) for a in accepted if a.strip()]
    if not re.search(r"\w", text):
        return bool(text) and text in shown
    if _trimmed(text) in map(_trimmed, shown):
        return True
    given = set(_DOMAIN.findall(text.lower()))
    if given and any(_DOMAIN.fullmatch(a.lower()) for a in shown):
        denied = any(re.search(rf"\bnot (?:\w+ )*{re.escape(d)}\b", text.lower()) for d in given)
        return given <= {a.lower() for a in shown} and not denied
    wanted = [p for a in shown for p in phrases(a)]
    if all(len(p.tokens) == 1 and p.tokens[0].word in _YES_NO for p in wanted):
        return _polarity(text) in {_YES_NO[p.tokens[0].word] for p in wanted}
    text, options = stated(text, any(p.tokens and p.tokens[0].capital for p in wanted))
    if options > 1 and all(len(p.text) == 1 for p in wanted):
        return False
    # "B. Paris" may be a choice and its letter; "B. Obama" is a name.
    apart = re.sub(r"^\(?([A-Ha-h])[).:]\s+(?=\S)", r"\1: ", text)
    if _commits(text, wanted) or _commits(apart, wanted):
        return True
    said = read(text)
    for phrase in wanted:
        members = [p for m in members_of(phrase) for p in [phrases(m)]]
        if members and all(
            any(not any(said.denied[i:j]) for p in forms for i, j in _spans(said, p))
            for forms in members
        ):
            return _commits(text, [p for forms in members for p in forms])
    return False


def _trimmed(text: str) -> str:
    return re.sub(r"[\s.!]+$", "", text).casefold()


def _commits(text: str, wanted: Sequence[Phrase]) -> bool:
    """Whether a text claims one of the phrases and nothing else."""
    spans = sorted({span for p in wanted for span in _spans(read(text), p)})
    said = read(text, {k for i, j in spans for k in range(i, j)})
    good = [
        (i, j)
        for i, j in spans
        if not any(said.denied[i:j]) and not _COMPARED.search(_before(said, i))
    ]
    return bool(good) and not _hedged(said, spans, good)


def _before(said: Said, i: int) -> str:
    """Up to eight words before word i in its sentence, commas kept, with a space at the end."""
    text, k = "", i
    while k > max(0, i - 8) and not said.breaks[k]:
        comma = "," if said.has(k, ",") else ""
        if comma and k == i:
            return ""
        k -= 1
        text = f"{said.tokens[k].raw}{comma} {text}"
    return (", " if k and said.has(k, ",") else "") + text


def _polarity(text: str) -> int | None:
    """1 for yes, 0 for no, None if an answer says neither, or both at once ("yes and no")."""
    said = read(text)
    k = next((k for k, w in enumerate(said.words) if w in _YES_NO), None)
    if k is None or {"and", "or"}.intersection(said.words[k + 1 : k + 2]):
        return None
    turned = k > 0 and said.words[k - 1] == "not" and said.linked(k)
    return 1 - _YES_NO[said.words[k]] if turned else _YES_NO[said.words[k]]


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
