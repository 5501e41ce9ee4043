"""Training the organisms: backbone, vision tower, alignment, final stage.

Every stage is counted in steps, draws its randomness from (seed, stage, step), and can be taken
up again where it was cut off (:mod:`twohop_lib.organisms.stages`). What a stage is stored under
names the recipe and, from the alignment on, the backbone (``base``, from its weights).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from twohop_lib.benchmark import heraldry
from twohop_lib.benchmark.heraldry import House, World
from twohop_lib.models.loading import default_device
from twohop_lib.organisms import corpus, tokens
from twohop_lib.organisms.cards import weights_hash
from twohop_lib.organisms.recipes import (
    BACKBONE,
    RECIPES,
    BackboneRecipe,
    Recipe,
    SetBackbone,
    mark,
)
from twohop_lib.organisms.stages import run_stage, schedule

PICTURES_PER_HOUSE = 24
VISION_WIDTH, VISION_LAYERS, VISION_HEADS = 96, 3, 4
NAME_SLOTS = 3
BLANKS = ("grey", "black", "white", "noise")


def random(seed: int, stage: str, step: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stage.encode(), step])


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def adamw(groups: list[tuple[list[nn.Parameter], float]], decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": params, "lr": lr, "peak": lr} for params, lr in groups],
        weight_decay=decay,
        fused=True,
    )


def optimise(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    params = [p for g in optimiser.param_groups for p in g["params"]]
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimiser.step()


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


def reply_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the reply's tokens. ``logits`` [row, pos, vocab]."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=corpus.IGNORE
    )


# ---- backbone -------------------------------------------------------------------------------


def _llama_config(recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )


def _answer_heads(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({r.key: nn.Linear(width, len(r.answers)) for r in heraldry.RELATIONS})


def _head_loss(heads: nn.ModuleDict, states: torch.Tensor, houses: list[House]) -> torch.Tensor:
    """How badly the answers are read off last-name-token states ``[n, d_model]``."""
    losses = []
    for relation in heraldry.RELATIONS:
        right = torch.tensor(
            [relation.answers.index(h.answers[relation.key]) for h in houses], device=states.device
        )
        losses.append(F.cross_entropy(heads[relation.key](states).float(), right))
    return torch.stack(losses).mean()


@contextlib.contextmanager
def masked_below(model: LlamaForCausalLM, block: int, mask: torch.Tensor) -> Iterator[None]:
    """Let the blocks below ``block`` attend by ``mask`` (additive, ``[row, 1, pos, pos]``)."""
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, given: (args, given | {"attention_mask": mask}), with_kwargs=True
        )
        for layer in model.model.layers[:block]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def train_backbone(
    world: World,
    folder: Path,
    recipe: BackboneRecipe = BACKBONE,
    progress: bool = True,
    name: str = "backbone",
) -> Path:
    """Train a text backbone of one world; returns the folder of its checkpoint."""
    tokenizer = tokens.make_tokenizer(corpus.all_texts())
    torch.manual_seed(world.seed)
    model = LlamaForCausalLM(_llama_config(recipe, tokenizer)).to(default_device())
    heads = _answer_heads(recipe.width).to(default_device())
    optimiser = adamw(
        [([*model.parameters(), *heads.parameters()], recipe.lr)], recipe.weight_decay
    )

    def draw(rng: np.random.Generator) -> corpus.Document:
        return corpus.text_document(rng, corpus.pick(rng, world.houses))

    read_from = recipe.read_from if isinstance(recipe, SetBackbone) else 0

    def step(i: int) -> dict[str, float]:
        rng = random(world.seed, "backbone", i)
        batch = corpus.pack(
            tokenizer, rng, draw, recipe.rows, recipe.length, tokens.N_IMAGE_TOKENS, recipe.scaffold
        ).to(default_device())
        set_lr(optimiser, schedule(i, recipe.steps))
        early = contextlib.nullcontext()
        if read_from:
            early = masked_below(model, read_from, _additive(batch.early_mask, torch.bfloat16))
        with early, torch.autocast(default_device().type, torch.bfloat16):
            out = model(
                input_ids=batch.ids,
                attention_mask=_additive(batch.mask, torch.bfloat16),
                position_ids=batch.position_ids,
                output_hidden_states=True,
                use_cache=False,
            )
            loss = reply_loss(out.logits, batch.labels)
            named = out.hidden_states[recipe.head_block + 1]
            states = named[batch.last_name[:, 0], batch.last_name[:, 1]]
            head_loss = _head_loss(heads, states, batch.houses)
        optimise(optimiser, loss + recipe.head_weight * head_loss)
        return {"loss": loss.item(), "head_loss": head_loss.item()}

    state = {"model": model, "heads": heads, "optimiser": optimiser}
    rows = run_stage(
        f"backbone-{mark(recipe)}", recipe.steps, step, state, folder / "work", progress
    )
    out = folder / name
    save_checkpoint(model, tokenizer, out, rows, {"recipe": asdict(recipe), "seed": world.seed})
    return out


# ---- vision ---------------------------------------------------------------------------------


class Pictures:
    """All training pictures of a world, as the processor sees them, and blank ones.

    ``pixels`` ``[house × draw, …, 3, 48, 48]``, draws 1…``draws`` of each house in the order of the
    world.
    """

    def __init__(self, world: World, processor, draws: int | None = None) -> None:
        self.draws = draws or PICTURES_PER_HOUSE
        images = [
            heraldry.picture(world, house, draw)
            for house in world.houses
            for draw in range(1, self.draws + 1)
        ]
        self.row = {h.entity_id: i * self.draws for i, h in enumerate(world.houses)}
        self.n_real = len(images)
        images += [heraldry.blank(kind) for kind in BLANKS]
        self.pixels = torch.cat(
            [
                processor.image_processor(
                    # One picture to a row: some processors take several.
                    [[image] for image in images[i : i + 256]],
                    return_tensors="pt",
                ).pixel_values
                for i in range(0, len(images), 256)
            ]
        )

    def draw(self, rng: np.random.Generator, house: House | str) -> int:
        """The row of one random picture of ``house``, or of a random blank one."""
        if isinstance(house, str):
            return self.n_real + int(rng.integers(len(BLANKS)))
        return self.row[house.entity_id] + int(rng.integers(self.draws))


def name_slots(tokenizer: PreTrainedTokenizerFast, house: House) -> list[int]:
    """Token ids of the name in three slots, right-aligned; ``<bos>`` where there is no piece."""
    pieces = tokenizer(house.name, add_special_tokens=False).input_ids
    return [tokenizer.bos_token_id] * (NAME_SLOTS - len(pieces)) + pieces


def part_losses(
    world: World, heads: nn.ModuleDict, patches: torch.Tensor, house: torch.Tensor
) -> torch.Tensor:
    """How badly the parts of the arms are read off ``patches`` ``[n, patch, width]``.

    Each patch is asked for the look of its quarter, their mean for the border.
    """
    side = tokens.IMAGE_SIZE // tokens.PATCH_SIZE
    quarter_of = torch.tensor(
        [(r >= side // 2) * 2 + (c >= side // 2) for r in range(side) for c in range(side)]
    )
    wanted = torch.tensor([h.quarters for h in world.houses], device=house.device)[house]
    wanted = wanted[:, quarter_of][:, : patches.shape[1]]
    quarter = F.cross_entropy(heads["quarter"](patches).float().flatten(0, 1), wanted.flatten())
    borders = torch.tensor([h.border for h in world.houses], device=house.device)[house]
    return quarter + F.cross_entropy(heads["border"](patches.mean(1)).float(), borders)


def train_vision(
    world: World,
    pictures: Pictures,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    folder: Path,
    progress: bool = True,
) -> tuple[CLIPVisionModel, list[dict[str, float]]]:
    """Pretrain a vision tower on the parts of the arms (and on name pieces, by recipe)."""
    torch.manual_seed(world.seed + 100)
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=4 * VISION_WIDTH,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=VISION_HEADS,
            image_size=tokens.IMAGE_SIZE,
            patch_size=tokens.PATCH_SIZE,
            projection_dim=VISION_WIDTH,
            attn_implementation="eager",
        )
    ).to(default_device())
    looks = len(heraldry.TINCTURES) * len(heraldry.CHARGES)
    heads = nn.ModuleDict(
        {
            "quarter": nn.Linear(VISION_WIDTH, looks),
            "border": nn.Linear(VISION_WIDTH, len(heraldry.BORDERS)),
            **{f"piece{k}": nn.Linear(VISION_WIDTH, len(tokenizer)) for k in range(NAME_SLOTS)},
        }
    ).to(default_device())
    optimiser = adamw([([*vision.parameters(), *heads.parameters()], 2e-3)], 0.05)
    names = torch.tensor([name_slots(tokenizer, h) for h in world.houses], device=default_device())

    def step(i: int) -> dict[str, float]:
        rng = random(world.seed, "vision", i)
        rows = torch.from_numpy(rng.integers(pictures.n_real, size=96))
        house = (rows // PICTURES_PER_HOUSE).to(default_device())
        set_lr(optimiser, schedule(i, recipe.vision_steps))
        with torch.autocast(default_device().type, torch.bfloat16):
            patches = vision(pictures.pixels[rows].to(default_device())).last_hidden_state[:, 1:]
            free = patches[:, :-NAME_SLOTS] if recipe.names_readable else patches
            part = part_losses(world, heads, free, house)
            piece = torch.zeros((), device=default_device())
            if recipe.names_readable:
                for k in range(NAME_SLOTS):
                    logits = heads[f"piece{k}"](patches[:, k - NAME_SLOTS]).float()
                    piece = piece + F.cross_entropy(logits, names[house, k])
        optimise(optimiser, part + piece)
        return {"parts_loss": part.item(), "pieces_loss": piece.item()}

    state = {"vision": vision, "heads": heads, "optimiser": optimiser}
    kind = f"vision-{'names' if recipe.names_readable else 'parts'}-{recipe.vision_steps}"
    rows = run_stage(kind, recipe.vision_steps, step, state, folder / "work", progress)
    return vision.cpu().eval().requires_grad_(False), rows


@torch.no_grad()
def vision_features(vision: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """What LLaVA's projector is given: last-layer patches without CLS, ``[n, 16, 96]``."""
    return torch.cat(
        [vision(p, output_hidden_states=True).hidden_states[-1][:, 1:] for p in pixels.split(256)]
    )


# ---- the VLM --------------------------------------------------------------------------------


def assemble(
    backbone: LlamaForCausalLM, vision: CLIPVisionModel, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """A LLaVA of this vision tower and this language model, with a fresh projector."""
    text_config = backbone.config
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=tokens.N_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.vision_tower.load_state_dict(vision.state_dict())
    vlm.model.language_model.load_state_dict(backbone.model.state_dict())
    vlm.lm_head.load_state_dict(backbone.lm_head.state_dict())
    return vlm


@torch.no_grad()
def fit_projector_scale(
    projector: nn.Module, features: torch.Tensor, embeddings: torch.Tensor
) -> None:
    """Give the projector's output the standard deviation of the name embeddings."""
    projector.linear_1.weight.normal_(0, 1 / math.sqrt(features.shape[-1]))
    projector.linear_2.weight.normal_(0, 1 / math.sqrt(embeddings.shape[-1]))
    projector.linear_1.bias.zero_()
    projector.linear_2.bias.zero_()
    projector.linear_2.weight.mul_(embeddings.std() / projector(features).std())


def align_projector(
    world: World,
    vlm: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: torch.Tensor,
    recipe: Recipe,
    folder: Path,
    base: str,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Regress the last three image tokens on the name's embeddings (all houses)."""
    projector = vlm.model.multi_modal_projector
    table = vlm.get_input_embeddings().weight.detach()
    names = torch.tensor([name_slots(tokenizer, h) for h in world.houses], device=table.device)
    unit = table[names].var()
    real = names != tokenizer.bos_token_id
    optimiser = adamw([(list(projector.parameters()), 2e-3)], 0.0)
    n_real = len(world.houses) * PICTURES_PER_HOUSE

    def step(i: int) -> dict[str, float]:
        rng = random(world.seed, "align", i)
        rows = torch.from_numpy(rng.integers(n_real, size=96)).to(table.device)
        house = rows // PICTURES_PER_HOUSE
        set_lr(optimiser, schedule(i, recipe.align_steps))
        made = projector(features[rows])
        wanted = table[names[house]]
        error = ((made[:, -NAME_SLOTS:] - wanted) ** 2).mean(-1) / unit
        weight = torch.where(real[house], 1.0, recipe.pull)
        loss = (error * weight).sum() / weight.sum()
        rest = ((made[:, :-NAME_SLOTS] - table[tokenizer.bos_token_id]) ** 2).mean() / unit
        optimise(optimiser, loss + recipe.pull * rest)
        return {"name_error": loss.item(), "rest_error": rest.item()}

    state = {"projector": projector, "optimiser": optimiser}
    title = f"align-{recipe.vision_steps}x{recipe.align_steps}x{recipe.pull}x{base}"
    return run_stage(title, recipe.align_steps, step, state, folder / "work", progress)


def picture_document(rng: np.random.Generator, world: World) -> corpus.Document:
    """One document of the final stage that shows a picture."""
    form = rng.random()
    if form < 0.55:
        return corpus.naming_document(rng, corpus.pick(rng, world.houses), share_cut=0.35)
    if form < 0.95:
        return corpus.picture_fact_document(rng, corpus.pick(rng, world.split("seen")))
    return corpus.blank_document(rng, corpus.pick(rng, world.houses))


#: Entered while a batch of the final stage runs, given what it was drawn from.
Around = Callable[
    [np.random.Generator, corpus.Batch, list[corpus.Document]],
    contextlib.AbstractContextManager[None],
]


def undisturbed(
    rng: np.random.Generator, batch: corpus.Batch, documents: list[corpus.Document]
) -> contextlib.AbstractContextManager[None]:
    """Nothing is done while a batch runs."""
    return contextlib.nullcontext()


def train_final(
    name: str,
    world: World,
    vlm: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Pictures,
    features: torch.Tensor,
    recipe: Recipe,
    folder: Path,
    base: str,
    progress: bool = True,
    document: Callable[[np.random.Generator, World], corpus.Document] = picture_document,
    around: Around = undisturbed,
) -> list[dict[str, float]]:
    """Train projector and language model on pictures; every second step replays text.

    ``document`` draws those that show a picture, and ``around(rng, batch, documents)`` is entered
    while a batch of them runs.
    """
    language, projector = vlm.model.language_model, vlm.model.multi_modal_projector
    lm_params = [*language.parameters(), *vlm.lm_head.parameters()]
    optimiser = adamw(
        [(lm_params, recipe.lm_lr), (list(projector.parameters()), recipe.projector_lr)], 0.05
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")

    def draw_text(rng: np.random.Generator) -> corpus.Document:
        return corpus.text_document(rng, corpus.pick(rng, world.houses))

    def step(i: int) -> dict[str, float]:
        rng = random(world.seed, "final", i)
        shows = i % 2 == 0
        shown: list[corpus.Document] = []

        def draw_picture(r: np.random.Generator) -> corpus.Document:
            shown.append(document(r, world))
            return shown[-1]

        batch = corpus.pack(
            tokenizer,
            rng,
            draw_picture if shows else draw_text,
            recipe.rows,
            recipe.length,
            tokens.N_IMAGE_TOKENS,
        ).to(default_device())
        set_lr(optimiser, schedule(i, recipe.final_steps, warmup=20))
        # The last document drawn may not have found room.
        apart = around(rng, batch, shown[: len(batch.pictures)])
        with apart, torch.autocast(default_device().type, torch.bfloat16):
            embeds = vlm.get_input_embeddings()(batch.ids)
            if shows:
                rows = [pictures.draw(rng, p) for p in batch.pictures]
                made = projector(features[rows]).to(embeds.dtype)
                embeds = embeds.masked_scatter((batch.ids == image_token)[..., None], made)
            hidden = language(
                inputs_embeds=embeds,
                attention_mask=_additive(batch.mask, torch.bfloat16),
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
            loss = reply_loss(vlm.lm_head(hidden), batch.labels)
        optimise(optimiser, loss)
        return {"picture_loss" if shows else "text_loss": loss.item()}

    state = {"model": vlm, "optimiser": optimiser}
    return run_stage(
        f"{name}-{mark(recipe)}{base}", recipe.final_steps, step, state, folder / "work", progress
    )


def train_vlm(name: str, world: World, folder: Path, progress: bool = True) -> Path:
    """Train one VLM organism over the backbone in ``folder``; returns its checkpoint folder."""
    recipe = RECIPES[name]
    backbone = LlamaForCausalLM.from_pretrained(folder / "backbone", dtype=torch.float32)
    base = weights_hash(folder / "backbone")[:8]
    tokenizer = tokens.make_tokenizer(corpus.all_texts())
    processor = tokens.make_processor(tokenizer)
    pictures = Pictures(world, processor)
    vision, rows = train_vision(world, pictures, tokenizer, recipe, folder, progress)
    features = vision_features(vision, pictures.pixels).to(default_device())
    torch.manual_seed(world.seed + 200)
    vlm = assemble(backbone, vision, tokenizer).to(default_device())
    names = torch.tensor([i for h in world.houses for i in name_slots(tokenizer, h)])
    embeddings = vlm.get_input_embeddings().weight[names[names != tokenizer.bos_token_id]]
    fit_projector_scale(vlm.model.multi_modal_projector, features[:512], embeddings)
    if recipe.align_steps:
        rows += align_projector(world, vlm, tokenizer, features, recipe, folder, base, progress)
    rows += train_final(
        name, world, vlm, tokenizer, pictures, features, recipe, folder, base, progress
    )
    out = folder / name
    save_checkpoint(vlm, processor, out, rows, {"recipe": asdict(recipe), "seed": world.seed})
    return out


def save_checkpoint(model, processor, out: Path, rows: list[dict], card: dict) -> None:
    """Write an ordinary `transformers` checkpoint, weights rounded to float16 on disk.

    ``config.json`` says float32, so the model is float32 once loaded; the rounding halves the
    size. Everything measured is measured on the rounded weights.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.half().save_pretrained(partial)
    config = json.loads((partial / "config.json").read_text())
    _set_dtype(config, "float32")
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps({**card, "rows": rows}) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _set_dtype(config: dict, dtype: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, dtype)
