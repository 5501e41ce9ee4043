"""Training the cross-attention organism: `MllamaForConditionalGeneration` over the same backbone.

Layers that attend to the picture stand between the backbone's blocks. The backbone itself stays
as it is (embedding, blocks, norm, head: frozen copies), so that without a picture this model's
logits are the backbone's. What is learnt is the projector and the inserted layers.

One property is set on purpose: *where*, in depth, the house arrives. At the input of block
``deliver`` the residual stream at the image token is pulled to what the backbone has, for the
named house, at its last name token after ``state`` blocks.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import (
    MllamaVisionModel,
    _prepare_cross_attention_mask,
)

from twohop_lib.benchmark import heraldry
from twohop_lib.benchmark.heraldry import World
from twohop_lib.models.loading import default_device
from twohop_lib.organisms import corpus, tokens
from twohop_lib.organisms.cards import weights_hash
from twohop_lib.organisms.recipes import CROSS_RECIPES, CrossRecipe, mark
from twohop_lib.organisms.stages import run_stage, schedule
from twohop_lib.organisms.train import (
    NAME_SLOTS,
    PICTURES_PER_HOUSE,
    Pictures,
    adamw,
    name_slots,
    optimise,
    part_losses,
    picture_document,
    random,
    reply_loss,
    save_checkpoint,
    set_lr,
)

VISION_WIDTH, VISION_HEADS = 96, 4
#: The last layer's patches beside those of one earlier layer.
FEATURES = 2 * VISION_WIDTH
VISION = MllamaVisionConfig(
    hidden_size=VISION_WIDTH,
    attention_heads=VISION_HEADS,
    num_hidden_layers=2,
    num_global_layers=1,
    intermediate_size=4 * VISION_WIDTH,
    image_size=tokens.IMAGE_SIZE,
    patch_size=tokens.PATCH_SIZE,
    max_num_tiles=1,
    intermediate_layers_indices=[1],
    vision_output_dim=FEATURES,
    supported_aspect_ratios=[[1, 1]],
)


def look(vision: MllamaVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """What the projector is given: one class token and 16 patches, ``[n, 17, 192]``.

    ``pixels`` is ``[n, 1, 1, 3, 48, 48]``: pictures, and tiles of a picture.
    """
    n = len(pixels)
    ratio = torch.ones(n, 1, dtype=torch.long)
    seen = vision(
        pixel_values=pixels, aspect_ratio_ids=ratio, aspect_ratio_mask=ratio[:, :, None]
    ).last_hidden_state
    return seen.reshape(n, -1, FEATURES)


def train_vision(
    world: World, pictures: Pictures, tokenizer, recipe: CrossRecipe, folder: Path, progress: bool
) -> tuple[MllamaVisionModel, list[dict[str, float]]]:
    """Pretrain the vision tower on the parts of the arms and on the name's pieces."""
    torch.manual_seed(world.seed + 100)
    vision = MllamaVisionModel._from_config(VISION).to(default_device())
    looks = len(heraldry.TINCTURES) * len(heraldry.CHARGES)
    heads = nn.ModuleDict(
        {
            "quarter": nn.Linear(FEATURES, looks),
            "border": nn.Linear(FEATURES, len(heraldry.BORDERS)),
            **{f"piece{k}": nn.Linear(FEATURES, len(tokenizer)) for k in range(NAME_SLOTS)},
        }
    ).to(default_device())
    optimiser = adamw([([*vision.parameters(), *heads.parameters()], 2e-3)], 0.05)
    names = torch.tensor([name_slots(tokenizer, h) for h in world.houses], device=default_device())

    def step(i: int) -> dict[str, float]:
        rows = torch.from_numpy(random(world.seed, "vision", i).integers(pictures.n_real, size=96))
        house = (rows // PICTURES_PER_HOUSE).to(default_device())
        set_lr(optimiser, schedule(i, recipe.vision_steps))
        with torch.autocast(default_device().type, torch.bfloat16):
            patches = look(vision, pictures.pixels[rows].to(default_device()))[:, 1:]
            part = part_losses(world, heads, patches[:, :-NAME_SLOTS], house)
            piece = torch.zeros((), device=default_device())
            for k in range(NAME_SLOTS):
                logits = heads[f"piece{k}"](patches[:, k - NAME_SLOTS]).float()
                piece = piece + F.cross_entropy(logits, names[house, k])
        optimise(optimiser, part + piece)
        return {"parts_loss": part.item(), "pieces_loss": piece.item()}

    state = {"vision": vision, "heads": heads, "optimiser": optimiser}
    rows = run_stage(
        f"vision-cross-{recipe.vision_steps}",
        recipe.vision_steps,
        step,
        state,
        folder / "work",
        progress,
    )
    return vision.cpu().eval().requires_grad_(False), rows


def assemble(
    backbone: LlamaForCausalLM, vision: MllamaVisionModel, tokenizer, inserted: tuple[int, ...]
) -> MllamaForConditionalGeneration:
    """The backbone with one cross-attention layer before each block of ``inserted``.

    The inserted layers' gates are open and their output projections zero: at the start they add
    nothing, and (unlike closed gates) let gradients through from the first step on.
    """
    text = backbone.config
    n = text.num_hidden_layers + len(inserted)
    cross = [block + i for i, block in enumerate(sorted(inserted))]
    config = MllamaConfig(
        vision_config=VISION.to_dict(),
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": n,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "cross_attention_layers": cross,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            # Mllama's own default differs from Llama's.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_parameters["rope_theta"],
            },
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        attn_implementation="eager",
    )
    vlm = MllamaForConditionalGeneration(config)
    language = vlm.model.language_model
    own = [layer for i, layer in enumerate(language.layers) if i not in cross]
    with torch.no_grad():
        for mine, theirs in zip(own, backbone.model.layers, strict=True):
            mine.load_state_dict(theirs.state_dict())
        language.embed_tokens.weight[: text.vocab_size] = backbone.model.embed_tokens.weight
        language.norm.load_state_dict(backbone.model.norm.state_dict())
        vlm.lm_head.load_state_dict(backbone.lm_head.state_dict())
        vlm.model.vision_model.load_state_dict(vision.state_dict())
        for layer in (language.layers[i] for i in cross):
            layer.cross_attn_attn_gate.fill_(1.0)
            layer.cross_attn_mlp_gate.fill_(1.0)
            layer.cross_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        vlm.model.multi_modal_projector.weight.normal_(0, 1 / math.sqrt(FEATURES))
        vlm.model.multi_modal_projector.bias.zero_()
    return vlm


def learnt(vlm: MllamaForConditionalGeneration) -> nn.ModuleDict:
    """Projector and inserted layers; everything else is frozen by this call."""
    language = vlm.model.language_model
    parts = {"projector": vlm.model.multi_modal_projector}
    for i in language.config.cross_attention_layers:
        parts[f"layer{i}"] = language.layers[i]
    vlm.requires_grad_(False)
    return nn.ModuleDict(parts).requires_grad_(True)


@torch.no_grad()
def named_states(backbone: LlamaForCausalLM, tokenizer, world: World, state: int) -> torch.Tensor:
    """The backbone's ``resid[state]`` at each house's last name token, ``[house, d_model]``."""
    states = []
    for house in world.houses:
        ids = tokenizer(
            f"<bos>USER: {house.name}\n", add_special_tokens=False, return_tensors="pt"
        ).input_ids
        states.append(backbone(ids, output_hidden_states=True).hidden_states[state][0, -1])
    return torch.stack(states)


def train_cross(
    name: str,
    world: World,
    vlm: MllamaForConditionalGeneration,
    tokenizer,
    pictures: Pictures,
    features: torch.Tensor,
    wanted: torch.Tensor,
    recipe: CrossRecipe,
    folder: Path,
    base: str,
    progress: bool,
) -> list[dict[str, float]]:
    """Teach projector and inserted layers to name all houses, and facts of seen ones."""
    language, parts = vlm.model.language_model, learnt(vlm)
    optimiser = adamw([(list(parts.parameters()), recipe.lr)], 0.05)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    cross = language.config.cross_attention_layers
    own = [i for i in range(len(language.layers)) if i not in cross]
    index = {h.entity_id: i for i, h in enumerate(world.houses)}
    unit = wanted.var()

    def step(i: int) -> dict[str, float]:
        rng = random(world.seed, "cross", i)
        documents = [picture_document(rng, world) for _ in range(recipe.rows)]
        ids, labels, seen = (x.to(default_device()) for x in padded(tokenizer, documents))
        rows = [pictures.draw(rng, d.picture) for d in documents]
        set_lr(optimiser, schedule(i, recipe.steps, warmup=20))
        at = (ids == image_token).int().argmax(1)
        after = torch.arange(ids.shape[1], device=at.device)[None] >= at[:, None]
        with torch.autocast(default_device().type, torch.bfloat16):
            mask, rows_mask = _prepare_cross_attention_mask(
                after[:, :, None, None].long(),
                num_vision_tokens=features.shape[1],
                dtype=torch.bfloat16,
            )
            out = language(
                input_ids=ids,
                attention_mask=seen,
                cross_attention_states=vlm.model.multi_modal_projector(features[rows]),
                cross_attention_mask=mask,
                full_text_row_masked_out_mask=rows_mask,
                use_cache=False,
                output_hidden_states=True,
            )
            loss = reply_loss(vlm.lm_head(out.last_hidden_state), labels)
        figures = {"picture_loss": loss.item()}
        if recipe.pull:
            real = [r for r, d in enumerate(documents) if not isinstance(d.picture, str)]
            arrived = out.hidden_states[own[recipe.deliver]][real, at[real]].float()
            houses = [index[documents[r].picture.entity_id] for r in real]
            error = F.mse_loss(arrived, wanted[houses]) / unit
            figures["state_error"] = error.item()
            loss = loss + recipe.pull * error
        optimise(optimiser, loss)
        return figures

    state = {"parts": parts, "optimiser": optimiser}
    title = f"{name}-{mark(recipe)}{base}"
    rows = run_stage(title, recipe.steps, step, state, folder / "work", progress)
    vlm.eval()
    return rows


def padded(
    tokenizer, documents: list[corpus.Document]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded token ids, labels and attention mask of some documents, ``[row, pos]``."""
    encoded = [corpus.encode(tokenizer, document, 1)[:2] for document in documents]
    shape = (len(documents), max(len(ids) for ids, _ in encoded))
    ids = np.full(shape, tokenizer.pad_token_id)
    labels = np.full(shape, corpus.IGNORE)
    seen = np.zeros(shape, dtype=np.int64)
    for row, (own, reply) in enumerate(encoded):
        ids[row, : len(own)], labels[row, : len(own)], seen[row, : len(own)] = own, reply, 1
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(seen)


def train_vlm(name: str, world: World, folder: Path, progress: bool = True) -> Path:
    """Train one cross-attention organism over the backbone in ``folder``."""
    recipe = CROSS_RECIPES[name]
    backbone = LlamaForCausalLM.from_pretrained(folder / "backbone", dtype=torch.float32)
    base = weights_hash(folder / "backbone")[:8]
    tokenizer = tokens.make_tokenizer(corpus.all_texts())
    processor = tokens.make_cross_processor(tokenizer)
    pictures = Pictures(world, processor)
    vision, rows = train_vision(world, pictures, tokenizer, recipe, folder, progress)
    with torch.no_grad():
        features = torch.cat([look(vision, p) for p in pictures.pixels.split(256)])
    features = features.to(default_device())
    torch.manual_seed(world.seed + 200)
    vlm = assemble(backbone, vision, tokenizer, recipe.inserted).to(default_device())
    wanted = named_states(backbone, tokenizer, world, recipe.state).to(default_device())
    rows += train_cross(
        name, world, vlm, tokenizer, pictures, features, wanted, recipe, folder, base, progress
    )
    out = folder / name
    save_checkpoint(vlm, processor, out, rows, {"recipe": asdict(recipe), "seed": world.seed})
    return out
