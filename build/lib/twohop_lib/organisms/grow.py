"""Growing one organism from nothing: its backbone first, then what its recipe asks for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from twohop_lib.benchmark import heraldry
from twohop_lib.errors import TwohopError
from twohop_lib.organisms import cross, planted, train
from twohop_lib.organisms.recipes import (
    BACKBONE,
    PLANTED,
    RECIPES,
    SET_BACKBONES,
    BackboneRecipe,
)


def _made_by(folder: Path, recipe: BackboneRecipe) -> bool:
    try:
        return json.loads((folder / "training.json").read_text())["recipe"] == asdict(recipe)
    except (FileNotFoundError, ValueError, KeyError):
        return False


def train_organism(name: str, seed: int, folder: Path, progress: bool = True) -> Path:
    """Train organism ``name`` of ``seed`` in ``folder``, its backbone first if need be.

    A backbone that was made there by another recipe is made anew.

    Raises:
        TwohopError: ``folder`` cannot be made.
    """
    world = heraldry.make_world(seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise TwohopError(f"Cannot train in {folder} ({error.strerror}); name a folder.") from error
    if name in SET_BACKBONES:
        return train.train_backbone(world, folder, SET_BACKBONES[name], progress, name)
    made = folder / "backbone"
    # A shipped backbone comes without the log of its training.
    shipped = (made / "card.json").exists() and not (made / "training.json").exists()
    if not shipped and not _made_by(made, BACKBONE):
        made = train.train_backbone(world, folder, BACKBONE, progress)
    if name == "backbone":
        return made
    if name in RECIPES:
        return train.train_vlm(name, world, folder, progress)
    if name in PLANTED:
        return planted.train_planted(name, world, folder, progress=progress)
    return cross.train_vlm(name, world, folder, progress)
