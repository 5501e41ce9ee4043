"""Models that think aloud: switched off where their chat template can, told apart where not."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import loopcontrols

#: New tokens that a model gets beside its answer's where its template opens reasoning regardless.
BUDGET = 512
#: Variables of chat templates that switch reasoning off, and the values that do.
_SWITCHES: dict[str, tuple[Any, ...]] = {
    "enable_thinking": (False,),
    "enable_reasoning": (False,),
    "thinking": (False,),
    "reasoning": (False,),
    "think": (False,),
    "thinking_budget": (0,),
    # Words, of which the first that the template itself names is taken.
    "reasoning_effort": ("none", "off", "no_think", "minimal", "low"),
    "thinking_effort": ("none", "off", "minimal", "low"),
    "thinking_mode": ("off", "disabled", "no_think", "none", "chat"),
}
#: Marks between which models think, in their tokenizers' notations.
_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|think|>", "<|/think|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
)


@lru_cache(maxsize=64)
def switched_off(template: str) -> tuple[tuple[str, Any], ...]:
    """The variables of a chat template that switch its reasoning off, with their values."""
    try:
        # A tag of transformers' own, which marks what the model says.
        parsed = Environment(extensions=[loopcontrols], autoescape=True).parse(
            re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template)
        )
    except TemplateError:
        return ()
    known = meta.find_undeclared_variables(parsed)
    found = []
    for name, values in _SWITCHES.items():
        if name in known:
            named = [
                v for v in values if not isinstance(v, str) or re.search(f"['\"]{v}['\"]", template)
            ]
            found.append((name, (named or values[-1:])[0]))
    return tuple(found)


def opens(text: str) -> bool:
    """Whether a prompt's text ends inside of a block of reasoning."""
    return any(
        text.rfind(begin) > text.rfind(end)
        and len(text) - text.rfind(begin) - len(begin) <= len("\n\n")
        for begin, end in _MARKS
    )


def without_reasoning(tokenizer: Any, ids: list[int], opened: bool) -> str:
    """Return generated ids as text, without reasoning, by the tokenizer's own marks.

    ``opened``: the prompt ended inside of it. Of reasoning that does not end nothing is left,
    however much it looks like an answer.
    """
    raw = tokenizer.decode(ids, skip_special_tokens=False)
    begun = opened or raw.lstrip().startswith(tuple(begin for begin, _ in _MARKS))
    ends = [raw.rfind(end) + len(end) for begin, end in _MARKS if end in raw]
    if begun and not ends:
        return ""
    # The first token from which on nothing of the last mark is left.
    since = max(ends, default=0)
    told = raw[:since]
    kept = next(n for n in range(len(ids) + 1) if tokenizer.decode(ids[:n]).startswith(told))
    return tokenizer.decode(ids[kept:], skip_special_tokens=True).strip()
