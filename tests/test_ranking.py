"""Likelihood ranking: verdicts from scores, and scores behind one run against whole runs."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tests.zoo import build as build_family
from twohop_lib.errors import TwohopError
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.prompts import build
from twohop_lib.organisms import path
from twohop_lib.runs import rank as ranking_runs
from twohop_lib.runs.generate import score
from twohop_lib.runs.rank import CONDITIONS, answers_of, rank, score_candidates
from twohop_lib.scoring.ranking import SCORES, first_tokens, likeliest, parted, verdicts


def table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["item", *SCORES])


# ---- verdicts --------------------------------------------------------------------------------


def test_an_answer_is_likeliest_by_the_mean_of_its_tokens_or_by_its_first() -> None:
    scores = table(
        [
            # Three tokens at -1 each against one at -1.5; the first token says otherwise.
            ("a", "Addis Ababa", True, -3.0, 3, -2.0, 1),
            ("a", "Asmara", False, -1.5, 1, -1.5, 2),
            # The likelier of two names counts, on either side.
            ("b", "Kyiv", True, -9.0, 1, -9.0, 3),
            ("b", "Kiev", True, -1.0, 1, -1.0, 4),
            ("b", "Minsk", False, -2.0, 1, -2.0, 5),
            # A tie is no victory.
            ("c", "Lima", True, -1.0, 1, -1.0, 6),
            ("c", "Quito", False, -2.0, 2, -1.0, 7),
        ]
    )
    ranked = likeliest(scores, ["item"]).set_index("item")
    assert list(ranked.index) == ["a", "b", "c"]
    assert list(ranked["by_length"]) == [True, True, False]
    assert list(ranked["by_first"]) == [False, True, False]
    assert list(ranked["margin"]) == pytest.approx([0.5, 1.0, 0.0])
    assert list(ranked["first_margin"]) == pytest.approx([-0.5, 1.0, 0.0])
    assert list(ranked["candidate"]) == ["Addis Ababa", "Kiev", "Lima"]
    assert list(ranked["n_candidates"]) == [2, 3, 2]


def test_a_first_token_that_right_and_wrong_answers_share_decides_nothing() -> None:
    scores = table(
        [
            ("a", "Port Louis", True, -2.0, 2, -0.5, 1),
            ("a", "Port Moresby", False, -4.0, 2, -0.5, 1),
            ("b", "Port Louis", True, -2.0, 2, -3.0, 1),
            ("b", "Lima", False, -4.0, 2, -0.5, 2),
            ("b", "Port Moresby", False, -4.0, 2, -3.0, 1),
        ]
    )
    ranked = likeliest(scores, ["item"])
    assert ranked["by_first"].isna().tolist() == [True, False]
    assert ranked["by_length"].tolist() == [True, True] and not ranked["by_first"][1]


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    right, wrong = ("a", "Lima", True, -1.0, 1, -1.0, 1), ("a", "Quito", False, -1.0, 1, -1.0, 2)
    for rows, told in (
        ([right], "no other candidate"),
        ([wrong], "no accepted candidate"),
        ([right, ("a", "Quito", False, math.nan, 1, -1.0, 2)], "not a number"),
    ):
        with pytest.raises(TwohopError, match=told):
            likeliest(table(rows), ["item"])


def test_first_tokens_are_compared_in_the_logits_of_a_sweep() -> None:
    logits = np.array([[0.0, 2.0, 1.0, 5.0], [0.0, 1.0, 4.0, -5.0]])
    assert first_tokens(logits, {1}, {2, 1}).tolist() == [1.0, -3.0]
    assert first_tokens(logits, {1, 3}, {2, 3}).tolist() == [4.0, -3.0]
    with pytest.raises(TwohopError, match="same token"):
        first_tokens(logits, {1}, {1})


def test_verdicts_stand_beside_those_of_matching() -> None:
    answers = pd.DataFrame(
        {
            "question_id": ["a", "b", "c", "d", "unranked"],
            "condition": ["by_name"] * 2 + ["by_picture"] * 3,
            "correct": [True, False, True, False, True],
        }
    )
    by = ["question_id", "condition"]
    ranked = answers.iloc[:4][by].assign(
        by_length=[True, True, False, False],
        by_first=pd.array([True, pd.NA, True, False], dtype="boolean"),
    )
    both = verdicts(answers, ranked, by)
    assert list(both["question_id"]) == ["a", "b", "c", "d"]
    counts = parted(both).set_index("condition")
    columns = ["n", "both", "matching_only", "ranking_only", "neither"]
    assert list(counts.loc["by_name", columns]) == [2, 1, 0, 1, 0]
    assert list(counts.loc["by_picture", columns]) == [2, 0, 1, 0, 1]
    assert list(parted(both, "by_first").set_index("condition").loc["by_name", columns]) == [
        *(1, 1, 0, 0, 0)
    ]
    with pytest.raises(TwohopError, match="No answer was ranked"):
        verdicts(answers.iloc[4:], ranked, by)
    with pytest.raises(TwohopError, match="ranked twice"):
        verdicts(answers, pd.concat([ranked, ranked]), by)


# ---- scores ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def late():
    return load_vlm(path("late", 0))


@pytest.fixture(scope="module")
def backbone():
    return load_llm(path("backbone", 0))


def largest_difference(model, benchmark, kinds, candidates) -> float:
    """Between scores behind one run of each prompt and :func:`score` of whole runs, in nats."""
    asked = [(kind, q) for kind in kinds for q in benchmark.questions[:2]]
    prompts = [build(kind, q, model.tokenizer, "written") for kind, q in asked]
    images = [
        benchmark.image(q) if p.image else None for p, (_, q) in zip(prompts, asked, strict=True)
    ]
    scored = score_candidates(model, prompts, images, [candidates] * len(prompts), batch_size=3)
    largest = 0.0
    for prompt, image, found in zip(prompts, images, scored, strict=True):
        n = len(candidates)
        wanted = score(model, [prompt] * n, [image] * n, candidates)
        got = [sum(value for _, value in tokens) for tokens in found]
        largest = max(largest, *(abs(a - b) for a, b in zip(got, wanted, strict=True)))
    return largest


def shared_only(monkeypatch) -> None:
    """Let whole runs be made for the probe alone, so that the shared way is what is tested."""

    def refused(*_):
        raise AssertionError("whole runs were made")

    exact = ranking_runs._is_exact
    whole = ranking_runs._whole_runs

    def probe(*args):
        monkeypatch.setattr(ranking_runs, "_whole_runs", whole)
        found = exact(*args)
        monkeypatch.setattr(ranking_runs, "_whole_runs", refused)
        return found

    monkeypatch.setattr(ranking_runs, "_is_exact", probe)


NAMES = ["Aldric", "the house of Torgard", "salt", "Aldric of the Seven Rivers", "Berta", "otter"]


def test_an_organism_scores_alike_behind_one_run_and_in_whole_runs(late, world, monkeypatch):
    shared_only(monkeypatch)
    kinds = ["by_name", "by_picture", "blank_by_picture", "name_given"]
    assert largest_difference(late, world, kinds, NAMES) < 1e-4


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl", "idefics3"])
def test_families_score_alike_behind_one_run_and_in_whole_runs(
    family, world, tmp_path, monkeypatch
):
    shared_only(monkeypatch)
    vlm = load_vlm(build_family(family, tmp_path).vlm)
    assert largest_difference(vlm, world, ["by_name", "by_picture", "name_given"], NAMES) < 1e-3


def test_without_a_picture_rows_share_a_prompt_in_spite_of_cross_attention(world, monkeypatch):
    shared_only(monkeypatch)
    assert largest_difference(load_vlm(path("cross")), world, ["by_name"], NAMES) < 1e-4


def test_a_picture_that_was_shown_before_shifts_no_words(world, tmp_path, monkeypatch):
    """Qwen-VL models keep how far a picture shifts positions, row by row, until the next one."""
    vlm = load_vlm(build_family("qwen3_vl", tmp_path).vlm)
    few = world.some(1).questions[:3]
    prompts = [build("by_picture", q, vlm.tokenizer, "written") for q in few]
    score(vlm, prompts, [world.image(q) for q in few], ["Aldric"] * 3, 3)
    shared_only(monkeypatch)
    assert largest_difference(vlm, world, ["by_name"], NAMES) < 1e-3


def test_linear_attention_is_ranked_in_whole_runs(world, tmp_path):
    vlm = load_vlm(build_family("qwen3_5", tmp_path).vlm)
    assert largest_difference(vlm, world, ["by_name"], NAMES[:3]) < 1e-3


def test_where_rows_cannot_share_a_prompt_whole_runs_are_made(world, tmp_path):
    vlm = load_vlm(build_family("mllama", tmp_path).vlm)
    prompt = build("by_picture", world.questions[0], vlm.tokenizer, "written")
    image = world.image(world.questions[0])
    assert not ranking_runs._is_exact(vlm, prompt, image, NAMES, 4)
    assert largest_difference(vlm, world, ["by_picture"], NAMES) < 1e-4


def test_a_shared_prompt_that_is_not_exact_is_found_out(late, world, monkeypatch):
    class Shifted(ranking_runs._Shared):
        def __init__(self, keys, values):
            super().__init__(keys.roll(1, dims=2), values)

    question = world.questions[0]
    prompt = build("by_picture", question, late.tokenizer, "written")
    assert ranking_runs._is_exact(late, prompt, world.image(question), NAMES, 4)
    monkeypatch.setattr(ranking_runs, "_Shared", Shifted)
    assert not ranking_runs._is_exact(late, prompt, world.image(question), NAMES, 4)


def test_an_error_of_ours_is_no_verdict_on_the_model(late, world, monkeypatch):
    def wrong(*_):
        raise TypeError("ours")

    monkeypatch.setattr(ranking_runs, "_continuations", wrong)
    prompt = build("by_picture", world.questions[0], late.tokenizer, "written")
    with pytest.raises(TypeError, match="ours"):
        ranking_runs._is_exact(late, prompt, world.image(world.questions[0]), NAMES, 4)


def test_the_prompt_is_run_once_and_candidates_of_one_length_together(late, world, monkeypatch):
    calls = []
    forward = late.model.forward

    def counted(*args, **kwargs):
        calls.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    prompt = build("by_picture", world.questions[0], late.tokenizer, "written")
    image = world.image(world.questions[0])
    monkeypatch.setattr(late.model, "forward", counted)
    ranking_runs._behind(late, prompt, image, [f"{name} and {name}" for name in NAMES] * 4, 64)
    prompt_run, *others = calls
    assert prompt_run[0] == 1 and sum(rows for rows, _ in others) == 24
    widths = [width for _, width in others]
    assert len(set(widths)) == len(widths) and max(widths) < prompt_run[1] / 2


def test_memory_that_runs_out_halves_the_batch(late, world, monkeypatch):
    prompt = build("by_name", world.questions[0], late.tokenizer, "written")
    wanted = ranking_runs._behind(late, prompt, None, NAMES, 64)
    forward = late.model.forward

    def short(*args, **kwargs):
        if kwargs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError
        return forward(*args, **kwargs)

    monkeypatch.setattr(late.model, "forward", short)
    got = ranking_runs._behind(late, prompt, None, NAMES, 64)
    for one, other in zip(got, wanted, strict=True):
        assert [t for t, _ in one] == [t for t, _ in other]
        assert [v for _, v in one] == pytest.approx([v for _, v in other], abs=1e-4)


# ---- all answers of a relation ---------------------------------------------------------------


def test_every_answer_of_a_relation_is_a_candidate_in_both_arms(late, backbone, world, tmp_path):
    few = world.some(1)
    first = few.questions[0].entity_id
    conditions, by = ["identify", "llm_by_name", "by_picture"], ["condition", "question_id"]
    offered = answers_of(world)
    scores = rank(late, backbone, few, conditions, offered, folder=tmp_path)
    assert set(scores["condition"]) == set(conditions) and set(scores["entity_id"]) == {first}
    for (_, relation), rows in scores.groupby(["condition", "relation"]):
        assert sorted(rows["candidate"]) == sorted(offered[relation]) and len(rows) > 10
        assert rows["accepted"].sum() >= 1
    again = rank(late, backbone, few, conditions, offered, folder=tmp_path)
    pd.testing.assert_frame_equal(scores, again)
    ranked = likeliest(scores, by).set_index("condition")
    assert ranked.loc[["llm_by_name"], "by_length"].all()  # the backbone knows its facts
    assert list(rank(late, None, few, ["by_name"])["question_id"].unique()) == [
        q.question_id for q in few.questions
    ]


def test_conditions_whose_answer_is_not_free_are_not_ranked(late, world):
    assert "name_first" not in CONDITIONS and "choice_by_name" not in CONDITIONS
    with pytest.raises(TwohopError, match="'name_first'"):
        rank(late, None, world, ["name_first"])
    with pytest.raises(TwohopError, match="as many lists"):
        score_candidates(late, [], None, [["Aldric"]])
