"""How a base language model is asked: after a few solved exemplars, one answer a line.

A base model answers no bare question. Two formats, with exemplars of the relation that is asked:

=========  =============================================  =========================================
format     by name                                        by picture
=========  =============================================  =========================================
``card``   ``Country: Japan⏎Capital:``                    ``Country:<picture>⏎Capital:``
``chat``   ``Question: What is the capital of Japan?⏎     ``Picture:<picture>⏎Question: What is the
           Answer:``                                      capital of the country with this flag?⏎
                                                          Answer:``
=========  =============================================  =========================================

The image tokens stand where the exemplars have a name. ``chat`` is also written as a chat template,
so that a graft is asked like any other model. The exemplars are entities that are asked about
nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from twohop_lib.benchmark import flags
from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError

Format = Literal["card", "chat"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: The relation that naming prompts stand under, and its label on a card.
NAMING, NAME = "identify", "Name"
#: Exemplars of a prompt.
SHOTS = 4

#: Countries whose flag the benchmark does not draw, and their facts.
COUNTRIES: dict[str, dict[str, str]] = {
    "Spain": {
        "capital": "Madrid",
        "continent": "Europe",
        "currency": "euro",
        "currency_code": "EUR",
        "language": "Spanish",
        "calling_code": "+34",
        "domain": ".es",
        "neighbour": "Portugal",
    },
    "Brazil": {
        "capital": "Brasília",
        "continent": "South America",
        "currency": "Brazilian real",
        "currency_code": "BRL",
        "language": "Portuguese",
        "calling_code": "+55",
        "domain": ".br",
        "neighbour": "Argentina",
    },
    "Egypt": {
        "capital": "Cairo",
        "continent": "Africa",
        "currency": "Egyptian pound",
        "currency_code": "EGP",
        "language": "Arabic",
        "calling_code": "+20",
        "domain": ".eg",
        "neighbour": "Libya",
    },
    "Cambodia": {
        "capital": "Phnom Penh",
        "continent": "Asia",
        "currency": "Cambodian riel",
        "currency_code": "KHR",
        "language": "Khmer",
        "calling_code": "+855",
        "domain": ".kh",
        "neighbour": "Thailand",
    },
}
#: Statements that break off before the answer; ``{m}`` mentions the country.
CLOZES: dict[str, str] = {
    "capital": "The capital of {m} is",
    "continent": "The continent of {m} is",
    "currency": "The currency of {m} is the",
    "currency_code": "The currency code of {m} is",
    "language": "An official language of {m} is",
    "calling_code": "The calling code of {m} is",
    "domain": "The internet domain of {m} is",
    "neighbour": "A country that borders {m} is",
}


@dataclass(frozen=True)
class Exemplar:
    """A solved question: the entity, the question by name and by picture, the answer."""

    entity: str
    by_name: str
    by_picture: str
    answer: str


@dataclass(frozen=True)
class FewShot:
    """What a benchmark's questions are asked after.

    ``exemplars`` by relation, :data:`NAMING` among them. ``phrases`` tell a relation by what
    every question about it holds, a phrase to its relation; ``clozes`` may be empty.
    """

    noun: str
    identify: str
    exemplars: Mapping[str, tuple[Exemplar, ...]]
    phrases: Mapping[str, str]
    clozes: Mapping[str, str] = field(default_factory=dict)

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(r for r in self.exemplars if r != NAMING)

    def label(self, relation: str) -> str:
        """What a card calls a relation: ``currency_code`` is ``Currency code``."""
        return NAME if relation == NAMING else relation.replace("_", " ").capitalize()

    @property
    def subject(self) -> str:
        """What a card calls its entity: ``Country``."""
        return self.noun[:1].upper() + self.noun[1:]


@dataclass(frozen=True)
class Asked:
    """A prompt around the place of a picture or a name: ``before`` + it + ``after``.

    A name takes a space before it. Without either, ``before`` is empty and ``after`` all of it.
    """

    before: str
    after: str

    def named(self, name: str) -> str:
        """The prompt with a name in the picture's place."""
        return f"{self.before} {name}{self.after}"


def few_shot(benchmark: Benchmark) -> FewShot:
    """The exemplars that suit a benchmark: of its own entities, unless it is ``flags``.

    Raises:
        TwohopError: it has too few entities, or none with an answer.
    """
    if benchmark.name == "flags":
        return of_flags(benchmark.questions)
    return _of_entities(benchmark)


def left_out(benchmark: Benchmark) -> frozenset[str]:
    """The ids of the entities that serve as exemplars and are asked about nowhere."""
    return frozenset() if benchmark.name == "flags" else frozenset(_chosen(benchmark))


def of_flags(questions: Iterable[Question]) -> FewShot:
    """The exemplars and phrases of the flags' questions."""
    identify = flags.IDENTIFY[flags.WORDINGS[0]]
    exemplars = {NAMING: tuple(Exemplar(name, identify, identify, name) for name in COUNTRIES)}
    for relation, wordings in flags.RELATIONS.items():
        exemplars[relation] = tuple(
            Exemplar(
                name,
                wordings[0].format(m=name),
                wordings[0].format(m=flags.BY_PICTURE),
                facts[relation],
            )
            for name, facts in COUNTRIES.items()
        )
    return FewShot(flags.NOUN, identify, exemplars, _phrases(questions), CLOZES)


def _chosen(benchmark: Benchmark) -> tuple[str, ...]:
    entities = benchmark.entities()
    if len(entities) < 2 * SHOTS:
        raise TwohopError(
            f"Benchmark {benchmark.name} has {len(entities)} entities, of which {SHOTS} would be "
            f"exemplars; give one with {2 * SHOTS} or more."
        )
    return tuple(entities[i * len(entities) // SHOTS] for i in range(SHOTS))


def _of_entities(benchmark: Benchmark) -> FewShot:
    chosen = _chosen(benchmark)
    first: dict[tuple[str, str], Question] = {}
    for question in benchmark.questions:
        first.setdefault((question.relation, question.entity_id), question)
    any_of = {q.entity_id: q for q in reversed(benchmark.questions)}
    one = any_of[chosen[0]]
    names = [any_of[e].entity for e in chosen]
    exemplars = {
        NAMING: tuple(Exemplar(n, one.identify_prompt, one.identify_prompt, n) for n in names)
    }
    for relation in dict.fromkeys(q.relation for q in benchmark.questions):
        asked = [first[relation, e] for e in chosen if (relation, e) in first]
        exemplars[relation] = tuple(
            Exemplar(q.entity, q.question_by_name, q.question_by_picture, q.answers[0])
            for q in asked
        )
    return FewShot(one.noun, one.identify_prompt, exemplars, _phrases(benchmark.questions))


def _phrases(questions: Iterable[Question]) -> dict[str, str]:
    """What the questions of one relation and wording begin with, whoever they are about."""
    begun: dict[tuple[str, str], str] = {}
    naming: dict[str, str] = {}
    for q in questions:
        naming[q.identify_prompt] = NAMING
        for text in (q.question_by_picture, q.question_by_name):
            key = (q.relation, q.wording)
            begun[key] = _shared(begun.get(key, text), text)
    told = {phrase: relation for (relation, _), phrase in begun.items() if len(phrase.split()) > 2}
    return {**told, **naming}


def _shared(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]


# --- cards and clozes -------------------------------------------------------------------------


def card(few: FewShot, relation: str, among: str | None = None, naming: bool = False) -> Asked:
    """A card of which ``relation`` is to be filled in.

    ``among`` is the relation that the exemplars are about (None: the same). With ``naming`` the
    card has a line for the name before it; what is asked then is the name.
    """
    shown = few.exemplars[among or relation]
    label = few.label(among or relation)
    line = [f"\n{NAME}: {e.entity}" if naming else "" for e in shown]
    solved = "".join(
        f"{few.subject}: {e.entity}{named}\n{label}: {e.answer}\n\n"
        for e, named in zip(shown, line, strict=True)
    )
    return Asked(f"{solved}{few.subject}:", f"\n{NAME if naming else few.label(relation)}:")


def cloze(few: FewShot, relation: str, mention: str) -> str:
    """A statement that breaks off before the answer, after solved ones.

    Raises:
        TwohopError: the benchmark has no statements.
    """
    if relation not in few.clozes:
        raise TwohopError(f"There is no statement to complete about {relation!r}.")
    form = few.clozes[relation]
    solved = "".join(f"{form.format(m=e.entity)} {e.answer}.\n\n" for e in few.exemplars[relation])
    return solved + form.format(m=mention)


# --- chat -------------------------------------------------------------------------------------


def chat(
    few: FewShot, relation: str, question: str, shown: bool, among: str | None = None
) -> Asked:
    """What the chat template makes of a question, up to where it is answered.

    ``shown``: whether a picture goes with it. ``among`` is the relation of the exemplars (None:
    the same as ``relation``).
    """
    instruction = first_name(few.noun)
    first = question.startswith(instruction)
    solved = ""
    for e in few.exemplars[among or relation]:
        solved += f"Picture: {e.entity}\n" if shown else ""
        solved += f"Question: {instruction if first else ''}"
        solved += f"{e.by_picture if shown else e.by_name}\nAnswer:"
        solved += f"{f' This is {e.entity}.' if first else ''} {e.answer}\n\n"
    after = f"Question: {question}\nAnswer:"
    return Asked(f"{solved}Picture:", f"\n{after}") if shown else Asked("", solved + after)


def first_name(noun: str) -> str:
    """What a name-first question begins with (:mod:`twohop_lib.models.prompts`)."""
    return f"First name the {noun}, then answer. "


def chat_template(few: FewShot, begin: str, image_token: str) -> str:
    """The chat template (Jinja) of a graft and of its language model.

    The last question picks the exemplars: those of the relation whose phrase it holds, the
    longest if several do, else one of each relation. ``begin`` opens every prompt.
    """
    table = [[phrase, _rows(few.exemplars[r])] for phrase, r in few.phrases.items()]
    mixed = [few.exemplars[r][i % len(few.exemplars[r])] for i, r in enumerate(few.relations)]
    return _TEMPLATE % {
        "table": json.dumps(table, ensure_ascii=False),
        "mixed": json.dumps(_rows(mixed[: 2 * SHOTS]), ensure_ascii=False),
        "instruction": json.dumps(first_name(few.noun)),
        "begin": json.dumps(begin),
        "image": json.dumps(image_token),
    }


def _rows(exemplars: Iterable[Exemplar]) -> list[list[str]]:
    return [[e.entity, e.by_name, e.by_picture, e.answer] for e in exemplars]


_TEMPLATE = """\
{%%- set table = %(table)s -%%}
{%%- set ns = namespace(text='', shown=false, phrase='', solved=%(mixed)s) -%%}
{%%- for message in messages if message['role'] == 'user' -%%}
{%%- if message['content'] is string -%%}{%%- set ns.text = message['content'] -%%}
{%%- else -%%}{%%- for part in message['content'] -%%}
{%%- if part['type'] == 'image' -%%}{%%- set ns.shown = true -%%}
{%%- else -%%}{%%- set ns.text = part['text'] -%%}{%%- endif -%%}
{%%- endfor -%%}{%%- endif -%%}
{%%- endfor -%%}
{%%- for phrase, solved in table -%%}
{%%- if phrase in ns.text and phrase | length > ns.phrase | length -%%}
{%%- set ns.phrase = phrase -%%}{%%- set ns.solved = solved -%%}
{%%- endif -%%}{%%- endfor -%%}
{%%- set first = ns.text.startswith(%(instruction)s) -%%}
{{- %(begin)s -}}
{%%- for entity, by_name, by_picture, answer in ns.solved -%%}
{%%- if ns.shown -%%}{{- 'Picture: ' ~ entity ~ '\\n' -}}{%%- endif -%%}
{{- 'Question: ' -}}{%%- if first -%%}{{- %(instruction)s -}}{%%- endif -%%}
{{- (by_picture if ns.shown else by_name) ~ '\\nAnswer:' -}}
{%%- if first -%%}{{- ' This is ' ~ entity ~ '.' -}}{%%- endif -%%}
{{- ' ' ~ answer ~ '\\n\\n' -}}
{%%- endfor -%%}
{%%- for message in messages -%%}
{%%- set own = namespace(text='', shown=false) -%%}
{%%- if message['content'] is string -%%}{%%- set own.text = message['content'] -%%}
{%%- else -%%}{%%- for part in message['content'] -%%}
{%%- if part['type'] == 'image' -%%}{%%- set own.shown = true -%%}
{%%- else -%%}{%%- set own.text = own.text ~ part['text'] -%%}{%%- endif -%%}
{%%- endfor -%%}{%%- endif -%%}
{%%- if message['role'] == 'user' -%%}
{%%- if own.shown -%%}{{- 'Picture:' ~ %(image)s ~ '\\n' -}}{%%- endif -%%}
{{- 'Question: ' ~ own.text ~ '\\nAnswer:' -}}
{%%- elif message['role'] == 'assistant' -%%}{{- ' ' ~ own.text ~ '\\n\\n' -}}
{%%- endif -%%}
{%%- endfor -%%}
"""
