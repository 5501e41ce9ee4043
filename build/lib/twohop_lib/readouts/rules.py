"""What a scoring rule does: agreement with hand labels, verdicts on facts, effect on a gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pandas as pd

from twohop_lib.benchmark.schema import Question
from twohop_lib.readouts import gap
from twohop_lib.readouts.gap_words import recognised_rows
from twohop_lib.scoring.comparison import CLAUSES
from twohop_lib.scoring.matching import Rule, ablation, agreement, judged, matches
from twohop_lib.stats import proportion_interval

RULES: tuple[Rule, ...] = get_args(Rule)
#: The conditions that a gap (:func:`twohop_lib.readouts.gap.gap_difference`) is made of.
_OF_A_GAP = ("identify", "by_name", "by_picture")
#: Answers labelled by hand: those that our rule was tuned on, fresh ones as it first judged them,
#: and as it judges them now that it was mended on them.
TUNED, FIRST, MENDED = "tuned on", "fresh, first verdict", "fresh, mended since"
#: A rule "hardly ever" accepts what it accepts in fewer than this share of cases.
HARDLY_EVER = 0.05


def agreement_by_rule(cases: pd.DataFrame) -> pd.DataFrame:
    """How often each rule agrees with answers labelled by hand, with Wilson intervals.

    ``cases`` as in :func:`twohop_lib.scoring.matching.labelled_cases`. Returns columns ``rule,
    agreement, low, high, n``.
    """
    rows = []
    for rule in RULES:
        total = agreement(cases, rule).set_index("category").loc["all"]
        n = int(total["n"])
        found = proportion_interval(round(total["agreement"] * n), n)
        rows.append((rule, found.estimate, found.low, found.high, n))
    return pd.DataFrame(rows, columns=["rule", "agreement", "low", "high", "n"])


def agreement_by_set(tuned: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """:func:`agreement_by_rule` on answers that our rule was tuned on, and on fresh ones.

    ``fresh`` as in :func:`twohop_lib.scoring.matching.fresh_cases`: there ours counts twice, as it
    first judged them (no clause had been written for any) and as it does now. Columns ``set, rule,
    agreement, low, high, n``.
    """
    first = (fresh["first_verdict"] == fresh["right"]).astype(bool)
    held = proportion_interval(int(first.sum()), len(first))
    new = agreement_by_rule(fresh)
    own = {"agreement": held.estimate, "low": held.low, "high": held.high, "n": len(first)}
    others = new[new["rule"] != "twohop"].to_dict("records")
    at_first = pd.DataFrame([{"rule": "twohop", **own}, *others])
    sets = {TUNED: agreement_by_rule(tuned), FIRST: at_first, MENDED: new}
    return pd.concat([frame.assign(set=name) for name, frame in sets.items()], ignore_index=True)


def earnings(tuned: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """What each clause of our rule earns in both sets, most first.

    Columns ``clause, part``, and for each set (:data:`TUNED`, ``"fresh"``) "mended − spoilt", cases
    that the clause puts right and wrong, and the agreement without it.
    """
    table = None
    for name, cases in ((TUNED, tuned), ("fresh", fresh)):
        found = ablation(cases).set_index(["clause", "part"])
        own = pd.DataFrame(
            {
                f"{name}: mended": found["mended"],
                f"{name}: spoilt": found["spoilt"],
                f"{name}: without it": found["agreement"],
            }
        )
        table = own if table is None else table.join(own)
    mended = table.filter(like="mended").sum(axis=1) - table.filter(like="spoilt").sum(axis=1)
    order = mended.sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index()


def by_part(tuned: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """The agreement of our rule without all clauses of one part, and of the whole rule.

    Columns ``left out, clauses``, and the two sets.
    """
    parts: dict[str, list[str]] = {"nothing": []}
    for clause, part in CLAUSES.items():
        parts.setdefault(part, []).append(clause)
    return pd.DataFrame(
        [
            {"left out": part, "clauses": len(clauses)}
            | {
                name: (judged(cases, without=clauses) == cases["right"]).mean()
                for name, cases in ((TUNED, tuned), ("fresh", fresh))
            }
            for part, clauses in parts.items()
        ]
    )


def earning_nothing(earned: pd.DataFrame) -> str:
    """Which clauses put no case of either set right (:func:`earnings`), in a sentence."""
    idle = earned.loc[earned.filter(like="mended").sum(axis=1) == 0, "clause"]
    if idle.empty:
        return "Every clause puts a case of the two sets right."
    return (
        f"Of the {len(earned)} clauses, {len(idle)} put no case of either set right that the "
        f"others do not ({', '.join(idle)})."
    )


def verdicts_on_answers(cases: Sequence[tuple[str, Sequence[str]]]) -> pd.DataFrame:
    """What each rule says of answers, given as pairs of an answer and what is accepted.

    Returns columns ``answer`` ("(empty)" if nothing was said), ``accepted`` and one a rule.
    """
    return pd.DataFrame(
        [
            {"answer": answer or "(empty)", "accepted": accepted[0]}
            | {rule: matches(answer, accepted, rule) for rule in RULES}
            for answer, accepted in cases
        ]
    )


def verdicts_on_facts(questions: Sequence[Question]) -> pd.DataFrame:
    """What each rule says of four answers made from a fact: is it accepted?

    ``right`` is the fact's own first answer, ``wrong`` another entity's, ``denied`` the right one
    named only to deny it, ``echo`` the question by name with nothing said. Returns one row a
    question and rule: ``relation, rule, right, wrong, denied, echo``.
    """
    rows = []
    for q in questions:
        right, wrong = q.answers[0], q.distractors[0]
        said = {
            "right": right,
            "wrong": wrong,
            "denied": f"It is {wrong}, not {right}.",
            "echo": q.question_by_name,
        }
        for rule in RULES:
            found = {kind: matches(text, q.answers, rule) for kind, text in said.items()}
            rows.append({"relation": q.relation.replace("_", " "), "rule": rule} | found)
    return pd.DataFrame(rows)


def refusal_title(by_relation: pd.DataFrame, rule: Rule) -> str:
    """Which right answers a rule hardly ever accepts (``relation, rule, share``), as a title."""
    found = by_relation[(by_relation["rule"] == rule) & (by_relation["share"] < HARDLY_EVER)]
    if found.empty:
        return "Right answers accepted under three scoring rules"
    never = " or ".join(found["relation"])
    return f"One published rule hardly ever accepts a right {never}"


def rescored(answers: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Answer records with ``correct`` as a rule would have it."""
    right = [
        matches(answer, accepted, rule)
        for answer, accepted in zip(answers["answer"], answers["accepted"], strict=True)
    ]
    return answers.assign(correct=right)


def gap_by_rule(answers: pd.DataFrame) -> pd.DataFrame:
    """Each model's gap in points (by name against by picture) under each scoring rule.

    A rule also decides which entities count as recognised (all, if none is). Returns one row a
    rule and model: ``model, rule, gap, low, high, n_items, n_entities``.
    """
    needed = answers[answers["condition"].isin(_OF_A_GAP)]
    rows = []
    for rule in RULES:
        for model, part in recognised_rows(rescored(needed, rule)).groupby("model", sort=False):
            found = gap.gap_difference(part, "full").row()
            rows.append({"model": model, "rule": rule} | found)
    kept = ["model", "rule", "gap", "low", "high", "n_items", "n_entities"]
    return pd.DataFrame(rows)[kept]


def largest_move(gaps: pd.DataFrame) -> tuple[float, str]:
    """By how much the choice of rule moves a gap at most, and whose (``model, rule, gap``).

    NaN and "" where no gap was measured.
    """
    moved = gaps.groupby("model")["gap"].agg(lambda g: g.max() - g.min()).dropna()
    return (float(moved.max()), str(moved.idxmax())) if len(moved) else (float("nan"), "")


def move_sentence(gaps: pd.DataFrame) -> str:
    """:func:`largest_move` in words, to be continued from a colon."""
    moved, model = largest_move(gaps)
    if not model:
        return "no gap could be measured under any of the three rules."
    return (
        f"on the same answers, the three rules' gaps lie up to {100 * moved:.1f} points apart "
        f"({model})."
    )
