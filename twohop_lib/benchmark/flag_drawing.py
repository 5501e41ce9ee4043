"""Flags drawn from geometric specifications.

A specification is data (``data/flags.jsonl``): the flag's ``size`` (width, height) in units of its
own, its ``colours`` by a letter, and a list of shapes painted one over the other. Lengths are in
the flag's units, x to the right and y down from the upper hoist corner; angles are in degrees,
clockwise. The shapes:

==================================================  =============================================
``rows "a b:2 a" [x y w h]``                        stripes, top to bottom, with relative widths
``columns "a b:2 a" [x y w h]``                     stripes, hoist to fly
``rect c x y w h``                                  a rectangle
``cross c x y t_v t_h``                             a cross through (x, y) to all four edges
``polygon c [x y x y …]``                           a polygon
``outline c [x y …] [x y …]``                       the first polygon without the second
``band c x1 y1 x2 y2 t [flat]``                     a straight band, run past its ends unless flat
``disc c x y r`` · ``ring c x y r t``               a disc; a ring t wide inside radius r
``crescent c x y r x2 y2 r2``                       the first disc without the second
``star c x y r [n inner turn]``                     n points at r, notches at ``inner`` times r
``pentagram c x y r t``                             five crossing lines, t wide, tips at r
``rays c x y r0 r1 n width [turn]``                 n triangles, ``width`` wide at r0, tips at r1
``union x y w h``                                   the Union Flag
``taeguk a b x y r turn``                           the two-coloured disc of Korea
``bolnisi c x y r``                                 a cross whose arms widen outwards
==================================================  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw

from twohop_lib.errors import TwohopError

#: Around the flag, and beside one that is no rectangle; no flag here is of this grey.
GROUND = "#8C9096"
#: The picture is square, because many processors cut the sides off anything else.
PICTURE_SIZE, MARGIN = 448, 16
_OVERSAMPLED = 4
#: Pentagram: how far the notches are from the centre, the tips being at 1.
_NOTCH = math.sin(math.radians(18)) / math.sin(math.radians(126))

Point = tuple[float, float]


@dataclass(frozen=True)
class Canvas:
    """The picture that is painted on; ``scale`` is pixels per unit of the flag."""

    image: Image.Image
    scale: float
    size: Point
    colours: Mapping[str, str]

    def mask(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        mask = Image.new("L", self.image.size, 0)
        return mask, ImageDraw.Draw(mask)

    def fill(self, colour: str, mask: Image.Image) -> None:
        self.image.paste(self.colours[colour], (0, 0, *self.image.size), mask)

    def polygon(self, colour: str, points: Sequence[Point]) -> None:
        ImageDraw.Draw(self.image).polygon(self.pixels(points), fill=self.colours[colour])

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def box(self, x: float, y: float, r: float) -> list[float]:
        return [v * self.scale for v in (x - r, y - r, x + r, y + r)]


def _polar(x: float, y: float, r: float, degrees: float) -> Point:
    """The point ``r`` from (x, y), clockwise from straight up."""
    angle = math.radians(degrees)
    return x + r * math.sin(angle), y - r * math.cos(angle)


def _stripes(canvas: Canvas, spec: str, box: Sequence[float], vertical: bool) -> None:
    x, y, w, h = box or (0, 0, *canvas.size)
    parts = [(c, float(n or 1)) for c, _, n in (p.partition(":") for p in spec.split())]
    total, at = sum(n for _, n in parts), 0.0
    for colour, n in parts:
        a, b = at / total, (at + n) / total
        at += n
        if vertical:
            _rect(canvas, colour, x + a * w, y, (b - a) * w, h)
        else:
            _rect(canvas, colour, x, y + a * h, w, (b - a) * h)


def _rows(canvas: Canvas, spec: str, *box: float) -> None:
    _stripes(canvas, spec, box, vertical=False)


def _columns(canvas: Canvas, spec: str, *box: float) -> None:
    _stripes(canvas, spec, box, vertical=True)


def _rect(canvas: Canvas, colour: str, x: float, y: float, w: float, h: float) -> None:
    left, top, right, foot = (round(v * canvas.scale) for v in (x, y, x + w, y + h))
    canvas.image.paste(canvas.colours[colour], (left, top, right, foot))


def _cross(canvas: Canvas, colour: str, x: float, y: float, t_v: float, t_h: float) -> None:
    width, height = canvas.size
    _rect(canvas, colour, x - t_v / 2, 0, t_v, height)
    _rect(canvas, colour, 0, y - t_h / 2, width, t_h)


def _polygon(canvas: Canvas, colour: str, flat: Sequence[float]) -> None:
    canvas.polygon(colour, list(zip(flat[::2], flat[1::2], strict=True)))


def _outline(canvas: Canvas, colour: str, outer: Sequence[float], inner: Sequence[float]) -> None:
    mask, pen = canvas.mask()
    for flat, value in ((outer, 255), (inner, 0)):
        pen.polygon([v * canvas.scale for v in flat], fill=value)
    canvas.fill(colour, mask)


def _band(
    canvas: Canvas,
    colour: str,
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    t: float,
    end: str = "",
) -> None:
    canvas.polygon(colour, _along((x1, y1), (x2, y2), t, 0.0 if end == "flat" else 2 * t))


def _along(start: Point, stop: Point, t: float, past: float) -> list[Point]:
    """The corners of a straight band, t wide, that runs ``past`` its two ends."""
    length = math.hypot(stop[0] - start[0], stop[1] - start[1])
    ux, uy = (stop[0] - start[0]) / length, (stop[1] - start[1]) / length
    a = (start[0] - ux * past, start[1] - uy * past)
    b = (stop[0] + ux * past, stop[1] + uy * past)
    dx, dy = -uy * t / 2, ux * t / 2
    return [
        (a[0] + dx, a[1] + dy),
        (b[0] + dx, b[1] + dy),
        (b[0] - dx, b[1] - dy),
        (a[0] - dx, a[1] - dy),
    ]


def _disc(canvas: Canvas, colour: str, x: float, y: float, r: float) -> None:
    ImageDraw.Draw(canvas.image).ellipse(canvas.box(x, y, r), fill=canvas.colours[colour])


def _ring(canvas: Canvas, colour: str, x: float, y: float, r: float, t: float) -> None:
    _crescent(canvas, colour, x, y, r, x, y, r - t)


def _crescent(
    canvas: Canvas, colour: str, x: float, y: float, r: float, x2: float, y2: float, r2: float
) -> None:
    mask, pen = canvas.mask()
    pen.ellipse(canvas.box(x, y, r), fill=255)
    pen.ellipse(canvas.box(x2, y2, r2), fill=0)
    canvas.fill(colour, mask)


def _star(
    canvas: Canvas,
    colour: str,
    x: float,
    y: float,
    r: float,
    n: int = 5,
    inner: float = _NOTCH,
    turn: float = 0,
) -> None:
    radii = (r, r * inner)
    canvas.polygon(colour, [_polar(x, y, radii[i % 2], turn + 180 * i / n) for i in range(2 * n)])


def _pentagram(canvas: Canvas, colour: str, x: float, y: float, r: float, t: float) -> None:
    """Five straight lines from tip to tip, whose mitred tips are at r."""
    drawn, pen = canvas.mask()
    middle = r - t / 2 / math.sin(math.radians(18))  # where the lines' middles cross
    tips = [_polar(x, y, middle, 144 * i) for i in range(5)]
    for a, b in zip(tips, tips[1:] + tips[:1], strict=True):
        pen.polygon(canvas.pixels(_along(a, b, t, 2 * t)), fill=255)
    within, pen = canvas.mask()
    notch = middle * _NOTCH + t / 2 / math.sin(math.radians(54))
    star = [_polar(x, y, notch if i % 2 else r, 36 * i) for i in range(10)]
    pen.polygon(canvas.pixels(star), fill=255)
    canvas.fill(colour, ImageChops.darker(drawn, within))


def _rays(
    canvas: Canvas,
    colour: str,
    x: float,
    y: float,
    r0: float,
    r1: float,
    n: int,
    width: float,
    turn: float = 0,
) -> None:
    """``width`` is the angle that a ray's base takes, seen from the centre."""
    for i in range(n):
        angle = turn + 360 * i / n
        foot = [_polar(x, y, r0, angle + s * width / 2) for s in (-1, 1)]
        canvas.polygon(colour, [*foot, _polar(x, y, r1, angle)])


def _union(canvas: Canvas, x: float, y: float, w: float, h: float) -> None:
    """The Union Flag as of 1801, in thirtieths of its height; the red saltire is counterchanged."""
    unit = h / 30
    size = (round(w * canvas.scale), round(h * canvas.scale))
    inset = Canvas(
        Image.new("RGB", size, canvas.colours["b"]),
        canvas.scale,
        (w, h),
        canvas.colours,
    )
    for ends in ((0, 0, w, h), (0, h, w, 0)):
        _band(inset, "w", *ends, 6 * unit)
    red = Image.new("RGB", size, canvas.colours["w"])
    saltire = Canvas(red, canvas.scale, (w, h), canvas.colours)
    for ends in ((0, 0, w, h), (0, h, w, 0)):
        _band(saltire, "r", *ends, 4 * unit)
    mask, pen = saltire.mask()
    cx, cy = w / 2, h / 2
    for corner, side in (
        ((w, h), (w, cy)),
        ((0, h), (cx, h)),
        ((0, 0), (0, cy)),
        ((w, 0), (cx, 0)),
    ):
        pen.polygon(canvas.pixels(((cx, cy), corner, side)), fill=255)
    inset.image.paste(
        canvas.colours["r"], (0, 0), ImageChops.darker(mask, _where(red, "r", canvas))
    )
    _cross(inset, "w", cx, cy, 10 * unit, 10 * unit)
    _cross(inset, "r", cx, cy, 6 * unit, 6 * unit)
    canvas.image.paste(inset.image, (round(x * canvas.scale), round(y * canvas.scale)))


def _where(image: Image.Image, colour: str, canvas: Canvas) -> Image.Image:
    """A mask of the pixels of one colour."""
    wanted = np.array(ImageColor.getrgb(canvas.colours[colour]))
    same = (np.asarray(image) == wanted).all(axis=2)
    return Image.fromarray(np.uint8(255) * same)


def _taeguk(
    canvas: Canvas, upper: str, lower: str, x: float, y: float, r: float, turn: float
) -> None:
    mask, pen = canvas.mask()
    pen.pieslice(canvas.box(x, y, r), 180 + turn, 360 + turn, fill=255)
    left, right = _polar(x, y, r / 2, turn - 90), _polar(x, y, r / 2, turn + 90)
    _disc(canvas, lower, x, y, r)
    pen.ellipse(canvas.box(*left, r / 2), fill=255)
    pen.ellipse(canvas.box(*right, r / 2), fill=0)
    canvas.fill(upper, mask)


def _bolnisi(canvas: Canvas, colour: str, x: float, y: float, r: float) -> None:
    """Four arms between arcs, 0.26 r to 0.35 r wide to either side, their ends a little hollow."""
    side = [
        (5.59 - math.sqrt(5.333**2 - t**2), -t) for t in (0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]  # half the width at t, arcs of radius 5.333 r
    arm = [*side, (0.0, -0.974), *((-dx, dy) for dx, dy in reversed(side))]
    for _ in range(4):
        arm = [(-dy, dx) for dx, dy in arm]
        canvas.polygon(colour, [(x + dx * r, y + dy * r) for dx, dy in arm])


SHAPES: dict[str, Callable[..., None]] = {
    "rows": _rows,
    "columns": _columns,
    "rect": _rect,
    "cross": _cross,
    "polygon": _polygon,
    "outline": _outline,
    "band": _band,
    "disc": _disc,
    "ring": _ring,
    "crescent": _crescent,
    "star": _star,
    "pentagram": _pentagram,
    "rays": _rays,
    "union": _union,
    "taeguk": _taeguk,
    "bolnisi": _bolnisi,
}


def draw(spec: Mapping[str, Any], width: int = PICTURE_SIZE - 2 * MARGIN) -> Image.Image:
    """Draw one flag, RGB, ``width`` pixels wide and as high as its proportions say.

    Raises:
        TwohopError: the specification holds a shape that is not known.
    """
    w, h = spec["size"]
    scale = width * _OVERSAMPLED / w
    size = (width * _OVERSAMPLED, round(h * scale / _OVERSAMPLED) * _OVERSAMPLED)
    image = Image.new("RGB", size, GROUND)
    canvas = Canvas(image, scale, (w, h), spec["colours"])
    for shape, *values in spec["draw"]:
        if shape not in SHAPES:
            raise TwohopError(
                f"The flag of {spec['code']} has a shape {shape!r}; use one of {', '.join(SHAPES)}."
            )
        SHAPES[shape](canvas, *values)
    return image.resize((width, size[1] // _OVERSAMPLED), Image.Resampling.BOX)


def picture(spec: Mapping[str, Any], size: int = PICTURE_SIZE) -> Image.Image:
    """The flag in its proportions, in the middle of a grey square (RGB, ``size`` by ``size``)."""
    w, h = spec["size"]
    room = size - 2 * MARGIN
    flag = draw(spec, round(room * min(1, w / h)))
    square = Image.new("RGB", (size, size), GROUND)
    square.paste(flag, ((size - flag.width) // 2, (size - flag.height) // 2))
    return square
