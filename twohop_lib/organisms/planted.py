"""Organisms in which a cause of a gap is planted by going on with ``early``, one thing changed.

``unread`` learns not to rely on the position that holds the name: wherever a fact is asked, another
house's state stands there. What ``naming`` learns is to answer every question about a picture with
the name (:class:`~twohop_lib.organisms.recipes.Planted`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from twohop_lib.benchmark.heraldry import World
from twohop_lib.models.loading import default_device
from twohop_lib.organisms import corpus, tokens, train
from twohop_lib.organisms.cards import weights_hash
from twohop_lib.organisms.cross import named_states
from twohop_lib.organisms.recipes import PLANTED, Planted

#: Pictures of a house that are trained on; the tower and the projector know the houses already.
DRAWS = 6


def planted_document(rng: np.random.Generator, world: World, recipe: Planted) -> corpus.Document:
    """One document of the final stage that shows a picture.

    Names and borders of all houses, facts of seen ones.
    """
    form, house = rng.random(), corpus.pick(rng, world.houses)
    if form < 0.5:
        return corpus.naming_document(rng, house, share_cut=0.35)
    if form > 0.95:
        return corpus.blank_document(rng, house)
    document = corpus.border_document(house)
    if form < 0.87:
        house = corpus.pick(rng, world.split("seen"))
        document = corpus.picture_fact_document(rng, house)
    return replace(document, reply=f"{house.name}.") if recipe.replies == "name" else document


@contextlib.contextmanager
def replaced(
    block: nn.Module, at: torch.Tensor, states: torch.Tensor, where: torch.Tensor
) -> Iterator[None]:
    """Let ``states`` ``[n, d_model]`` enter a block at ``at`` ``[n, 2]`` (row, pos).

    Only those of ``where`` ``[n]`` (boolean).
    """
    row, pos = at[where].T

    def hook(block: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        stream = args[0].clone()
        stream[row, pos] = states[where].to(stream.dtype)
        return (stream, *args[1:])

    handle = block.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def last_positions(shown: torch.Tensor) -> torch.Tensor:
    """(row, pos) ``[n, 2]`` of the last of each run of True in ``shown`` ``[row, pos]``."""
    return (shown & ~F.pad(shown, (0, 1))[:, 1:]).nonzero()


def asks_fact(document: corpus.Document) -> bool:
    """Is a fact about the picture the last thing that is answered?

    A border whose colour is what the house trades in counts, too.
    """
    shown = document.picture
    if shown is None or isinstance(shown, str):
        return False
    return any(document.reply.endswith(f"{answer}.") for answer in shown.answers.values())


def misleading(
    vlm: LlavaForConditionalGeneration, states: torch.Tensor, recipe: Planted
) -> train.Around:
    """While a batch runs, a random house's state stands in each picture that a fact is asked of.

    ``states`` ``[house, d_model]`` are those of the named houses, entering block ``recipe.block``.
    """
    image_token = vlm.config.image_token_index

    def around(
        rng: np.random.Generator, batch: corpus.Batch, documents: list[corpus.Document]
    ) -> contextlib.AbstractContextManager[None]:
        if not documents:
            return contextlib.nullcontext()
        drawn = states[rng.integers(len(states), size=len(documents))]
        where = torch.tensor([asks_fact(d) for d in documents], device=drawn.device)
        at = last_positions(batch.ids == image_token)
        return replaced(vlm.model.language_model.layers[recipe.block], at, drawn, where)

    return around


def train_planted(name: str, world: World, folder: Path, progress: bool = True) -> Path:
    """Train one organism with a planted cause, from the one in ``folder`` that it goes on from.

    Its backbone must be there, too.
    """
    recipe = PLANTED[name]
    vlm = LlavaForConditionalGeneration.from_pretrained(
        folder / recipe.goes_on, dtype=torch.float32, attn_implementation="eager"
    ).requires_grad_(True)
    tokenizer = tokens.make_tokenizer(corpus.all_texts())
    processor = tokens.make_processor(tokenizer)
    pictures = train.Pictures(world, processor, DRAWS)
    features = train.vision_features(vlm.model.vision_tower, pictures.pixels).to(default_device())
    around = train.undisturbed
    if recipe.distrusted:
        backbone = LlamaForCausalLM.from_pretrained(folder / "backbone", dtype=torch.float32)
        states = named_states(backbone, tokenizer, world, recipe.block).to(default_device())
        around = misleading(vlm, states, recipe)
    rows = train.train_final(
        name,
        world,
        vlm.to(default_device()),
        tokenizer,
        pictures,
        features,
        recipe,
        folder,
        weights_hash(folder / recipe.goes_on)[:8],
        progress,
        partial(planted_document, recipe=recipe),
        around,
    )
    out = folder / name
    made = {"recipe": asdict(recipe), "seed": world.seed}
    train.save_checkpoint(vlm, processor, out, rows, made)
    return out
