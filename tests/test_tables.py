"""Tables of texts: shares where there are items enough, counts where there are few."""

import pandas as pd

from twohop_lib.readouts.tables import (
    counted_table,
    each_model,
    joined,
    range_words,
    share_and_n,
    share_words,
)


def test_few_items_are_a_count_and_many_a_percentage():
    assert share_words()(pd.Series([True, False, True])) == "2 of 3"
    assert share_words()(pd.Series([True] * 9 + [False])) == "90.0 %"
    assert share_words(0)(pd.Series([1.0] * 2 + [0.0] * 10)) == "17 %"
    assert share_words()(pd.Series([None, True], dtype="boolean")) == "1 of 1"
    assert share_words()(pd.Series([], dtype=bool)) == "–"
    assert share_and_n(pd.Series([True] * 12)) == "100.0 % (n = 12)"
    assert share_and_n(pd.Series([True] * 3)) == "3 of 3"


def test_a_range_of_shares_is_a_count_if_it_is_one_of_few_items():
    table = pd.DataFrame({"value": [0.5, 0.25], "n_items": [4, 40]})
    assert range_words(table) == "25 to 50 %"
    assert range_words(table[:1]) == "2 of 4" and range_words(table[1:]) == "25 %"


def rows():
    return pd.DataFrame(
        [
            {"model": model, "seed": seed, "condition": condition, "correct": right}
            for model, seed, condition, right in [
                ("late", 0, "by_picture", False),
                ("late", 0, "by_name", True),
                ("late", 1, "by_name", True),
                ("early", 0, "by_picture", True),
            ]
        ]
    )


def test_a_table_keeps_the_order_of_rows_and_columns_and_marks_what_is_not_there():
    table = counted_table(rows(), "model", "condition", labels={"by_name": "by name"})
    assert list(table.index) == ["late", "early"]
    assert list(table.columns) == ["by_picture", "by name"]
    assert table.loc["late", "by name"] == "2 of 2" and table.loc["late", "by_picture"] == "0 of 1"
    assert table.loc["early", "by name"] == "–"


def test_rows_of_a_table_may_have_two_names():
    table = counted_table(rows(), ["model", "seed"], "condition")
    assert list(table.index) == [("late", 0), ("late", 1), ("early", 0)]
    assert table.loc[("late", 1)].tolist() == ["–", "1 of 1"]
    assert counted_table(rows(), "model", "condition", words=len).loc["late"].tolist() == [1, 2]
    nothing = counted_table(rows().iloc[:0], ["model", "seed"], "condition")
    assert nothing.to_dict("list") == {"no items": ["–"]}
    # A sweep that had nothing to run leaves a frame without columns.
    assert counted_table(pd.DataFrame(), "model", "condition").equals(nothing)


def test_each_model_has_its_table():
    def size(part, plus):
        return pd.DataFrame([{"model": part["model"].iloc[0], "n": len(part) + plus}])

    joined = each_model(rows(), size, plus=10)
    assert joined.to_dict("list") == {"model": ["late", "early"], "n": [13, 11]}


def test_frames_without_rows_keep_their_columns():
    empty = pd.DataFrame(columns=["method", "correct"])
    assert list(joined(empty, empty.rename(columns={"correct": "right"})).columns) == [
        *("method", "correct", "right")
    ]
    assert joined().empty
