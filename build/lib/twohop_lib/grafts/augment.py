"""Augmented drawings: what the vision tower is trained on, so that it knows more than one picture.

A drawing is cut out of its plain ground, then scaled, stretched, turned, shifted, waved and shaded,
put before another ground, lit, tinted, blurred and made noisy. Every draw is a function of its
generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

#: Side, in pixels, of the drawings that are augmented.
SIDE = 84


def cut_outs(pictures: Sequence[Image.Image]) -> Tensor:
    """Drawings in [0, 1] with an alpha channel ``[n, 4, SIDE, SIDE]``.

    Transparent is what has exactly the colour of the picture's first corner, its ground.
    """
    made = []
    for picture in pictures:
        rgb = picture.convert("RGB")
        pixels = np.asarray(rgb)
        alpha = (pixels != pixels[0, 0]).any(-1)
        solid = alpha if alpha.any() else np.ones_like(alpha)
        drawn = np.dstack([pixels, np.uint8(255) * solid])
        small = Image.fromarray(drawn, "RGBA").resize((SIDE, SIDE), Image.Resampling.BOX)
        made.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1))
    return torch.stack(made).float() / 255


def augmented(
    drawings: Tensor, rng: np.random.Generator, size: int, shift: float, smallest: float
) -> Tensor:
    """One random rendering of each drawing ``[n, 4, …]``: ``[n, 3, size, size]`` in [0, 1].

    On the drawings' device; the draws themselves are the same on all.
    ``shift`` and ``smallest`` as in :class:`~twohop_lib.grafts.recipes.TowerRecipe`.
    """
    n = len(drawings)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.from_numpy(rng.uniform(low, high, (n, *shape)).astype(np.float32))
        return drawn.to(drawings.device)

    grid, slope = _grid(draw, size, shift, smallest)
    seen = F.grid_sample(drawings, grid, align_corners=False, padding_mode="zeros")
    alpha = seen[:, 3:]
    shade = 1 + draw(0.0, 0.5, 1, 1, 1) * slope[:, None]
    colour = seen[:, :3] / alpha.clamp_min(1e-3) * shade
    picture = alpha * colour + (1 - alpha) * _ground(draw, size)
    return _photographed(picture, draw, rng).clamp(0, 1)


def _grid(draw, side: int, shift: float, smallest: float) -> tuple[Tensor, Tensor]:
    """Where each pixel looks in the drawing ``[n, side, side, 2]``, and the slope of the wave."""
    left, up = draw(-shift, shift, 1, 1), draw(-shift, shift, 1, 1)
    axis = torch.linspace(-1, 1, side, device=left.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x[None] - left, y[None] - up
    angle = draw(-0.22, 0.22, 1, 1)
    x, y = angle.cos() * x + angle.sin() * y, -angle.sin() * x + angle.cos() * y
    scale, stretch = draw(smallest, 1.15, 1, 1), draw(-0.2, 0.2, 1, 1).exp()
    x, y = x / (scale * stretch), y / (scale / stretch)
    waves = (draw(0, 1, 1, 1) < 0.5).float() * draw(0.02, 0.09, 1, 1)
    phase = draw(2.0, 9.0, 1, 1) * x + draw(-1.5, 1.5, 1, 1) * y + draw(0, 2 * math.pi, 1, 1)
    slope = phase.cos() * (waves > 0)
    return torch.stack([x + 0.3 * waves * phase.cos(), y + waves * phase.sin()], -1), slope


def _ground(draw, side: int) -> Tensor:
    """Another ground ``[n, 3, side, side]``: plain, shaded, or patches of colour."""
    ends = draw(0, 1, 3, 2, 2)
    patches = F.interpolate(draw(0, 1, 3, 5, 5), side, mode="bilinear", align_corners=True)
    shaded = F.interpolate(ends, side, mode="bilinear", align_corners=True)
    plain = ends[:, :, :1, :1].expand(-1, -1, side, side)
    kind = draw(0, 1, 1, 1, 1)
    return torch.where(kind < 0.4, plain, torch.where(kind < 0.7, shaded, patches))


def _photographed(picture: Tensor, draw, rng: np.random.Generator) -> Tensor:
    """Light, tint, blur and noise on pictures ``[n, 3, size, size]``."""
    size = picture.shape[-1]
    light = F.interpolate(draw(0.65, 1.25, 1, 2, 2), size, mode="bilinear", align_corners=True)
    picture = picture * light * draw(0.85, 1.15, 3, 1, 1)
    grey = picture.mean(1, keepdim=True)
    picture = grey + (picture - grey) * draw(0.6, 1.2, 1, 1, 1) + draw(-0.06, 0.1, 1, 1, 1)
    soft = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    picture = torch.lerp(picture, soft, draw(0, 1, 1, 1, 1) * (draw(0, 1, 1, 1, 1) < 0.6))
    noise = torch.from_numpy(rng.standard_normal(picture.shape, dtype=np.float32))
    return picture + noise.to(picture.device) * draw(0, 0.08, 1, 1, 1)
