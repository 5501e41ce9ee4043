"""Names given away by a question: what counts as a leak and what does not."""

from __future__ import annotations

import re
import unicodedata
from itertools import zip_longest

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twohop_lib.scoring.leaks import leaks, words

LEAKS = [
    ("What goes well with Apple Pie?", "apple pie"),
    ("what goes well with apple pie?", "Apple Pie"),
    ("An apple-pie recipe?", "Apple Pie"),
    ("An ApplePie recipe?", "Apple Pie"),
    ("The apple  \n pie?", "Apple Pie"),
    ("Which bee is this?", "bee"),
    ("What is the bee's colour?", "bee"),
    ("What is the bee’s colour?", "bee"),
    ("Who founded Valdric?", "valdric"),
    ("Who founded (Valdric)?", "Valdric"),
    ("Who is Beyonce's husband?", "Beyoncé"),
    ("Who is BEYONCE\u0301's husband?", "Beyoncé"),
    ("Wo ist die Strasse?", "Straße"),
    ("Where is Lodz?", "Łódź"),
    ("Who was Soren Kierkegaard?", "Søren Kierkegaard"),
    ("Who is Jay-Z married to?", "Jay Z"),
    ("Who is JayZ married to?", "Jay Z"),
    ("Who was O Brien?", "O'Brien"),
    ("Who was OBrien?", "O’Brien"),
    ("Where is Hawaii?", "Hawaiʻi"),
    ("What does McDonald sell?", "McDonald's"),
    ("Who lives in Val\u00addric?", "Valdric"),  # a soft hyphen does not show
    ("Who lives in Val\u200bdric?", "Valdric"),
    ("Which b\u00adee is this?", "bee"),
    ("Who left Valdrica for Valdric?", "Valdric"),
    ("Who lives in V a l d r i c?", "Valdric"),
    ("Who lives in Ｖａｌｄｒｉｃ?", "Valdric"),
    ("Who lives in val_dric?", "Val Dric"),
    ("Who painted the Mona Lisa?", "The Mona Lisa"),
    ("How far away is Mercury?", "Mercury (planet)"),
    ("Which band is !!! from?", "!!!"),
    ("富士山の高さは?", "富士山"),
    ("Сколько лет Москве и Киев?", "киев"),
    ("हिमालय कहाँ है?", "हिमालय"),
    ("What do McDonalds sell?", "McDonald's"),
    ("What does McDonald’s sell?", "McDonalds"),
    ("Where is the U.S.A.?", "USA"),
    ("Where is the UK?", "U.K."),
    ("Who sings in aha?", "a-ha"),
    ("Which band is U-2?", "U2"),
    ("What is sold at HM?", "H&M"),
    ("Who painted Mona Lisa?", "“The Mona Lisa”"),
    ("Who made I \u2764 NY?", "I \u2764\ufe0f NY"),  # a variation selector does not show
    ("Who made \u2764?", "\u2764\ufe0f"),
    ("Who lives in Val\ufe0fdric?", "Valdric"),
    ("Who lives in Val\u3164dric?", "Valdric"),  # nor does a filler
    ("Where is Hamrun?", "Ħamrun"),
    ("서울은 어디에 있습니까?", "서울"),  # a particle is written on
    ("من هو مُحَمَّد؟", "محمد"),
    ("מי גר בשָׁלוֹם?", "בשלום"),
]
CLEAN = [
    ("Which beetle is this?", "bee"),
    ("Who founded Valdrica?", "Valdric"),
    ("Which apple is in the pie?", "Apple Pie"),
    ("Which pie, apple?", "Apple Pie"),
    ("Who founded the house shown here?", "The Shown House"),
    ("Who founded the house in this picture?", "House Valdric"),
    ("Who is the president in this picture?", "Barack Obama"),  # a part counts as an alias only
    ("Who is a do gooder?", "Ado"),  # three letters, from neighbouring words
    ("Which band is this?", "The Band"),
    ("कमलपुर कहाँ है?", "कमालपुर"),  # the vowels are marks
    ("Who is it?", ""),
    ("Which \u2764\ufe0f is this?", "\u260e\ufe0f"),
    ("Where is Valdric?", "Val"),
    ("What is 7th?", "7"),
    ("우리서울 어디?", "서울"),
    ("Who is it?", "   "),
    ("Who is it?", "!!!"),
    ("", "Valdric"),
]


@pytest.mark.parametrize(("text", "name"), LEAKS)
def test_a_name_in_any_dress_leaks(text, name):
    assert leaks(text, ["Nobody", name]) == name


@pytest.mark.parametrize(("text", "name"), CLEAN)
def test_look_alikes_do_not_leak(text, name):
    assert leaks(text, [name]) is None


def test_the_first_name_that_leaks_is_told():
    assert leaks("Is it B or A?", ["C", "A", "B"]) == "A"
    assert leaks("Is it B or A?", []) is None


NAMES = st.text(min_size=1, max_size=12).filter(str.strip)
ACCENTS = ["", "\u0301", "\u0308", "\u0327", "\u030c", "\u0302"]
PLAIN = st.text("abcdefghij ", max_size=40)


@given(PLAIN, NAMES, PLAIN)
@example("", "'s", "")
@example("", "K", "")  # the Kelvin sign
@example("", "İ", "")
@example("a", "\u00ad", "b")  # nothing visible is no name
@example("a", "\u0301", "b")
@settings(max_examples=300, deadline=None)
def test_every_name_leaks_from_a_text_that_holds_it(before, name, after):
    invisible = not words(name) and leaks(name, [name]) is None
    assert invisible or leaks(f"{before} {name} {after}", [name]) == name


@given(NAMES, st.sampled_from([str.upper, str.lower, str.swapcase, str.title, str.casefold]))
@settings(max_examples=300, deadline=None)
def test_latin_case_never_hides_a_name(name, recase):
    name = re.sub(r"[^A-Za-zÀ-ɏ' -]", "x", name)
    assert not words(name) or leaks(f"so {recase(name)} is", [name]) == name


@given(st.text("aceinosuyz", min_size=2, max_size=8), st.lists(st.sampled_from(ACCENTS)))
@settings(deadline=None)
def test_accents_never_hide_a_name(name, accents):
    worn = "".join(c + a for c, a in zip_longest(name, accents[: len(name)], fillvalue=""))
    for written in (worn, unicodedata.normalize("NFC", worn), f"{worn.upper()}’s"):
        assert leaks(f"of {written} at", [name]) == name
        assert leaks(f"of {name} at", [written.removesuffix("’s")])


@given(
    st.lists(st.text("klmnop", min_size=1, max_size=6), min_size=1, max_size=4),
    st.sampled_from([" ", "-", "  ", "_", "\u2010", "\u00a0", " - "]),
    st.sampled_from(["", "'s", "’s", ",", "?", ")"]),
)
@settings(deadline=None)
def test_separators_and_possessives_never_hide_a_name(parts, separator, ending):
    assert leaks(f"of {separator.join(parts)}{ending} at", [" ".join(parts)]) == " ".join(parts)


@given(st.text("abc", min_size=1, max_size=5), st.text("xyz", min_size=1, max_size=3))
@settings(deadline=None)
def test_a_name_inside_a_longer_word_does_not_leak(name, more):
    text = f"the {name}{more} the {more}{name} the {more}{name}{more} the"
    assert leaks(text, [name]) is None


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_input_gives_one_of_the_names_or_none(text, names):
    assert leaks(text, names) in [None, *names]
