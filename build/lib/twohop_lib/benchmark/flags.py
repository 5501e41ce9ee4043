"""Real countries, shown by their flags: nothing is downloaded, everything is drawn.

The flags are those that geometry describes (stripes, crosses, discs, stars, crescents), drawn
from ``data/flags.jsonl`` in their official proportions and colours; a country whose flag bears
arms or writing is left out, unless its civil flag does without. The facts are in
``data/countries.csv``, each with the year that it was checked for (``as_of``). A fact that is
disputed, or that changed of late, is not asked.
"""

from __future__ import annotations

import csv
import json
import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from twohop_lib.benchmark import flag_drawing
from twohop_lib.benchmark.schema import Material, Question, funnel
from twohop_lib.scoring.leaks import leaks, words

NOUN = "country"
IDENTIFY = {
    "standard": "Which country has this flag?",
    "paraphrase-1": "Name the country with this flag.",
    "paraphrase-2": "Tell me which country this flag stands for.",
}
WORDINGS = tuple(IDENTIFY)
BY_PICTURE = "the country with this flag"

#: One question per wording; ``{m}`` mentions the country. No wording may hold a word that is
#: somebody's internet domain ("is", "in", "at", "no", "my", "to"), or it would give that away.
RELATIONS: dict[str, tuple[str, str, str]] = {
    "capital": (
        "What is the capital of {m}?",
        "Name the capital of {m}.",
        "Which city is the capital of {m}?",
    ),
    "continent": (
        "On which continent does one find {m}?",
        "Name the continent of {m}.",
        "Which continent does {m} belong to?",
    ),
    "currency": (
        "What is the currency of {m}?",
        "Name the currency of {m}.",
        "Which currency does one pay with in {m}?",
    ),
    "currency_code": (
        "What is the three-letter code of the currency of {m}?",
        "Give the ISO code of the currency of {m}.",
        "Which three letters stand for the currency of {m}?",
    ),
    "language": (
        "What is an official language of {m}?",
        "Name an official language of {m}.",
        "Which language is official in {m}?",
    ),
    "calling_code": (
        "What is the international calling code of {m}?",
        "Give the telephone country code of {m}.",
        "Which country code do phone numbers of {m} start with?",
    ),
    "domain": (
        "Which internet domain does one see on websites of {m}?",
        "Give the top-level internet domain of {m}.",
        "Which top-level domain stands for {m}?",
    ),
    "neighbour": (
        "Which country borders {m} by land?",
        "Name a country that borders {m} by land.",
        "Which country has a land border with {m}?",
    ),
}

#: Flags that one could take for one another: the same but for shade, proportions, a detail, or
#: the way round.
LOOK_ALIKES: tuple[frozenset[str], ...] = tuple(
    frozenset(group.split())
    for group in (
        "TD RO",
        "ID MC PL",
        "IE CI",
        "NL LU",
        "CM GN ML SN",
        "AU NZ",
        "BH QA",
        "CO VE",
        "AT LV",
        "LR MY US",
        "CR TH",
        "IS NO",
        "TN TR",
        "IN NE",
        "BO ET GH",
        "LT MM",
    )
)

#: Answers that are not asked for, and that nobody should be marked down for: no distractors.
TOLERATED: dict[tuple[str, str], tuple[str, ...]] = {
    ("NA", "currency"): ("South African rand",),
    ("NA", "currency_code"): ("ZAR",),
    ("LR", "currency"): ("American dollar", "United States dollar"),
    ("LR", "currency_code"): ("USD",),
    ("NL", "neighbour"): ("France",),
    ("IL", "language"): ("Arabic",),
    ("IN", "language"): ("Bengali", "Nepali", "Urdu"),
    ("IN", "neighbour"): ("Afghanistan",),
    ("FR", "continent"): ("Oceania", "South America"),
    ("NL", "continent"): ("North America", "South America"),
    ("DK", "continent"): ("North America",),
    ("US", "continent"): ("Oceania",),
    ("ID", "continent"): ("Oceania",),
}


@dataclass(frozen=True)
class Country:
    """One country: its names, and its accepted answers by relation (first the usual one)."""

    code: str
    name: str
    article: str
    aliases: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    as_of: int

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def mention(self) -> str:
        return f"{self.article} {self.name}".strip()


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part for part in cell.split("|") if part)


@lru_cache(maxsize=1)
def countries() -> tuple[Country, ...]:
    """All countries whose flag is drawn, by code."""
    text = (files("twohop_lib.benchmark") / "data" / "countries.csv").read_text("utf-8")
    rows = {row["code"]: row for row in csv.DictReader(text.splitlines())}

    def named(code: str) -> tuple[str, ...]:
        return (rows[code]["name"], *_split(rows[code]["aliases"]))

    return tuple(
        Country(
            code,
            row["name"],
            row["article"],
            _split(row["aliases"]),
            {
                relation: tuple(n for code in _split(row["neighbours"]) for n in named(code))
                if relation == "neighbour"
                else _split(row[relation])
                for relation in RELATIONS
            }
            | {"currency": _currency(row)},
            int(row["as_of"]),
        )
        for code, row in sorted(rows.items())
        if row["as_of"]
    )


def _currency(row: dict[str, str]) -> tuple[str, ...]:
    """Its names, then its code, with which one may answer too.

    The usual one, which multiple choice offers, is one without the country's name.
    """
    names = [row["name"], *_split(row["aliases"])]
    return (
        *sorted(_split(row["currency"]), key=lambda answer: bool(leaks(answer, names))),
        *_split(row["currency_code"]),
    )


@lru_cache(maxsize=1)
def specifications() -> dict[str, dict[str, Any]]:
    """Each flag's specification, by its country's code (see :mod:`.flag_drawing`)."""
    text = (files("twohop_lib.benchmark") / "data" / "flags.jsonl").read_text("utf-8")
    return {spec["code"]: spec for spec in map(json.loads, text.splitlines())}


def look_alikes(code: str) -> frozenset[str]:
    """The codes of the countries whose flags could be taken for this one's."""
    return frozenset().union(*(group - {code} for group in LOOK_ALIKES if code in group))


def facts() -> pd.DataFrame:
    """Every fact: code, country, relation, answers (a tuple), as_of (the year checked for)."""
    rows = [
        (c.code, c.name, relation, c.answers[relation], c.as_of)
        for c in countries()
        for relation in RELATIONS
        if c.answers[relation]
    ]
    return pd.DataFrame(rows, columns=["code", "country", "relation", "answers", "as_of"])


def picture(code: str) -> Image.Image:
    """The flag on a grey square (RGB, 448 by 448 pixels), as the benchmark shows it."""
    return flag_drawing.picture(specifications()[code])


def read(seed: int = 0, distinct: bool = False) -> Material:
    """All questions about all flags; ``seed`` draws the distractors.

    ``distinct`` leaves out every flag that has a look-alike.
    """
    known = [c for c in countries() if c.answers]
    kept = [c for c in known if not (distinct and look_alikes(c.code))]
    asked = [(c, r) for c in kept for r in RELATIONS if c.answers[r]]
    hidden = [(c, r) for c, r in asked if not _given_away(c, r)]
    steps = [("flags drawn", len(known), int((facts()["relation"] != "").sum()))]
    if distinct:
        steps.append(("without look-alikes", len(kept), len(asked)))
    steps.append(("the name does not say it", len({c.code for c, _ in hidden}), len(hidden)))
    return Material(
        tuple(_questions(hidden, seed)), picture, funnel(steps), {"facts as of": _years(kept)}
    )


def _years(kept: list[Country]) -> str:
    years = sorted({c.as_of for c in kept})
    return str(years[0]) if len(years) == 1 else f"{years[0]} to {years[-1]}"


def _given_away(country: Country, relation: str) -> bool:
    """Whether the name says the answer, or the answer the name: Luxembourg, Kuwait City, Tunisia.

    *Jamaican dollar* is not *Jamaica*, *Solomon Islands dollar* is.
    """
    answers = country.answers[relation]
    if relation == "continent":
        answers = (*answers, *(f"{a}n" for a in answers))  # the Central African Republic
    said = any(leaks(country.name, [a]) for a in answers if words(a))
    begins = country.name.casefold().startswith(answers[0].casefold())
    # Offered as a choice beside the flag, the answer must not name the country either.
    names_it = leaks(answers[0], country.names)
    return said or (relation == "capital" and begins) or bool(names_it)


def _questions(asked: list[tuple[Country, str]], seed: int) -> Iterator[Question]:
    pools = {
        relation: sorted({c.answers[relation][0] for c, r in asked if r == relation})
        for relation in RELATIONS
    }
    # One name for each currency: the American dollar is the United States dollar.
    usual = {
        c.answers["currency_code"]: c.answers["currency"][0] for c, r in asked if r == "currency"
    }
    pools["currency"] = sorted(usual.values())
    for country, relation in asked:
        rng = np.random.default_rng([seed, *country.code.encode(), *relation.encode()])
        answers = country.answers[relation]
        taken = {words(a) for a in (*answers, *TOLERATED.get((country.code, relation), ()))}
        if relation == "calling_code" and answers[0].startswith("+1"):
            taken.add(words("+1"))  # with or without the area
        pool = [a for a in pools[relation] if words(a) not in taken and not leaks(a, country.names)]
        wrong = tuple(pool[i] for i in rng.permutation(len(pool))[:3])
        for wording, template in zip(WORDINGS, RELATIONS[relation], strict=True):
            yield Question(
                question_id=f"{country.code}-{relation}-{wording}",
                entity_id=country.code,
                entity=country.name,
                aliases=country.aliases,
                noun=NOUN,
                relation=relation,
                wording=wording,
                question_by_name=template.format(m=country.mention),
                question_by_picture=template.format(m=BY_PICTURE),
                identify_prompt=IDENTIFY[wording],
                answers=answers,
                distractors=wrong,
                image=f"images/{country.code}.png",
                split="",
            )


def contact_sheet(codes: tuple[str, ...] = (), columns: int = 8, width: int = 120) -> Image.Image:
    """Flags in a grid with their names below (RGB); of all countries if no codes are given."""
    shown = [c for c in countries() if not codes or c.code in codes]
    font = ImageFont.load_default(size=width // 9)
    step_x, step_y = width + 24, width + 10
    sheet = Image.new("RGB", (columns * step_x, -(-len(shown) // columns) * step_y), "#E8E8E8")
    pen = ImageDraw.Draw(sheet)
    for i, country in enumerate(shown):
        spec = specifications()[country.code]
        w, h = spec["size"]
        flag = flag_drawing.draw(spec, round(width * min(1, 0.75 * w / h)))
        x, y = (i % columns) * step_x + step_x // 2, (i // columns) * step_y + 4
        sheet.paste(flag, (x - flag.width // 2, y + (round(width * 0.75) - flag.height) // 2))
        plain = unicodedata.normalize("NFKD", country.name)  # the font has no accents
        plain = "".join(c for c in plain if not unicodedata.combining(c))
        name = "\n".join(textwrap.wrap(plain, 20)[:2])
        at = (x, y + round(width * 0.75) + 2)
        pen.multiline_text(at, name, "#222222", font, anchor="ma", align="center", spacing=0)
    return sheet
