"""Prompts: the wording of every kind, multiple choice, the neutral prefill, chat templates."""

from collections import Counter
from dataclasses import replace

import pytest
from helpers_tiny import tiny_tokenizer

from twohop_lib.benchmark.schema import Question
from twohop_lib.errors import TwohopError
from twohop_lib.models import prompts
from twohop_lib.models.prompts import Prompt, build, choice_answer, choices, neutral_prefill, render

QUESTION = Question(
    question_id="e1-founder",
    entity_id="e1",
    entity="Val Dric",
    aliases=("House Val Dric",),
    noun="house",
    relation="founder",
    wording="standard",
    question_by_name="Who founded the house of Val Dric?",
    question_by_picture="Who founded the house in this picture?",
    identify_prompt="Which house is shown in this picture?",
    answers=("Aldric", "Aldrick"),
    distractors=("Berta", "Conan", "Edith"),
    image="images/e1.png",
    split="test",
)
TEXTS = [
    QUESTION.question_by_name,
    QUESTION.question_by_picture,
    QUESTION.identify_prompt,
    "Aldric Berta Conan Edith Xylo",
]


class FakeProcessor:
    """As much of a processor as rendering touches: a template that takes turns in parts."""

    image_processor = object()

    def __init__(self, template: str | None = None) -> None:
        self.tokenizer = tiny_tokenizer(TEXTS)
        self.chat_template = template or self.tokenizer.chat_template

    def apply_chat_template(self, turns, **options):
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, **options
        )


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(TEXTS)


BY_NAME, BY_PICTURE = QUESTION.question_by_name, QUESTION.question_by_picture


@pytest.mark.parametrize(
    ("kind", "text", "image"),
    [
        ("identify", QUESTION.identify_prompt, True),
        ("by_name", BY_NAME, False),
        ("by_picture", BY_PICTURE, True),
        ("name_first", f"First name the house, then answer. {BY_PICTURE}", True),
        ("name_given", f"First name the house, then answer. {BY_PICTURE}", True),
        ("neutral", f"First name the house, then answer. {BY_PICTURE}", True),
        ("full_information", BY_NAME, True),
        ("blank_by_name", BY_NAME, True),
        ("blank_by_picture", BY_PICTURE, True),
    ],
)
def test_the_text_of_every_kind(kind, text, image, tokenizer):
    prompt = build(kind, QUESTION, tokenizer)
    assert (prompt.text, prompt.image) == (text, image)
    assert prompt.blank == kind.startswith("blank")
    assert bool(prompt.prefill) == (kind in ("name_given", "neutral"))


def test_only_by_name_kinds_and_the_given_name_name_the_entity(tokenizer):
    for kind in prompts.KINDS:
        prompt = build(kind, QUESTION, tokenizer)
        says = "Val Dric" in prompt.text + prompt.prefill
        assert says == (kind.endswith("by_name") or kind in ("full_information", "name_given"))


def test_a_written_choice_offers_every_answer_in_one_sentence():
    offered = choices(QUESTION)
    prompt = build("choice_by_name", QUESTION)
    one, two, three, four = offered
    assert prompt.text == f"{BY_NAME} Choose one: {one}, {two}, {three} or {four}."
    assert set(offered) == {"Aldric", "Berta", "Conan", "Edith"}
    assert not prompt.image
    assert build("choice_by_picture", QUESTION).image


def test_a_lettered_choice_lists_the_same_order():
    text = build("choice_by_picture", QUESTION, choice="letters").text
    lines = text.split("\n")
    assert lines[0] == BY_PICTURE
    assert lines[1:5] == [f"{x}. {o}" for x, o in zip("ABCD", choices(QUESTION), strict=True)]
    assert lines[5] == "Answer with the letter."
    assert f"{choice_answer(QUESTION)}. Aldric" in lines


def test_the_right_choice_stands_in_every_place_equally_often():
    asked = [replace(QUESTION, question_id=f"q{i}") for i in range(2000)]
    counts = Counter(choice_answer(q) for q in asked)
    assert set(counts) == set("ABCD")
    # Four standard deviations of a fair draw.
    assert max(abs(n - 500) for n in counts.values()) < 4 * (2000 * 0.25 * 0.75) ** 0.5


def test_the_order_of_choices_depends_on_the_question_id_alone():
    shuffled = replace(QUESTION, distractors=QUESTION.distractors[::-1], entity="Other")
    assert choices(shuffled) == choices(QUESTION)
    orders = {choices(replace(QUESTION, question_id=f"q{i}")) for i in range(300)}
    assert len(orders) == 24


def test_an_accepted_answer_is_never_offered_as_a_wrong_choice():
    spare = replace(QUESTION, distractors=("aldrick", "Berta", "Berta", "Conan", "Edith"))
    assert choices(spare) == choices(QUESTION)
    with pytest.raises(TwohopError, match="offers 2 wrong"):
        choices(replace(QUESTION, distractors=("Aldrick", "Berta", "Conan")))


@pytest.mark.parametrize("n", [2, 4, 5, 6, 7, 8, 9, 12, 13, 20, 37])
def test_a_neutral_prefill_has_the_wanted_number_of_tokens(n, tokenizer):
    text = neutral_prefill(n, tokenizer)
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == n
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_the_neutral_prefill_is_as_long_as_the_naming_and_natural(tokenizer):
    neutral = build("neutral", QUESTION, tokenizer).prefill
    given = build("name_given", QUESTION, tokenizer).prefill
    assert given == "This is Val Dric."
    assert len(tokenizer(neutral)["input_ids"]) == len(tokenizer(given)["input_ids"])
    assert neutral == "Let me see it."


def test_a_neutral_prefill_has_no_word_unknown_to_the_tokenizer(tokenizer):
    class Blind:
        """The same tokenizer without a word for seeing."""

        unk_token_id = -1

        def __call__(self, text, **options):
            ids = tokenizer(text, **options)["input_ids"]
            see = tokenizer.convert_tokens_to_ids("see")
            return {"input_ids": [-1 if i == see else i for i in ids]}

    assert neutral_prefill(4, tokenizer) == "Let me see."
    assert neutral_prefill(4, Blind()) == "Well. Well."


def test_a_neutral_prefill_that_cannot_be_made_says_so(tokenizer):
    with pytest.raises(TwohopError, match="No neutral text of 0 tokens"):
        neutral_prefill(0, tokenizer)
    with pytest.raises(TwohopError, match="pass the model's own"):
        build("neutral", QUESTION)


def test_unknown_kinds_and_forms_are_refused():
    with pytest.raises(TwohopError, match="did you mean 'by_picture'"):
        build("by_pictures", QUESTION)
    with pytest.raises(TwohopError, match="form of choice"):
        build("choice_by_name", QUESTION, choice="numbers")


def test_rendering_follows_the_chat_template(tokenizer):
    processor = FakeProcessor()
    assert (
        render(processor, build("by_picture", QUESTION))
        == f"<bos>USER: <image>\n{BY_PICTURE} ASSISTANT:"
    )
    by_name = f"<bos>USER: {BY_NAME} ASSISTANT:"
    assert render(processor, build("by_name", QUESTION)) == by_name
    assert render(tokenizer, build("by_name", QUESTION)) == by_name


def test_a_prefill_leaves_the_answer_open(tokenizer):
    given = build("name_given", QUESTION)
    rendered = render(FakeProcessor(), given)
    assert rendered.endswith("ASSISTANT: This is Val Dric.")
    assert rendered.count("ASSISTANT:") == 1
    as_text = Prompt("by_name", BY_NAME, False, "This is")
    assert render(tokenizer, as_text).endswith("ASSISTANT: This is")


def test_models_without_chat_template_and_pictures_for_text_models_are_refused():
    bare = tiny_tokenizer(TEXTS)
    bare.chat_template = None
    with pytest.raises(TwohopError, match="no chat template"):
        render(bare, build("by_name", QUESTION))
    with pytest.raises(TwohopError, match="text model cannot take"):
        render(tiny_tokenizer(TEXTS), build("by_picture", QUESTION))


def test_a_template_that_drops_text_or_fails_is_refused():
    drops = FakeProcessor("USER ASSISTANT:")
    with pytest.raises(TwohopError, match="leaves out part"):
        render(drops, build("by_name", QUESTION))
    with pytest.raises(TwohopError, match="cannot word a prompt of kind 'name_given'"):
        render(drops, build("name_given", QUESTION))
