"""Arrival, and what attribution's shares are shares of."""

import numpy as np
import pandas as pd
import pytest

from twohop_lib.readouts import arrival, attribution_shares


def likeness(model, seed, *shares, n=10):
    """Of n entities, so many tenths are found at each layer."""
    rows = [
        (model, seed, f"e{i}", layer, float(i < 10 * share))
        for layer, share in enumerate(shares)
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "entity_id", "layer", "found"])


def test_arrival_is_the_first_layer_at_which_half_of_the_names_are_found():
    assert arrival.arrival(likeness("m", 0, 0.1, 0.4, 0.5, 0.9)) == 2
    assert arrival.arrival(likeness("m", 0, 0.1, 0.4)) is None
    both = pd.concat([likeness("m", 0, 0.1, 0.4, 0.6), likeness("n", 1, 0.2, 0.3)])
    table = arrival.arrivals(both)
    assert table["peak"].tolist() == [0.6, 0.3] and table["before"].tolist() == [0.4, 0.3]
    assert table["arrives"].tolist()[0] == 2 and np.isnan(table["arrives"][1])
    at_once = arrival.arrivals(likeness("m", 0, 0.8, 0.9))
    assert at_once["arrives"][0] == 0 and np.isnan(at_once["before"][0])


# --- attribution --------------------------------------------------------------------------------


def scored(model="backbone", n_blocks=8, **scores):
    """One pair of prompts; ``mlp_entity={0: 2.0}`` and so on, everything else 0."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "component": component,
                "role": role,
                "block": block,
                "score": scores.get(f"{component}_{role}", {}).get(block, 0.0),
            }
            for component in ("mlp", "attn")
            for role in ("entity", "question", "last")
            for block in range(n_blocks)
        ]
    )


def test_shares_are_of_positive_mean_scores():
    one = scored(mlp_entity={0: 3.0}, attn_last={5: 1.0, 6: -2.0})
    other = scored(mlp_entity={0: 1.0}, attn_last={5: 1.0, 6: 0.0})
    places = attribution_shares.profile(pd.concat([one, other]))
    assert places["share"].sum() == pytest.approx(1)
    top = attribution_shares.largest(places)
    assert (top["component"], top["role"], top["block"]) == ("mlp", "entity", 0)
    assert top["share"] == pytest.approx(2 / 3)
    alone = attribution_shares.profile(one.drop(columns="model"))
    assert alone["share"].max() == pytest.approx(3 / 4)


def test_the_upper_half_of_eight_blocks_is_four_blocks():
    # Block 3 is in the lower half: counted to the upper, it made 45 % look like 80 %.
    places = attribution_shares.profile(
        scored(mlp_entity={0: 3, 4: 1}, attn_last={3: 4, 4: 2, 7: 2}, mlp_last={7: 4})
    )
    shares = attribution_shares.shares_by_half(places, 8)
    assert shares == pytest.approx({"early_mlp": 3 / 4, "late_attn": 4 / 8, "late_mlp": 4 / 16})
    silent = attribution_shares.shares_by_half(attribution_shares.profile(scored()), 8)
    assert all(np.isnan(share) for share in silent.values())


def test_overlap_leaves_out_what_one_of_the_two_does_not_have():
    rng = np.random.default_rng(0)
    drawn = {
        f"{component}_{role}": dict(enumerate(rng.normal(size=8)))
        for component in ("mlp", "attn")
        for role in ("entity", "last")
    }
    # The same recall, with a block put in at 2 and no positions of a picture in the stream.
    moved = {
        key: {b + (b >= 2): s for b, s in by.items()} | {2: 9.0}
        for key, by in drawn.items()
        if "last" in key
    }
    backbone, cross = scored(**drawn), scored("cross", n_blocks=9, **moved)
    profiles = attribution_shares.profile(pd.concat([backbone, cross]))
    found = attribution_shares.overlap(profiles, ["cross"], inserted={"cross": [2]})
    assert found["correlation"].tolist() == pytest.approx([1.0])
    assert found["p"][0] < 0.05 and found["null_95"][0] < 0.9
    again = attribution_shares.overlap(profiles, ["cross"], inserted={"cross": [2]})
    pd.testing.assert_frame_equal(found, again)


def test_an_estimate_against_the_truth():
    rng = np.random.default_rng(1)
    true = rng.normal(size=60)
    truth = pd.DataFrame({"contrast": np.repeat(range(10), 6), "true": true, "good": 2 * true})
    assert attribution_shares.truth_correlation(truth, "good").estimate == pytest.approx(1)
    truth["poor"] = true + rng.normal(size=60)
    found = attribution_shares.truth_correlation(truth, "poor")
    assert found.low < found.estimate < found.high < 1 and found.n_entities == 10
    truth["signs"] = np.where(np.arange(60) < 15, -1, 1) * true
    share, n = attribution_shares.signs_agree(truth, "signs", least=0)
    assert (share, n) == (pytest.approx(0.75), 60)
    assert attribution_shares.signs_agree(truth, "signs", least=9) == (
        pytest.approx(np.nan, nan_ok=True),
        0,
    )
