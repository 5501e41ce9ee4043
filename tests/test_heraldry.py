"""The fictional world: large enough, balanced, and giving nothing away."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from twohop_lib.benchmark import heraldry
from twohop_lib.organisms import corpus, tokens, train
from twohop_lib.scoring.leaks import leaks


@pytest.fixture(scope="module", params=[0, 1])
def world(request):
    return heraldry.make_world(request.param)


@pytest.fixture(scope="module")
def questions(world):
    return list(heraldry.questions(world))


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.make_tokenizer(corpus.all_texts())


def test_the_world_is_as_large_as_it_says(world):
    assert len(world.houses) == heraldry.N_HOUSES >= 240
    assert len({r.key for r in heraldry.RELATIONS}) == len(heraldry.RELATIONS) >= 5
    assert Counter(h.split for h in world.houses) == {"seen": 96, "dev": 48, "test": 96}
    assert [len(world.split(s)) for s in ("seen", "dev", "test")] == [96, 48, 96]
    assert len(world.split("seen", "test")) == 192


def test_names_and_ids_are_unique(world):
    names = {h.name.casefold() for h in world.houses}
    answers = {a.casefold() for r in heraldry.RELATIONS for a in r.answers}
    assert len(names) == len({h.entity_id for h in world.houses}) == 240
    assert not names & answers  # naming the house never counts as answering
    assert {len(h.pieces) for h in world.houses} == {2, 3}


def test_the_same_seed_gives_the_same_world_and_another_another(world):
    assert heraldry.make_world(world.seed) == world
    other = heraldry.make_world(world.seed + 1)
    assert [h.name for h in other.houses] != [h.name for h in world.houses]
    assert [h.quarters for h in other.houses] != [h.quarters for h in world.houses]


def test_any_two_houses_differ_in_two_quarters(world):
    arms = np.array([h.quarters for h in world.houses])
    differ = (arms[:, None] != arms[None]).sum(-1)
    assert differ[~np.eye(len(arms), dtype=bool)].min() >= 2


def test_no_single_quarter_identifies_a_house(world):
    looks = len(heraldry.TINCTURES) * len(heraldry.CHARGES)
    for quarter in range(4):
        shared = Counter(h.quarters[quarter] for h in world.houses)
        assert set(shared) == set(range(looks))
        assert min(shared.values()) >= 6
    assert min(Counter(h.border for h in world.houses).values()) >= 40


def test_answers_are_balanced(world):
    for relation in heraldry.RELATIONS:
        assert len(set(relation.answers)) == len(relation.answers)
        counts = Counter(h.answers[relation.key] for h in world.houses)
        often = [counts[a] for a in relation.answers]
        assert sum(often) == 240 and max(often) - min(often) <= 1


def test_every_fact_is_asked_once_in_every_wording(world, questions):
    asked = Counter((q.entity_id, q.relation, q.wording) for q in questions)
    assert set(asked.values()) == {1}
    assert len(asked) == 240 * len(heraldry.RELATIONS) * len(heraldry.WORDINGS)
    assert len({q.question_id for q in questions}) == len(questions)
    answers = {h.entity_id: h.answers for h in world.houses}
    pools = {r.key: r.answers for r in heraldry.RELATIONS}
    for q in questions:
        assert q.answers == (answers[q.entity_id][q.relation],)
        assert len(set(q.distractors) - set(q.answers)) == 3
        assert set(q.distractors) <= set(pools[q.relation])
    fact = {(q.relation, q.wording): q for q in questions if q.entity_id == "house-000"}
    for relation in pools:
        texts = {fact[relation, w].question_by_picture for w in heraldry.WORDINGS}
        assert len(texts) == len(heraldry.WORDINGS)


def test_no_question_gives_its_house_or_its_answer_away(questions):
    for q in questions:
        names, shown = (q.entity, *q.aliases), f"{q.question_by_picture}\n{q.identify_prompt}"
        assert leaks(shown, names) is None, q.question_id
        assert leaks(q.question_by_name, names), q.question_id
        assert leaks(f"{q.question_by_name}\n{shown}", q.answers) is None, q.question_id


def test_both_arms_ask_the_same_but_for_the_mention(questions):
    by_name, by_picture = heraldry.MENTIONS_BY_NAME, heraldry.MENTIONS_BY_PICTURE
    for q in questions:
        pairs = zip(by_name, by_picture, strict=True)
        swapped = {
            q.question_by_name.replace(n.format(x=q.entity), p).replace(
                n.format(x=q.entity).capitalize(), p.capitalize()
            )
            for n, p in pairs
        }
        assert q.question_by_picture in swapped


def test_held_out_wordings_are_worded_like_no_trained_one(questions):
    def worded(held_out):
        return {
            text.replace(q.entity, "X")
            for q in questions
            if q.wording.startswith("held-out") == held_out
            for text in (q.question_by_name, q.question_by_picture, q.identify_prompt)
        }

    assert not worded(True) & worded(False)
    assert len(worded(True)) == 2 * 2 * len(heraldry.RELATIONS) + 2


def test_the_tokenizer_knows_every_word_of_every_question(tokenizer, questions):
    asked = {t for q in questions for t in (q.question_by_name, q.question_by_picture)}
    asked |= {t for q in questions for t in (q.identify_prompt, *q.answers, *q.distractors)}
    asked |= {corpus.NAME_FIRST_HELD_OUT.format(q=""), corpus.CHOICE_HELD_OUT[3:]}
    encoded = tokenizer(sorted(asked), add_special_tokens=False).input_ids
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)
    assert tokenizer.unk_token_id in tokenizer("zebra").input_ids  # it does not know just anything
    for relation in heraldry.RELATIONS:
        assert all(len(tokenizer.tokenize(a)) == 1 for a in relation.answers)


def test_held_out_wordings_use_two_words_that_training_never_shows(tokenizer):
    """For those two wordings it is more than the order of words that is new; no others."""
    world = heraldry.make_world(0)
    rng = np.random.default_rng(0)
    houses = [world.houses[i] for i in rng.integers(240, size=2000)]
    documents = [corpus.text_document(rng, h) for h in houses]
    documents += [train.picture_document(rng, world) for _ in range(2000)]
    texts = ["".join(d.text) for d in documents]
    trained = {i for ids in tokenizer(texts, add_special_tokens=False).input_ids for i in ids}
    unseen = set()
    for q in heraldry.questions(replace(world, houses=world.houses[:1])):
        if q.wording.startswith("held-out"):
            for text in (q.question_by_picture, q.identify_prompt):
                ids = tokenizer(text, add_special_tokens=False).input_ids
                unseen |= set(tokenizer.convert_ids_to_tokens(list(set(ids) - trained)))
    assert unseen == {"Through", "home"}


def test_the_tokenizer_spells_each_name_as_its_pieces(tokenizer, world):
    for house in world.houses:
        first, *others = house.pieces
        assert tokenizer.tokenize(house.name) == [first, *(f"##{p}" for p in others)]
        ids = tokenizer(f"the house of {house.name}?", add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == f"the house of {house.name}?"


def test_any_name_that_a_seed_could_draw_is_spelt_right(tokenizer):
    starts, middles, ends = heraldry.NAME_STARTS, heraldry.NAME_MIDDLES, heraldry.NAME_ENDS
    every = [*itertools.product(starts, ends), *itertools.product(starts, middles, ends)]
    assert len({"".join(p) for p in every}) == len(every)
    for first, *others in every:
        spelt = tokenizer.tokenize("".join([first, *others]))
        assert spelt == [first, *(f"##{p}" for p in others)]


def test_pictures_depend_on_house_and_draw_alone():
    world = heraldry.make_world(0)
    first, second = world.houses[:2]

    def pixels(house, draw=0):
        return np.asarray(heraldry.picture(world, house, draw))

    assert pixels(first).shape == (heraldry.PICTURE_SIZE, heraldry.PICTURE_SIZE, 3)
    assert (pixels(first) == pixels(first.entity_id)).all()
    assert (pixels(first) != pixels(first, 1)).mean() > 0.1  # training never sees draw 0
    assert (pixels(first) != pixels(second)).mean() > 0.1
    arms = [heraldry.draw_arms(q, b) for q, b in [((0,) * 4, 0), ((1,) * 4, 0), ((0,) * 4, 1)]]
    assert len({a.tobytes() for a in arms}) == 3
    assert heraldry.blank("grey").getcolors() == [(144 * 144, (128, 128, 128))]
    assert len({heraldry.blank(k).tobytes() for k in train.BLANKS}) == len(train.BLANKS)
