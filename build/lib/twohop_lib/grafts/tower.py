"""The vision tower: a small CLIP that tells the entities apart, frozen once it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from twohop_lib.grafts import augment
from twohop_lib.grafts.recipes import TowerRecipe, mark
from twohop_lib.models.loading import default_device
from twohop_lib.organisms.stages import run_stage, schedule

MEAN, SPREAD = 0.5, 0.5


def random(seed: int, stage: str, step: int) -> np.random.Generator:
    """The generator of one step of one stage: what is cut off ends as if it had not been."""
    return np.random.default_rng([seed, *stage.encode(), step])


def image_processor(recipe: TowerRecipe) -> CLIPImageProcessor:
    """What makes a picture (any size, RGB) into the tower's pixels, by scaling alone."""
    size = {"height": recipe.image_size, "width": recipe.image_size}
    return CLIPImageProcessor(
        size=size,
        crop_size=size,
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[SPREAD] * 3,
    )


def new_tower(recipe: TowerRecipe) -> CLIPVisionModel:
    """An untrained tower."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
            projection_dim=recipe.width,
            attn_implementation="eager",
        )
    )


def patches(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """What LLaVA's projector is given: last-layer patches without CLS, ``[n, patch, width]``."""
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def train_tower(
    pictures: Sequence[Image.Image],
    recipe: TowerRecipe,
    seed: int,
    folder: Path,
    world: str,
    progress: bool = True,
) -> tuple[CLIPVisionModel, list[dict[str, float]]]:
    """Train a tower to tell ``pictures`` (one an entity) apart; ``world`` names them all.

    On the GPU if there is one.

    Returns:
        The tower, frozen, and the figures logged while it was trained.
    """
    torch.manual_seed(1000 + seed)
    where = default_device()
    tower = new_tower(recipe).to(where)
    head = nn.Linear(recipe.width, len(pictures)).to(where)
    drawings = augment.cut_outs(pictures).to(where)
    optimiser = torch.optim.AdamW(
        [*tower.parameters(), *head.parameters()], lr=recipe.lr, weight_decay=recipe.weight_decay
    )

    def step(i: int) -> dict[str, float]:
        rng = random(seed, "tower", i)
        which = torch.from_numpy(rng.integers(len(drawings), size=recipe.batch)).to(where)
        pixels = _pixels(drawings[which], rng, recipe)
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * schedule(i, recipe.steps)
        with torch.autocast(where.type, torch.bfloat16):
            logits = head(patches(tower, pixels).mean(1)).float()
        loss = F.cross_entropy(logits, which, label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *head.parameters()], 1.0)
        optimiser.step()
        right = (logits.argmax(-1) == which).float().mean()
        return {"loss": loss.item(), "right": right.item()}

    state = {"tower": tower, "head": head, "optimiser": optimiser}
    rows = run_stage(
        f"tower-{mark(recipe, seed, world)}", recipe.steps, step, state, folder, progress
    )
    return tower.eval().requires_grad_(False), rows


def _pixels(drawings: Tensor, rng: np.random.Generator, recipe: TowerRecipe) -> Tensor:
    made = augment.augmented(drawings, rng, recipe.image_size, recipe.shift, recipe.smallest)
    return (made - MEAN) / SPREAD


@torch.no_grad()
def drawn_features(
    tower: CLIPVisionModel, pictures: Sequence[Image.Image], recipe: TowerRecipe, seed: int
) -> Tensor:
    """Features of augmented pictures, ``draws`` of each: ``[entity, draw, patch, width]``."""
    drawings = augment.cut_outs(pictures).to(tower.device)
    made = []
    for i in range(recipe.draws):
        rng = random(seed, "draws", i)
        pixels = _pixels(drawings, rng, recipe)
        made.append(patches(tower, pixels))
    return torch.stack(made, 1)


@torch.no_grad()
def features(
    tower: CLIPVisionModel, pictures: Sequence[Image.Image], recipe: TowerRecipe
) -> Tensor:
    """Features of pictures as they are: ``[n, patch, width]``."""
    pixels = image_processor(recipe)(list(pictures), return_tensors="pt").pixel_values
    return torch.cat([patches(tower, part.to(tower.device)) for part in pixels.split(128)])
