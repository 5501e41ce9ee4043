"""What a model answers in the end: the part of its reply that states the answer.

``EXTRACTION`` is a chain of named clauses: each takes a text and returns the part of it that still
counts. Statements that stand for themselves (the fields of a fact sheet, the cells of a table) come
out separated by ``PART``.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Collection
from functools import lru_cache

import regex as re

from twohop_lib.scoring.leaks import APOSTROPHES

PART = "¶"
#: Signs that the comparison sets; none comes from a reply.
MARKS = "@§¤"
#: Of a longer text without its reasoning, only the beginning and the end are read.
LONGEST = 4000

_THINK = r"(?:\w+:)?(?:think\w*|thoughts?|reason\w*|analysis|reflection|plan|summary|caption)"
#: Marks of reasoning and of answers in all notations, by the tag they stand for.
_MARKS = [
    (re.compile(mark, re.I), tag)
    for mark, tag in (
        (rf"<{_THINK}>", "<think>"),
        (rf"</{_THINK}>", "</think>"),
        (r"<\|(?:think\w*|START_THINKING|begin_of_thought)\|>|<unused94>", "<think>"),
        (r"<\|(?:/think\w*|END_THINKING|end_of_thought)\|>|<unused95>", "</think>"),
        (r"◁think▷|\[THINK\]", "<think>"),
        (r"◁/think▷|\[/THINK\]", "</think>"),
        (r"<\|channel\|?>(?:analysis|commentary|thought)", "<think>"),
        (r"<\|channel\|>final|<channel\|>", "</think>"),
        (r"<\|(?:begin_of_(?:box|solution)|START_RESPONSE)\|>", "<answer>"),
        (r"<\|(?:end_of_(?:box|solution)|END_RESPONSE)\|>", "</answer>"),
    )
]
_MARK = re.compile(r"<\|channel\|?>\w+|[<◁\[][^\s<>◁▷\[\]]{2,30}[>▷\]]")
_TAGGED = re.compile(
    r"<(answer|conclusion|final\w*|response|solution|output|result)>((?:(?!</?\1>).)*)", re.I | re.S
)
_SPECIAL = re.compile(
    r"<\|[^|<>]{1,40}\|>|</s>|<(?:[be]os|pad|unk|(?:start|end)_of_\w+)>|\[/?INST\]|\[STOP\]", re.I
)
_ASKS = (
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|does|do|did|can|could|name"
    r"|tell|in which)\b"
)
_ECHO = re.compile(
    r"\s*(?:(?:user|human|question|q)\s*:.*?(?:assistant|answer|\ba)\s*:"
    r"|\#*\s*(?:assistant|response)\s*:)",
    re.I | re.S,
)
_NEXT_TURN = re.compile(
    r"\n[\s#]*(?:user|human|question|instruction|assistant|system|q)\s*\d*\s*:"
    rf"|\s(?-i:USER|HUMAN|ASSISTANT|Human|Question)\s*:|\n\s*{_ASKS}[^\n?]*\?",
    re.I,
)
_LATEX = re.compile(r"\\(?:[nt](?=\p{Lu})|[a-zA-Z]+\s*|[^\w\s]|\s)|[{}]")
_PAIR = re.compile(
    r"""["'](\w[\w ]{0,40})["']\s*:\s*("[^"]*"?|'[^']*'?|\[[^\]]*\]?|[^,}\]\n]*)[\s,}]*"""
)
_TABLE, _RULE = re.compile(r"^.*\|.*$", re.M), re.compile(r"^[ \t|:-]*--[ \t|:-]*$", re.M)
_HEADING = re.compile(r"^\#+ *(.{1,40}?)[ :]*$(?=\s*\n)", re.M)
_NUMBERED = re.compile(r"^\s*(\d{1,2})[.)]\s+", re.M)
_LETTERED = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-H])[).:](?=\s*\S)")
_FIELD = re.compile(r"\s*(?:\d{1,2}[.)]\s*)?(?!if\b)(\p{L}[\p{L} _-]{1,28}?)\s*[:=]\s*(\S.*)", re.I)
_STATES = (
    r"(?i:(?:the |my )?(?:final |correct |short |best |top |first )?"
    r"(?:answer|response|conclusion|result|prediction|guess|most likely))"
)
_ASIDE = re.compile(
    r"reason|expla|thought|think|analys|rationale|justif|confiden|probab|score|alternativ|other"
    r"|less likely|unlikely|second|third|runner|note|descri|caption|observ|eviden|context|source",
    re.I,
)
_CUE = re.compile(
    r"(?<!wrong |incorrect |first )\banswer\s*(?:(?:is|was|would be|must be|should be)\b|[:=])"
    r"(?=\W*\w)"
    r"|\b(?:most likely|most probably|my best guess|i(?:'d| would) (?:say|choose|go (?:for|with)))"
    r"(?:,? (?:it|this|the \w+))?(?: is)?:? "
    r"(?=[\w+.])",
    re.I,
)
_CORRECTION = re.compile(
    r"(?:^|[.,;:?!…()–—\n-])\s*(?:oh |hmm,? |and |but )?(?:"
    r"no,? (?:wait|sorry|actually)|(?<!(?:^|[^.])\.)no\s*(?=[,.!;:…–—-])"  # but the domain .no
    r"|no(?= it\b| that\b| (?-i:\p{Lu}))"
    r"|(?:wait|hold on|sorry|actually|i mean|i meant|correction|let me correct \w+|scratch that"
    r"|oops|my mistake|on second thoughts?|or rather)\b|(?<=but )(?:in fact|actually|really)\b)"
    r"[\s,.:;!–—-]*"
    r"|\bbut (?:in fact |actually |really )?"
    r"(?=(?:it|this|he|she|they|the \w+)(?:'s| is| was| are| were)\b(?! also| not| often| never))",
    re.I,
)
_POLITE = re.compile(r"(?:sure|ok|okay|hello|yes|great|certainly|assistant)\b", re.I)


def clean(text: str) -> str:
    """The text with plain characters for look-alikes, and without what shows nothing."""
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = re.sub(f"[{APOSTROPHES}]", "'", re.sub(r"\p{Cf}", "", text))
    return re.sub(rf"[▁Ġ_{PART}{MARKS}]", " ", text)


def _shortened(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n{text[-half:]}"


@lru_cache(maxsize=1024)
def _tag(mark: str) -> str:
    return next((tag for pattern, tag in _MARKS if pattern.fullmatch(mark)), mark)


def _reasoning(text: str) -> str:
    text = _MARK.sub(lambda m: _tag(m[0]), text)
    after = text[text.rfind("</think>") + 1 :].removeprefix("/think>")
    text = (after if after.strip() else text).partition("<think>")[0]
    if text.lstrip().startswith("thought\n"):  # the channel's mark was no special token
        text = text.rstrip().rsplit("\n", 1)[-1]
    return text


def _tagged(text: str) -> str:
    return next((m[2] for m in reversed([*_TAGGED.finditer(text)]) if m[2].strip()), text)


def _own_turn(text: str) -> str:
    text = next((part for part in _SPECIAL.split(text) if part.strip()), "")
    if echo := _ECHO.match(text):
        text = text[echo.end() :]
    text = text.strip()
    if following := _NEXT_TURN.search(text):
        text = text[: following.start()]
    return text


def _boxed(text: str) -> str:
    start = end = text.rfind("\\boxed{") + len("\\boxed{")
    if "\\boxed{" not in text:
        return text
    depth = 1
    while end < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[start : end - (depth == 0)].replace("$", "")


def _latex(text: str) -> str:
    return _LATEX.sub(" ", re.sub(r"\$([^$\n]{1,60})\$", r"\1", text)) if "\\" in text else text


def _json(text: str) -> str:
    return _PAIR.sub(lambda m: f"\n{m[1]}: {m[2]}\n", text)


def _tables(text: str) -> str:
    if not _RULE.search(text):
        return text

    def row(m: re.Match[str]) -> str:
        cells = m[0].strip(" \t|").split("|")
        return ": ".join(cells) if len(cells) == 2 else PART + PART.join(cells)

    return _TABLE.sub(row, _RULE.sub("", text))


def _markup(text: str) -> str:
    text = re.sub(r"~~[^~\n]*~~|</?\w{1,12}/?>|```\w*|^\s*>+ ", " ", text, flags=re.M)
    text = _HEADING.sub(r"\1: ", text)
    text = re.sub(r"[*`\"“”„«»]+", "", re.sub(r"^\s*(?:[*•-]\s+|\#+ ?)", "", text, flags=re.M))
    return re.sub(r"[ \t]+", " ", text).strip()


def _listed(text: str) -> str:
    """Numbered or lettered items without their numbers, a line each."""
    for marker, first in ((_NUMBERED, {"1", "2"}), (_LETTERED, {"A", "B"})):
        if first <= {*marker.findall(text)}:
            text = marker.sub("\n", text).strip()
    return text


def _fields(text: str) -> str:
    """The field that states the answer; else all fields but those that only comment on it."""
    text = re.sub(r"(?<=[.!?;,])\s+(?!If )(?=\p{Lu}[\p{L} ]{1,25}: )", "\n", text)
    kept, fields, stated = [], 0, ""
    text = re.sub(rf"^({_STATES})\s*\n", r"\1: ", text, flags=re.M)  # a heading
    for line in re.sub(r":\s*\n", ": ", text).split("\n"):
        field = _FIELD.fullmatch(line)
        if field and re.fullmatch(_STATES, field[1]):
            stated = field[2]
        elif not (field and _ASIDE.match(field[1])):
            kept.append(line)
            fields += bool(field)
    return stated or (f"\n{PART}" if fields > 1 else "\n").join(kept)


def _cued(text: str) -> str:
    cues = [m.start() for m in _CUE.finditer(text)]
    return text[cues[-1] :] if cues else text


def _corrected(text: str) -> str:
    """What follows the last correction that names something."""
    for marker in reversed([*_CORRECTION.finditer(text)]):
        rest = text[marker.end() :]
        short = 0 < len(rest.split()) < 5 and not marker[0].startswith("but")
        denies = re.match(r"\W*not\b", rest) and marker[0].strip(" ,.").lower() != "no"
        if (short or re.search(r"[\p{Lu}\d]", rest)) and not denies:
            return rest
    return text


def _own_line(text: str) -> str:
    """The line that is the answer alone, before or after an explanation."""
    lines = [line for line in text.split("\n") if line.strip()]
    bare = [len(s.split()) <= 4 and bool(re.match(r"\s*(?:[+.\p{Lu}\d]|\w+$)", s)) for s in lines]
    if PART in text or len(lines) < 2 or all(bare):
        return text
    if bare[0] and not bare[1] and not _POLITE.match(lines[0]):
        return lines[0]
    return lines[-1] if bare[-1] and not any(bare[:-1]) else text


EXTRACTION: dict[str, Callable[[str], str]] = {
    "reasoning": _reasoning,
    "plain characters": clean,
    "answer tags": _tagged,
    "own turn": _own_turn,
    "last box": _boxed,
    "LaTeX": _latex,
    "JSON": _json,
    "tables": _tables,
    "markup": _markup,
    "list items": _listed,
    "fields": _fields,
    "the answer is": _cued,
    "corrections": _corrected,
    "line of its own": _own_line,
}


def final_answer(reply: str, without: Collection[str] = ()) -> str:
    """The part of a reply that states its answer; "" if it never comes to one.

    ``without`` names clauses to leave out.
    """
    text = reply
    for name, clause in EXTRACTION.items():
        if name not in without:
            text = _shortened(clause(text))
    return text
