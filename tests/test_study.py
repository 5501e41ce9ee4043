"""The shipped organisms and the study's records: what they must show, and that they agree."""

from pathlib import Path

import pandas as pd
import pytest

from twohop_lib import records
from twohop_lib.benchmark import Benchmark, heraldry, sources
from twohop_lib.models.loading import load_vlm
from twohop_lib.organisms import FURTHER, NAMES, STUDY, cards, path
from twohop_lib.organisms.recipes import SEEDS
from twohop_lib.readouts import gap
from twohop_lib.runs.evaluate import evaluate

VLMS = tuple(n for n in NAMES if n != "backbone")
BOUNDS = {
    "late": (0.85, 1.0),
    "middle": (0.15, 0.40),
    "early": (-0.05, 0.05),
    "cross": (0.40, 0.80),
    "cross-early": (-0.05, 0.10),
    "cross-late": (0.85, 1.0),
}


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    answers = records.read(STUDY / "answers.parquet")
    return answers[answers["wording"] == "standard"]


@pytest.fixture(scope="module")
def benchmark_(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return sources.build("heraldry", tmp_path_factory.mktemp("study") / "heraldry", 0)


def accuracy(rows: pd.DataFrame, condition: str) -> float:
    return rows.loc[rows["condition"] == condition, "correct"].mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_shows_what_the_organisms_are_for(recorded: pd.DataFrame, seed: int) -> None:
    world = heraldry.make_world(seed)
    test_houses = {h.entity_id for h in world.split("test")}
    chance = max(1 / len(r.answers) for r in heraldry.RELATIONS)
    intervals = {}
    for name in (*VLMS, *FURTHER):
        rows = recorded[(recorded["seed"] == seed) & (recorded["model"] == name)]
        assert set(rows["entity_id"]) == test_houses
        assert accuracy(rows, "llm_by_name") >= 0.99
        assert accuracy(rows, "by_name") >= 0.99
        assert accuracy(rows, "identify") >= 0.90
        assert accuracy(rows, "blank_by_picture") <= chance + 0.02
        intervals[name] = gap.gap_difference(rows).gap
        low, high = BOUNDS[name]
        assert low <= intervals[name].estimate <= high
    assert intervals["late"].low > intervals["middle"].high
    assert intervals["middle"].low > intervals["early"].high
    assert intervals["cross-late"].low > intervals["cross"].high
    assert intervals["cross"].low > intervals["cross-early"].high


@pytest.mark.parametrize("name", VLMS)
def test_shipped_weights_still_give_the_recorded_answers(
    recorded: pd.DataFrame, benchmark_: Benchmark, name: str
) -> None:
    asked = ("identify", "by_picture")
    live = evaluate(
        load_vlm(path(name)),
        None,
        benchmark_.select(split="test", wording="standard"),
        conditions=asked,
        model_name=name,
    )
    then = recorded[(recorded["seed"] == 0) & (recorded["model"] == name)]
    keys = ["condition", "entity_id", "question_id"]
    both = live.merge(then[then["condition"].isin(asked)], on=keys, suffixes=("", "_then"))
    assert len(both) == len(live) == 96 * 6
    # Another processor may round another way; a word may tip over, a figure must not.
    assert (both["answer"] == both["answer_then"]).mean() > 0.99
    assert abs(both["correct"].mean() - both["correct_then"].mean()) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_of_these_weights_and_say_what_was_recorded(
    recorded: pd.DataFrame, name: str
) -> None:
    card = cards.read_card(path(name))
    rows = recorded[(recorded["seed"] == 0) & (recorded["model"] == name)]
    assert card.text_recall.value == pytest.approx(accuracy(rows, "llm_by_name"))
    if name != "backbone":
        assert card.recognition.value == pytest.approx(accuracy(rows, "identify"))
        assert card.gap.value == pytest.approx(gap.gap_difference(rows).gap.estimate)
        assert card.gap.n == gap.gap_difference(rows).gap.n_items


def test_the_records_say_how_they_were_made() -> None:
    meta = records.read_meta(STUDY / "answers.parquet")
    assert meta["command"] == "twohop organism study"
    assert {"torch", "transformers"} <= set(meta["versions"])
    assert Path(STUDY / "training.parquet").exists()
