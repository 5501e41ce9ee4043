"""Organisms in which one cause of a gap is planted each, and nothing else is changed.

All are LLaVAs over one backbone, with one vision tower, one final stage and one kind of document.
They differ in what becomes of a single position, the picture's last: whether, and at the input of
which block, the stream there is pulled to the state that the backbone has at the name; whether it
can be relied upon where facts are asked; and in what questions are answered with
(:class:`~twohop_lib.organisms.recipes.Planted`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from twohop_lib.benchmark.heraldry import World
from twohop_lib.organisms import corpus, tokens, train
from twohop_lib.organisms.cards import weights_hash
from twohop_lib.organisms.cross import named_states
from twohop_lib.organisms.recipes import PLANTED, Planted, mark
from twohop_lib.organisms.stages import run_stage, schedule


def planted_document(rng: np.random.Generator, world: World, recipe: Planted) -> corpus.Document:
    """One document of the final stage that shows a picture.

    Names and borders of all houses, facts of seen ones.
    """
    form, any_house = rng.random(), world.houses[int(rng.integers(len(world.houses)))]
    if form < 0.5:
        return corpus.naming_document(rng, any_house, share_cut=0.35)
    if form > 0.95:
        return corpus.blank_document(rng, any_house)
    seen = world.split("seen")
    document = corpus.border_document(any_house)
    if form < 0.85:
        document = corpus.picture_fact_document(rng, seen[int(rng.integers(len(seen)))])
    if recipe.replies == "name":
        return replace(document, reply=f"{document.picture.name}.")
    return document


@dataclass
class Delivery:
    """What is done at the picture's last position while a batch runs.

    ``at`` ``[n, 2]`` (row, pos) of the pictures' last positions; ``arrived`` ``[n, d_model]`` is
    the stream there as it enters block ``layer``; where ``given`` ``[n, d_model]`` is not NaN, it
    takes the place of what arrived.
    """

    layer: int
    at: torch.Tensor
    given: torch.Tensor | None = None
    arrived: list[torch.Tensor] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self, blocks: nn.ModuleList) -> Iterator[None]:
        def hook(block: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            stream = args[0]
            row, pos = self.at.T
            self.arrived.append(stream[row, pos])
            if self.given is None:
                return args
            told = ~self.given.isnan().any(-1)
            changed = stream.clone()
            changed[row[told], pos[told]] = self.given[told].to(stream.dtype)
            return (changed, *args[1:])

        handle = blocks[self.layer].register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def last_positions(shown: torch.Tensor) -> torch.Tensor:
    """(row, pos) ``[n, 2]`` of the last of each run of True in ``shown`` ``[row, pos]``."""
    after = F.pad(shown, (0, 1))[:, 1:]
    return (shown & ~after).nonzero()


def train_final(
    name: str,
    world: World,
    vlm: LlavaForConditionalGeneration,
    tokenizer,
    pictures: train.Pictures,
    features: torch.Tensor,
    wanted: torch.Tensor,
    recipe: Planted,
    folder: Path,
    base: str,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train projector and language model on pictures; every second step replays text.

    ``wanted`` ``[house, d_model]`` are the states of the named houses.
    """
    language, projector = vlm.model.language_model, vlm.model.multi_modal_projector
    lm_params = [*language.parameters(), *vlm.lm_head.parameters()]
    optimiser = train.adamw(
        [(lm_params, recipe.lm_lr), (list(projector.parameters()), recipe.projector_lr)], 0.05
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    index = {h.entity_id: i for i, h in enumerate(world.houses)}
    unit = wanted.var()

    def step(i: int) -> dict[str, float]:
        rng = train.random(world.seed, "planted", i)
        shows, drawn = i % 2 == 0, []

        def draw(r: np.random.Generator) -> corpus.Document:
            if not shows:
                return corpus.text_document(r, world.houses[int(r.integers(len(world.houses)))])
            drawn.append(planted_document(r, world, recipe))
            return drawn[-1]

        batch = corpus.pack(
            tokenizer, rng, draw, recipe.rows, recipe.length, tokens.N_IMAGE_TOKENS
        ).to(train.device())
        train.set_lr(optimiser, schedule(i, recipe.final_steps, warmup=20))
        delivery = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(train.device().type, torch.bfloat16))
            embeds = vlm.get_input_embeddings()(batch.ids)
            shown = batch.ids == image_token
            if shows:
                rows = [pictures.draw(rng, p) for p in batch.pictures]
                made = projector(features[rows]).to(embeds.dtype)
                embeds = embeds.masked_scatter(shown[..., None], made)
            if shows and recipe.deliver is not None:
                delivery = Delivery(recipe.deliver, last_positions(shown))
                if recipe.distrusted:
                    delivery.given = misleading(rng, drawn[: len(rows)], wanted)
                stack.enter_context(delivery.watching(language.layers))
            hidden = language(
                inputs_embeds=embeds,
                attention_mask=train._additive(batch.mask, torch.bfloat16),
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
            loss = train.reply_loss(vlm.lm_head(hidden), batch.labels)
        figures = {"picture_loss" if shows else "text_loss": loss.item()}
        if delivery is not None:
            real = [k for k, p in enumerate(batch.pictures) if not isinstance(p, str)]
            houses = [index[batch.pictures[k].entity_id] for k in real]
            error = F.mse_loss(delivery.arrived[0][real].float(), wanted[houses]) / unit
            figures["state_error"] = error.item()
            loss = loss + recipe.pull * error
        train.optimise(optimiser, loss)
        return figures

    state = {"model": vlm, "optimiser": optimiser}
    title = f"{name}-{mark(recipe)}{base}"
    return run_stage(title, recipe.final_steps, step, state, folder / "work", progress)


def misleading(
    rng: np.random.Generator, documents: list[corpus.Document], states: torch.Tensor
) -> torch.Tensor:
    """A random house's state for each document that asks for a fact, ``[n, d_model]``, else NaN."""
    given = torch.full((len(documents), states.shape[1]), torch.nan, device=states.device)
    for k, document in enumerate(documents):
        if asks_fact(document):
            given[k] = states[int(rng.integers(len(states)))]
    return given


def asks_fact(document: corpus.Document) -> bool:
    """Is a fact about the picture the last thing that is answered?"""
    shown = document.picture
    if shown is None or isinstance(shown, str):
        return False
    return any(document.reply.endswith(f"{answer}.") for answer in shown.answers.values())


def train_planted(
    name: str, world: World, folder: Path, backbone: str = "backbone", progress: bool = True
) -> Path:
    """Train one organism with a planted cause over a backbone in ``folder``."""
    recipe = PLANTED[name]
    language = LlamaForCausalLM.from_pretrained(folder / backbone, dtype=torch.float32)
    base = weights_hash(folder / backbone)[:8]
    tokenizer = tokens.make_tokenizer(corpus.all_texts())
    processor = tokens.make_processor(tokenizer)
    pictures = train.Pictures(world, processor)
    vision, rows = train.train_vision(world, pictures, tokenizer, recipe, folder, progress)
    features = train.vision_features(vision, pictures.pixels).to(train.device())
    wanted = named_states(language, tokenizer, world, recipe.state).to(train.device())
    torch.manual_seed(world.seed + 200)
    vlm = train.assemble(language, vision, tokenizer)
    names = torch.tensor([i for h in world.houses for i in train.name_slots(tokenizer, h)])
    embeddings = vlm.get_input_embeddings().weight[names[names != tokenizer.bos_token_id]]
    train.fit_projector_scale(vlm.model.multi_modal_projector, features[:512].cpu(), embeddings)
    rows += train_final(
        name,
        world,
        vlm.to(train.device()),
        tokenizer,
        pictures,
        features,
        wanted,
        recipe,
        folder,
        base,
        progress,
    )
    out = folder / name
    made = {"recipe": asdict(recipe), "seed": world.seed, "backbone": backbone}
    train.save_checkpoint(vlm, processor, out, rows, made)
    return out
