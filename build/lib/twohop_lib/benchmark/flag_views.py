"""Several pictures of one flag: as drawn, waving, as if photographed, cropped, off centre.

For measuring on renderings that no model here was trained on: they share no code and no ground
with the augmentation of the grafts' training. Every view is a function of the country, the view
and a seed. Square RGB pictures of 448 pixels, like the benchmark's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageColor, ImageEnhance, ImageFilter

from twohop_lib.benchmark import flag_drawing, flags
from twohop_lib.errors import TwohopError, suggest

View = Literal["drawn", "waving", "photographed", "cropped", "off-centre"]
VIEWS: tuple[View, ...] = get_args(View)
SIZE = flag_drawing.PICTURE_SIZE


def picture(code: str, view: View = "drawn", seed: int = 0) -> Image.Image:
    """One view of a country's flag; ``drawn`` is the benchmark's own picture.

    Raises:
        TwohopError: no country or view of that name.
    """
    if view not in VIEWS:
        raise TwohopError(f"No view is called {view!r}; {suggest(view, VIEWS)}.")
    if code not in flags.specifications():
        raise TwohopError(f"No flag is drawn for {code!r}; give a code such as JP.")
    if view == "drawn":
        return flags.picture(code)
    rng = np.random.default_rng([seed, *code.encode(), *view.encode()])
    return _MADE[view](code, rng)


def _flag(code: str, width: int) -> Image.Image:
    """The flag alone, fitted into ``width`` by ``width`` pixels (RGBA); transparent beside it."""
    spec = flags.specifications()[code]
    w, h = spec["size"]
    drawn = flag_drawing.draw(spec, round(width * min(1, w / h)))
    pixels = np.asarray(drawn)
    beside = (pixels == ImageColor.getrgb(flag_drawing.GROUND)).all(-1)
    return Image.fromarray(np.dstack([pixels, np.where(beside, 0, 255).astype(np.uint8)]), "RGBA")


def _paste(flag: Image.Image, ground: Image.Image, x: float, y: float) -> Image.Image:
    """``flag`` with its middle at (x, y) of ``ground``, in shares of the side."""
    made = ground.copy()
    at = (round(x * SIZE - flag.width / 2), round(y * SIZE - flag.height / 2))
    made.paste(flag, at, flag)
    return made


def _plain(rng: np.random.Generator, low: int = 60, high: int = 235) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in rng.integers(low, high, 3)))


def _sky(rng: np.random.Generator) -> Image.Image:
    """A sky that pales towards the horizon, and the land below it."""
    top, foot = np.array([70, 120, 200]), np.array([205, 220, 235])
    land = np.array([70, 95, 60]) + rng.integers(-20, 20, 3)
    horizon = int(SIZE * rng.uniform(0.75, 0.95))
    rows = np.linspace(0, 1, horizon)[:, None]
    sky = top * (1 - rows) + foot * rows + rng.integers(-15, 15, 3)
    column = np.vstack([sky, np.broadcast_to(land, (SIZE - horizon, 3))])
    return Image.fromarray(np.uint8(np.clip(np.repeat(column[:, None], SIZE, 1), 0, 255)))


def _waving(code: str, rng: np.random.Generator) -> Image.Image:
    """Folds that run across the flag and grow towards the fly, lit from one side."""
    flag = np.asarray(_flag(code, round(SIZE * rng.uniform(0.68, 0.82)))).astype(float)
    height, width = flag.shape[:2]
    across = np.linspace(0, 1, width)
    folds, phase = rng.uniform(1.2, 2.4), rng.uniform(0, 2 * math.pi)
    angle = 2 * math.pi * folds * across + phase
    lift = height * rng.uniform(0.05, 0.09) * (0.3 + 0.7 * across)
    offset = lift * np.sin(angle)
    light = 1 + 0.22 * np.cos(angle) * (0.3 + 0.7 * across)
    border = math.ceil(np.abs(offset).max()) + 1
    made = np.zeros((height + 2 * border, width, 4))
    rows = np.arange(height + 2 * border)[:, None] - border - offset[None]
    whole = np.clip(np.round(rows).astype(int), 0, height - 1)
    made[:] = flag[whole, np.arange(width)[None]]
    made[..., :3] *= light[None, :, None]
    made[..., 3] *= (rows > -0.5) & (rows < height - 0.5)
    cloth = Image.fromarray(np.uint8(np.clip(made, 0, 255)), "RGBA")
    return _paste(cloth, _sky(rng), rng.uniform(0.46, 0.54), rng.uniform(0.42, 0.54))


def _photographed(code: str, rng: np.random.Generator) -> Image.Image:
    """Seen a little from the side, in uneven light, slightly blurred, as a JPEG would be."""
    flag = _flag(code, round(SIZE * rng.uniform(0.62, 0.8)))
    w, h = flag.size
    lean = rng.uniform(-0.1, 0.1, 8)
    corners = np.array([0, 0, 0, h, w, h, w, 0], float) + lean * np.tile([w, h], 4)
    flag = flag.transform((w, h), Image.Transform.QUAD, corners.tolist(), Image.Resampling.BILINEAR)
    flag = flag.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, expand=True)
    made = _paste(flag, _wall(rng), rng.uniform(0.45, 0.55), rng.uniform(0.45, 0.55))
    made = ImageEnhance.Color(made).enhance(rng.uniform(0.7, 1.0))
    made = ImageEnhance.Contrast(made).enhance(rng.uniform(0.75, 1.05))
    made = made.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.0)))
    pixels = np.asarray(made).astype(float)
    light = np.linspace(rng.uniform(0.65, 0.9), rng.uniform(0.95, 1.15), SIZE)
    pixels *= light[None, :, None] if rng.random() < 0.5 else light[:, None, None]
    pixels += rng.normal(0, 6, pixels.shape) + np.array([8, 2, -6]) * rng.uniform(-1, 1)
    return Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))


def _wall(rng: np.random.Generator) -> Image.Image:
    """A wall of rows of bricks."""
    mortar, brick = rng.integers(150, 200), rng.integers([110, 60, 45], [170, 110, 90])
    pixels = np.empty((SIZE, SIZE, 3))
    pixels[:] = brick
    for row, y in enumerate(range(0, SIZE, 28)):
        pixels[y : y + 3] = mortar
        for x in range((row % 2) * 32, SIZE, 64):
            pixels[y : y + 28, x : x + 3] = mortar
    return Image.fromarray(np.uint8(pixels))


def _cropped(code: str, rng: np.random.Generator) -> Image.Image:
    """Closer than the whole: a tenth or so of the flag is cut off at two of its sides."""
    flag = _flag(code, SIZE)
    w, h = flag.size
    cut_x, cut_y = (round(v) for v in rng.uniform(0.06, 0.14, 2) * [w, h])
    left, top = cut_x * int(rng.integers(2)), cut_y * int(rng.integers(2))
    flag = flag.crop((left, top, left + w - cut_x, top + h - cut_y))
    scale = SIZE / max(flag.size)
    flag = flag.resize([round(side * scale) for side in flag.size], Image.Resampling.LANCZOS)
    return _paste(flag, _plain(rng), 0.5, 0.5)


def _off_centre(code: str, rng: np.random.Generator) -> Image.Image:
    """Smaller, and away from the middle."""
    flag = _flag(code, round(SIZE * rng.uniform(0.55, 0.68)))
    x, y = 0.5 + rng.choice([-1, 1], 2) * rng.uniform(0.07, 0.15, 2)
    return _paste(flag, _plain(rng), x, y)


_MADE: dict[str, Callable[[str, np.random.Generator], Image.Image]] = {
    "waving": _waving,
    "photographed": _photographed,
    "cropped": _cropped,
    "off-centre": _off_centre,
}
