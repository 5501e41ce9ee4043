"""Scoring: our rule against labels given by hand, and the published rules with their defects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twohop_lib.errors import TwohopError
from twohop_lib.readouts import agreement, labelled_cases, matches

NAMES = st.sampled_from(
    ["Paris", "Aldric", "Silvermoor", "Barack Obama", "São Paulo", "Trinidad and Tobago", "UK"]
)


def overall(rule: str) -> float:
    return agreement(labelled_cases(), rule).set_index("category").loc["all", "agreement"]


def test_the_labelled_set_is_large_and_balanced() -> None:
    cases = labelled_cases()
    assert len(cases) >= 200
    assert 0.35 < cases["right"].mean() < 0.65
    assert cases["accepted"].map(len).min() >= 1


def test_ours_is_ahead_of_both_published_rules() -> None:
    assert overall("twohop") >= 0.97
    assert overall("twohop") >= max(overall("popvqa"), overall("inclusion")) + 0.15


@pytest.mark.parametrize(
    ("rule", "answer", "accepted", "emulated"),
    [
        ("popvqa", "UK", "UK", False),
        ("popvqa", "Jay Z", "Jay Z", False),
        ("popvqa", "Barack", "Barack Obama", False),
        ("popvqa", "1961", "4 August 1961", False),
        ("popvqa", "Kingdom of United Arab", "United Kingdom", True),
        ("popvqa", "Martin Luther King Jr.", "Martin Luther King Sr.", True),
        ("inclusion", "", "Paris", True),
        ("inclusion", "12", "1", True),
        ("inclusion", "a", "Canada", True),
        ("inclusion", "The answer is not Paris", "Paris", True),
    ],
)
def test_defects_of_the_published_rules_are_emulated_and_not_ours(
    rule: str, answer: str, accepted: str, emulated: bool
) -> None:
    assert matches(answer, [accepted], rule) is emulated
    assert matches(answer, [accepted]) is not emulated


@given(NAMES)
def test_case_accents_and_a_sentence_around_change_nothing(name: str) -> None:
    for said in (name, name.upper(), f"The answer is {name}.", f"It is {name}", f"**{name}**"):
        assert matches(said, [name])
    for said in (f"It is not {name}.", f"{name} or Lyon", "", "  ", f"x{name}x"):
        assert not matches(said, [name])


@pytest.mark.parametrize("answer", ["", " ", "\n", ".", "I don't know."])
def test_saying_nothing_is_wrong(answer: str) -> None:
    assert not matches(answer, ["Paris"])


def test_nothing_accepted_and_unknown_rules_are_refused() -> None:
    with pytest.raises(TwohopError, match="at least one"):
        matches("Paris", [])
    with pytest.raises(TwohopError, match="popvqa"):
        matches("Paris", ["Paris"], "popqa")
