"""PopVQA as it is published: from a local copy, and from a hub on this machine."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import helpers_popvqa as published
import numpy as np
import pandas as pd
import pytest
from helpers_server import serving
from huggingface_hub import constants
from PIL import Image

from twohop_lib.benchmark import popvqa
from twohop_lib.benchmark.faults import BadTable
from twohop_lib.benchmark.sources import build, open_benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks


@pytest.fixture
def folder(tmp_path):
    return published.copy(tmp_path / "popvqa")


def changed(folder: Path, table: str, row: int, **cells: str) -> Path:
    entities, questions = published.rows()
    {"entities": entities, "questions": questions}[table][row - 1] |= cells
    return published.write(folder, entities, questions)


# --- what is right ---


def test_the_two_tables_are_joined_and_each_filter_counted(folder):
    read = popvqa.read(folder)
    assert read.counts.to_dict("split")["data"] == [
        ["published", 16, 37],
        ["not answered by yes or no, nor by one of two in the question", 16, 35],
        ["the name stands in the question by name", 16, 34],
        ["no name in the question by picture", 16, 33],
        ["the question does not hold the answer", 16, 32],
    ]
    assert len(read.questions) == 32
    q = read.questions[0]
    assert (q.entity_id, q.entity, q.noun) == ("Q100", "Ada Lindqvist", "subject")
    assert q.aliases == ("Ada Lindqvist (celebs)", "Lindqvisté")
    assert q.answers == ("Malmö", "Malmö (place)") and q.relation == "celebs: P19"
    assert set(q.distractors) == {"Leeds", "Ávila", "Cork"}
    assert read.notes["skipped rows"] == 0


def test_the_identify_prompts_are_the_papers(folder):
    asked = {q.identify_prompt for q in popvqa.read(folder).questions}
    assert asked == {
        "Identify by name the painting in the image.",
        "Identify by name the brand who's logo appears in the image.",
        "Identify by name the place in the image.",
        "Identify by name the subject in the image.",
    }


def test_pictures_are_fitted_into_a_black_square(folder):
    read = popvqa.read(folder)
    for i, entity_id in enumerate(("Q100", "Q101", "Q102")):
        w, h = published.SIZES[i]
        pixels = np.asarray(read.picture(entity_id)).astype(int)
        assert pixels.shape == (336, 336, 3)
        lit = pixels.sum(axis=2) > 60
        high, wide = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        assert len(wide) == round(336 * w / max(w, h)) and len(high) == round(336 * h / max(w, h))
        assert abs((high[0] + high[-1]) / 2 - 167.5) <= 0.5  # centred
    small = popvqa.letterbox(Image.new("RGB", (1000, 1), "white"))
    assert np.asarray(small).any()


def test_a_built_benchmark_is_sound_and_always_the_same(folder, tmp_path):
    one, two = (build("popvqa", tmp_path / n, 1, source=folder) for n in ("one", "two"))
    for path in one.root.rglob("*.*"):
        assert path.read_bytes() == (two.root / path.relative_to(one.root)).read_bytes()
    assert open_benchmark(str(folder), tmp_path / "three", 1).hash == one.hash
    assert len(one.notes["counts"]) == 5


def test_entities_are_taken_evenly_over_types(folder):
    for n, each in ((8, [2, 2, 2, 2]), (6, [1, 1, 2, 2]), (16, [4, 4, 4, 4])):
        read = popvqa.read(folder, entities=n)
        kinds = Counter({q.entity_id: q.noun for q in read.questions}.values())
        assert sorted(kinds.values()) == each
    assert {q.noun for q in popvqa.read(folder, types=("brands",)).questions} == {"brand"}
    with pytest.raises(TwohopError, match="PopVQA has no type 'brand'; did you mean 'brands'"):
        popvqa.read(folder, types=("brand",))


def test_questions_of_yes_and_no_can_be_kept(folder):
    read = popvqa.read(folder, binary=True)
    assert "Is Ada Lindqvist Swedish?" in {q.question_by_name for q in read.questions}


def test_no_name_leaks(folder):
    for q in popvqa.read(folder).questions:
        assert leaks(q.question_by_picture, [q.entity, *q.aliases]) is None


def test_columns_not_known_for_certain_may_be_missing_or_more(tmp_path):
    entities, questions = published.rows()
    entities = [{k: v for k, v in r.items() if k != "s_pop"} | {"more": "1"} for r in entities]
    questions = [{k: v for k, v in r.items() if k != "r_uri"} for r in questions]
    read = popvqa.read(published.write(tmp_path / "p", entities, questions))
    assert len(read.questions) == 32
    assert read.questions[0].relation == "celebs: Where was … born?"
    assert set(read.questions[0].distractors) == {"Leeds", "Ávila", "Cork"}


@pytest.mark.parametrize(
    "path",
    [
        "/home/me/PopVQA/resized_images/celebs/100.png",
        "./resized_images/celebs/100.png",
        "resized_images\\celebs\\100.png",
        "elsewhere/100.png",
    ],
)
def test_paths_of_another_machine_are_understood(folder, path):
    here = popvqa.read(folder).picture("Q100")
    entities, _ = published.rows()
    table = (folder / "entities.csv").read_text("utf-8")
    (folder / "entities.csv").write_text(table.replace(entities[0]["resized_path"], path), "utf-8")
    assert popvqa.read(folder).picture("Q100").tobytes() == here.tobytes()


def test_blind_solvable_questions_can_be_left_out(folder, tmp_path):
    built = build("popvqa", tmp_path / "b", source=folder)
    ids = [q.question_id for q in built.questions[:3]]
    answers = pd.DataFrame(
        {
            "question_id": [ids[0], ids[1], ids[2]],
            "condition": ["blank_by_picture", "blank_by_picture", "by_picture"],
            "correct": [True, False, True],
        }
    )
    kept = popvqa.without_blind_solvable(built, answers)
    assert {q.question_id for q in built.questions} - {q.question_id for q in kept.questions} == {
        ids[0]
    }


def test_ten_thousand_questions_take_seconds(tmp_path):
    entities, questions = published.rows()
    many = [row | {"s_uri": f"{row['s_uri']}{i:04d}"} for i in range(320) for row in questions[:32]]
    more = [row | {"s_uri": f"{row['s_uri']}{i:04d}"} for i in range(320) for row in entities]
    folder = published.write(tmp_path / "p", entities, many)
    pd.DataFrame(more).to_csv(folder / "entities.csv", index=False)
    started = time.perf_counter()
    assert len(popvqa.read(folder, entities=0).questions) == 10_240
    assert time.perf_counter() - started < 40


# --- what is wrong ---


@pytest.mark.parametrize(
    ("table", "cells", "told"),
    [
        ("entities", {"type": "birds"}, "column 'type': 'birds' is unknown; use celebs"),
        ("entities", {"aliases": "['a'"}, "column 'aliases': begins like a list"),
        ("entities", {"subject": " "}, "column 'subject': is empty"),
        ("entities", {"resized_path": ""}, "column 'resized_path': is empty"),
        ("questions", {"possible_answers": "[]"}, "column 'possible_answers': is empty"),
        ("questions", {"possible_answers": "[1, [2]]"}, "holds a list in a list"),
        ("questions", {"question": ""}, "column 'question': is empty"),
        ("questions", {"subject": "Nobody"}, "with this subject is no entity"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_column_or_skipped(tmp_path, table, cells, told):
    folder = changed(tmp_path / "p", table, 2, **cells)
    with pytest.raises(BadTable) as caught:
        popvqa.read(folder)
    assert str(caught.value).startswith(f"{folder / table}.csv, row ") and told in str(caught.value)
    read = popvqa.read(folder, skip_bad=True)
    assert 0 < len(read.questions) < 32
    assert told in read.notes["skipped"][0] and read.notes["skipped rows"] >= 1


def test_a_name_in_the_identify_prompt_is_filtered_not_fatal(tmp_path):
    folder = changed(tmp_path / "p", "entities", 14, aliases="['WHO']")  # "… brand who's logo …"
    built = build("popvqa", tmp_path / "b", source=folder)
    assert len(built.entities()) == 15 and "Q401" not in built.entities()


def test_ids_may_be_long_but_must_differ_by_more_than_case(tmp_path):
    entities, questions = published.rows()
    for row in (*entities, *questions):
        row["s_uri"] = row["s_uri"].replace("Q101", "東" * 100)
    folder = published.write(tmp_path / "p", entities, questions)
    assert len(build("popvqa", tmp_path / "b", source=folder).entities()) == 16
    for row in (*entities, *questions):
        row["s_uri"] = row["s_uri"].replace("東" * 100, "q100")
    with pytest.raises(BadTable, match="row 2, column 's_uri': .* is used in row 1 already"):
        popvqa.read(published.write(tmp_path / "p", entities, questions))


def test_the_bytes_do_not_depend_on_where_the_copy_lies(folder, tmp_path, monkeypatch):
    (folder / "resized_images/celebs/101.png").unlink()
    there = folder.rename(tmp_path / "elsewhere")
    one = build("popvqa", tmp_path / "one", source=there, skip_bad=True)
    there.rename(folder)
    monkeypatch.chdir(tmp_path)
    two = build("popvqa", tmp_path / "two", source=folder.name, skip_bad=True)
    for path in one.root.rglob("*.*"):
        assert path.read_bytes() == (two.root / path.relative_to(one.root)).read_bytes()


def test_a_path_too_long_to_be_one_is_a_missing_picture(folder):
    table = (folder / "entities.csv").read_text("utf-8")
    (folder / "entities.csv").write_text(table.replace("101.png", "x" * 300 + ".png"), "utf-8")
    assert len({q.entity_id for q in popvqa.read(folder, skip_bad=True).questions}) == 15
    with pytest.raises(TwohopError, match="does not exist; put the picture there"):
        popvqa.read(folder).picture("Q101")


@pytest.mark.parametrize("entities", [-3, "4", 2.5, True])
def test_a_number_of_entities_that_is_none_is_refused(folder, entities):
    with pytest.raises(TwohopError, match="entities cannot be taken; give a whole number"):
        popvqa.read(folder, entities=entities)


def test_an_id_is_one_entitys(tmp_path):
    entities, _ = published.rows()
    folder = changed(tmp_path / "p", "entities", 2, s_uri=entities[0]["s_uri"])
    with pytest.raises(BadTable, match="row 2, column 's_uri': .* is used in row 1 already"):
        popvqa.read(folder)


def test_a_missing_picture_is_refused_or_its_entity_left_out(folder, tmp_path):
    (folder / "resized_images/celebs/101.png").unlink()
    with pytest.raises(TwohopError, match="101.png does not exist; put the picture there"):
        build("popvqa", tmp_path / "b", source=folder)
    built = build("popvqa", tmp_path / "b", source=folder, skip_bad=True)
    assert "Q101" not in built.entities() and len(built.entities()) == 15
    assert built.notes["skipped"][0].startswith("entities.csv, row 2, column 'resized_path': Q101")


def test_two_pictures_of_one_name_are_not_mistaken_for_one_another(folder):
    for kind in ("brands", "celebs"):
        Image.new("RGB", (9, 9), "red").save(folder / f"resized_images/{kind}/logo.png")
    table = (folder / "entities.csv").read_text("utf-8")
    first, _ = published.rows()
    for path, fits in (("/x/logo.png", False), ("/x/resized_images/celebs/logo.png", True)):
        there = table.replace(first[0]["resized_path"], path)
        (folder / "entities.csv").write_text(there, "utf-8")
        if fits:
            assert popvqa.read(folder).picture("Q100").getpixel((9, 9)) == (255, 0, 0)
            continue
        with pytest.raises(TwohopError, match="logo.png or .*logo.png; name its folder too"):
            popvqa.read(folder).picture("Q100")


def test_pictures_outside_the_copy_are_not_read(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    folder = changed(tmp_path / "p", "entities", 1, resized_path="../secret.png")
    with pytest.raises(TwohopError, match="does not exist"):
        popvqa.read(folder).picture("Q100")


def test_missing_files_and_columns_are_named(tmp_path, folder):
    with pytest.raises(TwohopError, match="is no copy of PopVQA; it needs entities.csv"):
        popvqa.read(tmp_path)
    entities, questions = published.rows()
    for row in questions:
        del row["possible_answers"]
    with pytest.raises(TwohopError, match="column 'possible_answers': is missing; add it"):
        popvqa.read(published.write(tmp_path / "p", entities, questions))


# --- the hub ---


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub on this machine with the data set, as the real one answers for it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving() as it:
        monkeypatch.setenv("HF_ENDPOINT", it.url)
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file())
        commit = "c" * 40
        about = {
            "_id": "1",
            "id": popvqa.REPO,
            "sha": commit,
            "private": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": f} for f in files],
        }
        for ref in ("", "/revision/main", f"/revision/{commit}"):
            it.files[f"/api/datasets/{popvqa.REPO}{ref}"] = json.dumps(about).encode()
        tree = [
            {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": f"{i:040x}"}
            for i, f in enumerate(files)
        ]
        it.files[f"/api/datasets/{popvqa.REPO}/tree/{commit}"] = json.dumps(tree).encode()
        for name, ref in itertools.product(files, ("main", commit)):
            path = f"/datasets/{popvqa.REPO}/resolve/{ref}/{name}"
            content = (folder / name).read_bytes()
            it.files[path] = content
            it.headers[path] = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            }
        yield it


def test_the_hub_gives_what_a_local_copy_gives_and_is_asked_once(hub, folder):
    read, here = popvqa.read(entities=4), popvqa.read(folder, entities=4)
    assert read.questions == here.questions
    assert read.notes["read from"] == "idoco/PopVQA at cccccccccccc"
    for entity_id in {q.entity_id for q in read.questions}:
        assert read.picture(entity_id).tobytes() == here.picture(entity_id).tobytes()
    asked = [p for p in hub.asked if p.endswith(".png")]
    assert len({*asked}) == 4  # no picture but those that are needed
    hub.asked.clear()
    again = popvqa.read(entities=4)
    again.picture(again.questions[0].entity_id)
    assert not [p for p in hub.asked if p.endswith(".png")]


def test_of_very_many_pictures_all_are_fetched(hub, monkeypatch):
    monkeypatch.setattr(popvqa, "MOST_BY_NAME", 3)
    read = popvqa.read(entities=4)
    assert len({p for p in hub.asked if p.endswith(".png")}) == 16
    assert all(read.picture(q.entity_id) for q in read.questions)


def test_pictures_that_the_hub_lacks_are_told(hub):
    gone = [p for p in hub.files if p.endswith("101.png")]
    for path in (*gone, f"/api/datasets/{popvqa.REPO}/tree/{'c' * 40}"):
        content = hub.files.pop(path)
    hub.files[path] = json.dumps(
        [f for f in json.loads(content) if "101" not in f["path"]]
    ).encode()
    with pytest.raises(TwohopError, match="101.png does not exist; put the picture there"):
        popvqa.read(entities=0).picture("Q101")
    assert len({q.entity_id for q in popvqa.read(entities=0, skip_bad=True).questions}) == 15


def test_what_was_fetched_is_read_again_without_a_network(hub, monkeypatch, tmp_path):
    first = build("popvqa", tmp_path / "one", entities=4)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = build("popvqa", tmp_path / "two", entities=4)
    assert again.hash == first.hash and again.notes == first.notes
    by_commit = build("popvqa", tmp_path / "three", entities=4, revision="c" * 40)
    assert by_commit.hash == first.hash
    with pytest.raises(TwohopError, match="cannot be fetched"):
        popvqa.read(revision="d" * 40)


def test_a_revision_that_is_not_there_is_said(hub):
    hub.headers[f"/api/datasets/{popvqa.REPO}/revision/old"] = {"X-Error-Code": "RevisionNotFound"}
    with pytest.raises(TwohopError, match="has no such revision; leave it out"):
        popvqa.read(revision="old")
    with pytest.raises(TwohopError, match="A local copy has no revision"):
        popvqa.read("somewhere", revision="old")


def test_offline_is_one_sentence(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TwohopError) as caught:
        popvqa.read()
    told = str(caught.value)
    assert told.startswith("idoco/PopVQA cannot be fetched") and "--source" in told
    assert "\n" not in told


def test_a_data_set_that_is_gone_is_said(hub):
    hub.files.clear()
    with pytest.raises(TwohopError, match="is not on the hub any more|cannot be fetched"):
        popvqa.read()
