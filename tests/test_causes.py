"""The instrument finds the cause that made-up records hold, and none in records dealt out anew."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import vl_convert

from twohop_lib.chapter.study import study_records
from twohop_lib.figures import heat, theme
from twohop_lib.grafts import STUDY as GRAFTS
from twohop_lib.organisms.recipes import CAUSES as PLANTED_IN
from twohop_lib.readouts import cause_words, causes
from twohop_lib.records import read_frame

N, LAYERS, RECALL = 40, 9, 3
IDS = [f"e{i:02d}" for i in range(N)]


def facts(missed: float, own_name: float = 0.0, model: str = "m") -> pd.DataFrame:
    """Two facts an entity; a share of all is missed, and of these a share gives the own name."""
    rows = [(model, 0, e, f"{e}-{k}") for e in IDS for k in range(2)]
    frame = pd.DataFrame(rows, columns=["model", "seed", "entity_id", "question_id"])
    n = len(frame)
    rank = np.random.default_rng(0).permutation(n)
    return frame.assign(
        missed=(rank < missed * n).astype(float), own_name=(rank < missed * own_name * n) * 1.0
    )


def found(from_layer: int | None, model: str = "m") -> pd.DataFrame:
    """Nine in ten pictures are like their names from a layer on; None: hardly any is, ever."""
    rows = []
    for i, entity in enumerate(IDS):
        for layer in range(LAYERS):
            hit = from_layer is not None and layer >= from_layer and i % 10
            rows.append((model, 0, entity, layer, float(bool(hit))))
    return pd.DataFrame(rows, columns=["model", "seed", "entity_id", "layer", "found"])


def written(last: int = RECALL, model: str = "m") -> pd.DataFrame:
    """All facts come up to a layer, one in eight behind it."""
    rows = [
        (model, 0, entity, layer, float(layer <= last or i % 8 == 0))
        for i, entity in enumerate(IDS)
        for layer in range(2, LAYERS)
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "entity_id", "layer", "correct"])


PLANTED = {
    "none": (facts(0.05), found(2)),
    "foreign": (facts(0.9), found(None)),
    "late": (facts(0.9), found(5)),
    "unread": (facts(0.5), found(2)),
    "named instead": (facts(0.9, own_name=0.9), found(2)),
}


@pytest.mark.parametrize("cause", PLANTED)
def test_each_planted_cause_is_found_and_surely(cause):
    verdict = causes.model_verdicts(*PLANTED[cause], written()).iloc[0]
    assert verdict["verdict"] == cause
    assert verdict["certain"] > 0.95
    assert verdict["n_facts"] == 2 * N


@pytest.mark.parametrize("cause", ["foreign", "late", "unread", "named instead"])
def test_missed_facts_are_judged_by_their_own_picture(cause):
    items = causes.item_verdicts(*PLANTED[cause], written())
    missed = items[items["missed"] > 0]
    assert (missed["verdict"] == cause).mean() >= 0.8
    assert set(items.loc[items["missed"] == 0, "verdict"]) == {"none"}


def test_the_deadline_decides_between_late_and_unread():
    late = PLANTED["late"]
    assert causes.model_verdicts(*late, written(4))["verdict"].item() == "late"
    assert causes.model_verdicts(*late, written(5))["verdict"].item() == "unread"


def test_a_deadline_that_hangs_on_few_entities_makes_a_verdict_unsure():
    close = written()
    at_4 = close["layer"] == 4
    half = close.loc[at_4].index[: N // 2]
    close.loc[half, "correct"] = 1.0
    close.loc[close.loc[at_4].index[N // 2 :], "correct"] = 0.0
    shown = found(4)
    verdict = causes.model_verdicts(facts(0.9), shown, close).iloc[0]
    assert 0.3 < verdict["certain"] < 0.9
    assert {verdict["verdict"], verdict["otherwise"]} == {"late", "unread"}
    assert cause_words.told(verdict).endswith("% of draws)")


def test_pictures_held_against_other_names_are_foreign_whatever_was_planted():
    rng = np.random.default_rng(0)
    for cause in ("late", "unread"):
        own, shown = PLANTED[cause]
        dealt = shown.assign(found=(rng.permutation(len(shown)) < len(shown) / N).astype(float))
        assert causes.model_verdicts(own, dealt, written())["verdict"].item() == "foreign"


def test_one_lucky_hit_is_no_arrival():
    one = found(None)
    one.loc[(one["entity_id"] == "e03") & (one["layer"] == 4), "found"] = 1.0
    two = found(6)
    two.loc[(two["entity_id"] == "e03") & (two["layer"] == 1), "found"] = 1.0
    assert causes.item_arrivals(one)["arrives"].isna().all()
    assert causes.item_arrivals(two).set_index("entity_id")["arrives"]["e03"] == 6


def test_confusion_counts_models_and_leaves_out_those_without_a_plant():
    verdicts = pd.DataFrame(
        {"model": ["a", "b", "c"], "seed": 1, "verdict": ["late", "unread", "none"]}
    )
    table = causes.confusion(verdicts, {"a": "late", "b": "late"})
    cells = table.set_index(["planted", "found"])["n"]
    assert cells["late", "late"] == cells["late", "unread"] == 1
    assert set(table["planted"]) == {"late"} and set(table["of"]) == {2}
    assert cause_words.found_right(verdicts, {"a": "late", "b": "late"}).startswith("1 of 2 models")


def deadline_records(state_gives, own_gives) -> pd.DataFrame:
    rows = []
    for entity in IDS:
        for layer in range(2, 8):
            rows.append(("deadline", 2, layer, entity, state_gives(layer)))
            rows.append(("reading-deadline", layer, layer, entity, own_gives(layer)))
    columns = ["experiment", "state", "layer", "entity_id", "correct"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(model="backbone", seed=0, arm="entity", question_id=frame["entity_id"])


def test_the_two_deadlines_are_told_apart():
    frame = deadline_records(lambda layer: layer <= 3, lambda layer: layer <= 6)
    at = causes.deadlines(frame).set_index("which")["at"]
    assert at["state 2"] == 3 and at[causes.OWN] == 6
    recalled = causes.recall_of(frame, 2, [("a", 0), ("b", 7)])
    assert set(recalled["model"]) == {"a", "b"}  # one backbone counts for all
    assert recalled.groupby("layer")["correct"].mean()[3] == 1


def test_margins_foretell_what_they_decide_and_nothing_else():
    rng = np.random.default_rng(0)
    frames = []
    for model in ("a", "b", "c"):
        arrives = rng.integers(1, 7, size=200).astype(float)
        come = arrives <= 3
        frames.append(pd.DataFrame({"model": model, "arrives": arrives, "missed": 1.0 - come}))
    decided = causes.margins(pd.concat(frames, ignore_index=True).assign(recall=3))
    told = causes.left_out(decided)
    assert (told.loc[told["predictor"] == "margin", "auroc"] > 0.99).all()
    mixed = decided.assign(missed=rng.permutation(decided["missed"]))
    null = causes.left_out(mixed)
    assert null.loc[null["predictor"] == "margin", "auroc"].between(0.35, 0.65).all()
    assert (told["n"] == 200).all()


def test_facts_are_measured_on_other_views_than_they_are_chosen_on():
    rows = []
    for entity, named in (("x", True), ("y", False)):
        base = {"model": "m", "seed": 0, "entity_id": entity, "says_name": False}
        asked = {"relation": "r", "question_id": f"{entity}-r"}
        rows += [
            base
            | {"condition": "identify", "view": "1", "correct": named, "relation": ""}
            | {"question_id": ""},
            base | asked | {"condition": "by_name", "view": "1", "correct": True},
            base | asked | {"condition": "by_picture", "view": "1", "correct": False},
            base | asked | {"condition": "by_picture", "view": "2", "correct": True},
            base | asked | {"condition": "by_picture", "view": "3", "correct": False},
            base
            | {"condition": "by_picture", "view": "2", "correct": True}
            | {"relation": "border", "question_id": f"{entity}-b"},
        ]
    answers = pd.DataFrame(rows)
    found = causes.facts_of(answers, "1", ["2", "3"])
    assert list(found["question_id"]) == ["x-r"] and found["missed"].item() == 0.5
    control = causes.controls_of(answers, ["2"])
    assert control["n_items"].item() == 2 and control["right"].item() == 1


def test_the_best_position_is_chosen_on_other_entities():
    rows = []
    for i, entity in enumerate(IDS):
        for position in ("1", "2"):
            hit = position == "2" or i % 7 == 0
            rows.append(("m", 0, entity, position, 0, hit))
    columns = ["model", "seed", "entity_id", "position", "layer", "found"]
    best = causes.found_at_best_position(pd.DataFrame(rows, columns=columns))
    assert sorted(best["entity_id"]) == IDS and best["found"].all()


# --- on the shipped records -------------------------------------------------------------------


def test_the_shipped_records_give_a_verdict_on_every_planted_organism():
    names = list(PLANTED_IN)
    answers = study_records("answers", names, wording="standard")
    evidence = causes.of_organisms(answers, study_records("recall", [*names, "backbone"]), 2)
    verdicts = causes.model_verdicts(*evidence, draws=20)
    held = cause_words.held_out(verdicts, dev=[0])
    right = held["verdict"] == held["model"].map(PLANTED_IN)
    assert len(held) >= 12 and right.mean() > 0.9
    assert len(cause_words.verdict_table(verdicts, PLANTED_IN)) == len(verdicts)


def test_the_shipped_grafts_have_a_verdict_in_every_seed_they_were_measured_in():
    answers, likeness, internals = (
        read_frame(GRAFTS / f"{file}.parquet") for file in ("answers", "likeness", "internals")
    )
    verdicts = causes.model_verdicts(*causes.of_grafts(answers, likeness, internals, 2), draws=20)
    measured = likeness[["model", "seed"]].drop_duplicates()
    assert len(verdicts) == len(measured)
    assert set(verdicts["verdict"]) <= set(causes.CAUSES)
    caption = verdicts[(verdicts["model"] == "caption") & (verdicts["seed"] == 0)]
    assert caption["verdict"].item() == "named instead"


@pytest.fixture(scope="module")
def measured():
    """The records of ``twohop organism study --causes``."""
    names = list(PLANTED_IN)
    kinds = ("answers", "likeness", "inside")
    return {kind: study_records(f"causes_{kind}", names, seed=0) for kind in kinds}


def test_the_shipped_views_give_each_planted_cause_on_the_world_for_choosing(measured):
    written = study_records("causes_inside", ["backbone"], seed=0)
    evidence = causes.of_views(measured["answers"], measured["likeness"], written, 2)
    verdicts = causes.model_verdicts(*evidence, draws=20).set_index("model")["verdict"]
    assert verdicts.to_dict() == {name: PLANTED_IN[name] for name in verdicts.index}
    assert {"none", "foreign", "late", "unread", "named instead"} == set(verdicts)
    table = cause_words.fresh_table(evidence, measured["likeness"], PLANTED_IN)
    assert table.loc["late", "missed on both"].endswith("%")


def test_patching_agrees_with_the_verdicts_that_do_not_know_of_it(measured):
    moved = cause_words.transplant_table(measured["inside"], recall=3)
    values = cause_words.transplant_values(moved)
    share = {key: int(told.split()[0]) for key, told in values.items()}
    assert share["cross_early"] > 80 > 60 > share["cross_stands"]  # late
    assert share["late_early"] < 10 and share["late_in_time"] < 10  # foreign
    assert share["early_in_time"] > 60 and share["naming_in_time"] > 60
    back = cause_words.back_patch_table(measured["inside"])
    assert back.loc["cross", "brought back (from → to)"].startswith("8")
    assert back.loc["late", "brought back (from → to)"].startswith("0 %")
    assert back.loc["early", "brought back (from → to)"] == "–"  # two facts are missed
    windows = cause_words.window_table(measured["inside"])
    assert windows.loc["late", "blocks 0–1"] > windows.loc["late", "blocks 0–1 at 4"]
    told = cause_words.conflict_table(measured["answers"])
    assert told.loc["late", "another's: the picture's"] == "0 %"


def test_the_deadlines_of_the_two_backbones_are_told(measured):
    inside = study_records("causes_inside", ["backbone", "enriched-3-read-6"], seed=0)
    found = causes.deadlines(inside)
    own = found[found["which"] == causes.OWN].set_index("model")["at"]
    assert own["enriched-3-read-6"] > own["backbone"]
    assert str(own["enriched-3-read-6"]) in cause_words.deadline_title(causes.deadlines(inside))
    assert set(cause_words.deadline_values(inside, causes.deadlines(inside))) == {
        *("read_before", "read_after", "stale", "fresh")
    }
    assert len(cause_words.deadline_table(found)) == 2
    assert cause_words.deadline_lines(inside)["line"].nunique() == 4


def test_the_figure_of_confusion_says_what_it_shows():
    verdicts = pd.DataFrame({"model": ["a", "b"], "seed": 1, "verdict": ["late", "unread"]})
    planted = {"a": "late", "b": "late"}
    title = cause_words.confusion_title(verdicts, planted)
    chart = heat.confusion(causes.confusion(verdicts, planted), title).to_dict()
    assert "<svg" in vl_convert.vegalite_to_svg(theme.fixed(chart, 600))
    assert "late found as unread: 1 of 2" in chart["description"]
    assert "1 of 2 models" in title
    told = verdicts.assign(certain=[1.0, 0.6], otherwise=["", "late"])
    assert cause_words.confused(told, planted) == (
        "b of world 1 (late) is found unread or late (60 % of draws)"
    )


def test_a_recipe_s_verdicts_are_counted_and_what_is_unsure_is_undecided():
    verdicts = pd.DataFrame(
        {
            "model": ["a", "a", "a", "b"],
            "seed": [0, 1, 2, 0],
            "verdict": ["late", "late", "unread", "none"],
            "certain": [1.0, 0.95, 0.6, 1.0],
            "otherwise": ["", "foreign", "late", ""],
        }
    )
    assert cause_words.by_recipe(verdicts) == (
        "A: late (2), undecided: late or unread (1); b: none (1 of 1)"
    )


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        (
            {"a": (0, 0, 0), "b": (0, 1, 1), "c": (0, 0, 1)},
            "a is never like a name, the others from layer 1–2 on",
        ),
        ({"a": (0, 0, 0), "b": (0, 0, 0.4)}, "a and b are never like a name"),
        ({"b": (0, 1, 1)}, "All are like a name from layer 1 on"),
    ],
)
def test_a_title_says_who_is_never_like_a_name(shares, told):
    rows = [(m, i, share) for m, own in shares.items() for i, share in enumerate(own)]
    found = pd.DataFrame(rows, columns=["model", "layer", "found"])
    assert cause_words.likeness_title(found) == told
