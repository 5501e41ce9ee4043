"""No name, however odd, stands in a question by picture: judged by an oracle of its own."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from twohop_lib.benchmark import flags, heraldry, popvqa, table
from twohop_lib.benchmark.faults import BadTable
from twohop_lib.errors import TwohopError

#: Names that have got through, or been taken for leaks, elsewhere.
ODD = (
    "bee",
    "Apple Pie",
    "apple pie",
    "It",
    "Picture",
    "The Shown",
    "this",
    "Thing",
    "Beyoncé",
    "Beyonce\u0301",
    "Ｗｉｄｅ",
    "Zero\u200bWidth",
    "O'Hara",
    "Ann-Marie",
    "Jay Z",
    "St. John's",
    "Łódź",
    "東京",
    "สยาม",
    "!!!",
    "M",
    "7",
    "the",
    "In",
)
NOUNS = ("thing", "beetle", "bridge", "apple pie", "house", "work of art", "東京塔")
TEMPLATES = (
    "Where is {entity}?",
    "What does the beetle near {entity} eat with its apple-pie's crust?",
    "Who, in this picture, made {entity} – and {entity_}?",
    "{entity}: what is it called by Beyoncé’s fans in 東京?",
    "Is it the one shown, or is {entity} older?",
)


def plain(text: str) -> str:
    """Text as the oracle reads it: no case, accents, width or invisible characters."""
    text = unicodedata.normalize("NFKD", text.casefold()).replace("ł", "l")
    text = regex.sub(r"\p{M}|\p{Cf}", "", unicodedata.normalize("NFKD", text))
    return regex.sub(r"(?<=[\p{L}\p{N}])['’]s(?![\p{L}\p{N}])", "", text)


def stands_in(name: str, text: str) -> bool:
    """Whether the letters of a name, in a row and bounded by other signs, are in a text.

    Written without the library: a search by pattern, in which anything but letters and digits may
    stand between the name's words, and a possessive may follow.
    """
    words = regex.findall(r"[\p{L}\p{N}]+", plain(name))
    if not words:
        return False
    pattern = r"[^\p{L}\p{N}]+".join(map(regex.escape, words))
    return bool(regex.search(rf"(?<![\p{{L}}\p{{N}}]){pattern}(?![\p{{L}}\p{{N}}])", plain(text)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("leaks")
    Image.new("RGB", (4, 4)).save(where / "a.png")
    return where


def written(folder: Path, row: dict[str, str]) -> Path:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(row))
    writer.writeheader()
    writer.writerow(row)
    (folder / "t.csv").write_text(out.getvalue(), "utf-8")
    return folder / "t.csv"


letters = st.text(
    st.characters(categories=("L", "N", "M", "P", "Zs", "Cf"), exclude_characters="|{}[]"),
    min_size=1,
    max_size=12,
).filter(lambda t: bool(t.strip()))
names = st.one_of(st.sampled_from(ODD), letters)


@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    entity=names,
    aliases=st.lists(names, max_size=2),
    noun=st.sampled_from(NOUNS),
    template=st.sampled_from(TEMPLATES),
)
@example("bee", [], "beetle", TEMPLATES[1])
@example("Apple Pie", [], "apple pie", TEMPLATES[0])
@example("Beyonce\u0301", [], "thing", TEMPLATES[3])
@example("東京", [], "thing", TEMPLATES[3])
@example("Ann", ["Shown"], "thing", TEMPLATES[4])
def test_a_table_is_refused_or_gives_no_name_away(folder, entity, aliases, noun, template):
    row = {
        "entity": entity,
        "aliases": "|".join(aliases),
        "image": "a.png",
        "answers": "zzyzx",
        "noun": noun,
        "question": template.replace("{entity_}", "others"),
    }
    try:
        read = table.read(written(folder, row))
    except BadTable as error:
        told = {p.column for p in error.problems}
        assert told <= {"question", "noun", "entity", "aliases"}
        return
    for q in read.questions:
        for name in (q.entity, *q.aliases):
            assert not stands_in(name, q.question_by_picture)
            assert not stands_in(name, q.identify_prompt)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(entity=names, noun=st.sampled_from(("beetle", "bridge", "house")))
@example("bee", "beetle")
@example("Bridget", "bridge")
@example("hous", "house")
def test_a_sound_table_is_not_refused(folder, entity, noun):
    """Names that stand nowhere in the wording are no leak: the bee in the beetle is none."""
    wording = f"Where does the {noun} in this picture stand? Which {noun} is shown in this picture?"
    apart = regex.findall(r"[\p{L}\p{N}]+", plain(entity))
    assume(apart and not set(apart) & set(plain(wording).split()))
    # Pieces of two words may make up a name by chance; scripts without spaces have no words.
    assume(plain("".join(apart)) not in plain(wording).replace(" ", "") or len(apart) == 1)
    assume(not any(unicodedata.category(c) == "Cf" for c in entity))  # refused by itself
    assume(plain(entity).isascii() and not any(len(a) < 2 for a in apart))
    row = {
        "entity": entity.strip(),
        "image": "a.png",
        "answers": "zzyzx",
        "noun": noun,
        "question": "Where does {entity} stand?",
    }
    try:
        read = table.read(written(folder, row))
    except TwohopError as error:  # the oracle has to agree that there is a reason
        joined = "".join(apart)
        assert joined in plain(wording).replace(" ", "").replace("?", ""), str(error)
        return
    assert read.questions[0].question_by_picture == f"Where does the {noun} in this picture stand?"


def test_the_sources_of_the_book_give_no_name_away(tmp_path):
    import helpers_popvqa

    asked = [
        *heraldry.questions(heraldry.make_world(0)),
        *flags.read().questions,
        *popvqa.read(helpers_popvqa.copy(tmp_path / "p")).questions,
    ]
    for q in {(q.entity_id, q.question_by_picture, q.identify_prompt): q for q in asked}.values():
        for name in (q.entity, *q.aliases):
            assert not stands_in(name, q.question_by_picture), q.question_id
            assert not stands_in(name, q.identify_prompt), q.question_id


def test_the_oracle_can_tell():
    assert stands_in("Apple Pie", "a slice of apple-pie's crust")
    assert stands_in("Beyoncé", "BEYONCE’s fans")
    assert not stands_in("bee", "the beetle")
