"""Intervals and tests: against scipy, hand-computed fixtures, and degenerate data."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from twohop_lib.errors import TwohopError
from twohop_lib.stats import (
    Interval,
    crossed_bootstrap,
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


# --- at the ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_at_an_end_has_wilsons_interval_on_entities(value):
    # A percentile bootstrap has width 0 here, as if the next entity were certain to agree.
    entities = np.repeat(np.arange(12), 5)
    ours = entity_bootstrap(np.full(60, value), entities)
    wilson = proportion_interval(12 * int(value), 12)
    assert (ours.low, ours.high) == (wilson.low, wilson.high)
    assert ours.high - ours.low > 0.2
    assert (ours.estimate, ours.n_items, ours.n_entities) == (value, 60, 12)


def test_a_quantity_that_is_no_share_keeps_its_percentiles():
    half = entity_bootstrap(np.full(20, 0.5), np.arange(20))
    assert (half.low, half.high) == (0.5, 0.5)
    beyond = entity_bootstrap([2.0, -1.0] * 10, np.arange(20), lambda means: means[..., 0])
    assert beyond.low < beyond.high


def test_arms_that_agree_in_every_entity_have_a_difference_of_some_width():
    arms = np.repeat([[1, 1], [0, 0]], 10, axis=0)
    u = proportion_interval(0, 20).high
    difference = entity_bootstrap(arms, np.arange(20), "difference")
    assert (difference.estimate, difference.low, difference.high) == (0, -u, u)
    drop = entity_bootstrap(arms, np.arange(20), "relative_drop")
    assert (drop.estimate, drop.low, drop.high) == (0, -2 * u, 2 * u)
    ratio = entity_bootstrap(arms, np.arange(20), "ratio")
    assert (ratio.estimate, ratio.low, ratio.high) == (1, 1 - 2 * u, 1 + 2 * u)
    # Against a third column: the same difference over another reference.
    third = np.column_stack([arms, np.ones(20)])
    over = entity_bootstrap(third, np.arange(20), "relative_drop")
    assert (over.low, over.high) == pytest.approx((-u, u))


def test_arms_at_opposite_ends():
    arms = np.repeat([[1, 0]], 20, axis=0)
    one, none = proportion_interval(20, 20), proportion_interval(0, 20)
    # Newcombe 1998, method 10, from the two Wilson intervals.
    newcombe = 1 - np.hypot(1 - one.low, none.high - 0)
    difference = entity_bootstrap(arms, np.arange(20), "difference")
    assert (difference.low, difference.high) == pytest.approx((newcombe, 1))
    turned = entity_bootstrap(arms[:, ::-1], np.arange(20), "difference")
    assert (turned.low, turned.high) == pytest.approx((-1, -newcombe))
    drop = entity_bootstrap(arms, np.arange(20), "relative_drop")
    assert (drop.estimate, drop.low, drop.high) == (1, 1 - none.high, 1)
    # A picture arm that is never right: a drop of all, from a reference in the middle.
    half = np.column_stack([np.tile([1, 0], 10), np.zeros(20)])
    drop = entity_bootstrap(half, np.arange(20), "relative_drop")
    assert (drop.estimate, drop.low, drop.high) == pytest.approx((1, 1 - 2 * none.high, 1))


# --- donors and worlds ------------------------------------------------------------------------


def pairs_of(rng, n=30, donors=3, shift=0.0):
    """Outcomes that only the donor decides."""
    effect = rng.normal(0, 2, n)
    target = np.repeat(np.arange(n), donors)
    donor = np.concatenate(
        [rng.choice(np.delete(np.arange(n), i), donors, replace=False) for i in range(n)]
    )
    right = rng.random(len(target)) < 1 / (1 + np.exp(-effect[donor] - shift))
    return right.astype(float), target, donor


def test_shared_donors_are_clustered():
    rng = np.random.default_rng(0)
    drawn = [pairs_of(rng) for _ in range(150)]
    spread = 2 * 1.96 * np.std([values.mean() for values, *_ in drawn])
    widths = {"targets": [], "both": []}
    for values, target, donor in drawn[:25]:
        for name, donors in (("targets", None), ("both", donor)):
            found = entity_bootstrap(values, target, donors=donors, n_boot=300)
            assert found.estimate == pytest.approx(values.mean())
            widths[name].append(found.high - found.low)
    assert np.mean(widths["targets"]) < 0.75 * spread  # as if every donor were drawn afresh
    assert 0.85 * spread < np.mean(widths["both"]) < 1.15 * spread


def test_a_donor_of_its_own_for_every_target_changes_little():
    values = np.random.default_rng(1).random(60) < 0.4
    alone = entity_bootstrap(values, np.arange(60))
    own = entity_bootstrap(values, np.arange(60), donors=np.arange(100, 160))
    assert own.high - own.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_one_donor_for_all_leaves_the_spread_unknown():
    found = entity_bootstrap([1.0, 0.0, 1.0], list("abc"), donors=list("zzz"))
    assert (found.estimate, found.low, found.high) == (pytest.approx(2 / 3), None, None)


def test_a_share_of_pairs_stays_within_0_and_1_and_has_wilsons_interval_at_the_ends():
    rng = np.random.default_rng(2)
    values, target, donor = pairs_of(rng, shift=-6)
    few = entity_bootstrap(values, target, donors=donor)
    assert 0 <= few.low < few.high < 1
    none = entity_bootstrap(0 * values, target, donors=donor % 5)
    # Five donors stand behind all pairs.
    assert none.high == proportion_interval(0, 5).high


def test_entities_of_different_worlds_do_not_collide():
    # House 3 of one world and house 3 of another are two houses.
    frame = pd.DataFrame({"seed": np.repeat([0, 1, 2], 40), "entity_id": [*range(40)] * 3})
    values = np.random.default_rng(0).random(120) < 0.5
    one_by_one = entity_bootstrap(values, np.arange(120))
    found = entity_bootstrap(values, frame)
    assert found.n_entities == 120
    assert (found.low, found.high) == (one_by_one.low, one_by_one.high)
    assert entity_bootstrap(values, frame["entity_id"]).n_entities == 40


def test_worlds_are_resampled_with_their_entities():
    rng = np.random.default_rng(3)
    world = np.repeat([0, 1, 2], 50)
    entity = np.tile(np.arange(50), 3)  # numbered anew in each
    apart = rng.random(150) < np.array([0.1, 0.5, 0.9])[world]
    alike = rng.random(150) < 0.5
    for values, wider in ((apart, 2.5), (alike, 1.0)):
        pooled = entity_bootstrap(values, world * 1000 + entity)
        nested = entity_bootstrap(values, entity, worlds=world)
        assert nested.estimate == pooled.estimate and nested.n_entities == 150
        assert nested.high - nested.low > wider * (pooled.high - pooled.low) * 0.95
    # With one world there is nothing to draw from.
    own = entity_bootstrap(alike, entity + 1000 * world, worlds=np.zeros(150))
    assert own == entity_bootstrap(alike, entity + 1000 * world)
    slow = resample_entities(entity, lambda rows: apart[rows].mean(), worlds=world, n_boot=500)
    fast = entity_bootstrap(apart, entity, worlds=world, n_boot=500)
    assert (slow.low, slow.high) == pytest.approx((fast.low, fast.high))


def test_pairs_of_several_worlds():
    rng = np.random.default_rng(4)
    parts = [pairs_of(rng, shift=shift) for shift in (-2, 0, 2)]
    values, target, donor = (np.concatenate(column) for column in zip(*parts, strict=True))
    world = np.repeat([0, 1, 2], len(values) // 3)
    nested = entity_bootstrap(values, target, donors=donor, worlds=world)
    means = [values[world == w].mean() for w in range(3)]
    assert nested.low < min(means) + 0.1 and nested.high > max(means) - 0.1
    assert nested.n_entities == 90


def test_entities_that_seeds_share_are_not_counted_anew_in_each():
    rng = np.random.default_rng(0)
    entities, seeds = np.repeat(np.arange(40), 3), np.tile(np.arange(3), 40)
    hard = np.repeat(rng.random(40) < 0.5, 3).astype(float)
    found = crossed_bootstrap(hard, entities, seeds)
    nested = entity_bootstrap(hard, entities, worlds=seeds)
    once = entity_bootstrap(hard[::3], entities[::3])
    # The same 40 entities thrice tell no more than once.
    assert found.high - found.low == pytest.approx(once.high - once.low, rel=0.15)
    assert nested.high - nested.low < 0.8 * (found.high - found.low)
    assert (found.estimate, found.n_items, found.n_entities) == (hard.mean(), 120, 40)


def test_seeds_that_differ_widen_a_crossed_interval():
    entities, seeds = np.repeat(np.arange(40), 3), np.tile(np.arange(3), 40)
    by_seed = (seeds == 0).astype(float)
    found = crossed_bootstrap(by_seed, entities, seeds)
    assert found.low == 0 and found.high == 1
    one = crossed_bootstrap(by_seed[::2], entities[::2], np.zeros(60))
    assert one == entity_bootstrap(by_seed[::2], entities[::2])
    ends = crossed_bootstrap(np.zeros(120), entities, seeds)
    assert ends.low == 0 and ends.high == pytest.approx(proportion_interval(0, 40).high)
