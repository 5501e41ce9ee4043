"""A prompt put to a model as an ordinary ``transformers`` session does, to hold ours against.

That is ``apply_chat_template(..., tokenize=True, return_dict=True)`` of the processor (of the
tokenizer, for a text model) and ``generate``, greedily: no batch, no padding, nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from twohop_lib.models.inputs import (
    GREEDY,
    accepted,
    decoded,
    encode,
    stop_ids,
    takes_text_alone,
    thinks,
)
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.prefix import common
from twohop_lib.models.prompts import Prompt, render, turns_of
from twohop_lib.models.thinking import BUDGET, switched_off
from twohop_lib.runs.generate import answer

#: New tokens that are compared.
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Asked:
    """A prompt as text, its token ids [pos], and the greedy answer to it."""

    text: str
    ids: list[int]
    answer: str


def plain(model: Vlm | Llm, prompt: Prompt, picture: Image.Image | None) -> Asked:
    """What an ordinary session makes of a prompt."""
    front = model.front
    turns, options = turns_of(front, prompt)
    for turn in turns:
        for part in turn["content"] if isinstance(turn["content"], list) else ():
            part |= {"image": picture} if part["type"] == "image" else {}
    text = front.apply_chat_template(turns, tokenize=False, **options)
    inputs = front.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    ids = inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        out = model.model.generate(
            **accepted(model, inputs),
            **GREEDY,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=model.tokenizer.pad_token_id,
        )
    new = out[0, len(ids) :].tolist()
    return Asked(text, ids, decoded(model.tokenizer, new, stop_ids(model), text))


def ours(model: Vlm | Llm, prompt: Prompt, picture: Image.Image | None) -> Asked:
    """What the library makes of the same prompt."""
    text = render(model.front, prompt)
    ids = encode(model, [text], [picture], "left")["input_ids"][0].tolist()
    return Asked(text, ids, answer(model, [prompt], [picture], MAX_NEW_TOKENS)[0])


def differences(
    model: Vlm | Llm, prompt: Prompt, picture: Image.Image | None, arm: str
) -> tuple[str, ...]:
    """In sentences, what is not as in a plain session; ``arm`` says whose prompt it is."""
    if picture is None and not takes_text_alone(model):
        return ()  # No plain session can ask it; :func:`notes` says what is done instead.
    theirs, own = plain(model, prompt, picture), ours(model, prompt, picture)
    found = []
    if theirs.text != own.text:
        found.append(f"{arm}: the prompt reads {own.text!r} here and {theirs.text!r} there.")
    if theirs.ids != own.ids:
        at = common(theirs.ids, own.ids)
        here, there = (model.tokenizer.decode(x[at : at + 4]) for x in (own.ids, theirs.ids))
        found.append(
            f"{arm}: the prompt is {len(own.ids)} tokens here and {len(theirs.ids)} in a plain "
            f"session; from token {at} on they are {here!r} and {there!r}."
        )
    if theirs.answer != own.answer:
        found.append(f"{arm}: the answer is {own.answer!r} here and {theirs.answer!r} there.")
    return tuple(found)


def notes(vlm: Vlm) -> tuple[str, ...]:
    """What a reader should know of how a model is asked, though nothing differs."""
    said = []
    if not takes_text_alone(vlm):
        said.append(
            f"The processor of {vlm.name} takes no prompt without a picture, so by name it is "
            "asked through the tokenizer alone."
        )
    switches = dict(switched_off(str(vlm.front.chat_template)))
    if switches:
        listed = ", ".join(f"{name}={value!r}" for name, value in switches.items())
        said.append(f"Reasoning is switched off in the chat template ({listed}).")
    if thinks(vlm):
        said.append(
            "Its chat template opens a block of reasoning that cannot be left out, so its answers "
            f"get {BUDGET} new tokens more; what is not ended by then counts as no answer. "
            "Experiments on changed runs have no such room: raise their max_new_tokens."
        )
    own: Any = vlm.model.generation_config
    unused = {
        name: value
        for name in ("repetition_penalty", "no_repeat_ngram_size", "num_beams")
        if (value := getattr(own, name, None)) not in (None, GREEDY[name])
    }
    if unused:
        listed = ", ".join(f"{name} {value:g}" for name, value in unused.items())
        said.append(f"Answers are greedy; the checkpoint's own {listed} is not used.")
    return tuple(said)
