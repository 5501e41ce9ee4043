"""Benchmarks on disk: written whole and always alike, read only when everything is right."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from twohop_lib.benchmark import Benchmark, Question, flags, load, pictures, store
from twohop_lib.benchmark.sources import build
from twohop_lib.commands import app
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks

BANDS = {"B1": ("Beyoncé's Band", "seen"), "B2": ("The Beetles", "dev"), "B3": ("Jay Z", "test")}
ANSWERS = {"town": ("Oslo", "Rome", "Lima"), "sound": ("jazz", "folk", "soul")}


def make_questions(bands: dict[str, tuple[str, str]] = BANDS) -> list[Question]:
    return [
        Question(
            question_id=f"{entity_id}-{relation}-{wording}",
            entity_id=entity_id,
            entity=entity,
            aliases=(f"Band {entity}",),
            noun="band",
            relation=relation,
            wording=wording,
            question_by_name=asks.format(r=relation, m=f"the band {entity}"),
            question_by_picture=asks.format(r=relation, m="the band shown here"),
            identify_prompt="Which band is shown here?",
            answers=(answers[i % 3], f"The {answers[i % 3]}"),
            distractors=tuple(a for a in answers if a != answers[i % 3]),
            image=f"images/{entity_id}.png",
            split=split,
        )
        for i, (entity_id, (entity, split)) in enumerate(bands.items())
        for relation, answers in ANSWERS.items()
        for wording, asks in {
            "plain": "What is the {r} of {m}?",
            "short": "The {r} of {m}?",
        }.items()
    ]


def draw(entity_id: str) -> Image.Image:
    return Image.new("RGB", (6, 4), (zlib.crc32(entity_id.encode()) % 256, 10, 200))


@pytest.fixture
def bench(tmp_path) -> Benchmark:
    return store.write(make_questions(), draw, tmp_path / "bench", "bands", 3)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rewrite(folder: Path, change) -> None:
    """Pass the table through ``change`` (a dict of columns) and write it back."""
    columns = pq.read_table(folder / store.TABLE).to_pydict()
    columns = change(columns) or columns
    pq.write_table(pa.table(columns), folder / store.TABLE)


def put(folder: Path, row: int, **cells) -> None:
    def change(columns):
        for column, value in cells.items():
            columns[column][row - 1] = value

    rewrite(folder, change)


def run(*arguments) -> str:
    result = CliRunner().invoke(app, ["benchmark", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


# --- writing and reading back ---


def test_what_is_written_is_read_back(bench):
    again = load(bench.root)
    assert again.questions == tuple(make_questions())
    assert (again.name, again.seed, again.hash) == ("bands", 3, bench.hash)
    assert sorted(p.name for p in bench.root.iterdir()) == sorted(
        [store.TABLE, store.PICTURES, store.ABOUT]
    )
    about = json.loads((bench.root / store.ABOUT).read_text())
    assert (about["noun"], about["entities"], about["questions"]) == (["band"], 3, 12)


def test_the_same_questions_give_the_same_bytes(bench, tmp_path):
    again = store.write(make_questions(), draw, tmp_path / "again", "bands", 3)
    assert everything(again.root) == everything(bench.root)
    noted = {e: draw(e) for e in BANDS}
    for picture in noted.values():
        picture.info = {"icc_profile": b"profile", "comment": "made on Monday"}
    assert everything(
        store.write(make_questions(), noted.__getitem__, again.root, "bands", 3).root
    ) == (everything(bench.root))


def test_a_picture_that_is_a_file_is_copied_as_it_is(tmp_path):
    file = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 90).save(file)
    questions = [replace(q, image=f"images/{q.entity_id}.jpg") for q in make_questions()]
    made = store.write(questions, lambda _: file, tmp_path / "b", "bands", 0)
    assert (made.root / "images" / "B2.jpg").read_bytes() == file.read_bytes()
    assert load(made.root).image(questions[0]).size == (64, 48)


def test_a_benchmark_is_replaced_whole_or_not_at_all(bench):
    before = everything(bench.root)

    def fails(entity_id):
        if entity_id == "B3":
            raise RuntimeError("no ink")
        return draw("other")

    with pytest.raises(RuntimeError, match="no ink"):
        store.write(make_questions(), fails, bench.root, "bands", 4)
    assert everything(bench.root) == before
    store.write(make_questions({"B3": BANDS["B3"]}), draw, bench.root, "bands", 4)
    assert load(bench.root).entities() == ("B3",)
    assert sorted(p.name for p in (bench.root / "images").iterdir()) == ["B3.png"]
    assert list(bench.root.parent.iterdir()) == [bench.root]


def test_the_old_benchmark_comes_back_if_the_new_one_cannot_be_put_in_place(bench, monkeypatch):
    before, rename = everything(bench.root), Path.rename

    def stuck(self, target):
        if self.name.endswith(".partial") and ".old" not in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stuck)
    with pytest.raises(TwohopError, match="Permission denied.*choose another folder"):
        store.write(make_questions(), draw, bench.root, "bands", 4)
    assert everything(bench.root) == before
    assert list(bench.root.parent.iterdir()) == [bench.root]


def test_a_folder_of_something_else_is_left_alone(bench, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("ten years")
    with pytest.raises(TwohopError, match=r"thesis\.tex would be deleted.*choose another folder"):
        store.write(make_questions(), draw, tmp_path / "thesis", "bands", 0)
    (bench.root / "notes.txt").write_text("mine")
    with pytest.raises(TwohopError, match=r"notes\.txt would be deleted"):
        store.write(make_questions(), draw, bench.root, "bands", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(TwohopError, match="is a file; choose a folder"):
        store.write(make_questions(), draw, tmp_path / "file", "bands", 0)
    with pytest.raises(TwohopError, match="cannot be written"):
        store.write(make_questions(), draw, tmp_path / "file" / "below", "bands", 0)
    (tmp_path / "empty").mkdir()
    store.write(make_questions(), draw, tmp_path / "empty", "bands", 0)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "ten years"
    assert (bench.root / "notes.txt").read_text() == "mine"


def test_the_current_folder_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store.write(make_questions(), draw, Path("."), "bands", 0)
    assert len(load(tmp_path / "here").questions) == 12


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "../B1.png"}, "must lie in images/"),
        ({"image": "/tmp/B1.png"}, "must lie in images/"),
        ({"image": "B1.png"}, "must lie in images/"),
        ({"image": "images/b2.png"}, "is of 'B1' and of 'B2'; part them"),
        ({"noun": "duo"}, "Benchmark bands, row 2, column 'noun': is 'band' but 'duo' in row 1"),
    ],
)
def test_a_source_cannot_write_a_broken_benchmark(tmp_path, change, told):
    first, *others = make_questions()
    with pytest.raises(TwohopError, match=re.escape(told)):
        store.write([replace(first, **change), *others], draw, tmp_path / "out", "bands", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "cells", [{"answers": ()}, {"aliases": ("",)}, {"noun": " "}, {"split": "x"}]
)
def test_a_question_is_sound_or_is_not_made(cells):
    with pytest.raises(ValidationError):
        replace(make_questions()[0], **cells)


# --- what a benchmark offers ---


def test_frame_entities_and_selections(bench):
    frame = bench.frame()
    assert len(frame) == 12 and list(frame.columns) == list(Question.__dataclass_fields__)
    assert frame.answers[0] == ("Oslo", "The Oslo")
    assert bench.entities() == ("B1", "B2", "B3")
    chosen = bench.select(split="dev", wording="short")
    assert [q.question_id for q in chosen.questions] == ["B2-town-short", "B2-sound-short"]
    assert (chosen.name, chosen.root, bench.select()) == (bench.name, bench.root, bench)
    assert (
        bench.select(split="").questions
        == ()
        == bench.select(split="").select(wording="x").questions
    )
    with pytest.raises(TwohopError, match="did you mean 'test'"):
        bench.select(split="tests")
    with pytest.raises(TwohopError, match="did you mean 'plain'"):
        bench.select(wording="plane")


def test_so_many_entities_are_taken_and_never_fewer_than_none(bench):
    assert bench.some(2).entities() == ("B1", "B2") and bench.some(0) == bench.some(9) == bench
    with pytest.raises(TwohopError, match="-5 entities cannot be taken; give 0 for all, or more"):
        bench.some(-5)


def test_the_hash_covers_questions_and_pictures(bench, tmp_path):
    renamed = store.write(make_questions(), draw, tmp_path / "elsewhere", "other", 9)
    assert renamed.hash == bench.hash
    repainted = store.write(make_questions(), lambda e: draw(e + "!"), tmp_path / "p", "bands", 3)
    first, *others = make_questions()
    reworded = [replace(first, identify_prompt="Who plays here?"), *others]
    reworded = store.write(reworded, draw, tmp_path / "q", "bands", 3)
    assert len({bench.hash, repainted.hash, reworded.hash, bench.select(split="dev").hash}) == 4


def test_pictures_come_as_rgb_upright_and_on_white(bench):
    file = bench.root / "images" / "B1.png"
    question = bench.questions[0]
    assert np.asarray(bench.image(question)).tolist() == np.asarray(draw("B1")).tolist()
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    clear.putpixel((1, 1), (0, 0, 255, 255))
    clear.save(file)
    assert bench.image(question).getpixel((0, 0)) == (255, 255, 255)
    Image.new("L", (2, 2), 7).save(file)
    assert bench.image(question).getpixel((0, 0)) == (7, 7, 7)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held sideways
    Image.new("RGB", (8, 4)).save(file, format="JPEG", exif=turned)
    assert bench.image(question).size == (4, 8)
    file.unlink()
    with pytest.raises(TwohopError, match="B1.png does not exist"):
        bench.image(question)


# --- what may be there all the same ---


def test_other_ways_to_store_the_same_table_are_read(bench):
    table = pq.read_table(bench.root / store.TABLE)
    for i, column in enumerate(table.column_names):
        values = table.column(column)
        if column in ("noun", "relation"):
            values = values.dictionary_encode()
        elif pa.types.is_list(values.type):
            values = values.cast(pa.large_list(pa.large_string()))
        else:
            values = values.cast(pa.large_string())
        table = table.set_column(i, column, values)
    extra = table.append_column("year", pa.array(range(12)))
    pq.write_table(extra, bench.root / store.TABLE)
    assert load(bench.root).questions == bench.questions


@pytest.mark.parametrize("nothing", [None, []])
def test_aliases_distractors_and_split_may_be_empty(bench, nothing):
    rewrite(
        bench.root,
        lambda c: {
            **c,
            "aliases": [nothing] * 12,
            "distractors": [nothing] * 12,
            "split": [None] * 12,
        },
    )
    question = load(bench.root).questions[0]
    assert (question.aliases, question.distractors, question.split) == ((), (), "")


# --- what is refused ---

ROW_FAULTS = [
    (
        {"question_id": "B1-town-short"},
        "row 2, column 'question_id': 'B1-town-short' is used in row 1",
    ),
    ({"question_id": None}, "row 1, column 'question_id': is empty; fill it in"),
    ({"noun": "  "}, "row 1, column 'noun': is empty; fill it in"),
    ({"image": None}, "row 1, column 'image': is empty"),
    ({"image": ""}, "row 1, column 'image': is empty"),
    ({"answers": []}, "row 1, column 'answers': is an empty list; give at least one"),
    ({"answers": None}, "row 1, column 'answers': is an empty list; give at least one"),
    ({"answers": ["Oslo", " "]}, "row 1, column 'answers': has a blank entry; remove it"),
    ({"answers": ["Oslo", None]}, "row 1, column 'answers': is no text; store text"),
    ({"aliases": [""]}, "row 1, column 'aliases': has a blank entry"),
    (
        {"split": "train"},
        "row 1, column 'split': 'train' is unknown; use one of 'seen', 'dev', 'test'",
    ),
    (
        {"entity": "Duo", "aliases": ["Beyoncé's Band"]},
        "row 2, column 'entity': is \"Beyoncé's Band\" but 'Duo' in row 1 for the same entity 'B1'",
    ),
    (
        {"split": "test"},
        "row 2, column 'split': is 'seen' but 'test' in row 1 for the same entity 'B1'",
    ),
    ({"noun": "duo"}, "row 2, column 'noun': is 'band' but 'duo' in row 1"),
    (
        {
            "question_by_picture": "Where does beyonces-band's van stand?",
            "aliases": ["Beyonces Band"],
        },
        "row 1, column 'question_by_picture': gives the name \"Beyoncé's Band\" away",
    ),
    ({"noun": "Beyoncé's Band"}, "row 1, column 'noun': gives the name \"Beyoncé's Band\" away"),
    ({"distractors": ["Beyonces Band"]}, "row 1, column 'distractors': 'Beyonces Band' gives the"),
    (
        {"identify_prompt": "Is this BEYONCE’S BAND?"},
        "row 1, column 'identify_prompt': gives the name \"Beyoncé's Band\" away",
    ),
    (
        {"question_by_name": "What is the town of the band shown here?"},
        "row 1, column 'question_by_name': does not name \"Beyoncé's Band\"; name the entity in it",
    ),
    (
        {"distractors": ["Rome", " OSLO "]},
        "row 1, column 'distractors': ' OSLO ' is an accepted answer too",
    ),
    (
        {"question_by_picture": "Is the band shown here from Oslo?"},
        "row 1, column 'question_by_picture': gives the answer 'Oslo' away",
    ),
    (
        {"question_by_name": "Is Beyoncé's Band from oslo?"},
        "row 1, column 'question_by_name': gives the answer 'Oslo' away",
    ),
    ({"image": "images/none.png"}, "row 1, column 'image': 'images/none.png' does not exist"),
    ({"image": "images"}, "row 1, column 'image': 'images' does not exist"),
    (
        {"image": "../secret.png"},
        "row 1, column 'image': '../secret.png' lies outside the folder",
    ),
    (
        {"image": "/etc/hostname"},
        "row 1, column 'image': '/etc/hostname' lies outside the folder",
    ),
    ({"image": "images/a\0b.png"}, "row 1, column 'image': has a null character; remove it"),
    ({"image": "images/" + "x" * 5000}, "is not a usable path"),
    (
        {"image": store.TABLE},
        "row 1, column 'image': 'questions.parquet' cannot be read as a picture",
    ),
]


@pytest.mark.parametrize(("cells", "told"), ROW_FAULTS)
def test_a_wrong_row_is_told_with_its_place(bench, cells, told):
    (bench.root.parent / "secret.png").write_bytes((bench.root / "images/B1.png").read_bytes())
    put(bench.root, 1, **cells)
    with pytest.raises(TwohopError, match=re.escape(told)) as caught:
        load(bench.root)
    assert str(caught.value).startswith(f"{bench.root / store.TABLE}, row ")
    assert "\n" not in str(caught.value)


def test_the_first_fault_is_told_and_the_others_counted(bench):
    put(bench.root, 5, answers=[], noun="")
    put(bench.root, 9, question_by_picture="Is it Jay-Z?", wording="")
    (bench.root / "images" / "B3.png").write_bytes(b"junk")
    with pytest.raises(TwohopError, match=r"row 5, column 'answers': .* \(and 3 more\)$"):
        load(bench.root)
    put(bench.root, 5, answers=["Rome"], noun="band")
    put(bench.root, 9, question_by_picture="Where?", wording="plain")
    with pytest.raises(TwohopError, match=r"row 9, column 'image': .*cannot be read[^()]*$"):
        load(bench.root)


def test_single_signs_and_numbers_give_nothing_away(bench):
    put(bench.root, 1, answers=["a", "7"], question_by_picture="Is 7 a number of this band?")
    assert load(bench.root).questions[0].answers == ("a", "7")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as a picture; replace it by a sound PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture"),
        (b"P6 1 1 255 abc", "cannot be read as a picture"),  # sound, but of no format for the web
        (png_header(8, 8), "cannot be read as a picture"),
        (png_header(7100, 7100), "has more than 50,000,000 pixels; make the picture smaller"),
        (png_header(10_000, 10_000), "has more than 50,000,000 pixels"),  # Pillow only warns
        (png_header(100_000, 100_000), "has more than 50,000,000 pixels"),  # Pillow refuses
    ],
)
def test_a_picture_that_cannot_be_shown_is_told(bench, content, told):
    (bench.root / "images" / "B2.png").write_bytes(content)
    with pytest.raises(TwohopError, match=f"row 5, column 'image': 'images/B2.png' {told}"):
        load(bench.root)


def test_a_picture_cut_short_is_told(bench):
    file = bench.root / "images" / "B2.png"
    Image.effect_noise((64, 64), 90).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(TwohopError, match="'images/B2.png' cannot be read as a picture"):
        load(bench.root)


def test_a_link_out_of_the_folder_is_told(bench):
    file = bench.root / "images" / "B2.png"
    file.rename(bench.root.parent / "secret.png")
    file.symlink_to(bench.root.parent / "secret.png")
    with pytest.raises(TwohopError, match="'images/B2.png' lies outside the folder of pictures"):
        load(bench.root)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(TwohopError, match="'images/B2.png' (is not a usable path|does not exist)"):
        load(bench.root)


def test_each_picture_is_decoded_once(bench, monkeypatch):
    decoded = []
    read = pictures.read
    monkeypatch.setattr(pictures, "read", lambda file: decoded.append(file.name) or read(file))
    load(bench.root)
    assert sorted(decoded) == ["B1.png", "B2.png", "B3.png"]


COLUMN_FAULTS = [
    (lambda c: {k: v for k, v in c.items() if k != "noun"}, "column 'noun': is missing; add it"),
    (
        lambda c: {**c, "answers": ["x"] * 12},
        "row 1, column 'answers': is no list; store one of texts.*and 11 more",
    ),
    (
        lambda c: {**c, "answers": [[1]] * 12},
        "row 1, column 'answers': is no text; store text",
    ),
    (lambda c: {**c, "noun": [b"x"] * 12}, "row 1, column 'noun': holds bytes; store text instead"),
    (lambda c: {**c, "noun": [["x"]] * 12}, "row 1, column 'noun': is no text; store text"),
    (lambda c: {**c, "noun": [None] * 12}, "row 1, column 'noun': is empty.*and 11 more"),
    (lambda c: {**c, "answers": [None] * 12}, "row 1, column 'answers': is an empty list.*11 more"),
    (
        lambda c: {k: v[:0] for k, v in c.items()},
        "has no rows; it needs one per question",
    ),
]


@pytest.mark.parametrize(("change", "told"), COLUMN_FAULTS)
def test_a_wrong_column_is_told(bench, change, told):
    rewrite(bench.root, change)
    with pytest.raises(TwohopError, match=told):
        load(bench.root)


def test_a_column_that_is_there_twice_is_told(bench):
    table = pq.read_table(bench.root / store.TABLE)
    pq.write_table(table.append_column("noun", table["noun"]), bench.root / store.TABLE)
    with pytest.raises(TwohopError, match="column 'noun': is there twice; keep one"):
        load(bench.root)


def test_text_that_is_not_utf8_is_told(bench):
    table = pq.read_table(bench.root / store.TABLE)
    broken = pa.array([b"\xff\xfe"] * 12).view(pa.string())
    at = table.column_names.index("noun")
    pq.write_table(table.set_column(at, "noun", broken), bench.root / store.TABLE)
    with pytest.raises(TwohopError, match="is not a readable Parquet file"):
        load(bench.root)


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def scramble(file):
    data = bytearray(file.read_bytes())
    data[8:600] = b"\xa5" * 592
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        (store.TABLE, Path.unlink, r"questions\.parquet does not exist"),
        (store.TABLE, lambda f: f.write_text("a,b\n"), "is not a readable Parquet file"),
        (store.TABLE, lambda f: f.write_bytes(b""), "is not a readable Parquet file"),
        (store.TABLE, cut, "is not a readable Parquet file"),
        (store.TABLE, scramble, "is not a readable Parquet file"),
        (store.ABOUT, Path.unlink, r"There is no file .*benchmark\.json; it must hold"),
        (store.ABOUT, lambda f: f.write_text("{"), "is not readable JSON"),
        (store.ABOUT, lambda f: f.write_bytes(b"\xff"), "is not readable JSON"),
        (store.ABOUT, lambda f: f.write_text("[]"), "is not readable JSON"),
        (store.ABOUT, lambda f: f.write_text('{"name": " ", "seed": 0}'), "gives no usable 'name'"),
        (store.ABOUT, lambda f: f.write_text('{"name": "b"}'), "gives no usable 'seed'"),
        (store.ABOUT, lambda f: f.write_text('{"name": "b", "seed": true}'), "usable 'seed'"),
        (store.ABOUT, lambda f: f.write_text('{"name": "b", "seed": "1"}'), "usable 'seed'"),
    ],
)
def test_a_missing_or_damaged_file_is_told(bench, file, damage, told):
    damage(bench.root / file)
    with pytest.raises(TwohopError, match=told) as caught:
        load(bench.root)
    assert str(bench.root / file) in str(caught.value)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(TwohopError, match="none is not a folder; give one made by"):
        load(tmp_path / "none")


# --- the fictional world ---


@pytest.fixture(scope="module")
def heraldry(tmp_path_factory) -> Benchmark:
    return build("heraldry", tmp_path_factory.mktemp("world") / "heraldry", 0)


def test_heraldry_is_large_and_sound(heraldry):
    loaded = load(heraldry.root)
    assert loaded.questions == heraldry.questions
    assert len(loaded.entities()) >= 240
    relations = defaultdict(set)
    for q in loaded.questions:
        relations[q.entity_id].add(q.relation)
        assert (
            leaks(q.question_by_picture + " " + q.identify_prompt, [q.entity, *q.aliases]) is None
        )
        assert len(q.distractors) >= 3
    assert min(map(len, relations.values())) >= 5
    assert {q.split for q in loaded.questions} == {"seen", "dev", "test"}
    frame = loaded.frame()
    assert frame.groupby("entity_id").entity.first().is_unique
    assert not frame.duplicated(["entity_id", "relation", "wording"]).any()
    for _, q in frame.drop_duplicates("entity_id").iterrows():
        assert np.asarray(loaded.image(q)).std() > 10


def test_heraldry_depends_on_the_seed_and_on_nothing_else(heraldry, tmp_path):
    told = run("build", "heraldry", "--out", tmp_path / "again", "--seed", 0)
    assert told.splitlines() == [
        "heraldry (seed 0): 240 entities, 8400 questions",
        f"hash {heraldry.hash}",
        str(tmp_path / "again"),
    ]
    assert everything(tmp_path / "again") == everything(heraldry.root)
    other = everything(build("heraldry", tmp_path / "other", 1).root)
    same = {name for name, data in everything(heraldry.root).items() if other.get(name) == data}
    assert same == set()


def test_an_unknown_benchmark_or_seed_is_told(tmp_path):
    with pytest.raises(
        TwohopError, match="No benchmark is called 'heraldy'; did you mean 'heraldry'"
    ):
        build("heraldy", tmp_path / "x")
    with pytest.raises(TwohopError, match="The seed is -1; give 0 or more"):
        build("heraldry", tmp_path / "x", -1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [1.5, True, "1", None, float("nan")])
def test_a_seed_that_is_no_whole_number_is_told(tmp_path, seed):
    with pytest.raises(TwohopError, match="; give a whole number"):
        build("flags", tmp_path / "x", seed)


def test_a_seed_of_numpy_is_a_seed(tmp_path):
    assert load(build("flags", tmp_path / "x", np.int64(3), distinct=True).root).seed == 3


def test_no_choice_of_a_flag_names_the_country():
    for q in flags.read().questions:
        offered = [q.answers[0], *q.distractors]
        assert not any(leaks(o, [q.entity, *q.aliases]) for o in offered), q.question_id


def test_pictures_that_are_not_its_own_are_not_deleted(bench):
    mine = bench.root / "images" / "mine.png"
    Image.new("RGB", (9, 9)).save(mine)
    with pytest.raises(TwohopError, match="images/mine.png would be deleted"):
        store.write(make_questions(), draw, bench.root, "bands", 3)
    assert mine.exists()


def test_what_a_killed_build_left_is_no_hindrance(tmp_path):
    (tmp_path / f".bench.{os.getpid()}.partial" / "images").mkdir(parents=True)
    store.write(make_questions(), draw, tmp_path / "bench", "bands", 3)
    assert [p.name for p in tmp_path.iterdir()] == ["bench"]


def test_an_interrupted_replacement_puts_the_old_one_back(bench, monkeypatch):
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(make_questions(), draw, bench.root, "other", 4)
    assert load(bench.root).name == "bands"


def test_a_pipe_is_not_waited_for(bench):
    (bench.root / store.ABOUT).unlink()
    os.mkfifo(bench.root / store.ABOUT)
    with pytest.raises(TwohopError, match="There is no file .*; it must hold"):
        load(bench.root)


@pytest.mark.parametrize("name", [" ", "x\n\x1b[2J"])
def test_a_name_that_cannot_be_shown_is_told(bench, name):
    (bench.root / store.ABOUT).write_text(json.dumps({"name": name, "seed": 0}))
    with pytest.raises(TwohopError, match="gives no usable 'name'"):
        load(bench.root)


@pytest.mark.parametrize("notes", [{"skipped rows": 3}, {"counts": 5}, {"counts": [1, 2]}])
def test_notes_of_somebody_else_do_no_harm(bench, notes):
    text = json.dumps({"name": "x", "seed": 0, "notes": notes})
    (bench.root / store.ABOUT).write_text(text)
    assert "x (seed 0): 3 entities" in run("validate", bench.root)


def test_names_too_long_for_a_file_are_told(tmp_path):
    for told, command in {
        "is not a folder": ["validate", "x" * 300],
        "cannot be written": ["build", "flags", "--out", tmp_path / ("x" * 300)],
    }.items():
        with pytest.raises(TwohopError, match=told):
            run(*command)


# --- the command ---


def test_validate_tells_what_is_there(bench):
    assert run("validate", bench.root).splitlines() == [
        "bands (seed 3): 3 entities, 12 questions",
        f"hash {bench.hash}",
        str(bench.root),
    ]


def test_commands_pass_failures_on(bench, tmp_path):
    with pytest.raises(TwohopError, match="No benchmark is called 'nothing'"):
        run("build", "nothing", "--out", tmp_path / "x")
    put(bench.root, 1, noun="")
    for command in (["validate"], ["show", "--out", tmp_path / "s.html"]):
        with pytest.raises(TwohopError, match="row 1, column 'noun'"):
            run(*command, bench.root)
    put(bench.root, 1, noun="band")
    with pytest.raises(TwohopError, match="cannot be written"):
        run("show", bench.root, "--out", tmp_path / "no" / "s.html")
    with pytest.raises(TwohopError, match="is not named as a web page"):
        run("show", bench.root, "--out", bench.root / "benchmark.json")
    store.load(bench.root)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_contact_sheet_shows_each_fact_and_needs_no_network(tmp_path):
    bands = {**BANDS, "B4": ('<script>alert("x")</script>', "")}
    bench = store.write(make_questions(bands), draw, tmp_path / "bench", "bands", 3)
    page = Page()
    run("show", bench.root, "--out", tmp_path / "sheet.html")
    html = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    page.feed(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("article") == tags.count("img") == 4
    assert not {"script", "link", "iframe"} & set(tags) and "url(" not in html
    links = [a.get("src") or a.get("href") for _, a in page.tags if {"src", "href"} & set(a)]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    for q in bench.select(wording="plain").questions:
        assert all(t in page.text for t in (q.question_by_name, q.question_by_picture, *q.answers))
    assert {a["alt"] for tag, a in page.tags if tag == "img"} == {e for e, _ in bands.values()}
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width,initial-scale=1"},
    ) in page.tags
    run("show", bench.root, "--out", tmp_path / "sheet.html", "--limit", 2)
    assert (tmp_path / "sheet.html").read_text(encoding="utf-8").count("<article>") == 2
