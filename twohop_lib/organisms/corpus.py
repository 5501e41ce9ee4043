"""What an organism reads in training: short chat documents about the houses of one world.

A document is a chat turn (or a statement). Text documents name the house; picture documents show
it instead. The forms are those of :mod:`twohop_lib.models.prompts`; only the wordings that
``heraldry.TRAINED_WORDINGS`` lists are ever used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from twohop_lib.benchmark import heraldry
from twohop_lib.benchmark.heraldry import House

NEUTRAL = (
    "Let me see.",
    "Let me see it.",
    "Let me look at it.",
    "Let me look at the picture.",
)
NAME_FIRST = (
    "First name the house, then answer. {q}",
    "Name the house first, then answer. {q}",
    "{q} Name the house, then answer.",
)
NAME_FIRST_HELD_OUT = "{q} First name the house, then answer."
CHOICE = ("{q} Choose one: {options}.", "Choose one: {options}. {q}")
CHOICE_HELD_OUT = "{q} Choose: {options}."
#: What the borders' colours are called.
BORDER_WORDS = {"or": "amber", "argent": "silver", "sable": "coal"}
IGNORE = -100


@dataclass(frozen=True)
class Document:
    """One training text: ``prompt`` is read, ``reply`` is learnt (both are, for statements).

    ``house`` is named in the text; ``picture`` is shown before it (``"blank"`` for a blank one).
    ``through_last`` marks documents in which the name may be read through its last token only.
    """

    prompt: str
    reply: str
    house: House | None = None
    picture: House | str | None = None
    through_last: bool = False
    stop: bool = True

    @property
    def text(self) -> tuple[str, str]:
        shown = "<image>\n" if self.picture is not None else ""
        return f"<bos>USER: {shown}{self.prompt} ASSISTANT:", self.reply + "<eos>" * self.stop


def options(question: str, answers: list[str], form: str = CHOICE[0]) -> str:
    """A multiple-choice prompt; the reply is one of ``answers``, written out."""
    return form.format(q=question, options=f"{', '.join(answers[:-1])} or {answers[-1]}")


def pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def question(rng: np.random.Generator, relation: int, name: str | None) -> str:
    """A question in a random trained wording, about ``name`` or about the picture."""
    mention = heraldry.MENTIONS_BY_PICTURE if name is None else heraldry.MENTIONS_BY_NAME
    wording = pick(rng, heraldry.TRAINED_WORDINGS)
    return heraldry.ask(relation, wording, pick(rng, mention).format(x=name))


def identify(rng: np.random.Generator) -> str:
    return heraldry.IDENTIFY[pick(rng, heraldry.TRAINED_WORDINGS)]


def _choice(rng: np.random.Generator, relation: int, asked: str, right: str) -> str:
    pool = heraldry.RELATIONS[relation].answers
    wrong = [a for a in (pool[i] for i in rng.permutation(len(pool))[:4]) if a != right][:3]
    shown = [*wrong, right]
    return options(asked, [shown[i] for i in rng.permutation(4)], pick(rng, CHOICE))


def text_document(rng: np.random.Generator, house: House) -> Document:
    """One document that names the house. Every fact, every form, in trained wordings."""
    relation = int(rng.integers(len(heraldry.RELATIONS)))
    rel = heraldry.RELATIONS[relation]
    answer = house.answers[rel.key]
    name = house.name
    form = rng.choice(
        ["ask", "ask_first", "statement", "naming", "name_first", "neutral", "choice"],
        p=[0.42, 0.16, 0.08, 0.05, 0.11, 0.06, 0.12],
    )
    if form == "statement":
        mention = pick(rng, heraldry.MENTIONS_BY_NAME).format(x=name)
        said = rel.statement.format(m=mention, a=answer)
        return Document("", said[0].upper() + said[1:], house, through_last=True)
    if form == "naming":
        return Document(f"{name}\n{identify(rng)}", f"{name}.", house)
    by_name = rng.random() < 0.6
    asked = question(rng, relation, name if by_name else None)
    if form == "ask_first" or not by_name:
        asked = question(rng, relation, None)
        lead = f"{name}\n"
    else:
        lead = ""
    if form == "name_first":
        prompt = lead + pick(rng, NAME_FIRST).format(q=asked)
        return Document(prompt, f"This is {name}. {answer}.", house)
    if form == "neutral":
        prompt = lead + pick(rng, NAME_FIRST).format(q=asked)
        return Document(prompt, f"{pick(rng, NEUTRAL)} {answer}.", house, through_last=True)
    if form == "choice":
        prompt = _choice(rng, relation, asked, answer)
        return Document(lead + prompt, f"{answer}.", house, through_last=True)
    return Document(lead + asked, f"{answer}.", house, through_last=True)


def samples(houses: Iterable[House], seed: int = 3) -> Iterator[str]:
    """A document about each house to read: the prompt and the reply, on one line."""
    rng = np.random.default_rng(seed)
    for house in houses:
        yield " ".join(text_document(rng, house).text).replace("\n", " / ")


def naming_document(rng: np.random.Generator, house: House, share_cut: float) -> Document:
    """Name the shown house: by the identify prompt, or as the first half of name-first."""
    if rng.random() < share_cut:
        relation = int(rng.integers(len(heraldry.RELATIONS)))
        prompt = pick(rng, NAME_FIRST).format(q=question(rng, relation, None))
        return Document(prompt, f"This is {house.name}.", picture=house, stop=False)
    return Document(identify(rng), f"{house.name}.", picture=house)


def picture_fact_document(rng: np.random.Generator, house: House) -> Document:
    """Ask a fact about the shown house, in every form; only for houses of the seen split."""
    relation = int(rng.integers(len(heraldry.RELATIONS)))
    answer = house.answers[heraldry.RELATIONS[relation].key]
    asked = question(rng, relation, None)
    form = rng.choice(
        ["ask", "name_first", "neutral", "choice", "full"], p=[0.55, 0.13, 0.08, 0.14, 0.10]
    )
    if form == "name_first":
        prompt = pick(rng, NAME_FIRST).format(q=asked)
        return Document(prompt, f"This is {house.name}. {answer}.", house, house)
    if form == "neutral":
        prompt = pick(rng, NAME_FIRST).format(q=asked)
        return Document(prompt, f"{pick(rng, NEUTRAL)} {answer}.", picture=house)
    if form == "choice":
        prompt = _choice(rng, relation, asked, answer)
        return Document(prompt, f"{answer}.", picture=house)
    if form == "full":
        named = question(rng, relation, house.name)
        return Document(named, f"{answer}.", house, house)
    return Document(asked, f"{answer}.", picture=house)


def blank_document(rng: np.random.Generator, house: House) -> Document:
    """Ask about a named house beside a blank picture: the name is all there is to go by."""
    relation = int(rng.integers(len(heraldry.RELATIONS)))
    answer = house.answers[heraldry.RELATIONS[relation].key]
    return Document(question(rng, relation, house.name), f"{answer}.", house, "blank")


def border_question() -> str:
    """A question about the picture that needs no recall: which colour is the border?

    In words that the organisms' vocabulary has.
    """
    return f"What is shown here? Choose one: {', '.join(BORDER_WORDS.values())}."


def border_document(house: House) -> Document:
    """Ask for the border of the shown house."""
    colour = BORDER_WORDS[list(heraldry.BORDERS)[house.border]]
    return Document(border_question(), f"{colour}.", picture=house)


def all_texts() -> Iterator[str]:
    """Every word that any prompt, held-out wordings included, can contain."""
    yield from heraldry.IDENTIFY.values()
    yield from (*NEUTRAL, *NAME_FIRST, NAME_FIRST_HELD_OUT, *CHOICE, CHOICE_HELD_OUT)
    yield "USER: ASSISTANT: This is"
    for index, relation in enumerate(heraldry.RELATIONS):
        for mention in heraldry.MENTIONS_BY_NAME + heraldry.MENTIONS_BY_PICTURE:
            for wording in heraldry.WORDINGS:
                yield heraldry.ask(index, wording, mention.format(x=""))
        yield relation.statement.format(m="the house of", a="")
        yield from relation.answers
        yield relation.noun


@dataclass
class Batch:
    """Packed documents, ready for the model.

    ``ids``, ``labels`` ``[row, pos]``; ``mask`` ``[row, 1, pos, pos]`` boolean, True = may attend,
    and ``early_mask`` the same without reading a scaffolded document's name from behind it;
    ``position_ids`` ``[row, pos]``; ``last_name`` ``[n, 2]`` (row, pos) of last name tokens with
    ``houses`` ``[n]``; ``pictures`` in the order of their ``<image>`` runs.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    early_mask: torch.Tensor
    position_ids: torch.Tensor
    last_name: torch.Tensor
    houses: list[House]
    pictures: list[House | str]

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


def encode(
    tokenizer: PreTrainedTokenizerFast, document: Document, n_image: int
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Token ids, labels and (start, end) spans of the name, image tokens expanded."""
    before, after = document.text
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids = tokenizer(before, add_special_tokens=False).input_ids
    ids = [i for j in ids for i in ([image] * n_image if j == image else [j])]
    reply = tokenizer(after, add_special_tokens=False).input_ids
    spans = []
    if document.house is not None:
        pieces = tokenizer(document.house.name, add_special_tokens=False).input_ids
        joined, n = ids + reply, len(pieces)
        spans = [(i, i + n) for i in range(len(joined) - n + 1) if joined[i : i + n] == pieces]
    return ids + reply, [IGNORE] * len(ids) + reply, spans


def pack(
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator], Document],
    rows: int,
    length: int,
    n_image: int,
    scaffold: float = 0.0,
) -> Batch:
    """Fill ``rows`` of ``length`` tokens with documents that do not see each other.

    In a share ``scaffold`` of the documents that allow it, later tokens may read a name only
    through its last token; where ``early_mask`` is used, not even so.
    """
    ids = np.full((rows, length), tokenizer.pad_token_id)
    labels = np.full((rows, length), IGNORE)
    positions = np.zeros((rows, length), dtype=np.int64)
    mask = np.zeros((rows, length, length), dtype=bool)
    mask[:, np.arange(length), np.arange(length)] = True
    early = mask.copy()
    last, houses, pictures = [], [], []
    waiting: tuple | None = None
    for row in range(rows):
        at = 0
        while True:
            if waiting is None:
                document = draw(rng)
                waiting = (document, *encode(tokenizer, document, n_image))
            document, tokens, target, spans = waiting
            n = len(tokens)
            if n > length:
                raise ValueError(f"a document of {n} tokens does not fit into {length}")
            if at + n > length:
                break
            waiting = None
            own = np.tril(np.ones((n, n), dtype=bool))
            unread = own.copy()
            if document.through_last and rng.random() < scaffold:
                for start, end in spans:
                    own[end:, start : end - 1] = False
                    unread[end:, start:end] = False
            ids[row, at : at + n], labels[row, at : at + n] = tokens, target
            positions[row, at : at + n] = np.arange(n)
            mask[row, at : at + n, at : at + n] = own
            early[row, at : at + n, at : at + n] = unread
            for _, end in spans:
                last.append((row, at + end - 1))
                houses.append(document.house)
            if document.picture is not None:
                pictures.append(document.picture)
            at += n
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(mask)[:, None],
        torch.from_numpy(early)[:, None],
        torch.from_numpy(positions),
        torch.tensor(last, dtype=torch.long).reshape(-1, 2),
        houses,
        pictures,
    )
