"""Intervals and tests: against scipy, hand-computed fixtures, and degenerate data."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from twohop_lib.errors import TwohopError
from twohop_lib.stats import (
    Interval,
    entity_bootstrap,
    proportion_interval,
    proportions,
    resample_entities,
    wilcoxon_by_entity,
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def items():
    rng = np.random.default_rng(1)
    entities = np.repeat(np.arange(40), 6)
    skill = rng.uniform(0.2, 0.9, 40)[entities]
    return pd.DataFrame(
        {
            "entity": entities,
            "name": rng.random(240) < skill,
            "picture": rng.random(240) < skill * 0.5,
        }
    )


def test_with_one_item_per_entity_equals_scipy_bootstrap():
    values = np.random.default_rng(2).normal(size=30)
    ours = entity_bootstrap(values, np.arange(30), n_boot=500, seed=3)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3)
    )
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low)
    assert ours.high == pytest.approx(theirs.confidence_interval.high)


def test_entities_are_resampled_with_all_their_items():
    # Ten copies of each item carry no more information than one.
    values = np.random.default_rng(2).normal(size=30)
    once = entity_bootstrap(values, np.arange(30))
    tenfold = entity_bootstrap(np.repeat(values, 10), np.repeat(np.arange(30), 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    assert (tenfold.n_items, tenfold.n_entities) == (300, 30)
    naive = entity_bootstrap(np.repeat(values, 10), np.arange(300))
    assert naive.high - naive.low < 0.5 * (tenfold.high - tenfold.low)


@pytest.mark.parametrize("statistic", ["ratio", "difference", "relative_drop"])
def test_fast_and_general_bootstrap_agree(items, statistic):
    values = items[["name", "picture"]].to_numpy(float)
    formula = {
        "ratio": lambda a, b: a / b,
        "difference": lambda a, b: a - b,
        "relative_drop": lambda a, b: (a - b) / a,
    }[statistic]
    fast = entity_bootstrap(values, items.entity, statistic, n_boot=200)
    slow = resample_entities(
        items.entity, lambda rows: formula(*values[rows].mean(axis=0)), n_boot=200
    )
    assert fast.estimate == pytest.approx(formula(*values.mean(axis=0)))
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


def test_own_statistic_of_means(items):
    values = items[["name", "picture"]]
    ours = entity_bootstrap(values, items.entity, lambda m: m[..., 1] - m[..., 0])
    named = entity_bootstrap(values, items.entity, "difference")
    assert ours.estimate == pytest.approx(-named.estimate)
    assert ours.low == pytest.approx(-named.high, abs=1e-3)


def test_same_seed_same_interval_whatever_the_row_order(items):
    shuffled = items.sample(frac=1, random_state=0)
    a = entity_bootstrap(items.name.to_numpy(), items.entity, seed=5)
    b = entity_bootstrap(shuffled["name"].to_numpy(), shuffled.entity, seed=5)
    assert (a.low, a.high) == pytest.approx((b.low, b.high))
    other = entity_bootstrap(items["name"].to_numpy(), items.entity, seed=6)
    assert other.low != a.low or other.high != a.high


def test_level_widens_the_interval(items):
    narrow = entity_bootstrap(items["name"], items.entity, level=0.5)
    wide = entity_bootstrap(items["name"], items.entity, level=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_no_items_one_entity_and_zero_denominator_give_none():
    assert entity_bootstrap([], []) == Interval.empty()
    assert resample_entities([], np.mean) == Interval.empty()
    alone = entity_bootstrap([1.0, 0.0], ["a", "a"])
    assert (alone.estimate, alone.low, alone.high) == (0.5, None, None)
    undefined = entity_bootstrap([[1, 0], [1, 0]], ["a", "b"], "ratio")
    assert undefined == Interval.empty(2, 2)


def test_mostly_undefined_resamples_give_no_interval():
    # Only one of three entities has a denominator: 8 of 27 resamples are undefined.
    values = [[1, 1], [1, 0], [1, 0]]
    result = entity_bootstrap(values, ["a", "b", "c"], "ratio")
    assert result.estimate == pytest.approx(3)
    assert (result.low, result.high) == (None, None)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: entity_bootstrap([1.0, np.nan], ["a", "b"]), "missing entries"),
        (lambda: entity_bootstrap([1.0, 2.0], ["a"]), "one per item"),
        (lambda: entity_bootstrap([1.0, 2.0], ["a", None]), "no entity id"),
        (lambda: entity_bootstrap([1.0], ["a"], "ratio"), "needs 2 column"),
        (lambda: entity_bootstrap([1.0], ["a"], "median"), "Unknown statistic"),
        (lambda: proportion_interval(3, 2), "0 <= successes"),
        (lambda: wilcoxon_by_entity([1.0], [np.nan], ["a"]), "missing entries"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(TwohopError, match=sentence):
        call()


def test_wilson_interval():
    result = proportion_interval(8, 10)
    # Newcombe 1998's form, worked by hand: centre 0.7167, half-width 0.2263.
    assert (result.low, result.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    none_right = proportion_interval(0, 20)
    assert none_right.low == pytest.approx(0) and none_right.high > 0.1
    assert proportion_interval(0, 0) == Interval.empty()


def test_an_interval_in_words():
    assert Interval(0.754, 0.6, 0.871, 9, 3).words(2) == "0.75 [0.60, 0.87]"
    assert Interval(3.84, None, None, 9, 1).words(1) == "3.8"
    assert Interval.empty().words(1) == "none"


def test_proportions_of_groups_in_their_order():
    frame = pd.DataFrame({"rule": list("bbba"), "kind": "x", "right": [True, True, False, True]})
    found = proportions(frame, ["rule", "kind"], "right")
    assert list(found.columns) == ["rule", "kind", "share", "low", "high", "n"]
    assert list(found["rule"]) == ["b", "a"] and list(found["n"]) == [3, 1]
    two = proportion_interval(2, 3)
    assert tuple(found.loc[0, ["share", "low", "high"]]) == (two.estimate, two.low, two.high)


def test_wilcoxon_equals_scipy_over_entity_means(items):
    result = wilcoxon_by_entity(items["name"], items.picture, items.entity)
    means = items.groupby("entity")[["name", "picture"]].mean()
    expected = scipy_stats.wilcoxon((means["name"] - means.picture).round(12))
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.statistic == pytest.approx(expected.statistic)
    assert result.mean_difference == pytest.approx((means["name"] - means.picture).mean())
    assert (result.n_items, result.n_entities) == (240, 40)


def test_wilcoxon_without_differences_or_data():
    same = wilcoxon_by_entity([1, 0, 1], [1, 0, 1], ["a", "b", "c"])
    assert (same.p_value, same.mean_difference) == (1.0, 0.0)
    # Equal means from answers in another order are equal, to the last bit.
    shuffled = wilcoxon_by_entity([1, 0, 0], [0, 0, 1], ["a", "a", "a"])
    assert shuffled.p_value == 1.0
    nothing = wilcoxon_by_entity([], [], [])
    assert nothing.p_value is None and nothing.n_entities == 0
