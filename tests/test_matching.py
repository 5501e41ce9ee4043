"""Scoring: our rule against labels given by hand, and the published rules with their defects."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twohop_lib.errors import TwohopError
from twohop_lib.scoring.claims import own_turn, read, stated
from twohop_lib.scoring.matching import agreement, labelled_cases, matches
from twohop_lib.scoring.words import is_place, level, tokenise

NAMES = st.sampled_from(
    ["Paris", "Aldric", "Silvermoor", "Barack Obama", "São Paulo", "Trinidad and Tobago", "UK"]
    + ["Jay-Z", "otter", "New York", "J. R. R. Tolkien", "Łódź", "4 August 1961", "C++", "330 m"]
)
WORDS = NAMES.filter(lambda name: not name[0].isdigit())
OTHERS = st.sampled_from(["Lyon", "Berta", "Wolfhaven", "Serena Williams"])


def overall(cases: pd.DataFrame, rule: str) -> float:
    return agreement(cases, rule).set_index("category").loc["all", "agreement"]


def held_out_cases() -> pd.DataFrame:
    """Cases written after the rule, and looked at only after its first run on them."""
    file = Path(__file__).parent / "data" / "held_out_answers.csv"
    cases = pd.read_csv(file, dtype=str, keep_default_na=False)
    return cases.assign(accepted=cases["accepted"].str.split("|"), right=cases["right"] == "1")


# ---- the labelled set ------------------------------------------------------------------------


def test_the_labelled_set_is_large_balanced_and_mostly_plain() -> None:
    cases = labelled_cases()
    assert len(cases) >= 260
    assert 0.4 < cases["right"].mean() < 0.6
    assert cases["accepted"].map(len).min() >= 1
    sizes = cases["category"].value_counts()
    assert sizes.idxmax() == "plain" and sizes["plain"] >= 90
    assert not cases.assign(accepted=cases["accepted"].str.join("|")).duplicated().any()


def test_ours_is_ahead_of_both_published_rules() -> None:
    for cases in (labelled_cases(), held_out_cases()):
        ours = overall(cases, "twohop")
        assert ours >= 0.97
        assert ours >= max(overall(cases, "popvqa"), overall(cases, "inclusion")) + 0.15


@pytest.mark.parametrize("rule", ["twohop", "popvqa", "inclusion"])
def test_agreement_counts_each_case_once(rule: str) -> None:
    table = agreement(labelled_cases(), rule).set_index("category")
    total, parts = table.loc["all"], table.drop("all")
    for column in ("n", "false_positives", "false_negatives"):
        assert parts[column].sum() == total[column]
    wrong = total["false_positives"] + total["false_negatives"]
    assert total["agreement"] == pytest.approx(1 - wrong / total["n"])


# ---- the published rules ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "answer", "accepted", "emulated"),
    [
        ("popvqa", "UK", "UK", False),
        ("popvqa", "Jay Z", "Jay Z", False),
        ("popvqa", "Barack", "Barack Obama", False),
        ("popvqa", "1961", "4 August 1961", False),
        ("popvqa", "Kingdom of United Arab", "United Kingdom", True),
        ("popvqa", "Martin Luther King Jr.", "Martin Luther King Sr.", True),
        ("popvqa", "The answer is not Paris", "Paris", True),
        ("inclusion", "", "Paris", True),
        ("inclusion", "12", "1", True),
        ("inclusion", "1", "12", True),
        ("inclusion", "a", "Canada", True),
        ("inclusion", "The answer is not Paris", "Paris", True),
    ],
)
def test_defects_of_the_published_rules_are_emulated_and_not_ours(
    rule: str, answer: str, accepted: str, emulated: bool
) -> None:
    assert matches(answer, [accepted], rule) is emulated
    assert matches(answer, [accepted]) is not emulated


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("ＰＡＲＩＳ", "Paris", True),  # NFKC and lower case
        ("Sao Paulo", "São Paulo", True),  # "paulo" is the only word of four letters
        ("Paolo", "São Paulo", False),
        ("tower of the Eiffel", "Eiffel Tower", True),
        ("Eiffel", "Eiffel Tower", False),
        ("long text about Eiffel", "Eiffel", True),
    ],
)
def test_popvqa_needs_two_long_words_or_the_only_one(
    answer: str, accepted: str, right: bool
) -> None:
    assert matches(answer, [accepted], "popvqa") is right


# ---- our rule --------------------------------------------------------------------------------


@given(NAMES, OTHERS)
def test_a_name_is_right_alone_marked_up_and_in_a_sentence(name: str, other: str) -> None:
    right = [name, name.upper(), name.lower(), f"**{name}**", f"{name}, {name}", f"{name}\n"]
    right += [f"The answer is {name}.", f"It is {name}", f"I think it's {name}.", f'"{name}"']
    right += [f"{name}\nUSER: Next question?\nASSISTANT: {other}", f"{other}... no, {name}"]
    right += [f"It is not {other} but {name}.", f"No, it is {name}."]
    for said in right:
        assert matches(said, [name]), said


@given(WORDS, OTHERS)
def test_a_name_is_wrong_denied_beside_another_or_inside_a_word(name: str, other: str) -> None:
    wrong = [f"It is not {name}.", f"{name} or {other}", f"{other} or {name}", f"x{name}x", ""]
    wrong += [f"Neither {name} nor {other}", f"I don't think it is {name}.", f"{other}"]
    wrong += [f"It is not {name} but {other}.", f"{other}, not {name}.", f"{name}... no, {other}"]
    wrong += [f"{other}\nUSER: Is it {name}?", f"Either {other} or {name}."]
    for said in wrong:
        assert not matches(said, [name]), said


@given(st.text(alphabet=" \n\t.,!?-*_'\"…", max_size=12), NAMES)
def test_saying_nothing_is_wrong(answer: str, name: str) -> None:
    assert not matches(answer, [name])


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3))
def test_no_text_breaks_it(answer: str, accepted: list[str]) -> None:
    if any(a.strip() for a in accepted):
        assert matches(answer, accepted) in (True, False)


@given(st.from_regex(r"[A-Z][a-z]{3,9}( [A-Z][a-z]{3,9}){0,2}", fullmatch=True))
def test_a_name_matches_itself(name: str) -> None:
    assert matches(name, [name])
    assert matches(name.lower() + ".", [name])


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_numbers_match_by_value_only(a: int, b: int) -> None:
    assert matches(f"{a:,}", [str(a)])
    assert matches(f"It is {a}.0", [str(a)])
    assert matches(str(a), [str(b)]) is (a == b)


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("1961", "4 August 1961", True),
        ("August 1961", "4 August 1961", True),
        ("4 August 1961", "1961", True),
        ("4 August", "4 August 1961", False),
        ("August", "4 August 1961", False),
        ("5 August 1961", "4 August 1961", False),
        ("4 August 1962", "4 August 1961", False),
    ],
)
def test_a_date_may_be_given_in_part_from_the_year_on(
    answer: str, accepted: str, right: bool
) -> None:
    assert matches(answer, [accepted]) is right


@pytest.mark.parametrize("answer", ["", " ", "\n", ".", "I don't know.", "Unknown", "N/A"])
def test_refusals_are_wrong(answer: str) -> None:
    assert not matches(answer, ["Paris"])


def test_nothing_accepted_and_unknown_rules_are_refused() -> None:
    for nothing in ([], [" "], "Paris"):
        with pytest.raises(TwohopError, match="at least one"):
            matches("Paris", nothing)
    with pytest.raises(TwohopError, match="popvqa"):
        matches("Paris", ["Paris"], "popqa")


# ---- its parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("twenty-one", 21),
        ("one thousand two hundred and five", 1205),
        ("2.5 million", 2_500_000),
        ("1 000 000", 1_000_000),
        ("1.000.000", 1_000_000),
        ("10,5", 10.5),
        ("a dozen", 12),
        ("minus five", -5),
        ("−5", -5),
    ],
)
def test_numbers_are_read_however_written(text: str, value: float) -> None:
    assert [t.value for t in tokenise(text)] == [value]


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("4 August 1961", {(1961, 8, 4)}),
        ("the 4th of August, 1961", {(1961, 8, 4)}),
        ("Aug. 4, 1961", {(1961, 8, 4)}),
        ("1961-08-04T00:00:00Z", {(1961, 8, 4)}),
        ("04/08/1961", {(1961, 8, 4), (1961, 4, 8)}),
        ("20/07/1969", {(1969, 7, 20)}),
        ("August 1961", {(1961, 8, None)}),
        ("4 August", {(None, 8, 4)}),
    ],
)
def test_dates_are_read_however_written(text: str, dates: set) -> None:
    assert [set(t.dates) for t in tokenise(text)] == [dates]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("São Paulo", ["sao", "paulo"]),
        ("the Łódź", ["lodz"]),
        ("が", ["が"]),  # the mark spells another letter
        ("йод ёлка", ["йод", "елка"]),
        ("日本のテレビ", ["日", "本", "の", "テレビ"]),
        ("नई दिल्ली", ["नई", "दिल्ली"]),
        ("C++ and C#", ["c++", "and", "c#"]),
        ("Aldric's", ["aldric"]),
    ],
)
def test_words_are_folded_where_that_keeps_the_letter(text: str, words: list[str]) -> None:
    assert [t.word for t in tokenise(text)] == words


def test_places_have_levels() -> None:
    order = ["Lyon", "Texas", "France", "Europe"]
    assert [level(tokenise(place)) for place in order] == [0, 1, 2, 3]
    assert is_place(tokenise("Buenos Aires")) and not is_place(tokenise("George Washington"))


def test_only_the_own_turn_and_what_it_settles_on_counts() -> None:
    assert own_turn("<think>Lyon?</think> Paris</s> Rome") == "Paris"
    assert own_turn("Paris\n\nQ: And of Italy?\nA: Rome") == "Paris"
    assert stated("It may be Lyon. The answer is Paris.", True)[0] == "The answer is Paris."
    assert stated("Lyon... no, Paris", True)[0] == "Paris"
    assert stated("A) Paris B) Lyon", True)[1] == 2


def test_a_negation_reaches_as_far_as_its_clause() -> None:
    said = read("It is not Lyon, it is Paris, and Rome is not near")
    denied = {t.raw for t, no in zip(said.tokens, said.denied, strict=True) if no}
    assert {"Lyon", "Rome"} <= denied and "Paris" not in denied
