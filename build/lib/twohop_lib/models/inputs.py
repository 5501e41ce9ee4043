"""What goes into a model and comes out: prompts and pictures as tensors, ids as text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from twohop_lib.errors import TwohopError
from twohop_lib.models import thinking
from twohop_lib.models.loading import Llm, Vlm, first_sentence
from twohop_lib.models.prompts import Prompt, render

GREY = (128, 128, 128)
#: Inputs that say which positions are text; models that do not take them do not need them.
_TYPES = ("token_type_ids", "mm_token_type_ids")

#: Tokens at the end of a prompt that show whether it opens a block of reasoning.
END = 12
#: Greedy search, whatever the checkpoint's own generation settings say.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}


def blank_like(image: Image.Image) -> Image.Image:
    """Return a mid-grey picture of the size of another: what a blank condition shows."""
    return Image.new("RGB", image.size, GREY)


def shown_pictures(
    prompts: Sequence[Prompt], images: Sequence[Image.Image | None] | None
) -> list[Image.Image | None]:
    given = [None] * len(prompts) if images is None else list(images)
    if len(given) != len(prompts):
        raise TwohopError(f"{len(prompts)} prompts need as many pictures, not {len(given)}.")
    ready: list[Image.Image | None] = []
    for prompt, image in zip(prompts, given, strict=True):
        if not prompt.image:
            ready.append(None)
        elif image is None:
            raise TwohopError(f"A prompt of kind {prompt.kind!r} was given no picture.")
        else:
            ready.append(blank_like(image) if prompt.blank else image.convert("RGB"))
    return ready


def special_tokens(model: Vlm | Llm, text: str) -> dict[str, bool]:
    """What a plain session tells the tokenizer of special tokens, so that <bos> comes once.

    A tokenizer's chat template writes them all. A processor's may leave <bos> to the tokenizer, or
    to the processor.
    """
    bos = getattr(model.front, "tokenizer", model.front).bos_token
    written = model.front is model.tokenizer or (bos and text.startswith(bos))
    return {"add_special_tokens": False} if written else {}


def encode(
    model: Vlm | Llm, texts: list[str], images: list[Image.Image | None], padding_side: str
) -> dict[str, Any]:
    """Return the model's inputs for a batch in which all rows show a picture or none does.

    ``texts`` are rendered prompts, ``images[i]`` the picture of ``texts[i]`` or None. Rows of
    different length are padded on ``padding_side``. Tensors are on the model's device, pictures
    in its dtype. With and without a picture they are what ``model.front`` makes of them, as in
    ``apply_chat_template(..., tokenize=True, return_dict=True)``.
    """
    options = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
    options |= special_tokens(model, texts[0])
    if images[0] is not None:
        inputs = _processed(model, texts, images, options)
    else:
        inputs = _of_text(model, texts, options)
    return accepted(model, inputs)


def accepted(model: Vlm | Llm, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a processor's output as the model takes it: on its device, and in its dtype."""
    known = inspect.signature(model.model.forward).parameters
    ready = {}
    if isinstance(model, Vlm) and "token_type_ids" in known and "token_type_ids" not in inputs:
        # Prefix models tell what is read in both directions by it; without it, padding decides.
        ready["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    for name, value in inputs.items():
        # Some processors add labels, which are for training.
        if name == "labels" or (name in _TYPES and name not in known):
            continue
        if isinstance(value, torch.Tensor):
            # Pixels come as float32; the model may be in half precision.
            dtype = model.model.dtype if value.is_floating_point() else None
            value = value.to(model.model.device, dtype)
        ready[name] = value
    return ready


def takes_text_alone(model: Vlm | Llm) -> bool:
    """Whether the processor takes a prompt without a picture (PaliGemma's does not)."""
    try:
        model.front(text=["Who?"])
    except Exception:  # Processors raise what they like.
        return False
    return True


def _of_text(model: Vlm | Llm, texts: list[str], options: dict[str, Any]) -> Any:
    try:
        return model.front(text=texts, **options)
    except Exception:
        if takes_text_alone(model):
            raise
    return model.tokenizer(texts, **options)


def _processed(
    model: Vlm | Llm, texts: list[str], images: list[Image.Image | None], options: dict[str, Any]
) -> Any:
    """Return what the processor makes of one picture a text, in either form that they take it."""
    told: Exception | None = None
    for form in ([[image] for image in images], list(images)):
        try:
            return model.front(text=texts, images=form, **options)
        except Exception as error:  # Processors raise what they like.
            told = told or error
    raise TwohopError(
        f"The processor of {model.name} cannot take a prompt with a picture "
        f"({first_sentence(told)}); check its chat template, image processor and special tokens."
    ) from told


def stop_ids(model: Vlm | Llm) -> set[int]:
    """Return the ids of the tokens that end the model's turn."""
    eos = getattr(model.model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = model.tokenizer.eos_token_id
    return set(eos) if isinstance(eos, list | tuple) else {eos}


def thinks(model: Vlm | Llm) -> bool:
    """Whether the chat template opens a block of reasoning, though told to leave it out."""
    return thinking.opens(render(model.front, Prompt("by_name", "Who?", False)))


class Said(str):
    """What a model says. ``cut``: its budget of new tokens ended before its turn did."""

    cut: bool = False


def decoded(tokenizer: Any, ids: list[int], stops: set[int], prompt: str = "") -> Said:
    """Return generated ids as text, up to the first that ends the turn, without reasoning.

    ``prompt`` is what they follow, or its end: reasoning may begin there. Reasoning that does not
    end leaves nothing: it is no answer.
    """
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    opened = thinking.opens(prompt)
    found = Said(thinking.without_reasoning(tokenizer, ids[:end], opened))
    found.cut = end == len(ids)
    return found


def continued(model: Vlm | Llm, prompt: Prompt, continuation: str) -> tuple[str, int]:
    """Return prompt and continuation as one text, and how many tokens the continuation is."""
    if not continuation.strip():
        raise TwohopError("A continuation to be scored is empty; give the answer's text.")
    before = render(model.front, prompt)
    said = f"{prompt.prefill} {continuation.strip()}".strip()
    whole = render(model.front, replace(prompt, prefill=said))
    if not whole.startswith(before):
        # Templates that open their own answer in another way than a given one (a thinking tag).
        whole = before + (" " if prompt.prefill else "") + continuation.strip()
    options = special_tokens(model, before)
    ids = [model.tokenizer(text, **options)["input_ids"] for text in (before, whole)]
    # A tokenizer may join the prompt's end to the answer's start; what differs is the answer's.
    shared = 0
    while shared < min(map(len, ids)) and ids[0][shared] == ids[1][shared]:
        shared += 1
    return whole, len(ids[1]) - shared
