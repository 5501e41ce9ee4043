"""The reader's own table: read when it is right, refused by file, row and column when it is not."""

from __future__ import annotations

import csv
import io
import json
import struct
import time
import tracemalloc
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from twohop_lib.benchmark import pictures, table
from twohop_lib.benchmark.faults import BadTable
from twohop_lib.benchmark.sources import build, open_benchmark
from twohop_lib.commands import app
from twohop_lib.errors import TwohopError

BRIDGES = {
    "Tower Bridge": ("London", "1894"),
    "Rialto Bridge": ("Venice", "1591"),
    "Charles Bridge": ("Prague", "1402"),
    "Ponte Vecchio": ("Florence", "1345"),
}
TEMPLATES = {"city": "In which city does {entity} stand?", "year": "When was {entity} finished?"}


def rows() -> list[dict[str, str]]:
    return [
        {
            "entity": name,
            "image": f"{name.split()[0].lower()}.png",
            "noun": "bridge",
            "relation": relation,
            "question": template,
            "answers": answer,
        }
        for name, answers in BRIDGES.items()
        for (relation, template), answer in zip(TEMPLATES.items(), answers, strict=True)
    ]


def put(folder: Path, content: list[dict[str, str]], name: str = "bridges.csv") -> Path:
    file = folder / name
    columns = list(dict.fromkeys(c for row in content for c in row))
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writeheader()
        writer.writerows(content)
    return file


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(BRIDGES):
        size = (20 + 4 * i, 12)
        Image.new("RGB", size, (40 * i, 90, 120)).save(tmp_path / f"{name.split()[0].lower()}.png")
    return tmp_path


def changed(row: int, **cells: str) -> list[dict[str, str]]:
    content = rows()
    content[row - 1] |= cells
    return content


def problems(file: Path, **options) -> list[str]:
    with pytest.raises(BadTable) as caught:
        table.read(file, **options)
    assert str(caught.value).startswith(f"{file}, row ")
    assert str(caught.value).count("\n") == 0
    return [str(p) for p in caught.value.problems]


# --- what is right ---


def test_a_table_becomes_questions_in_both_ways(folder):
    read = table.read(put(folder, rows()))
    assert len(read.questions) == 8
    q = read.questions[0]
    assert (q.entity, q.relation, q.answers) == ("Tower Bridge", "city", ("London",))
    assert q.question_by_name == "In which city does Tower Bridge stand?"
    assert q.question_by_picture == "In which city does the bridge in this picture stand?"
    assert q.identify_prompt == "Which bridge is shown in this picture?"
    assert set(q.distractors) == {"Venice", "Prague", "Florence"}
    assert (
        read.picture(q.entity_id) == folder / "tower.png" and q.image == "images/tower-bridge.png"
    )
    assert read.notes == {"skipped rows": 0, "skipped": []}
    assert read.counts.to_dict("list")["facts"] == [8, 8]


def test_three_formats_say_the_same(folder):
    parquet = folder / "bridges.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), parquet)
    lists = folder / "lists.parquet"
    pq.write_table(pa.Table.from_pylist([r | {"answers": [r["answers"]]} for r in rows()]), lists)
    files = [put(folder, rows()), put(folder, rows(), "bridges.tsv"), parquet, lists]
    assert len({table.read(file).questions for file in files}) == 1


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    file = put(folder, rows())
    one, two = (build("table", tmp_path / n, 5, source=file) for n in ("one", "two"))
    for path in one.root.rglob("*.*"):
        assert path.read_bytes() == (two.root / path.relative_to(one.root)).read_bytes()
    assert open_benchmark(str(file), tmp_path / "three", 5).hash == one.hash


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("London|Greater London", ("London", "Greater London")),
        ('["London", "Londres"]', ("London", "Londres")),
        ("['London', \"King's town\"]", ("London", "King's town")),
        (" London ", ("London",)),
    ],
)
def test_lists_may_be_written_in_several_ways(folder, cell, answers):
    assert table.read(put(folder, changed(1, answers=cell))).questions[0].answers == answers


def test_questions_may_be_given_in_full(folder):
    content = [
        {k: v for k, v in row.items() if k != "question"}
        | {
            "question_by_name": f"Where is {row['entity']} ({row['relation']})?",
            "question_by_picture": f"Where is this ({row['relation']})?",
        }
        for row in rows()
    ]
    q = table.read(put(folder, content)).questions[0]
    assert q.question_by_picture == "Where is this (city)?"


def test_what_is_left_out_is_made_up(folder):
    content = [{k: r[k] for k in ("entity", "image", "question", "answers")} for r in rows()]
    q = table.read(put(folder, content)).questions
    assert q[0].question_by_picture == "In which city does the thing in this picture stand?"
    assert [x.relation for x in q[:2]] == ["fact 1", "fact 2"]
    assert len({x.question_id for x in q}) == 8 and q[0].entity_id == "tower-bridge"


def test_ids_that_are_no_file_names_do_no_harm(folder, tmp_path):
    content = [r | {"entity_id": "../../" + r["entity"]} for r in rows()]
    built = build("table", tmp_path / "b", source=put(folder, content))
    assert all(q.image.startswith("images/") and ".." not in q.image for q in built.questions)


def test_blank_lines_and_a_byte_order_mark_are_passed_over(folder):
    file = put(folder, rows())
    text = file.read_text("utf-8").replace("\r\n", "\n\n")
    file.write_text("\ufeff" + text, "utf-8")
    assert len(table.read(file).questions) == 8


# --- what people's programs write ---


def spelled(folder: Path, text: str, name: str = "other.csv") -> tuple:
    (folder / name).write_text(text, "utf-8")
    return table.read(folder / name).questions


@pytest.mark.parametrize(
    ("delimiter", "begin", "name"),
    [
        (";", "", "a.csv"),
        (";", "\ufeff", "a.csv"),
        (";", "sep=;\r\n", "a.csv"),
        (";", "\ufeffsep=;\n", "a.csv"),
        ("\t", "", "a.csv"),
        ("\t", "\ufeff", "a.CSV"),
        (",", "", "a.tsv"),
        (";", "", "a.tsv"),
        ("|", "sep=|\n", "a.csv"),
    ],
)
def test_what_stands_between_cells_is_found_out(folder, delimiter, begin, name):
    there = put(folder, rows())
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows(csv.reader(there.read_text("utf-8").splitlines()))
    assert spelled(folder, begin + out.getvalue(), name) == table.read(there).questions


def test_names_of_columns_may_be_in_any_case(folder):
    there = put(folder, rows())
    text = there.read_text("utf-8").replace("entity,image,noun", " Entity,IMAGE,Noun ", 1)
    assert spelled(folder, text) == table.read(there).questions
    cells = pa.Table.from_pylist([{c.title(): v for c, v in r.items()} for r in rows()])
    pq.write_table(cells, folder / "title.parquet")
    assert table.read(folder / "title.parquet").questions == table.read(there).questions
    full = [{"Entity ID": r["entity"].split()[0], **r} for r in rows()]
    assert table.read(put(folder, full)).questions[0].entity_id == "Tower"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("distractor", "distractors"), ("Alias", "aliases"), ("answer", "answers"), ("img", None)]
    + [("year", None), ("question_en", None), ("relations", "relation"), ("entity_en", None)],
)
def test_a_column_almost_named_like_one_is_refused(folder, given, meant):
    content = rows()
    for row in content:
        row[given] = row.pop("answers") if meant == "answers" else "x"
        if meant == "relation":
            del row["relation"]
    if meant is None:
        assert len(table.read(put(folder, content)).questions) == 8
        return
    with pytest.raises(
        TwohopError, match=f"column {given.lower()!r}: is unknown; rename it if {meant!r}"
    ):
        table.read(put(folder, content))


@pytest.mark.parametrize("there", ["NFC", "NFD"])
def test_a_picture_is_found_in_either_normal_form_of_unicode(folder, tmp_path, there):
    (folder / unicodedata.normalize(there, "Brücken")).mkdir()
    file = folder / unicodedata.normalize(there, "Brücken/Žďár.png")
    (folder / "rialto.png").rename(file)
    for form in ("NFC", "NFD"):
        content = [
            r | {"image": unicodedata.normalize(form, "Brücken/Žďár.png")}
            if r["entity"] == "Rialto Bridge"
            else r
            for r in rows()
        ]
        built = build("table", tmp_path / form, source=put(folder, content))
        assert built.image(built.questions[2]).size == (24, 12)


def test_a_row_that_is_there_twice_is_told_by_what_was_written(folder):
    found = problems(put(folder, [*rows(), rows()[0]]))
    assert found == ["row 9, column 'question': asks the same as row 1; remove one of them"]
    found = problems(put(folder, [*rows(), rows()[0] | {"question": "Where is {entity}?"}]))
    assert found == [
        "row 9, column 'question': asks in other words what row 1 asks of this entity; give it a "
        "wording of its own"
    ]
    full = [
        {k: v for k, v in r.items() if k != "question"}
        | {
            "question_by_name": f"{r['relation']} of {r['entity']}?",
            "question_by_picture": f"{r['relation']} of this?",
        }
        for r in rows()
    ]
    assert problems(put(folder, [*full, full[0]])) == [
        "row 9, column 'question_by_name': asks the same as row 1; remove one of them"
    ]


@pytest.mark.parametrize("noun", ["the bridge", "A bridge", "an old bridge"])
def test_a_noun_comes_without_its_article(folder, noun):
    (found,) = problems(put(folder, changed(3, noun=noun)))[:1]
    assert found == f"row 3, column 'noun': {noun!r} begins with an article; leave that out"


def test_an_article_before_the_name_is_not_said_twice(folder):
    content = [r | {"question": r["question"].replace("{entity}", "the {entity}")} for r in rows()]
    asked = table.read(put(folder, content)).questions[0]
    assert asked.question_by_name == "In which city does the Tower Bridge stand?"
    assert asked.question_by_picture == "In which city does the bridge in this picture stand?"


@pytest.mark.parametrize("column", ["answers", "aliases", "distractors"])
@pytest.mark.parametrize("sign", [";", "\n", " / "])
def test_entries_are_parted_by_one_sign_alone(folder, column, sign):
    cell = f"City0{sign}Ciudad0"
    found = problems(put(folder, changed(3, **{column: cell})))[0]
    assert (
        found.startswith(f"row 3, column {column!r}: holds ") and "write one|two for two" in found
    )
    read = table.read(put(folder, changed(3, **{column: json.dumps([cell])})))
    assert getattr(read.questions[2], column) == (cell,)


@pytest.mark.parametrize("column", ["entity", "answers", "aliases", "question", "noun"])
@pytest.mark.parametrize("sign", ["\u200b", "\u202e", "\u2067", "\ufeff", "\u00ad", "\u200e"])
def test_characters_that_nobody_sees_are_told(folder, column, sign):
    there = rows()[2].get(column, "Rialto")
    found = problems(put(folder, changed(3, **{column: there[:3] + sign + there[3:]})))[0]
    assert found.startswith(
        f"row 3, column {column!r}: has an invisible character (U+{ord(sign):04X}"
    )


@pytest.mark.parametrize(
    "name", ["می\u200cخواهم", "ക്\u200d", "👨\u200d👩", "القاهرة", "ירושלים", "Łódź"]
)
def test_names_of_every_script_are_names(folder, name):
    content = changed(3, answers=name)
    assert table.read(put(folder, content)).questions[2].answers == (name,)


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "is transparent all over; save it with what"),
        (Image.new("LA", (9, 9), (0, 0)), "is transparent all over"),
        (Image.new("RGB", (1, 1)), "has a single pixel; replace it by the whole picture"),
    ],
)
def test_a_picture_that_shows_nothing_is_refused(folder, picture, told):
    picture.save(folder / "empty.png")
    found = problems(put(folder, changed(3, image="empty.png")))[0]
    assert found.startswith(f"row 3, column 'image': 'empty.png' {told}")


# --- what is wrong with a row ---

FAULTS = {
    "no picture": ({"image": "gone.png"}, "row 3, column 'image': 'gone.png' does not exist"),
    "outside": ({"image": "../secret.png"}, "column 'image': '../secret.png' lies outside"),
    "absolute": ({"image": "/etc/hostname"}, "column 'image': '/etc/hostname' lies outside"),
    "address": (
        {"image": "https://example.org/a.png"},
        "row 3, column 'image': is an address; download the pictures first, and name their files",
    ),
    "file scheme": ({"image": "file:///etc/passwd"}, "column 'image': is an address"),
    "data scheme": ({"image": "data:image/png;base64,AA"}, "column 'image': is an address"),
    "no answer": ({"answers": " | "}, "row 3, column 'answers': is empty"),
    "empty list": ({"answers": "[]"}, "row 3, column 'answers': is empty"),
    "broken list": ({"answers": "['a'"}, "row 3, column 'answers': begins like a list"),
    "nested list": ({"answers": "[['a']]"}, "row 3, column 'answers': holds a list in a list"),
    "no entity": ({"entity": ""}, "row 3, column 'entity': is empty"),
    "no question": ({"question": ""}, "row 3, column 'question': is empty"),
    "no mark": ({"question": "Where is it?"}, "column 'question': needs {entity} once"),
    "two marks": ({"question": "{entity} {entity}?"}, "needs {entity} once"),
    "other mark": ({"question": "{entity} {city}?"}, "needs {entity} once"),
    "answer in it": (
        {"answers": "Rialto Bridge"},
        "column 'question': gives the answer 'Rialto Bridge' away",
    ),
    "name in it": (
        {"question": "Was the rialto  bridge, or {entity}, older?"},
        "column 'question': gives the name 'Rialto Bridge' away; refer to the picture instead "
        "(asked: 'Was the rialto  bridge, or the bridge in this picture, older?')",
    ),
    "alias in it": ({"aliases": "Picture"}, "gives the name 'Picture' away"),
    "unknown split": ({"split": "train"}, "column 'split': 'train' is unknown"),
    "twice": ({"question_id": "x", "relation": "a"}, ""),
    "null": ({"noun": "bri\0dge"}, "row 3, column 'noun': has a null character"),
    "long": ({"answers": "x" * 1_000_001}, "has a cell of more than 1,000,000 characters"),
}


@pytest.mark.parametrize("name", [n for n in FAULTS if n != "twice"])
def test_a_bad_row_is_refused_by_row_and_column_or_skipped(folder, name):
    cells, told = FAULTS[name]
    file = put(folder, changed(3, **cells))
    found = problems(file)
    assert told in found[0] and found[0].startswith("row 3, column ")
    kept = table.read(file, skip_bad=True)
    bad = {int(p.split(",")[0].removeprefix("row ")) for p in found}
    assert len(kept.questions) == 8 - len(bad)
    assert kept.notes["skipped rows"] == len(bad)
    assert kept.notes["skipped"][0] == found[0]
    assert "Venice" not in {q.answers[0] for q in kept.questions}


def test_ids_that_are_used_twice_are_refused(folder):
    content = rows()
    content[1]["question_id"] = content[4]["question_id"] = "same"
    assert problems(put(folder, content)) == [
        "row 5, column 'question_id': 'same' is used in row 2 already; make it unique"
    ]


def test_an_entity_has_one_name_and_one_picture(folder):
    found = problems(put(folder, changed(2, image="rialto.png")))
    assert "give an entity one picture" in found[0]
    found = problems(put(folder, changed(2, entity_id="tower-bridge", entity="Tower Bridge X")))
    assert "for the same entity 'tower-bridge'" in found[0]


def test_all_problems_are_told(folder):
    content = [r | {"answers": ""} for r in rows()]
    assert len(problems(put(folder, content))) == 8
    with pytest.raises(BadTable, match=r"row 1, column 'answers': .* \(and 7 more\)"):
        table.read(put(folder, content), skip_bad=True)


def test_a_row_with_cells_too_many_or_too_few(folder):
    file = put(folder, rows())
    lines = file.read_text().splitlines()
    lines[2] += ",more"
    lines[5] = "Charles Bridge"
    file.write_text("\n".join(lines))
    found = problems(file)
    assert found[0] == (
        "row 2, column 'entity': the row has 7 cells and the header 6; quote cells that hold a "
        "separator"
    )
    assert found[1].startswith("row 5, column 'entity': the row has 1 cells")
    assert len(table.read(file, skip_bad=True).questions) == 6


def test_wrong_encodings_are_named(folder):
    file = put(folder, changed(3, answers="Zürich"))
    file.write_bytes(file.read_text("utf-8").encode("latin-1"))
    assert problems(file) == [
        "row 3, column 'answers': is not UTF-8 (byte 0xFC); save the table as UTF-8"
    ]
    assert len(table.read(file, skip_bad=True).questions) == 7
    file.write_bytes(put(folder, rows()).read_text("utf-8").encode("utf-16"))
    with pytest.raises(TwohopError, match="is in UTF-16 or UTF-32; save it as UTF-8"):
        table.read(file)


def bomb() -> bytes:
    """A PNG of 60,000 by 60,000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pictures_that_are_none_or_too_large(folder):
    (folder / "text.png").write_text("not a picture")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "cut.png").write_bytes((folder / "tower.png").read_bytes()[:40])
    (folder / "link.png").symlink_to("/etc/hostname")
    (folder / "sub").mkdir()
    for image, told in {
        "text.png": "cannot be read as a picture",
        "bomb.png": "has more than 50,000,000 pixels",
        "cut.png": "cannot be read as a picture",
        "link.png": "lies outside",
        "sub": "does not exist",
    }.items():
        started = time.perf_counter()
        found = problems(put(folder, changed(3, image=image)))
        assert found[0].startswith("row 3, column 'image': ") and told in found[0]
        assert time.perf_counter() - started < 5


def test_a_field_of_fifty_megabytes_costs_little(folder):
    file = put(folder, rows())
    with file.open("a", encoding="utf-8") as out:
        for quoted in ('"', ""):
            out.write(f"Big,a.png,bridge,city,Where is {{entity}}?,{quoted}")
            for _ in range(50):
                out.write("x" * 1_000_000)
            out.write(f"{quoted}\n")
        out.write("Last,tower.png,bridge,city,Where is {entity}?,Rome\n")
    tracemalloc.start()
    found = problems(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [p.split(":")[0] for p in found] == ["row 9, column 'entity'", "row 10, column 'entity'"]
    assert all("has a cell of more than 1,000,000 characters" in p for p in found)
    assert peak < 150_000_000
    assert table.read(file, skip_bad=True).questions[-1].entity == "Last"


def test_a_quote_left_open_takes_no_other_row_with_it(folder):
    file = put(folder, rows())
    lines = file.read_text().splitlines()
    for opened, closed in ((lines[3].replace("Venice", '"Venice'), lines[6]),) + (
        (lines[3].replace("Venice", '"Venice'), lines[6].replace("1402", '"1402"')),
    ):
        file.write_text("\n".join([*lines[:3], opened, *lines[4:6], closed, *lines[7:]]) + "\n")
        found = problems(file)
        assert len(found) == 1 and found[0].startswith("row 3, column 'entity': cannot be read")
        kept = table.read(file, skip_bad=True)
        assert len(kept.questions) == 7 and kept.notes["skipped rows"] == 1


def test_rows_after_an_endless_cell_of_many_lines_are_kept(folder):
    file = put(folder, rows())
    lines = file.read_text().splitlines()
    lines[3] = lines[3].replace("Venice", '"' + ("x" * 99_999 + "\n") * 12 + '"')
    file.write_text("\n".join(lines) + "\n")
    assert len(table.read(file, skip_bad=True).questions) == 7


def test_an_alias_that_another_row_gives_is_a_name_too(folder):
    content = changed(1, aliases="Bascule")
    content[1]["question"] = "When was the Bascule, or {entity}, finished?"
    found = problems(put(folder, content))
    assert found[0].startswith("row 2, column 'question': gives the name 'Bascule' away")


def test_no_choice_names_the_entity(folder):
    borders = {"France": "Spain", "Spain": "France", "Italy": "Austria", "Chad": "Niger"}
    borders |= {"Peru": "Chile", "Oman": "Yemen"}
    content = [
        {
            "entity": country,
            "image": "tower.png",
            "relation": "neighbour",
            "question": "Which country borders {entity}?",
            "answers": answer,
        }
        for country, answer in borders.items()
    ]
    for q in table.read(put(folder, content)).questions:
        assert q.entity not in q.distractors and len(q.distractors) == 3


def test_three_distractors_are_found_if_there_are_any(folder):
    content = [
        {
            "entity": f"Bridge{i:02}",
            "image": "tower.png",
            "relation": "builder",
            "question": "Who built {entity}?",
            "answers": f"Person{i:02}",
        }
        for i in range(40)
    ]
    content[0]["answers"] = "|".join(f"Person{i:02}" for i in range(36))
    assert len(table.read(put(folder, content)).questions[0].distractors) == 3


def test_what_is_asked_in_the_same_words_is_the_same_relation(folder):
    content = [{k: v for k, v in r.items() if k != "relation"} for r in rows()]
    content[0] |= {"answers": "[broken"}
    kept = table.read(put(folder, content), skip_bad=True).questions
    assert {q.relation for q in kept if "finished" in q.question_by_name} == {"fact 1"}
    assert {q.relation for q in kept if "city" in q.question_by_name} == {"fact 2"}


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ('["\\ud800"]', "has half a character"),
        ('["a\\u0000b"]', "has a null character"),
        ("[b'London']", "holds bytes; give texts"),
    ],
)
def test_texts_within_a_list_are_checked_too(folder, tmp_path, cell, told):
    file = put(folder, changed(3, answers=cell))
    assert problems(file)[0].startswith(f"row 3, column 'answers': {told}")
    built = build("table", tmp_path / "b", source=file, skip_bad=True)
    assert built.notes["skipped rows"] == 1 and len(built.questions) == 7


def test_ids_that_are_one_file_are_refused_by_row(folder):
    ids = {"Tower Bridge": "ab", "Rialto Bridge": "AB"}
    file = put(folder, [r | {"entity_id": ids.get(r["entity"], "")} for r in rows()])
    assert problems(file)[0].startswith("row 3, column 'entity_id': is 'AB' but 'ab' in row 1")
    assert len(table.read(file, skip_bad=True).questions) == 6


def test_a_name_of_many_bytes_is_no_file_name(folder, tmp_path):
    content = [r | {"entity": "東" * 90, "question": "{entity}は?" + r["relation"]} for r in rows()]
    built = build("table", tmp_path / "b", source=put(folder, content[:2]))
    assert built.image(built.questions[0]).size == (20, 12)


def test_a_problem_is_one_short_line(folder):
    for cell in ("x" * 900_000, "a\x1b[2J.png"):
        found = problems(put(folder, changed(3, image=cell)))[0]
        assert len(found) < 600 and found.isprintable()


def parquet(folder: Path, **columns) -> Path:
    pq.write_table(
        pa.table({k: [r[k] for r in rows()] for k in rows()[0]} | columns), folder / "t.parquet"
    )
    return folder / "t.parquet"


def test_parquet_columns_that_are_no_text(folder):
    found = problems(parquet(folder, answers=[b"London"] * 8))
    assert "column 'answers': holds bytes; store text instead" in found[0]
    found = problems(parquet(folder, answers=[{"text": "London"}] * 8))
    assert "column 'answers': holds fields; store text instead" in found[0]
    floats = table.read(parquet(folder, answers=[1894.0] * 8)).questions
    assert floats[0].answers == ("1894",)


def test_columns_that_are_not_used_are_not_looked_at(folder):
    dates = pa.array([2**31 - 1] * 8, type=pa.date32())
    assert len(table.read(parquet(folder, when=dates, photo=[b"\0" * 600_000] * 8)).questions) == 8
    assert len(table.read(put(folder, [r | {"more": "a\0b"} for r in rows()])).questions) == 8


def test_a_packed_parquet_file_costs_little(folder):
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 512, pa.int32()), ["x" * 2_000_000])
    columns = {k: [rows()[i % 8][k] for i in range(512)] for k in rows()[0]}
    pq.write_table(pa.table(columns | {"answers": same}), folder / "t.parquet", store_schema=False)
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    assert len(problems(folder / "t.parquet")) == 512
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
    assert pa.default_memory_pool().max_memory() - before < 300_000_000


def test_pictures_of_sixteen_bits_keep_their_greys(folder):
    grey = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(grey).save(folder / "tower.png")
    shown = table.read(put(folder, rows())).picture("tower-bridge")
    assert abs(np.asarray(pictures.read(shown)).mean() - 127.5) < 1
    Image.fromarray(grey.astype(np.float32)).save(folder / "float.tif")
    found = problems(put(folder, changed(3, image="float.tif")))
    assert "has pixels of 32 bits; save it with 8 bits a channel" in found[0]


# --- what is wrong with the file ---


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", "is empty; it needs a line with the names of columns"),
        ("a.csv", b"entity,answers\nx,y\n", "column 'image': is missing; add it"),
        ("a.csv", b"entity,image,answers,noun,noun\n", "column 'noun': is there twice"),
        ("a.csv", b"entity,image,answers,question\n", "has no rows"),
        ("a.csv", "entity,image".encode("utf-16-le"), "is in UTF-16 or UTF-32; save it as UTF-8"),
        ("a.csv", b"\x1f\x8b\x08\x00", "is a spreadsheet or archive"),
        ("x" * 300 + ".csv", None, "does not exist; give a table"),
        ("a.csv", None, "is no file; give a table"),
        ("a.csv", b"PK\x03\x04\x00\x00", "is a spreadsheet or archive; save it as CSV"),
        ("a.parquet", b"PAR1 nothing", "is not a readable Parquet file"),
        ("a.xlsx", b"PK", "is not a table that can be read; use .csv, .tsv, .parquet"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif len(name) < 100:
        (tmp_path / name).mkdir()
    with pytest.raises(TwohopError, match=told):
        table.read(tmp_path / name)


def test_a_header_of_very_many_columns_takes_no_time(tmp_path):
    header = "entity,image,answers," + ",".join(f"c{i}" for i in range(60_000))
    (tmp_path / "a.csv").write_text(header + "\n")
    started = time.perf_counter()
    with pytest.raises(TwohopError, match="has no rows"):
        table.read(tmp_path / "a.csv")
    assert time.perf_counter() - started < 5


def test_missing_things_are_said(tmp_path):
    with pytest.raises(TwohopError, match="does not exist; give a table"):
        table.read(tmp_path / "none.csv")
    with pytest.raises(TwohopError, match="Give the table .* with --source"):
        build("table", tmp_path / "out")
    with pytest.raises(TwohopError, match="is not a folder; give the one that holds the pictures"):
        table.read(put(tmp_path, rows()), images=tmp_path / "none")
    with pytest.raises(TwohopError, match="Source table has no option 'imgs'; it has: source"):
        build("table", tmp_path / "out", imgs=3)


# --- from the command line ---


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["benchmark", *map(str, arguments)])
    if isinstance(result.exception, TwohopError):
        assert code == 1
        return result.output + str(result.exception)
    assert result.exit_code == code, result.output
    return result.output


def test_a_table_is_validated_shown_and_built(folder, tmp_path):
    file = put(folder, rows())
    told = run("validate", file)
    assert "table (seed 0): 4 entities, 8 questions" in told and told.endswith(f"{file}\n")
    run("show", file, "--out", tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<img") == 4 and "In which city does Tower Bridge stand?" in page
    bad = put(folder, [*changed(3, image="gone.png"), {**rows()[0], "answers": ""}], "bad.csv")
    told = run("validate", bad, code=1)
    assert f"{bad}, row 3, column 'image': 'gone.png' does not exist" in told
    assert f"{bad}, row 9, column 'answers': is empty; fill it in" in told
    told = run("build", "table", "--source", bad, "--skip-bad", "--out", tmp_path / "built")
    assert "2 row(s) skipped" in told and "4 entities" in told
    notes = json.loads((tmp_path / "built" / "benchmark.json").read_text())["notes"]
    assert notes["skipped rows"] == 2
    assert notes["skipped by column"] == {"answers": 1, "image": 1}


def test_ten_thousand_rows_take_seconds(folder):
    content = [
        r
        | {"entity": f"{r['entity']} number{i}", "question_id": f"{r['image']}-{i}-{r['relation']}"}
        for i in range(1250)
        for r in rows()
    ]
    started = time.perf_counter()
    assert len(table.read(put(folder, content)).questions) == 10_000
    assert time.perf_counter() - started < 40
