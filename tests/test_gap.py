"""The cascade, failure types and gaps on records small enough to count by hand."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from twohop_lib import records as answer_records
from twohop_lib.errors import TwohopError
from twohop_lib.readouts import cascade, gap


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


CONDITIONS = {
    "llm": "llm_by_name",
    "name": "by_name",
    "picture": "by_picture",
    "blind": "blank_by_picture",
    "text": "blank_by_name",
    "full": "full_information",
}


def make(entities: dict[str, tuple[bool, list[str]]], model: str = "m", seed: int = 0):
    """Build records from ``{entity: (recognised, [conditions right per question])}``.

    A question's right conditions are words of :data:`CONDITIONS`, e.g. ``"llm name full"``.
    """
    rows = []
    for entity, (recognised, questions) in entities.items():
        start = {"model": model, "seed": seed, "entity_id": entity, "entity": entity.upper()}
        rest = {"wording": "standard", "intervention": None, "answer": "", "accepted": ["x"]}
        blank = {"relation": "", "question_id": "", "condition": "identify"}
        rows.append({**start, **blank, **rest, "correct": recognised})
        for number, right in enumerate(questions):
            for word, condition in CONDITIONS.items():
                asked = {
                    "relation": f"r{number}",
                    "question_id": f"{entity}-r{number}",
                    "condition": condition,
                }
                rows.append({**start, **asked, **rest, "correct": word in right.split()})
    return pd.DataFrame(rows)


# Two entities recognised, one not. Per question: which conditions are right.
FIXTURE = {
    "a": (
        True,
        [
            "llm name text full picture",  # right
            "llm name text full",  # linking failure
            "llm name text full blind picture",  # right, but blind-solvable
            "llm",  # unknown to the VLM
        ],
    ),
    "b": (True, ["llm name text full", "name full"]),  # two linking failures
    "c": (False, ["llm name text full picture", "llm name"]),  # guessed; unseen
}


def test_fixture_is_valid_answer_records():
    answer_records.validate(make(FIXTURE))


def test_cascade_holds_one_row_per_item():
    wide = cascade.cascade(make(FIXTURE).sample(frac=1, random_state=0))
    assert wide.question_id.tolist() == ["a-r0", "a-r1", "a-r2", "a-r3", "b-r0", "b-r1"] + [
        "c-r0",
        "c-r1",
    ]
    assert wide.recognised.tolist() == [True] * 6 + [False] * 2
    assert wide.known_vlm.tolist() == [True, True, True, False] + [True] * 4
    assert wide.known_llm.tolist() == [True] * 5 + [False] + [True] * 2
    assert wide.right.tolist() == [True, False, True, False, False, False, True, False]
    assert wide.blind.sum() == 1 and wide.entity.iloc[0] == "A"


def test_cascade_counts():
    counts = cascade.cascade_counts(make(FIXTURE)).set_index("step")
    assert counts.n_items.to_dict() == {
        "all": 8,
        "recognised": 6,
        "known": 5,
        "not blind-solvable": 4,
        "right": 1,
        "own name instead": 0,
        "linking failure": 3,
    }
    assert counts.n_entities.tolist() == [3, 2, 2, 2, 1, 0, 2]
    shares = [1, 6 / 8, 5 / 6, 4 / 5, 1 / 4, 0, 3 / 4]
    assert counts.share_of_previous.tolist() == pytest.approx(shares)
    assert counts.share["linking failure"] == pytest.approx(3 / 8)
    by_llm = cascade.cascade_counts(make(FIXTURE), known_by="llm").set_index("step")
    assert by_llm.n_items.tolist() == [8, 6, 5, 4, 1, 0, 3]
    assert set(by_llm.known_by) == {"llm"}
    assert by_llm.n_entities["known"] == 2


def test_saying_the_name_whatever_is_asked_is_no_recall_that_failed():
    records = make(FIXTURE)
    named = records.condition == "identify"
    records["accepted"] = [["Alba", "Isle A"] if n else ["x"] for n in named]
    picture = records.condition == "by_picture"
    for question, said in {"a-r1": "It is Alba.", "a-r3": "Isle A", "c-r1": "Alba"}.items():
        records.loc[picture & (records.question_id == question), "answer"] = said
    # A right answer stays right, and another condition's answer says nothing about this one.
    records.loc[records.question_id == "a-r0", "answer"] = "Alba"
    records.loc[~picture & (records.question_id == "b-r0"), "answer"] = "Alba"
    types = cascade.failure_types(records).set_index("question_id")["type"]
    assert types[types == "own name instead"].index.tolist() == ["a-r1", "a-r3"]
    assert types["a-r0"] == "right" and types["c-r1"] == "unseen entity"
    counts = cascade.cascade_counts(records).set_index("step").n_items
    assert counts["own name instead"] == 1 and counts["linking failure"] == 2


def test_controlled_counts():
    wide = cascade.cascade(make(FIXTURE))
    counts = {step: len(rows) for step, rows in cascade.controlled_steps(wide).items()}
    assert len(wide) == 8
    assert counts == {"recognised": 6, "full information": 5, "controlled slice": 4}


def test_failure_types():
    typed = cascade.failure_types(make(FIXTURE)).set_index("question_id")["type"]
    assert typed.astype(str).to_dict() == {
        "a-r0": "right",
        "a-r1": "linking failure",
        "a-r2": "right",
        "a-r3": "unknown fact",
        "b-r0": "linking failure",
        "b-r1": "linking failure",
        "c-r0": "right without recognition",
        "c-r1": "unseen entity",
    }
    by_llm = cascade.failure_types(make(FIXTURE), "llm").set_index("question_id")["type"]
    assert by_llm["a-r3"] == "linking failure" and by_llm["b-r1"] == "unknown fact"


def test_failure_types_are_exhaustive_and_exclusive():
    cells = itertools.product([True, False], repeat=3)
    entities = {
        f"e{i}": (recognised, [("name " * known + "picture" * right)])
        for i, (recognised, known, right) in enumerate(cells)
    }
    typed = cascade.failure_types(make(entities))
    kinds = set(cascade.TYPES) - {"own name instead"}  # says nothing at all
    assert typed["type"].notna().all() and set(typed["type"]) == kinds
    linking = typed[typed["type"] == "linking failure"]
    assert len(linking) == 1 and linking[["recognised", "known_vlm"]].all(axis=None)
    shares = cascade.failure_shares(make(entities))
    assert shares.share.sum() == pytest.approx(1) and shares.n.sum() == 8
    assert shares["type"].tolist() == list(cascade.TYPES)


def test_degradation_by_hand():
    result = gap.gap_degradation(make(FIXTURE))
    # Backbone 7 of 8, VLM by name 7 of 8, by picture 3 of 8.
    assert result.reference.estimate == pytest.approx(7 / 8)
    assert result.picture.estimate == pytest.approx(3 / 8)
    assert result.gap.estimate == pytest.approx(4 / 7)
    assert (result.gap.n_items, result.gap.n_entities) == (8, 3)
    assert result.gap.low <= result.gap.estimate <= result.gap.high
    recognised = gap.gap_degradation(make(FIXTURE), "recognised")
    assert recognised.gap.estimate == pytest.approx((5 - 2) / 5)


def test_degradation_parts_add_up():
    records = make(FIXTURE)
    drop = (records.condition == "by_name") & (records.entity_id == "a")
    records.loc[drop, "correct"] = [True, False, False, False]
    result = gap.gap_degradation(records)
    parts = {name: part.estimate for name, part in result.parts.items()}
    assert parts == pytest.approx({"from_weights": 2 / 7, "from_picture": 2 / 7})
    assert sum(parts.values()) == pytest.approx(result.gap.estimate)
    without = gap.gap_degradation(records[records.condition != "by_name"])
    assert not without.parts and without.gap.estimate == result.gap.estimate


def test_difference_by_hand():
    result = gap.gap_difference(make(FIXTURE))
    # a: 3/4 by name, 2/4 by picture; b: 1 and 0. Each entity weighs the same.
    assert result.reference.estimate == pytest.approx((3 / 4 + 1) / 2)
    assert result.picture.estimate == pytest.approx((2 / 4 + 0) / 2)
    assert result.gap.estimate == pytest.approx((1 / 4 + 1) / 2)
    assert (result.gap.n_items, result.gap.n_entities) == (6, 2)
    assert result.p_value == pytest.approx(scipy_stats.wilcoxon([1 / 4, 1.0]).pvalue)
    assert gap.gap_difference(make(FIXTURE), "full").gap.n_entities == 3


def test_controlled_by_hand():
    result = gap.gap_controlled(make(FIXTURE))
    # Slice: a-r0, a-r1, b-r0, b-r1. Text only right on 3, picture on 1.
    assert result.reference.estimate == pytest.approx(3 / 4)
    assert result.picture.estimate == pytest.approx(1 / 4)
    assert result.gap.estimate == pytest.approx(1 - 1 / 3)
    assert (result.gap.n_items, result.gap.n_entities) == (4, 2)


def all_gaps(records):
    return [gap.gap_degradation(records), gap.gap_difference(records), gap.gap_controlled(records)]


def test_a_model_without_a_gap_scores_zero():
    rng = np.random.default_rng(0)
    known = ["llm name text full picture", ""]
    entities = {f"e{i}": (True, list(rng.choice(known, size=3))) for i in range(20)}
    for result in all_gaps(make(entities)):
        # None of 20 entities differs, which does not say that none ever would.
        assert result.gap.estimate == 0
        assert -0.5 < result.gap.low < -0.1 and 0.1 < result.gap.high < 0.5
    assert gap.gap_difference(make(entities)).p_value == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=4)),
        min_size=1,
        max_size=6,
    )
)
def test_a_text_only_model_scores_zero_on_the_controlled_slice(entities):
    # Blind to pictures, it answers by picture just what it answers over a blank one.
    records = make(
        {
            f"e{i}": (named, ["name text full" + " blind picture" * ok for ok in answers])
            for i, (named, answers) in enumerate(entities)
        }
    )
    result = gap.gap_controlled(records)
    if result.picture.n_items:
        assert result.picture.estimate == 0 and result.gap.estimate == 1
    else:
        assert result.gap.estimate is None


def test_no_qualifying_items_give_none():
    nobody = make({"a": (False, ["llm name"]), "b": (False, ["llm"])})
    for result in (
        gap.gap_degradation(nobody, "recognised"),
        gap.gap_difference(nobody),
        gap.gap_controlled(nobody),
    ):
        for interval in (result.gap, result.reference, result.picture):
            assert (interval.estimate, interval.low, interval.high) == (None, None, None)
            assert interval.n_items == interval.n_entities == 0
    counts = cascade.cascade_counts(nobody)
    assert counts.n_items.tolist() == [2, 0, 0, 0, 0, 0, 0]
    assert counts.share_of_previous.isna().tolist() == [False, False] + [True] * 5


def test_reference_never_right_gives_no_relative_gap():
    hopeless = make({"a": (True, ["full picture"]), "b": (True, ["full"])})
    for result in (gap.gap_degradation(hopeless), gap.gap_controlled(hopeless)):
        assert result.gap.estimate is None and result.gap.n_items == 2
        assert result.reference.estimate == 0


def test_backbone_rows_may_carry_the_backbones_name():
    records = make(FIXTURE)
    records.loc[records.condition == "llm_by_name", "model"] = "backbone"
    assert gap.gap_degradation(records).model == "m"
    assert gap.gap_degradation(records).gap == gap.gap_degradation(make(FIXTURE)).gap


def test_worlds_are_kept_apart():
    other = make({**FIXTURE, "a": (False, FIXTURE["a"][1])}, seed=1)
    both = pd.concat([make(FIXTURE), other])
    wide = cascade.cascade(both)
    assert len(wide) == 16
    assert wide.groupby(["seed", "entity_id"]).recognised.first().tolist() == [
        True, True, False, False, True, False,
    ]  # fmt: skip
    # Entity "a" of one world and entity "a" of another are two.
    result = gap.gap_degradation(both)
    assert (result.gap.n_items, result.gap.n_entities) == (16, 6)
    assert gap.gap_difference(both, "full").gap.n_entities == 6
    counts = cascade.cascade_counts(both).set_index("step")
    assert counts.n_entities["all"] == 6
    accuracy = gap.accuracy_table(both).set_index("condition")
    assert accuracy.n_entities["identify"] == 6


def test_an_accuracy_at_the_end_has_an_interval():
    table = gap.accuracy_table(make({f"e{i}": (True, ["name"] * 3) for i in range(10)}))
    ends = table.set_index("condition").loc[["identify", "by_name", "by_picture"]]
    assert ends.accuracy.tolist() == [1, 1, 0]
    assert (ends.high - ends.low > 0.2).all()
    shares = cascade.failure_shares(make({f"e{i}": (True, ["name"]) for i in range(10)}))
    assert (shares.high - shares.low > 0.2).all()


def test_gaps_of_several_worlds_resample_worlds():
    rng = np.random.default_rng(0)

    def world(seed, share):
        right = [["name picture" if rng.random() < share else "name"] for _ in range(40)]
        return make({f"e{i}": (True, asked) for i, asked in enumerate(right)}, seed=seed)

    apart = pd.concat([world(s, share) for s, share in enumerate([0.1, 0.5, 0.9])])
    found = gap.gap_difference(apart).gap
    each = [gap.gap_difference(apart[apart.seed == s]).gap.estimate for s in range(3)]
    assert found.n_entities == 120
    assert found.estimate == pytest.approx(np.mean(each))
    # As one large world, the interval would be a fifth of this.
    assert found.high - found.low > 0.6


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda r: cascade.cascade(pd.concat([r, r.assign(model="n")])),
            "one model, not of 2: m, n",
        ),
        (lambda r: cascade.cascade(pd.concat([r, r.iloc[1:2]])), "recorded twice, such as .* a-r0"),
        (lambda r: cascade.cascade(pd.concat([r, r.iloc[:1]])), "recorded twice, such as identify"),
        (lambda r: cascade.cascade(r.iloc[:0]), "not of 0"),
        (lambda r: cascade.cascade_counts(r, "me"), "known by 'vlm' or by 'llm'"),
        (lambda r: gap.gap_difference(r, "all"), "population is 'full' or"),
        (
            lambda r: cascade.cascade_counts(r[r.condition != "blank_by_picture"]),
            "5 of 5 items of m have no 'blank_by_picture' answer",
        ),
        (
            lambda r: cascade.failure_types(r[r.condition != "by_name"]),
            "8 of 8 items of m have no 'by_name' answer",
        ),
        (
            lambda r: gap.gap_difference(r[(r.question_id != "a-r0") | (r.condition != "by_name")]),
            "1 of 6 items of m have no 'by_name' answer",
        ),
        (lambda r: cascade.failure_types(r[r.entity_id.ne("a") | r.relation.ne("")]), "'identify'"),
    ],
)
def test_bad_records_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(TwohopError, match=sentence):
        call(make(FIXTURE))


def test_accuracy_table():
    table = gap.accuracy_table(make(FIXTURE)).set_index("condition")
    assert table.accuracy["by_picture"] == pytest.approx(3 / 8)
    assert table.accuracy["identify"] == pytest.approx(2 / 3)
    assert table.n_items["identify"] == 3 and table.n_items["by_name"] == 8
    sliced = gap.accuracy_table(make(FIXTURE), "recognised").set_index("condition")
    assert sliced.accuracy["by_picture"] == pytest.approx(2 / 6)
    assert sliced.accuracy["identify"] == 1


def two_models():
    good = make({**FIXTURE, "c": (True, FIXTURE["c"][1])}, model="good")
    bad = make({**FIXTURE, "b": (False, FIXTURE["b"][1])}, model="bad")
    return {"good": good, "bad": bad}


def test_gap_table_side_by_side():
    models = two_models()
    assert gap.intersection(models).tolist() == [(0, "a")]
    table = gap.gap_table(models)
    assert len(table) == 2 * (3 + 3 + 2)
    indexed = table.set_index(["model", "definition", "population"])
    alone = gap.gap_difference(models["bad"])
    row = indexed.loc[("bad", "difference", "recognised")]
    assert row.gap == alone.gap.estimate
    assert np.isnan(row.low) and alone.gap.low is None  # Only entity "a" is left: no spread.
    shared = indexed.xs("intersection", level="population")
    assert shared.n_entities.eq(1).all()
    # Over the same entities and answers, two models with equal answers have equal gaps.
    assert shared.loc["good"].gap.tolist() == shared.loc["bad"].gap.tolist()
    degraded = indexed.loc[("good", "degradation", "full")]
    assert degraded.from_weights + degraded.from_picture == pytest.approx(degraded.gap)
    assert (table.note == "").all()


def test_gap_table_says_why_a_gap_is_missing():
    models = two_models()
    models["good"] = models["good"][models["good"].condition != "llm_by_name"]
    models["bad"].loc[models["bad"].condition == "identify", "correct"] = False
    table = gap.gap_table(models).set_index(["model", "definition", "population"])
    missing = table.loc[("good", "degradation", "full")]
    assert np.isnan(missing.gap) and "no 'llm_by_name' answer" in missing.note
    nobody = table.loc[("bad", "difference", "recognised")]
    assert np.isnan(nobody.gap) and nobody.n_items == 0 and nobody.note == "no item qualifies"
    assert table.loc[("good", "difference", "intersection")].note == "no item qualifies"


def test_split_models_shares_the_backbone():
    models = two_models()
    backbone = make(FIXTURE, model="backbone").query("condition == 'llm_by_name'")
    own = [frame[frame.condition != "llm_by_name"] for frame in models.values()]
    split = gap.split_models(pd.concat([backbone, *own]), backbone="backbone")
    assert list(split) == ["good", "bad"]
    for name, frame in split.items():
        assert gap.gap_degradation(frame).gap == gap.gap_degradation(models[name]).gap
    with pytest.raises(TwohopError, match="no 'llm_by_name' answers of 'llama'"):
        gap.split_models(pd.concat(own), backbone="llama")


def test_gap_by_seed():
    models = {
        name: pd.concat([frame, frame.assign(seed=2)]) for name, frame in two_models().items()
    }
    table = gap.gap_by_seed(models, n_boot=100)
    assert table.seed.unique().tolist() == [0, 2]
    first, second = (table[table.seed == s].drop(columns="seed") for s in (0, 2))
    pd.testing.assert_frame_equal(first, second.reset_index(drop=True))
