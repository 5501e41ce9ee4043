"""Flags drawn from geometric specifications.

A specification is data (``data/flags.jsonl``): the flag's ``size`` (width, height) in units of its
own, its ``colours`` by a letter, and a list of shapes painted one over the other. Lengths are in
the flag's units, x to the right and y down from the upper hoist corner; angles are in degrees,
clockwise. The shapes, each a method of :class:`Canvas`:

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


def _polar(x: float, y: float, r: float, degrees: float) -> Point:
    """The point ``r`` from (x, y), clockwise from straight up."""
    angle = math.radians(degrees)
    return x + r * math.sin(angle), y - r * math.cos(angle)


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


@dataclass(frozen=True)
class Canvas:
    """The picture that is painted on; ``scale`` is pixels per unit of the flag."""

    image: Image.Image
    scale: float
    size: Point
    colours: Mapping[str, str]

    def _mask(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        mask = Image.new("L", self.image.size, 0)
        return mask, ImageDraw.Draw(mask)

    def _fill(self, colour: str, mask: Image.Image) -> None:
        self.image.paste(self.colours[colour], (0, 0, *self.image.size), mask)

    def _paint(self, colour: str, points: Sequence[Point]) -> None:
        ImageDraw.Draw(self.image).polygon(self._pixels(points), fill=self.colours[colour])

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def _box(self, x: float, y: float, r: float) -> list[float]:
        return [v * self.scale for v in (x - r, y - r, x + r, y + r)]

    def _stripes(self, spec: str, box: Sequence[float], vertical: bool) -> None:
        x, y, w, h = box or (0, 0, *self.size)
        parts = [(c, float(n or 1)) for c, _, n in (p.partition(":") for p in spec.split())]
        total, at = sum(n for _, n in parts), 0.0
        for colour, n in parts:
            a, b = at / total, (at + n) / total
            at += n
            if vertical:
                self.rect(colour, x + a * w, y, (b - a) * w, h)
            else:
                self.rect(colour, x, y + a * h, w, (b - a) * h)

    def rows(self, spec: str, *box: float) -> None:
        self._stripes(spec, box, vertical=False)

    def columns(self, spec: str, *box: float) -> None:
        self._stripes(spec, box, vertical=True)

    def rect(self, colour: str, x: float, y: float, w: float, h: float) -> None:
        left, top, right, foot = (round(v * self.scale) for v in (x, y, x + w, y + h))
        self.image.paste(self.colours[colour], (left, top, right, foot))

    def cross(self, colour: str, x: float, y: float, t_v: float, t_h: float) -> None:
        width, height = self.size
        self.rect(colour, x - t_v / 2, 0, t_v, height)
        self.rect(colour, 0, y - t_h / 2, width, t_h)

    def polygon(self, colour: str, flat: Sequence[float]) -> None:
        self._paint(colour, list(zip(flat[::2], flat[1::2], strict=True)))

    def outline(self, colour: str, outer: Sequence[float], inner: Sequence[float]) -> None:
        mask, pen = self._mask()
        for flat, value in ((outer, 255), (inner, 0)):
            pen.polygon([v * self.scale for v in flat], fill=value)
        self._fill(colour, mask)

    def band(self, colour: str, x1: float, y1: float, x2: float, y2: float, t: float, *end) -> None:
        self._paint(colour, _along((x1, y1), (x2, y2), t, 0.0 if end == ("flat",) else 2 * t))

    def disc(self, colour: str, x: float, y: float, r: float) -> None:
        ImageDraw.Draw(self.image).ellipse(self._box(x, y, r), fill=self.colours[colour])

    def ring(self, colour: str, x: float, y: float, r: float, t: float) -> None:
        self.crescent(colour, x, y, r, x, y, r - t)

    def crescent(self, colour: str, *circles: float) -> None:
        mask, pen = self._mask()
        pen.ellipse(self._box(*circles[:3]), fill=255)
        pen.ellipse(self._box(*circles[3:]), fill=0)
        self._fill(colour, mask)

    def star(self, colour: str, x: float, y: float, r: float, n=5, inner=_NOTCH, turn=0.0) -> None:
        radii = (r, r * inner)
        points = [_polar(x, y, radii[i % 2], turn + 180 * i / n) for i in range(2 * n)]
        self._paint(colour, points)

    def pentagram(self, colour: str, x: float, y: float, r: float, t: float) -> None:
        """Five straight lines from tip to tip, whose mitred tips are at r."""
        drawn, pen = self._mask()
        middle = r - t / 2 / math.sin(math.radians(18))  # where the lines' middles cross
        tips = [_polar(x, y, middle, 144 * i) for i in range(5)]
        for a, b in zip(tips, tips[1:] + tips[:1], strict=True):
            pen.polygon(self._pixels(_along(a, b, t, 2 * t)), fill=255)
        within, pen = self._mask()
        notch = middle * _NOTCH + t / 2 / math.sin(math.radians(54))
        star = [_polar(x, y, notch if i % 2 else r, 36 * i) for i in range(10)]
        pen.polygon(self._pixels(star), fill=255)
        self._fill(colour, ImageChops.darker(drawn, within))

    def rays(
        self, colour: str, x: float, y: float, r0: float, r1: float, n: int, width: float, turn=0.0
    ) -> None:
        """``width`` is the angle that a ray's base takes, seen from the centre."""
        for angle in (turn + 360 * i / n for i in range(n)):
            foot = [_polar(x, y, r0, angle + s * width / 2) for s in (-1, 1)]
            self._paint(colour, [*foot, _polar(x, y, r1, angle)])

    def union(self, x: float, y: float, w: float, h: float) -> None:
        """The Union Flag as of 1801, in thirtieths of its height; its red saltire is halved."""
        unit, cx, cy = h / 30, w / 2, h / 2
        size = (round(w * self.scale), round(h * self.scale))
        blank = {c: Image.new("RGB", size, self.colours[c]) for c in "bw"}
        inset = replace(self, image=blank["b"], size=(w, h))
        saltire = replace(inset, image=blank["w"])
        for ends in ((0, 0, w, h), (0, h, w, 0)):
            inset.band("w", *ends, 6 * unit)
            saltire.band("r", *ends, 4 * unit)
        mask, pen = saltire._mask()
        for corner, side in (
            ((w, h), (w, cy)),
            ((0, h), (cx, h)),
            ((0, 0), (0, cy)),
            ((w, 0), (cx, 0)),
        ):
            pen.polygon(self._pixels(((cx, cy), corner, side)), fill=255)
        red = np.asarray(saltire.image) == np.array(ImageColor.getrgb(self.colours["r"]))
        drawn = Image.fromarray(np.uint8(255) * red.all(axis=2))
        inset.image.paste(self.colours["r"], (0, 0), ImageChops.darker(mask, drawn))
        inset.cross("w", cx, cy, 10 * unit, 10 * unit)
        inset.cross("r", cx, cy, 6 * unit, 6 * unit)
        self.image.paste(inset.image, (round(x * self.scale), round(y * self.scale)))

    def taeguk(self, upper: str, lower: str, x: float, y: float, r: float, turn: float) -> None:
        mask, pen = self._mask()
        pen.pieslice(self._box(x, y, r), 180 + turn, 360 + turn, fill=255)
        self.disc(lower, x, y, r)
        pen.ellipse(self._box(*_polar(x, y, r / 2, turn - 90), r / 2), fill=255)
        pen.ellipse(self._box(*_polar(x, y, r / 2, turn + 90), r / 2), fill=0)
        self._fill(upper, mask)

    def bolnisi(self, colour: str, x: float, y: float, r: float) -> None:
        """Four arms between arcs, .26 r to .35 r wide to either side, their ends a bit hollow."""
        # Half the width at t, arcs of radius 5.333 r.
        side = [(5.59 - math.sqrt(5.333**2 - t**2), -t) for t in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
        arm = [*side, (0.0, -0.974), *((-dx, dy) for dx, dy in reversed(side))]
        for _ in range(4):
            arm = [(-dy, dx) for dx, dy in arm]
            self._paint(colour, [(x + dx * r, y + dy * r) for dx, dy in arm])


SHAPES = (
    "rows columns rect cross polygon outline band disc ring crescent star pentagram rays union "
    "taeguk bolnisi"
).split()


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
        getattr(canvas, shape)(*values)
    return image.resize((width, size[1] // _OVERSAMPLED), Image.Resampling.BOX)


def picture(spec: Mapping[str, Any], size: int = PICTURE_SIZE) -> Image.Image:
    """The flag in its proportions, in the middle of a grey square (RGB, ``size`` by ``size``)."""
    w, h = spec["size"]
    room = size - 2 * MARGIN
    flag = draw(spec, round(room * min(1, w / h)))
    square = Image.new("RGB", (size, size), GROUND)
    square.paste(flag, ((size - flag.width) // 2, (size - flag.height) // 2))
    return square
