"""Is an answer right? One rule of ours, and the two that came with published code.

Our rule, ``twohop``, asks whether the answer *commits* to an accepted answer. It is a chain of
named clauses, each a rewriting of text, so that any of them can be left out and what it earns be
measured (:func:`ablation`):

1. **Extraction** (:mod:`.final_answer`): the part of the reply that states the answer, without
   reasoning, wrapping, further turns, and what was corrected.
2. **Normalisation** (:mod:`.normal_form`): one spelling for accents, initials, numbers, dates,
   units, plurals, in the reply and in what is accepted.
3. **Marking**: each place where an accepted answer stands, as whole words, becomes ``@``. A person
   may be named by first or last name alone, by initials, with or without middle names; a generic
   word may be missing (*Everest* for *Mount Everest*), a number its unit, a date its day or month.
4. **Striking**: a place that is part of a longer name (*South Sudan*), negated, compared (*near X*)
   or conditional (*if it is X*) no longer counts.
5. **Hedging**: what offers something else of the same kind beside a match is no answer.

What it does not do: know synonyms, translations or nationalities; convert units; understand
negations and hedges in other languages than English; look at the question (all parts of *singer and
actor* must be accepted); judge whether the explanation around a right answer is true.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import regex as re

from twohop_lib.errors import TwohopError, suggest
from twohop_lib.scoring.comparison import CLAUSES, commits

Rule = Literal["twohop", "popvqa", "inclusion"]


def matches(
    answer: str, accepted: Sequence[str], rule: Rule = "twohop", without: Collection[str] = ()
) -> bool:
    """Whether ``answer`` is right, given the accepted answers and their aliases.

    Args:
        answer: what the model wrote, without the prompt.
        accepted: at least one accepted answer.
        rule: ``twohop`` (ours); ``popvqa`` and ``inclusion`` emulate the released scoring of
            Cohen et al. 2025 (arXiv 2412.14133) and Ashok et al. 2025 (2508.18297), defects
            included.
        without: clauses of ours to leave out, of :data:`CLAUSES`.

    Raises:
        TwohopError: unknown rule or clause, or nothing accepted.
    """
    if rule not in get_args(Rule):
        raise TwohopError(f"There is no scoring rule {rule!r}; {suggest(rule, get_args(Rule))}.")
    if isinstance(accepted, str) or not any(str(a).strip() for a in accepted):
        raise TwohopError("Give a list of at least one accepted answer that is not blank.")
    for name in without:
        if name not in CLAUSES:
            raise TwohopError(f"There is no clause {name!r}; {suggest(name, tuple(CLAUSES))}.")
    if rule == "popvqa":
        return _popvqa(answer, accepted)
    if rule == "inclusion":
        return _inclusion(answer, accepted)
    return commits(answer, [a for a in accepted if a.strip()], without)


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


# ---- agreement with labels given by hand -----------------------------------------------------


def read_cases(file: Path) -> pd.DataFrame:
    """A table of labelled answers, with ``accepted`` as lists and verdicts as booleans."""
    cases = pd.read_csv(file, dtype=str, keep_default_na=False)
    verdicts = {c: cases[c] == "1" for c in ("right", "first_verdict") if c in cases}
    return cases.assign(accepted=cases["accepted"].str.split("|"), **verdicts)


def labelled_cases() -> pd.DataFrame:
    """Answers labelled by hand, which the rule was tuned on.

    Columns ``question, answer, accepted`` (a list), ``right`` (boolean) and ``category``.
    """
    return read_cases(Path(__file__).parent / "labelled_answers.csv")


def fresh_cases() -> pd.DataFrame:
    """Answers labelled by hand before the rule was tried on them.

    Columns as :func:`labelled_cases`, and ``first_verdict``: what the rule said when it was first
    run on the answer, before any clause was changed on its account.
    """
    return read_cases(Path(__file__).parent / "fresh_answers.csv")


def judged(cases: pd.DataFrame, rule: Rule = "twohop", without: Collection[str] = ()) -> pd.Series:
    """A rule's verdicts on labelled answers, without some of its clauses (:func:`matches`)."""
    found = [matches(r.answer, r.accepted, rule, without) for r in cases.itertuples()]
    return pd.Series(found, index=cases.index, dtype=bool)


def agreement(cases: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """How often a rule agrees with the labels, by category and over ``all``.

    Columns: ``category, n, agreement, false_positives, false_negatives``.
    """
    scored = cases.assign(judged=judged(cases, rule))
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


def ablation(cases: pd.DataFrame) -> pd.DataFrame:
    """What each clause of our rule earns: the agreement without it.

    Columns: ``clause, part, n, agreement`` (without it), ``mended`` and ``spoilt`` (cases that the
    clause puts right, and wrong).
    """
    right = judged(cases) == cases["right"]
    rows = []
    for clause, part in CLAUSES.items():
        bare = judged(cases, without=[clause]) == cases["right"]
        mended, spoilt = int((right & ~bare).sum()), int((bare & ~right).sum())
        rows.append((clause, part, len(cases), bare.mean(), mended, spoilt))
    return pd.DataFrame(rows, columns="clause part n agreement mended spoilt".split())
