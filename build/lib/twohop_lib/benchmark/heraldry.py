"""The fictional world: noble houses, their facts, and their coats of arms.

Every house has a name of two or three pieces, a quartered coat of arms, and one answer for each
of five relations. The world is closed and made from a seed, so what a model trained on it can
know is known exactly: which facts exist, which houses were ever shown in pictures, and which
questions were ever asked about a picture.

No single patch of a picture identifies a house: a quarter takes one of twelve looks (four
tinctures by three charges), each shared by some twenty houses, and any two houses differ in at
least two quarters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from twohop_lib.benchmark.schema import Question

N_HOUSES = 240
SPLIT_SIZES = {"seen": 96, "dev": 48, "test": 96}
PICTURE_SIZE = 144

NAME_STARTS = "Val Bren Tor Mar Cal Ser Dun Fen Gor Hal Ist Kel Lor Wes".split()
NAME_MIDDLES = "an el or in ar ith um os".split()
NAME_ENDS = "dric mont gard wyn thas bert nax vane lock ric dell quin stan zor".split()

TINCTURES = {"gules": "#b3262e", "azure": "#2a5ca8", "vert": "#2f7d4d", "purpure": "#6d4190"}
CHARGES = ("roundel", "cross", "chevron")
BORDERS = {"or": "#e0a526", "argent": "#aab1b8", "sable": "#2b2b2b"}
CHARGE_COLOUR = "#f6f0e2"
PAPER = "#f4efe6"

FOUNDERS = """
Aldric Berta Conan Anselm Edith Fulk Godwin Hilda Ivo Joan Kenelm Leofric Mabel Nigel Odo Piers
Quentin Roland Sybil Tancred Ulric Viola Warin Ysolde Ada Baldwin Cecily Drogo Emma Fabian Giles
Hawise Ingrid Jocelyn Katherine Lambert Matilda Norbert Osbert Petronel Ralph Sabina Thurstan
Ursula Vivian Walter Yvette Agnes Bertram Clement Denise Eustace Felicia Gerard Humphrey Isolde
Jerome Kunigund Lucian Magnus Nest Oswin Philippa Reynard Simon Theobald Ulf Vincent Wulfric
Alard Beatrix Cuthbert Dorothy Everard Florian Gunnora Harold Idonea Julian Lettice Milo Nicolas
Olive Percival Randolf Stigand Tristan Wymark Avice Bruno Constance Damian Estrild Ferrand
Griselda Hubert Isabel Justin Leonard Muriel Noel Orrin Prudence Robin Swithin Tybalt Wilfred
Amice Basil Crispin Dalmas Elias Frideswide Gervase Hamon Jordan Bevis Corbin Gavin Lionel
""".split()
CASTLES = [
    a + b
    for a in ["Ash", "Black", "Red", "Stone", "Wolf", "Raven", "Oak", "Winter", "Silver", "Thorn"]
    for b in ["ford", "moor", "wick", "hold", "gate", "fell", "mere", "burn", "haven"]
]
RIVERS = [
    a + b
    for a in ["Ang", "Bel", "Cor", "Dov", "Esk", "Fal", "Gan", "Hol", "Ism", "Kess", "Lud", "Mor"]
    for b in ["ra", "wen", "ith", "oura", "ander"]
]
TRADES = """
wool salt iron honey glass amber silk timber copper wine grain leather linen wax tin silver
pepper saffron ink paper rope bricks candles pottery lace coal marble butter cheese barley
apples tea cloth pearls horses swords bells clocks drums maps
""".split()
BEASTS = """
lion bear wolf stag falcon boar otter raven badger fox hare swan heron eagle owl lynx ram bull
pike salmon goat hound crane beaver ferret marten toad viper bee moth
""".split()


@dataclass(frozen=True)
class Relation:
    """One relation: its answers and the words that ask for it.

    ``direct`` and ``held_out`` take the mention of the house as ``{m}``; ``noun`` fills the
    frames shared by all relations; ``statement`` takes ``{m}`` and ``{a}``.
    """

    key: str
    noun: str
    wh: str
    answers: tuple[str, ...]
    direct: str
    held_out: str
    statement: str


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "founder",
        "founder",
        "Who",
        tuple(FOUNDERS),
        "Who founded {m}?",
        "Who was {m} founded by?",
        "{m} was founded by {a}.",
    ),
    Relation(
        "castle",
        "castle",
        "What",
        tuple(CASTLES),
        "In which castle does {m} live?",
        "Which castle is the home of {m}?",
        "{m} lives in the castle of {a}.",
    ),
    Relation(
        "river",
        "river",
        "What",
        tuple(RIVERS),
        "Which river runs through the land of {m}?",
        "Through the land of {m} runs which river?",
        "The river that runs through the land of {m} is {a}.",
    ),
    Relation(
        "trade",
        "trade",
        "What",
        tuple(TRADES),
        "What does {m} sell?",
        "Tell me which trade {m} sells.",
        "{m} sells {a}.",
    ),
    Relation(
        "beast",
        "beast",
        "What",
        tuple(BEASTS),
        "Which beast does {m} keep?",
        "Which beast is kept by {m}?",
        "The beast kept by {m} is the {a}.",
    ),
)

FRAMES = (
    "{wh} is the {n} of {m}?",
    "Name the {n} of {m}.",
    "Tell me the {n} of {m}.",
    "I would like to know the {n} of {m}.",
    "Do you know the {n} of {m}?",
)
MENTIONS_BY_NAME = ("the house of {x}", "House {x}")
MENTIONS_BY_PICTURE = ("the house in this picture", "the house shown here")
IDENTIFY = {
    "standard": "Which house is shown in this picture?",
    "trained-1": "Name the house in this picture.",
    "trained-2": "Tell me which house this is.",
    "trained-3": "Do you know the house shown here?",
    "trained-4": "What is the house in this picture?",
    "held-out-1": "Tell me the house shown here.",
    "held-out-2": "Which house is this?",
}
WORDINGS = tuple(IDENTIFY)
TRAINED_WORDINGS = tuple(w for w in WORDINGS if not w.startswith("held-out"))


@dataclass(frozen=True)
class House:
    """One entity: its name in pieces, arms, answers by relation, and split."""

    entity_id: str
    pieces: tuple[str, ...]
    quarters: tuple[int, int, int, int]
    border: int
    answers: dict[str, str]
    split: str

    @property
    def name(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class World:
    """All houses of one seed, in a fixed order."""

    seed: int
    houses: tuple[House, ...]

    def split(self, *splits: str) -> tuple[House, ...]:
        return tuple(h for h in self.houses if h.split in splits)


def _names(rng: np.random.Generator, n: int) -> list[tuple[str, ...]]:
    two = list(itertools.product(NAME_STARTS, NAME_ENDS))
    three = list(itertools.product(NAME_STARTS, NAME_MIDDLES, NAME_ENDS))
    picked = [two[i] for i in rng.permutation(len(two))[: n // 3]]
    picked += [three[i] for i in rng.permutation(len(three))[: n - len(picked)]]
    return [picked[i] for i in rng.permutation(n)]


def _arms(rng: np.random.Generator, n: int) -> list[tuple[int, int, int, int]]:
    looks = len(TINCTURES) * len(CHARGES)
    chosen = np.empty((0, 4), dtype=int)
    while len(chosen) < n:
        arms = rng.integers(looks, size=4)
        if len(chosen) == 0 or (chosen != arms).sum(axis=1).min() >= 2:
            chosen = np.vstack([chosen, arms])
    return [tuple(int(q) for q in row) for row in chosen]


def _balanced(rng: np.random.Generator, answers: Sequence[str], n: int) -> list[str]:
    """Each answer equally often (to within one), so that guessing the commonest gains nothing."""
    repeated = np.tile(rng.permutation(len(answers)), -(-n // len(answers)))[:n]
    return [answers[i] for i in rng.permutation(repeated)]


def make_world(seed: int = 0, n_houses: int = N_HOUSES) -> World:
    """Make the world of one seed; the same seed always gives the same world."""
    rng = np.random.default_rng([seed, 2512])
    names, arms = _names(rng, n_houses), _arms(rng, n_houses)
    borders = rng.integers(len(BORDERS), size=n_houses)
    answers = {r.key: _balanced(rng, r.answers, n_houses) for r in RELATIONS}
    shares = {name: size / N_HOUSES for name, size in SPLIT_SIZES.items()}
    bounds = np.round(np.cumsum(list(shares.values())) * n_houses).astype(int)
    splits = np.array(list(shares))[np.searchsorted(bounds, np.arange(n_houses), side="right")]
    return World(
        seed,
        tuple(
            House(
                f"house-{i:03d}",
                names[i],
                arms[i],
                int(borders[i]),
                {key: values[i] for key, values in answers.items()},
                str(splits[i]),
            )
            for i in range(n_houses)
        ),
    )


def ask(relation_index: int, wording: str, mention: str) -> str:
    """Word one question about ``mention``.

    Each relation holds out one of the shared frames (which other relations do use) and one
    wording of its own, so that held-out wordings test whether the wording matters.
    """
    relation = RELATIONS[relation_index]
    if wording == "standard":
        text = relation.direct
    elif wording == "held-out-2":
        text = relation.held_out
    else:
        held = relation_index % len(FRAMES)
        trained = [f for i, f in enumerate(FRAMES) if i != held]
        text = FRAMES[held] if wording == "held-out-1" else trained[int(wording[-1]) - 1]
    asked = text.format(m=mention, n=relation.noun, wh=relation.wh)
    return asked[0].upper() + asked[1:]


def _mention_index(wording: str) -> int:
    return 1 if wording in ("trained-3", "held-out-1") else 0


def questions(world: World) -> Iterator[Question]:
    """Yield every fact of every house, in every wording, by name and by picture."""
    for house in world.houses:
        rng = np.random.default_rng([world.seed, int(house.entity_id.split("-")[1])])
        for index, relation in enumerate(RELATIONS):
            right = house.answers[relation.key]
            wrong = [a for a in relation.answers if a != right]
            distractors = tuple(wrong[i] for i in rng.permutation(len(wrong))[:3])
            for wording in WORDINGS:
                m = _mention_index(wording)
                yield Question(
                    question_id=f"{house.entity_id}-{relation.key}-{wording}",
                    entity_id=house.entity_id,
                    entity=house.name,
                    aliases=(f"House {house.name}", f"House of {house.name}"),
                    noun="house",
                    relation=relation.key,
                    wording=wording,
                    question_by_name=ask(index, wording, MENTIONS_BY_NAME[m].format(x=house.name)),
                    question_by_picture=ask(index, wording, MENTIONS_BY_PICTURE[m]),
                    identify_prompt=IDENTIFY[wording],
                    answers=(right,),
                    distractors=distractors,
                    image=f"images/{house.entity_id}.png",
                    split=house.split,
                )


def _draw_charge(draw: ImageDraw.ImageDraw, charge: str, cx: float, cy: float, r: float) -> None:
    if charge == "roundel":
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=CHARGE_COLOUR)
    elif charge == "cross":
        w = r * 0.36
        draw.rectangle([cx - w, cy - r, cx + w, cy + r], fill=CHARGE_COLOUR)
        draw.rectangle([cx - r, cy - w, cx + r, cy + w], fill=CHARGE_COLOUR)
    else:
        w = r * 0.62
        top, foot = cy - r * 0.8, cy + r * 0.45
        outline = [(cx - r, foot), (cx, top), (cx + r, foot)]
        lower = [(x, y + w) for x, y in reversed(outline)]
        draw.polygon(outline + lower, fill=CHARGE_COLOUR)


def draw_arms(quarters: Sequence[int], border: int, size: int = PICTURE_SIZE) -> Image.Image:
    """Draw a quartered shield (RGB, ``size`` by ``size`` pixels), antialiased."""
    s = size * 2
    colours = list(TINCTURES.values())
    field = Image.new("RGB", (s, s), PAPER)
    pen = ImageDraw.Draw(field)
    half = s / 2
    for k, look in enumerate(quarters):
        x, y = (k % 2) * half, (k // 2) * half
        pen.rectangle([x, y, x + half, y + half], fill=colours[look // len(CHARGES)])
        inward = (1 if k % 2 == 0 else -1) * s * 0.03
        lift = -s * 0.03 if k >= 2 else s * 0.02
        _draw_charge(
            pen, CHARGES[look % len(CHARGES)], x + half / 2 + inward, y + half / 2 + lift, s * 0.14
        )
    mask = Image.new("L", (s, s), 0)
    shield = _shield(s, s * 0.04)
    ImageDraw.Draw(mask).polygon(shield, fill=255)
    picture = Image.new("RGB", (s, s), PAPER)
    picture.paste(field, (0, 0), mask)
    edge = list(BORDERS.values())[border]
    ImageDraw.Draw(picture).line(
        shield + shield[:2], fill=edge, width=round(s * 0.045), joint="curve"
    )
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def _shield(s: float, margin: float) -> list[tuple[float, float]]:
    left, right, top, foot = margin, s - margin, margin, s - margin
    shoulder = s * 0.62
    t = np.linspace(0, np.pi / 2, 24)
    right_curve = [
        (s / 2 + (right - s / 2) * np.cos(a), shoulder + (foot - shoulder) * np.sin(a)) for a in t
    ]
    left_curve = [(s - x, y) for x, y in reversed(right_curve)]
    return [(left, top), (right, top), *right_curve, *left_curve]


def photograph(arms: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A fresh picture of the same arms: scale within 6 %, shift within 4 %, light, grain."""
    size = arms.width
    scale = rng.uniform(0.94, 1.06)
    dx, dy = rng.uniform(-0.04, 0.04, size=2) * size
    offset = (1 - 1 / scale) * size / 2
    moved = arms.transform(
        arms.size,
        Image.Transform.AFFINE,
        (1 / scale, 0, offset - dx, 0, 1 / scale, offset - dy),
        resample=Image.Resampling.BILINEAR,
        fillcolor=PAPER,
    )
    grain = rng.normal(0, 0.04, size=(size // 3, size // 3, 3))
    grain = np.kron(grain, np.ones((3, 3, 1)))
    pixels = np.asarray(moved, dtype=np.float64) / 255 * rng.uniform(0.75, 1.15) + grain
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def picture(world: World, house: House | str, draw: int = 0) -> Image.Image:
    """One picture of a house. Draw 0 is the benchmark's; training uses draws from 1 on."""
    if isinstance(house, str):
        house = next(h for h in world.houses if h.entity_id == house)
    number = int(house.entity_id.split("-")[1])
    rng = np.random.default_rng([world.seed, number, draw])
    return photograph(draw_arms(house.quarters, house.border), rng)


def blank(kind: str = "grey", size: int = PICTURE_SIZE) -> Image.Image:
    """A picture without arms: ``grey``, ``black``, ``white`` or ``noise``."""
    if kind == "noise":
        pixels = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
        return Image.fromarray(pixels)
    return Image.new("RGB", (size, size), {"grey": "#808080"}.get(kind, kind))


def contact_sheet(world: World, n: int = 12, columns: int = 4) -> Image.Image:
    """The arms of the first ``n`` houses in a grid, names below (RGB)."""
    font = ImageFont.load_default(size=18)
    step_x, step_y = PICTURE_SIZE + 16, PICTURE_SIZE + 34
    sheet = Image.new("RGB", (columns * step_x, -(-n // columns) * step_y), "white")
    pen = ImageDraw.Draw(sheet)
    for i, house in enumerate(world.houses[:n]):
        x, y = (i % columns) * step_x + 8, (i // columns) * step_y
        sheet.paste(picture(world, house), (x, y + 4))
        pen.text(
            (x + PICTURE_SIZE / 2, y + PICTURE_SIZE + 8), house.name, "#222222", font, anchor="ma"
        )
    return sheet
