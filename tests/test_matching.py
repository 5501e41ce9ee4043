"""Scoring: our rule against labels given by hand, and the published rules with their defects."""

import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twohop_lib.errors import TwohopError
from twohop_lib.scoring.comparison import CLAUSES
from twohop_lib.scoring.final_answer import final_answer
from twohop_lib.scoring.matching import (
    ablation,
    agreement,
    fresh_cases,
    labelled_cases,
    matches,
    read_cases,
)
from twohop_lib.scoring.normal_form import normal

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

NAMES = st.sampled_from(
    ["Paris", "Aldric", "Silvermoor", "Barack Obama", "São Paulo", "Trinidad and Tobago", "UK"]
    + ["Jay-Z", "otter", "New York", "J. R. R. Tolkien", "Łódź", "4 August 1961", "C++", "330 m"]
)
WORDS = NAMES.filter(lambda name: not name[0].isdigit())
OTHERS = st.sampled_from(["Lyon", "Berta", "Wolfhaven", "Serena Williams"])


def overall(cases: pd.DataFrame, rule: str) -> float:
    return agreement(cases, rule).set_index("category").loc["all", "agreement"]


#: Every set of labelled answers: the two in ``tests/data`` are for the tests alone.
SETS = {
    "labelled": labelled_cases(),
    "fresh": fresh_cases(),
    **{
        name: read_cases(Path(__file__).parent / "data" / f"{name}.csv")
        for name in ("held_out_answers", "reply_styles")
    },
}


# ---- the labelled set ------------------------------------------------------------------------


def test_the_labelled_set_is_large_balanced_and_mostly_plain() -> None:
    cases = labelled_cases()
    assert len(cases) >= 260
    assert 0.4 < cases["right"].mean() < 0.6
    assert cases["accepted"].map(len).min() >= 1
    sizes = cases["category"].value_counts()
    assert sizes.idxmax() == "plain" and sizes["plain"] >= 90
    assert not cases.assign(accepted=cases["accepted"].str.join("|")).duplicated().any()


@pytest.mark.parametrize(
    ("name", "least"),
    [("labelled", 0.98), ("fresh", 0.95), ("held_out_answers", 0.96), ("reply_styles", 0.98)],
)
def test_ours_is_ahead_of_both_published_rules(name: str, least: float) -> None:
    cases = SETS[name]
    ours = overall(cases, "twohop")
    assert ours >= least
    assert ours >= max(overall(cases, "popvqa"), overall(cases, "inclusion")) + 0.15


def test_first_verdicts_say_how_the_rule_does_on_what_it_was_not_tuned_on() -> None:
    cases = fresh_cases()
    assert len(cases) >= 600 and 0.85 < (cases["first_verdict"] == cases["right"]).mean() < 0.95


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


# ---- reply styles by construction ------------------------------------------------------------

#: What the reply settles on ({x}), and what it mentions besides ({y}).
STYLES = [
    "<think>It may be {y}. Then again, {x}.</think>{x}",
    "<think>{x}? I would rather say {y}, yes, {y}.</think>\n\n**{x}**",
    "The flag could mean {y}. Let me see.</think>\n{x}",
    "◁think▷{y} comes to mind.◁/think▷The answer is {x}.",
    "[THINK]First {y}, then...[/THINK]{x}",
    "<|START_THINKING|>It is {y}.<|END_THINKING|><|START_RESPONSE|>{x}<|END_RESPONSE|>",
    "<|channel|>analysis<|message|>It is {y}.<|end|><|start|>assistant"
    "<|channel|>final<|message|>{x}<|return|>",
    "<|channel>thought\n{y}, I think.<channel|>{x}",
    "thought\nI first thought of {y}.\n{x}",
    "<reasoning>{y} is what one would guess.</reasoning><answer>{x}</answer>",
    "<SUMMARY>Find it.</SUMMARY><CAPTION>{y} on a wall.</CAPTION>"
    "<REASONING>Not sure about {y}.</REASONING><CONCLUSION>{x}</CONCLUSION>",
    "<answer>{x}</answer><explanation>Others say {y}.</explanation>",
    "<answer>{x}</answer>\n\nPeople may think of {y} here.",
    "<|begin_of_box|>{x}<|end_of_box|> Earlier I thought of {y}.",
    "I first had \\boxed{{{y}}}. Looking again, \\boxed{{{x}}}",
    "We get {y} at first sight. The final answer is $\\boxed{{\\text{{{x}}}}}$.",
    '```json\n{{"reasoning": "It looks like {y}.", "answer": "{x}"}}\n```',
    '{{"answer": "{x}", "alternatives": ["{y}"]}}',
    "{{'answer': '{x}', 'explanation': 'people often say {y}'}}",
    '{{"answer": "{x}", "confidence": 0.7, "second_guess": "{y}"}}',
    "**Reasoning:** This resembles {y}.\n\n**Answer:** {x}",
    "### Reasoning\n{y} was my first thought.\n\n### Final Answer\n{x}",
    "## Answer\n{x}\n\n## Explanation\nIt is close to {y}.",
    "Answer: {x}\nExplanation: This should not be mixed up with {y}.",
    "Answer: {x}\nAlternative: {y}",
    "{x}\n\nExplanation: it was {y} in the past.",
    "{x}\n\nMany travellers go to {y} first.",
    "Step 1: It looks like {y}.\nStep 2: On a closer look, it is not.\n\nFinal answer: {x}",
    "Thought: {y} comes to mind, but the colours differ.\nAnswer: {x}",
    "Let me think. {y} seems plausible at first. The answer is {x}.",
    "{y}... no, wait, {x}.",
    "{y}? No, {x}.",
    "Hmm, {y}. Actually, {x}.",
    "It is {y}. Sorry, I meant {x}.",
    "It is not {y}, it is {x}.",
    "It is {x}, not {y}.",
    "Not {y} but {x}.",
    "{x} rather than {y}.",
    "Most likely {x}, less likely {y}.",
    "It is either {y} or {x}, most likely {x}.",
    "Unlike {y}, it is {x}.",
    "It used to be {y}, but now it is {x}.",
    "{x} (not to be confused with {y})",
    "{x} (formerly {y})",
    "Although many people think it is {y}, it is {x}.",
    "| Guess | Value |\n|---|---|\n| Reasoning | {y} was ruled out |\n| Answer | {x} |",
    "{x}<|im_end|>\n<|im_start|>user\nAnd {y}?<|im_end|>",
    "{x}</s>{y}",
    "{x}\n\nQuestion: And the next one?\nAnswer: {y}",
    "{x}\nUSER: Is it {y}?\nASSISTANT: No.",
]
CUT_OFF = ["<think>It is {y}", "◁think▷{y}!", "<|channel|>analysis<|message|>{y}", "[THINK]{y} or"]
CUT_OFF += ["<reasoning>{y}", "<|START_THINKING|>{y}", "<thinking>\nSo, {y}.\n\n**{y}**"]
PAIRS = [
    ("Nairobi", "Mombasa"),
    ("Addis Ababa", "Asmara"),
    ("Bolivia", "Peru"),
    ("otter", "badger"),
    ("Serena Williams", "Naomi Osaka"),
    ("1889", "1901"),
    ("Europe", "Asia"),
    ("Kenyan shilling", "Ugandan shilling"),
    ("KES", "UGX"),
    ("+254", "+256"),
    (".ke", ".ug"),
]


@pytest.mark.parametrize("style", STYLES)
def test_what_a_reply_settles_on_counts_and_what_it_mentions_does_not(style: str) -> None:
    for x, y in PAIRS:
        reply = style.format(x=x, y=y)
        assert matches(reply, [x]), reply
        assert not matches(reply, [y]), reply


@pytest.mark.parametrize("style", CUT_OFF)
def test_reasoning_that_never_ends_is_no_answer(style: str) -> None:
    for x, _ in PAIRS:
        assert not matches(style.format(y=x), [x])


# ---- every clause ----------------------------------------------------------------------------

#: For each clause a reply that it puts right, and what is accepted.
EARNS = {
    "reasoning": ("<think>It is Paris.</think>It is Lyon.", "Paris"),
    "plain characters": ("It is ĠParis", "Paris"),
    "answer tags": ("<answer>Lyon</answer> The road goes on to Paris.", "Paris"),
    "own turn": ("Lyon\nUSER: Is it Paris?", "Paris"),
    "last box": ("It is \\boxed{Paris}. Looking again: \\boxed{Lyon}", "Paris"),
    "LaTeX": ("\\(1250\\) feet", "1250 m"),
    "JSON": ('{"alternatives": ["Paris"], "capital": "Lyon"}', "Paris"),
    "tables": ("| Capital | Continent |\n|---|---|\n| Paris | Europe |", "Paris"),
    "markup": ("The **Pa*ris* hotel**", "Paris"),
    "list items": ("A) Paris B) Lyon", "Paris"),
    "fields": ("Answer: Lyon\nAlternative: Paris", "Paris"),
    "the answer is": ("Paris seems so. The answer is Lyon.", "Paris"),
    "corrections": ("Paris. Wait, it is Lyon.", "Paris"),
    "line of its own": ("Lyon\n\nThe road goes on to Paris.", "Paris"),
    "accents": ("Bogota", "Bogotá"),
    "Saint": ("St. Lucia", "Saint Lucia"),
    "initials": ("It is in the U.K.", "UK"),
    "phone and web addresses": ("It is +1-242.", "+1 242"),
    "figures": ("It is 1,250.", "1250"),
    "numbers in words": ("thirty-eight", "38"),
    "Roman numerals": ("Louis XIV", "Louis 14"),
    "dates": ("It was August 4, 1961.", "4 August 1961"),
    "units": ("330 feet", "330 m"),
    "idioms": ("No doubt it is Paris.", "Paris"),
    "apostrophes": ("It is N'Djamena.", "NDjamena"),
    "plurals": ("Kenyan shillings", "Kenyan shilling"),
    "Korean endings": ("수도는 도쿄입니다", "도쿄"),
    "and": ("Antigua & Barbuda in the sea", "Antigua and Barbuda"),
    "articles": ("It is the Democratic Republic of Congo.", "Democratic Republic of the Congo"),
    "generic words": ("It is Everest.", "Mount Everest"),
    "dates in part": ("in August 1961", "4 August 1961"),
    "word order": ("white and red", "red and white"),
    "people": ("It is Obama.", "Barack Obama"),
    "lower case": ("paris or lyon", "Paris"),
    "glosses": ("Paris (north), Lyon (south) and Nice", "Paris"),
    "part of a longer name": ("West Virginia", "Virginia"),
    "a common word": ("A castle on a hill", "A"),
    "not X": ("It is not Paris.", "Paris"),
    "X is not": ("Paris is not the capital.", "Paris"),
    "near X": ("a village near Paris", "Paris"),
    "if X": ("Tell me if it is Paris.", "Paris"),
    "X or Y": ("Paris or Lyon", "Paris"),
    "X, Y, Z": ("Paris, Lyon, Nice", "Paris"),
    "maybe Y": ("I think Paris. It could be Lyon.", "Paris"),
    "if …, if …": ("If it is red, Paris; if it is blue, Lyon.", "Paris"),
}


def test_every_clause_has_an_example() -> None:
    assert list(EARNS) == list(CLAUSES)


@pytest.mark.parametrize("clause", EARNS)
def test_a_clause_left_out_turns_its_example(clause: str) -> None:
    answer, accepted = EARNS[clause]
    assert matches(answer, [accepted]) != matches(answer, [accepted], without=[clause])


def test_the_ablation_counts_what_each_clause_mends_and_spoils() -> None:
    cases = pd.DataFrame(
        [
            ("It is not Paris.", ["Paris"], False),
            ("It is Obama.", ["Barack Obama"], True),
            ("It is Obama.", ["Barack Obama"], False),  # a label that the clause gets wrong
            ("Paris", ["Paris"], True),
        ],
        columns=["answer", "accepted", "right"],
    )
    table = ablation(cases).set_index("clause")
    assert list(table.index) == list(CLAUSES) and set(table["n"]) == {4}
    assert tuple(table.loc["not X", ["agreement", "mended", "spoilt"]]) == (0.5, 1, 0)
    assert tuple(table.loc["people", ["agreement", "mended", "spoilt"]]) == (0.75, 1, 1)
    assert tuple(table.loc["units", ["agreement", "mended", "spoilt"]]) == (0.75, 0, 0)
    with pytest.raises(TwohopError, match="no clause 'nots'"):
        matches("Paris", ["Paris"], without=["nots"])


# ---- time ------------------------------------------------------------------------------------

LONG = 100_000
ACCEPTED = [["Paris"], ["Barack Obama", "Obama"], ["330 m"], ["4 August 1961"], ["otter"], ["A"]]
ACCEPTED += [["North America"], ["Kenya", "Uganda"], [".ke"], ["+254"], ["red and white"]]


def seconds(answer: str, accepted: list[str]) -> float:
    """The best of three runs, in seconds of this process."""
    matches("", accepted)
    taken = []
    for _ in range(3):
        start = time.process_time()
        matches(answer, accepted)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize(
    "piece",
    ["no, ", "- Nairobi\n", "[", "[]", "{", "\\boxed{", "<think>", "</think>", "<answer>", "<", "|"]
    + ["| a |\n|---|\n", "\n", " \n", "not Paris ", "Paris or ", "Paris, ", "Paris is ", "if ", "'"]
    + [
        '"a": ',
        "Label: x\n",
        "Aa Bb ",
        "J. ",
        "1 ",
        "1,",
        "123 ",
        ".",
        "what ",
        "*",
        "# a\n",
        "&amp;",
    ]
    + [
        "one hundred and ",
        "XIV ",
        "4 August ",
        "a\u0301",
        "\u0301",
        "北",
        "\ufdfa",
        "the ",
        "van Aa ",
    ]
    + ["wait ", "but it is ", "the answer is ", "most likely ", "( a ", "+1-", "www.a.", "USER: "]
    + [
        ":\n",
        "maybe Lyon ",
        "A) B) ",
        "1. a\n2. b\n",
        ", son of ",
        "\u200b",
        "<|channel|>",
        "-",
        "$a ",
    ],
)
def test_a_hundred_thousand_characters_take_a_tenth_of_a_second(piece: str) -> None:
    answer = (piece * LONG)[:LONG]
    for accepted in ACCEPTED:
        assert seconds(answer, accepted) < 0.1, accepted
    assert seconds("[" * (LONG // 2) + "]" * (LONG // 2), ["Paris"]) < 0.1


FRAGMENTS = [
    "no",
    "not",
    "Paris",
    "Lyon",
    "or",
    "and",
    "if",
    "1",
    "1889",
    "m",
    "the",
    "answer",
    "is",
]
FRAGMENTS += [
    " ",
    ", ",
    ".",
    "\n",
    ":",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "|",
    "-",
    "<",
    ">",
    '"',
    "'",
    "/",
]
FRAGMENTS += [
    "<think>",
    "</think>",
    "\\boxed{",
    "A)",
    "Aa",
    "XV",
    "maybe",
    "é",
    "北",
    "$",
    "*",
    "#",
    "?",
]


@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6), st.sampled_from(ACCEPTED))
@settings(max_examples=60)
def test_no_repetition_is_slow(pieces: list[str], accepted: list[str]) -> None:
    assert seconds(("".join(pieces) * LONG)[:LONG], accepted) < 0.1


def test_only_the_beginning_and_the_end_of_a_long_reply_are_read() -> None:
    padding = "Many words follow here. " * 1000
    assert matches(f"It is Paris. {padding}", ["Paris"])
    assert matches(f"{padding} It is Paris.", ["Paris"])
    assert not matches(f"{padding} It is Paris. {padding}", ["Paris"])
    assert matches(f"<think>{padding}Lyon</think>Paris", ["Paris"])


# ---- its parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("twenty-one", "21"),
        ("one thousand two hundred and five", "1205"),
        ("2.5 million", "2500000"),
        ("two and a half million", "2500000"),
        ("half a million", "500000"),
        ("1 000 000", "1000000"),
        ("1.000.000", "1000000"),
        ("10,5", "10.5"),
        ("two dozen", "24"),
        ("minus five", "-5"),
        ("−5", "-5"),
        ("٢٥", "25"),
        ("the twenty-first", "21st"),
        ("between seven and eight", "between 7 and 8"),
        ("1887-1889", "1887 – 1889"),
        ("-40 °C", "-40 ° C"),
        ("XIV", "14"),
        ("Elizabeth the Second", "Elizabeth 2"),
        ("44 BCE", "44 bc"),
        ("$5", "5 $"),
    ],
)
def test_numbers_are_read_however_written(text: str, value: str) -> None:
    assert normal(text) == value


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("4 August 1961", "1961-08-04"),
        ("the 4th of August, 1961", "1961-08-04"),
        ("Aug. 4, 1961", "1961-08-04"),
        ("1961-08-04T00:00:00Z", "1961-08-04"),
        ("04/08/1961", "1961-08-04"),
        ("7/20/1969", "1969-07-20"),
        ("August 1961", "1961-08"),
        ("4 August", "08-04"),
        ("the 1990's", "1990s"),
    ],
)
def test_dates_are_read_however_written(text: str, date: str) -> None:
    assert normal(text) == date


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("São Paulo", "Sao Paulo"),
        ("the Łódź", "Lodz"),
        ("が", "が"),  # the mark spells another letter
        ("йод ёлка", "йод елка"),
        ("日本のテレビ", "日 本 の テレビ"),
        ("नई दिल्ली", "नई दिल्ली"),
        ("C++ and C#", "C++ and C#"),
        ("Aldric's", "Aldric"),
        ("St. John's, Bogotá, D.C.", "Saint John , Bogota , DC"),
        ("Guinea-Bissau - a country", "Guinea - Bissau – country"),
        (".ke and www.kenya.go.ke", ".ke and .ke"),
        ("+1-242 or 00254", "+1242 or +254"),
    ],
)
def test_words_are_folded_where_that_keeps_the_letter(text: str, words: str) -> None:
    assert normal(text) == words


def test_only_the_own_turn_and_what_it_settles_on_counts() -> None:
    assert final_answer("<think>Lyon?</think> Paris</s> Rome") == "Paris"
    assert final_answer("Paris\n\nQ: And of Italy?\nA: Rome") == "Paris"
    assert final_answer("It may be Lyon. The answer is Paris.") == "answer is Paris."
    assert final_answer("Lyon... no, Paris") == "Paris"
    assert final_answer("<think>Paris") == ""
