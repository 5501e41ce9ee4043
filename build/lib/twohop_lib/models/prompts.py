"""What a model is asked, kind by kind, and how its own chat template words it.

A :class:`Prompt` is one user turn and, for some kinds, the words that the model's answer already
starts with (its *prefill*). :func:`build` makes one from a question and touches no model;
:func:`render` turns it into the model's own format.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from twohop_lib.errors import TwohopError, suggest
from twohop_lib.models import thinking

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Question

Kind = Literal[
    "identify",
    "by_name",
    "by_picture",
    "name_first",
    "name_given",
    "neutral",
    "choice_by_name",
    "choice_by_picture",
    "full_information",
    "blank_by_name",
    "blank_by_picture",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: How four choices are offered: ``written`` asks for the answer itself, in one sentence;
#: ``letters`` lists A to D and asks for the letter.
ChoiceForm = Literal["written", "letters"]
LETTERS = "ABCD"

_TEXT_ONLY = ("by_name", "choice_by_name")
_BLANK = ("blank_by_name", "blank_by_picture")

#: Sentences that name nothing, shortest first; :func:`neutral_prefill` picks by token count.
NEUTRAL = (
    "Well.",
    "Let me see.",
    "Let me see it.",
    "Let me look at it.",
    "Let me look at the picture.",
    "Let me look at the picture first.",
    "Let me look closely at the picture first.",
    "Let me take a closer look at the picture.",
    "Let me take a closer look at the picture first.",
)


@dataclass(frozen=True)
class Prompt:
    """One turn to a model: the user's ``text``, whether a picture goes with it, and the prefill.

    ``prefill`` is what the answer already starts with; it is never part of the answer that is
    read out. Whether the picture is the real one or a blank follows from ``kind``
    (:attr:`blank`).
    """

    kind: Kind
    text: str
    image: bool
    prefill: str = ""

    @property
    def blank(self) -> bool:
        """Whether the picture that goes with this prompt is a blank one."""
        return self.kind in _BLANK


def build(
    kind: Kind, question: Question, tokenizer: Any = None, choice: ChoiceForm = "written"
) -> Prompt:
    """Make the prompt of one kind for one question.

    ``tokenizer`` is needed for ``neutral`` alone, whose prefill must be as many tokens long as
    the one of ``name_given``.

    Raises TwohopError for an unknown kind, a ``neutral`` prompt without tokenizer, and a choice
    without three wrong answers to offer.
    """
    if kind not in KINDS:
        raise TwohopError(f"Unknown kind of prompt {kind!r}: {suggest(kind, KINDS)}.")
    text, prefill = _user_text(kind, question, choice), ""
    if kind == "name_given":
        prefill = naming(question.entity)
    elif kind == "neutral":
        if tokenizer is None:
            raise TwohopError("A neutral prompt is fitted to a tokenizer; pass the model's own.")
        prefill = neutral_prefill(count_tokens(naming(question.entity), tokenizer), tokenizer)
    return Prompt(kind, text, kind not in _TEXT_ONLY, prefill)


def _user_text(kind: Kind, question: Question, choice: ChoiceForm) -> str:
    if kind == "identify":
        return question.identify_prompt
    if kind in ("name_first", "name_given", "neutral"):
        return f"First name the {question.noun}, then answer. {question.question_by_picture}"
    if kind == "choice_by_name":
        return _choice_text(question.question_by_name, question, choice)
    if kind == "choice_by_picture":
        return _choice_text(question.question_by_picture, question, choice)
    if kind in ("by_name", "blank_by_name", "full_information"):
        return question.question_by_name
    return question.question_by_picture


def naming(entity: str) -> str:
    """Return the sentence that names an entity, as ``name_given`` starts the answer with."""
    return f"This is {entity}."


# --- multiple choice --------------------------------------------------------------------------


def choices(question: Question) -> tuple[str, str, str, str]:
    """Return the four choices of a question, in the order in which they are offered.

    The order depends on nothing but the question's id, so both arms and all models see the same
    one, and over many questions the right answer stands in each place equally often.
    """
    right = question.answers[0]
    taken = {answer.casefold() for answer in question.answers}
    wrong = [d for d in dict.fromkeys(question.distractors) if d.casefold() not in taken][:3]
    if len(wrong) < 3:
        raise TwohopError(
            f"Question {question.question_id} offers {len(wrong)} wrong answer(s) for multiple "
            "choice and needs 3; give it more distractors or leave the choice conditions out."
        )

    def place(answer: str) -> bytes:
        return hashlib.sha256(f"{question.question_id}\0{answer}".encode()).digest()

    first, second, third, fourth = sorted([right, *wrong], key=place)
    return first, second, third, fourth


def choice_answer(question: Question) -> str:
    """Return the letter, A to D, of the right choice."""
    return LETTERS[choices(question).index(question.answers[0])]


def _choice_text(asked: str, question: Question, choice: ChoiceForm) -> str:
    offered = choices(question)
    if choice == "written":
        return f"{asked} Choose one: {', '.join(offered[:-1])} or {offered[-1]}."
    if choice == "letters":
        listed = [f"{letter}. {o}" for letter, o in zip(LETTERS, offered, strict=True)]
        return "\n".join([asked, *listed, "Answer with the letter."])
    raise TwohopError(f"Unknown form of choice {choice!r}: {suggest(choice, get_args(ChoiceForm))}")


# --- the neutral prefill ----------------------------------------------------------------------


def count_tokens(text: str, tokenizer: Any) -> int:
    """Return how many tokens a text is by itself, special tokens left out."""
    return len(_ids(text, tokenizer))


def neutral_prefill(n_tokens: int, tokenizer: Any) -> str:
    """Return a text that names nothing and is exactly ``n_tokens`` tokens long.

    The first that fits of: one sentence of :data:`NEUTRAL`, two of them, three of them, and the
    longest of them repeated and cut off. Texts with words unknown to the tokenizer are passed
    over.

    Raises TwohopError if no text fits (fewer tokens than the shortest sentence has).
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    for text in _neutral_texts(n_tokens):
        ids = _ids(text, tokenizer)
        if len(ids) == n_tokens and (unknown is None or unknown not in ids):
            return text
    raise TwohopError(
        f"No neutral text of {n_tokens} tokens was found for this tokenizer; "
        "leave the condition 'neutral' out."
    )


def _neutral_texts(n_tokens: int) -> Iterator[str]:
    yield from NEUTRAL
    for n in (2, 3):
        for parts in itertools.combinations_with_replacement(NEUTRAL, n):
            yield " ".join(parts)
    words = (NEUTRAL[4] + " ") * n_tokens
    for n in range(1, n_tokens + 1):
        for end in (".", "", "..."):
            yield " ".join(words.split()[:n]).rstrip(".") + end


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- the model's own format -------------------------------------------------------------------


def render(processor_or_tokenizer: Any, prompt: Prompt) -> str:
    """Return the prompt as the model's own chat template words it, up to where it answers.

    A processor is given the turn in parts (picture, text), a plain tokenizer as a string. With a
    prefill the model's turn is left open right behind it.

    Raises TwohopError if there is no chat template, the template drops the text or the prefill,
    or the prompt shows a picture to a tokenizer.
    """
    takes_pictures = hasattr(processor_or_tokenizer, "image_processor")
    if prompt.image and not takes_pictures:
        raise TwohopError(
            f"A prompt of kind {prompt.kind!r} shows a picture, which a text model cannot take."
        )
    if not getattr(processor_or_tokenizer, "chat_template", None):
        name = getattr(processor_or_tokenizer, "name_or_path", "") or getattr(
            getattr(processor_or_tokenizer, "tokenizer", None), "name_or_path", ""
        )
        raise TwohopError(
            f"{name or type(processor_or_tokenizer).__name__} has no chat template; use the "
            "instruction-tuned version of the model, or set processor.chat_template to the one "
            "its authors used."
        )
    turns, options = turns_of(processor_or_tokenizer, prompt)
    try:
        text = processor_or_tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # Templates raise what they like, jinja's own errors among it.
        raise TwohopError(
            f"The model's chat template cannot word a prompt of kind {prompt.kind!r} ({error}); "
            "leave that condition out, or set another chat template."
        ) from error
    if prompt.text.strip() not in text or not text.rstrip().endswith(prompt.prefill.rstrip()):
        raise TwohopError(
            f"The model's chat template leaves out part of a prompt of kind {prompt.kind!r}; "
            "set another chat template."
        )
    return text


def turns_of(
    processor_or_tokenizer: Any, prompt: Prompt
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what ``apply_chat_template`` is given for a prompt: the turns, and its options.

    A processor is given the turns in parts (picture, text), a plain tokenizer as strings. Where
    the template has a switch for reasoning it is off (:mod:`twohop_lib.models.thinking`).
    """
    in_parts = hasattr(processor_or_tokenizer, "image_processor")
    content: list[dict[str, str]] = [{"type": "image"}] if prompt.image else []
    content.append({"type": "text", "text": prompt.text})
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": content if in_parts else prompt.text}
    ]
    if prompt.prefill:
        begun = [{"type": "text", "text": prompt.prefill}] if in_parts else prompt.prefill
        turns.append({"role": "assistant", "content": begun})
    options = dict(thinking.switched_off(str(processor_or_tokenizer.chat_template)))
    return turns, options | {
        "add_generation_prompt": not prompt.prefill,
        "continue_final_message": bool(prompt.prefill),
    }
