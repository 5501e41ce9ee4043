"""What a model's turn claims: the part that states its answer, clause by clause.

Serves :mod:`twohop_lib.scoring.matching`, whose docstring gives the rule.
"""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

import regex as re

from twohop_lib.scoring.leaks import APOSTROPHES
from twohop_lib.scoring.words import (
    AUX,
    BE,
    FUNCTION,
    LEADS,
    NEGATORS,
    PRONOUNS,
    Token,
    tokenise,
    word_set,
)

# ---- the model's own turn --------------------------------------------------------------------

_SPECIAL = re.compile(
    r"<\|.*?\|>|</?s>|<(?:end_of_turn|start_of_turn|eos|bos|pad|unk)>|\[/?INST\]|\[STOP\]", re.I
)
_ASKS = (
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|does|do|did|could|can|name"
    r"|tell|in which)\b"
)
_NEXT_TURN = re.compile(
    r"\n\s*(?:\#+\s*)?(?:user|human|question|instruction|assistant|system|q)\s*\d*\s*:"
    r"|\s(?-i:USER|HUMAN|ASSISTANT|Human|Question)\s*:|\n\s*\#\#\#"
    rf"|\n\s*{_ASKS}[^\n?]*\?",
    re.I,
)
_ASKED = re.compile(r"\s*(?:user|human|question|q)\s*:", re.I)
_ANSWERED = re.compile(r"(?:assistant|answer|\ba)\s*:", re.I)
_ROLE = re.compile(r"\s*(?:\#+\s*)?(?:assistant|system|instruction|response)\s*:\s*", re.I)
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|$)|^.*</think(?:ing)?>", re.S | re.I)
_BOX = re.compile(r"\\(?:boxed|text|mathbf|mathrm|textbf)\{([^{}]*)\}")
_CONTRACTIONS = (
    (r"(?<=\w)n't\b", " not"),
    (r"\bca not\b|\bcan not\b", "cannot"),
    (r"\bwo not\b", "will not"),
)

# ---- the part that states the answer ---------------------------------------------------------

#: Turns of phrase that only look like negations, alternatives or corrections.
_IDIOMS = [
    (re.compile(rf"\b(?:{pattern})(?!\w)", re.I), by)
    for pattern, by in (
        (r"(?:there(?:'s| is) )?(?:no|without(?: a| any)?) (?:doubt|question)(?: that)?", " "),
        (r"none other than|no other than|nothing but|no one but|nobody but|why not", " "),
        (r"anything but", "not"),
        (r"not (?:only|just|merely)", " "),
        (r"but also", "and"),
        (r",? (?:is|was|are|does|did) not (?:it|he|she|they)(?=\s*\?)", " "),
        (r"or (?:so|less|more)", " "),
        (r"per cent", "percent"),
        (r"of course|i'm sorry|i am sorry", " "),
        (r"(?:who|which|what)ever|whether or not", " "),
    )
]
_ANSWER_IS = re.compile(
    r"(?<!wrong |incorrect |first )\banswer\b"
    r"(?:\s+(?:is|was|would be|must be|should be)\b|\s*[:=])(?=.*\w)",
    re.I | re.S,
)
_CORRECTION = re.compile(
    r"(?:^|[.,;:?!…()–—\n-])\s*(?:oh |hmm |and |but )?(?:"
    r"no\s*(?=[,.!;:…–—-])|no,? (?:wait|sorry|actually)|no(?= it\b| that\b| (?-i:\p{Lu}))"
    r"|(?:wait|hold on|sorry|actually|i mean|i meant|correction|scratch that|oops|my mistake"
    r"|on second thoughts?|or rather)\b|(?<=but )(?:in fact|actually|really)\b)[\s,.:;!–—-]*"
    r"|\bbut (?:in fact |actually |really )?"
    r"(?=(?:it|this|he|she|they|the \w+)(?:'s| is| was| are| were)\b(?! also| not| often| never))",
    re.I,
)
_QUESTION = re.compile(rf"(?:^|(?<=[.!?\n]))\s*{_ASKS}[^.!?\n]*\?", re.I)
_LETTERS = re.compile(r"(?:(?<=^)|(?<=[\s,;]))\(?([A-H])[).:](?=\s*\S)", re.I)
_NUMBERS = re.compile(r"(?:^|\n)\s*\d{1,2}[.)]\s+")


def own_turn(answer: str) -> str:
    """The model's own turn, without reasoning blocks and markup."""
    text = unicodedata.normalize("NFKC", html.unescape(answer))
    text = re.sub(f"[{APOSTROPHES}]", "'", text)
    text = _THINKING.sub(" ", text)
    text = re.sub(rf"^\s*(?:(?:{_SPECIAL.pattern})\s*)+", "", text, flags=re.I)
    if _ASKED.match(text):
        text = _ANSWERED.split(text, maxsplit=1)[-1]
    text = text.removeprefix(role[0]) if (role := _ROLE.match(text)) else text.strip()
    for end in (_SPECIAL, _NEXT_TURN):
        if (m := end.search(text)) and text[: m.start()].strip():
            text = text[: m.start()]
    while _BOX.search(text):
        text = _BOX.sub(r"\1", text)
    text = re.sub(r"</?[a-z]{1,6}>|~~.*?~~|_+", " ", text)
    text = re.sub(r"^\s*(?:[-*•>]|\#+)\s+", "", text, flags=re.M)
    return re.sub(r"[*`\"“”«»]+", "", text).strip()


def stated(text: str, proper: bool) -> tuple[str, int]:
    """The part of a turn that states the answer, and how many lettered options it lists.

    That is from the last "the answer is" on, and from the last correction on. A correction must
    name something: a capitalised word if the accepted answers are ``proper`` names.
    """
    for pattern, by in _CONTRACTIONS:
        text = re.sub(pattern, by, text)
    for idiom, by in _IDIOMS:
        text = idiom.sub(by, text)
    if cues := list(_ANSWER_IS.finditer(text)):
        ends = [m.end() for m in re.finditer(r"[.!?\n]\s", text[: cues[-1].start()])]
        text = text[ends[-1] if ends else 0 :]
    for marker in reversed(list(_CORRECTION.finditer(text))):
        rest = text[marker.end() :]
        content = [t for t in tokenise(rest) if t.numeric or t.word not in FUNCTION | NEGATORS]
        names = len(content) <= 4 or not proper or any(t.capital for t in content)
        if content and names and (marker[0].strip(" ,.").lower() == "no" or not _denies(rest)):
            text = rest
            break
    text = asserted if re.search(r"\w", asserted := _QUESTION.sub(" ", text)) else text
    if len(_NUMBERS.findall(text)) > 1:
        text = _NUMBERS.sub("\n", text)
    letters = {m[1].lower() for m in _LETTERS.finditer(text)}
    if len(letters) > 1 and letters & {"a", "b"}:
        return _LETTERS.sub("\n", text), len(letters)
    return text, min(len(letters), 1)


def _denies(text: str) -> bool:
    return bool(re.match(r"\W*not\b", text, re.I))


# ---- clauses, and what they deny -------------------------------------------------------------

_BOUNDARY = re.compile(r"[;:!?()\[\]{}\n…]|\.\.+|\s[-–—]+\s|—|[。．！？،؛।]")
_LINK = re.compile(r"[ \t\-‐-―'.·・]*")
_ABBREVIATIONS = word_set("dr mr mrs ms st jr sr prof no vs etc inc co ltd mt ft gen lt col sgt c")
CLAUSE_WORDS = word_set(
    "but however although though because since while whereas which who whose where when yet so if"
)
_PREDICATES = word_set("wrong incorrect false untrue mistaken never")
_OPINIONS = word_set("think believe say assume claim thought believed said assumed claimed")
_OTHERS = word_set("many some most people others")


@dataclass(frozen=True)
class Said:
    """An answer as words, with where its sentences and clauses begin and what is denied.

    ``words`` are "" for numbers and dates. ``breaks[k]`` says that a sentence, line or bracket
    begins before word k (and at the end); ``clause[k]`` numbers the clause of word k; ``cased``
    says that capitals carry meaning.
    """

    tokens: tuple[Token, ...]
    words: tuple[str, ...]
    breaks: tuple[bool, ...]
    clause: tuple[int, ...]
    denied: tuple[bool, ...]
    cased: bool

    def __len__(self) -> int:
        return len(self.tokens)

    def linked(self, k: int) -> bool:
        """Whether nothing but a space, hyphen or dot separates words k - 1 and k."""
        return not self.breaks[k] and bool(_LINK.fullmatch(self.tokens[k].gap))

    def hyphen(self, k: int) -> bool:
        """Whether a hyphen joins words k - 1 and k."""
        return 0 < k < len(self) and self.tokens[k].gap in tuple("-‐‑–")

    def has(self, k: int, marks: str) -> bool:
        """Whether one of the marks stands before word k."""
        return k < len(self) and any(mark in self.tokens[k].gap for mark in marks)


def read(text: str, kept: Collection[int] = ()) -> Said:
    """Split a text into clauses and find what each denies.

    ``kept`` are the words that belong to a match: they neither deny nor begin a clause.
    """
    tokens = tuple(tokenise(text))
    words = tuple(t.word if t.forms and t.value is None else "" for t in tokens)
    breaks = tuple(
        k in (0, len(tokens)) or _begins_sentence(tokens, k) for k in range(len(tokens) + 1)
    )
    acting = tuple("" if k in kept else w for k, w in enumerate(words))
    clause, current = [], 0
    for k in range(len(tokens)):
        current += k > 0 and (
            breaks[k] or "," in tokens[k].gap or _begins_clause(tokens, acting, k)
        )
        clause.append(current)
    raws = [t.raw for t in tokens if t.raw[:1].isalpha()]
    cased = any(r[0].islower() for r in raws) and any(r[0].isupper() for r in raws)
    denied = _denied(acting, breaks, clause)
    return Said(tokens, words, breaks, tuple(clause), tuple(denied), cased)


def _begins_sentence(tokens: tuple[Token, ...], k: int) -> bool:
    if _BOUNDARY.search(tokens[k].gap):
        return True
    before = tokens[k - 1]
    initial = len(before.raw) == 1 and before.raw.isupper()
    return (
        bool(re.search(r"\.\s", tokens[k].gap))
        and not initial
        and before.word not in _ABBREVIATIONS
    )


def _begins_clause(tokens: tuple[Token, ...], words: tuple[str, ...], k: int) -> bool:
    """Whether a clause begins at word k without any mark: "but", "and it is", "Paris not …"."""
    ahead = words[k + 1 : k + 5]
    if words[k] == "and":
        fresh = NEGATORS | {"it", "he", "she", "they"}
        return bool(fresh.intersection(ahead[:1]) or BE.intersection(ahead[1:]))
    if words[k] == "not":
        return tokens[k - 1].capital and words[k - 1] not in AUX
    return words[k] in CLAUSE_WORDS


def _denied(words: tuple[str, ...], breaks: tuple[bool, ...], clause: list[int]) -> list[bool]:
    """What is denied: the rest of a negator's clause, and what comes before "is not"."""
    denied = [False] * len(words)
    for _, group in itertools.groupby(range(len(words)), key=lambda k: clause[k]):
        inside = list(group)
        first, last = inside[0], inside[-1]
        for k in inside:
            hearsay = words[k] in _OPINIONS and _OTHERS.intersection(words[first:k])
            if not hearsay and (words[k] not in NEGATORS or _harmless(words, k, first, last)):
                continue
            predicate = k > first and (words[k - 1] in AUX or words[k] in _PREDICATES)
            for other in range(first if predicate else k + 1, last + 1):
                denied[other] = other != k
        # "not Paris, Lyon or Rome" goes on denying; "not Paris, Lyon" corrects.
        if denied[last]:
            stop = AUX | CLAUSE_WORDS | PRONOUNS | (NEGATORS - {"nor"})
            end = last + 1
            while end < len(words) and not breaks[end] and words[end] not in stop:
                end += 1
            if {"or", "nor"}.intersection(words[last + 1 : end]):
                denied[last + 1 : end] = [True] * (end - last - 1)
    return denied


def _harmless(words: tuple[str, ...], k: int, first: int, last: int) -> bool:
    """Whether a negator denies nothing: "no" as an interjection, or just "not sure"."""
    if words[k] == "no":
        return k == first and (k == last or words[k + 1] in PRONOUNS | LEADS)
    unsure = words[k] == "not" and {"sure", "certain"}.intersection(words[k + 1 : k + 3])
    return bool(unsure) and k + 2 >= last
