"""What could spoil a benchmark: leaks, telling looks, answers that can be guessed."""

from dataclasses import replace

from twohop_lib.benchmark import checks, heraldry, popvqa, sources


def test_a_name_in_a_question_by_picture_or_for_the_name_is_a_leak(tmp_path):
    made = sources.material("heraldry", seed=0).questions
    assert checks.leaked_names(made) == []
    valric = made[0]
    told = f"Who founded the house of {valric.entity}, shown here?"
    leaky = [replace(valric, question_by_picture=told), replace(valric, identify_prompt=told)]
    assert checks.leaked_names(leaky) == [valric.entity, valric.entity]


def test_houses_are_counted_by_the_look_of_each_quarter():
    world = heraldry.make_world(0)
    sharing = checks.houses_by_look(world)
    assert sharing.groupby("quarter").sum().tolist() == [len(world.houses)] * 4
    first = world.houses[0].quarters[2]
    assert sharing[2, first] == sum(h.quarters[2] == first for h in world.houses)


def test_a_guess_is_right_as_often_as_the_commonest_answer():
    made = sources.material("heraldry", seed=0).questions
    guess = checks.best_guesses(made)
    founders = {q.entity_id: q.answers[0] for q in made if q.relation == "founder"}
    said = list(founders.values())
    most = max(said.count(name) for name in said)
    assert guess.loc["founder", "possible answers"] == len(set(said))
    assert guess.loc["founder", "best guess right"] == most / len(said)


def test_each_example_of_popvqa_but_the_first_two_is_taken_by_a_filter():
    shown = popvqa.read(popvqa.EXAMPLES, entities=0)
    assert shown.counts["facts"].tolist() == [6, 5, 4, 3, 2]
    assert [q.answers[0] for q in shown.questions] == ["Valerie Velardi", "Michelangelo"]
