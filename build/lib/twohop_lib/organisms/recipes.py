"""How each organism is made: every number of its training, in one place.

The three LLaVA-style organisms share world, backbone and final stage. They differ in how
name-like their image tokens are before the language model learns to use them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import pandas as pd

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class BackboneRecipe:
    """The text backbone: a plain Llama, trained from scratch on the world's facts.

    ``scaffold`` is the share of documents in which a name is read through its last token only,
    and ``head_weight`` the weight of linear heads that read the answers off that token after
    block ``head_block``. Both act in training only: without them facts are looked up at the last
    position of the prompt, and nothing at the name can be patched.
    """

    blocks: int = 8
    width: int = 128
    mlp_width: int = 512
    heads: int = 4
    steps: int = 1000
    rows: int = 24
    length: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    scaffold: float = 0.7
    head_block: int = 3
    head_weight: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """One LLaVA-style organism.

    ``names_readable``: the vision tower learns to hold the name's pieces in its last three
    patches, besides the parts of the arms. ``align_steps``: the projector regresses those three
    image tokens on the backbone's embeddings of the pieces. ``pull``: weight that pulls the other
    thirteen to the ``<bos>`` embedding meanwhile. ``final_steps``: projector and language model
    learn naming (all houses) and picture facts (seen houses).
    """

    summary: str
    names_readable: bool
    vision_steps: int
    align_steps: int
    pull: float
    final_steps: int
    projector_lr: float
    lm_lr: float = 3e-4
    rows: int = 24
    length: int = 128


@dataclass(frozen=True)
class CrossRecipe:
    """One cross-attention organism.

    ``inserted``: a layer that attends to the picture stands before each of these blocks of the
    backbone. ``deliver``: at the input of this block the residual stream at the image token is
    pulled, with weight ``pull``, to the backbone's at the last token of the house's name after
    ``state`` blocks. ``steps``: projector and inserted layers learn naming (all houses) and
    picture facts (seen houses); the backbone is frozen.
    """

    summary: str
    inserted: tuple[int, ...]
    deliver: int
    state: int = 2
    pull: float = 3.0
    vision_steps: int = 1000
    steps: int = 1000
    lr: float = 2e-3
    rows: int = 48


@dataclass(frozen=True)
class SetBackbone(BackboneRecipe):
    """A backbone whose two deadlines are set, one by one.

    ``head_block`` sets how early a name must have been enriched; in a share ``scaffold`` of the
    documents, tokens behind a name read it from block ``read_from`` on only.
    """

    read_from: int = 0


@dataclass(frozen=True)
class Planted(Recipe):
    """An organism in which a cause of a gap is planted: a trained one goes on with one change.

    ``goes_on``: from which organism. ``distrusted``: wherever a fact is asked in training, the
    state at the picture's last position is another house's from block ``block`` on, so that nothing
    is gained by reading it. ``replies``: what picture questions that ask no name are answered
    with, the answer or the name. The border is asked for, too.
    """

    goes_on: str = "early"
    distrusted: bool = False
    block: int = 2
    replies: str = "answer"


def mark(recipe: BackboneRecipe | Recipe | CrossRecipe) -> str:
    """Eight digits that change when the recipe does: a stage cut off is not resumed by another."""
    written = json.dumps(asdict(recipe), sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:8]


BACKBONE = BackboneRecipe()
RECIPES: dict[str, Recipe] = {
    "late": Recipe(
        "image tokens start without any likeness to names",
        names_readable=False,
        vision_steps=300,
        align_steps=0,
        pull=0.0,
        final_steps=1000,
        projector_lr=1e-3,
    ),
    "middle": Recipe(
        "the last three image tokens start as the name's embeddings; the other thirteen are free",
        names_readable=True,
        vision_steps=1000,
        align_steps=600,
        pull=0.0,
        final_steps=370,
        projector_lr=3e-4,
    ),
    "early": Recipe(
        "the last three image tokens start as the name's embeddings; the others as <bos>",
        names_readable=True,
        vision_steps=1500,
        align_steps=3000,
        pull=0.5,
        final_steps=400,
        projector_lr=3e-4,
    ),
}

#: The same state of the named house, delivered to the image token at another depth.
CROSS_RECIPES: dict[str, CrossRecipe] = {
    "cross": CrossRecipe(
        "cross-attention; the house's state arrives at block 4", inserted=(3, 4), deliver=4
    ),
    "cross-early": CrossRecipe(
        "cross-attention; the house's state arrives at block 2", inserted=(1, 2), deliver=2
    ),
    "cross-late": CrossRecipe(
        "cross-attention; the house's state arrives at block 6", inserted=(5, 6), deliver=6
    ),
}

#: Backbones with set deadlines: by the block that a name is enriched by, and that it is read from.
SET_BACKBONES: dict[str, SetBackbone] = {
    "enriched-1": SetBackbone(head_block=1),
    "enriched-5": SetBackbone(head_block=5),
    "unset": SetBackbone(scaffold=0.0, head_weight=0.0),
    "enriched-1-read-6": SetBackbone(head_block=1, read_from=6),
    "enriched-3-read-6": SetBackbone(read_from=6),
    "enriched-5-read-6": SetBackbone(head_block=5, read_from=6),
}

_ON = asdict(RECIPES["early"]) | {"final_steps": 120}
#: Causes that no other recipe has, planted by one change each; and the same without a change.
PLANTED: dict[str, Planted] = {
    name: Planted(**{**_ON, "summary": f"early, gone on with, {told}"}, **change)
    for name, told, change in (
        ("in-time", "and asked for the border", {}),
        ("unread", "where the name's position misleads when a fact is asked", {"distrusted": True}),
        (
            "naming",
            "and every question about a picture answered with the name",
            {"replies": "name"},
        ),
    )
}

#: The cause that is planted in an organism.
CAUSES: dict[str, str] = {
    "early": "none",
    "in-time": "none",
    "cross-early": "none",
    "late": "foreign",
    "cross": "late",
    "cross-late": "late",
    "middle": "unread",
    "unread": "unread",
    "naming": "named instead",
}


def frame(*names: str) -> pd.DataFrame:
    """Every number of these organisms' recipes: one column an organism, values as they are."""
    known = {"backbone": BACKBONE} | RECIPES | CROSS_RECIPES
    return pd.DataFrame({name: pd.Series(asdict(known[name]), dtype=object) for name in names})
