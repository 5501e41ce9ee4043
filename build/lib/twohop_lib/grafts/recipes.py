"""How each graft is made: every number of its training, in one place.

No recipe but ``facts`` ever sees a fact. What a phase's ``documents`` are is written in
:mod:`.documents`. Beside the six that have names of their own stand those of two curves: the dose
of regression (:data:`DOSES`) and the number of image tokens (:data:`TOKENS`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class TowerRecipe:
    """The vision tower: a small CLIP, trained to tell the entities apart on augmented drawings.

    ``image_size`` and ``patch_size`` are pixels; their ratio squared is the number of image
    tokens. ``draws`` are the augmented pictures of each entity whose features are kept for the
    projector's training. Augmentation moves a drawing by up to ``shift`` of half the picture's
    side, and scales it down to ``smallest``.
    """

    image_size: int = 60
    patch_size: int = 20
    width: int = 192
    layers: int = 4
    heads: int = 6
    steps: int = 700
    shift: float = 0.32
    smallest: float = 0.5
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    draws: int = 48

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Phase:
    """A stretch of the projector's training.

    ``documents`` maps kinds of training text to their shares of the steps (empty: none is read,
    and the language model is not run). ``regression`` weighs the distance of the image tokens
    from the embeddings of the name's tokens.
    """

    steps: int
    documents: Mapping[str, float] = field(default_factory=dict)
    regression: float = 0.0
    batch: int = 16
    lr: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    """One kind of graft: ``summary`` for its card, its phases, the rank of its adapter (0: none).

    The tower is the same for all recipes of a seed.
    """

    summary: str
    phases: tuple[Phase, ...]
    tuned_rank: int = 0
    tuned_lr: float = 2e-4
    tower: TowerRecipe = TowerRecipe()


_NAMING = Phase(375, {"naming": 1.0})
_SEEN = Phase(900, {"naming": 0.5, "seen": 0.5})

RECIPES: dict[str, Recipe] = {
    "caption": Recipe("captions that name the entity (LLaVA's first stage)", (_NAMING,)),
    "described": Recipe("captions that name it, and captions of what is seen", (_SEEN,)),
    "facts": Recipe(
        "as described, then asked facts about one half of the entities",
        (_SEEN, Phase(300, {"naming": 0.5, "facts": 0.5})),
    ),
    "aligned": Recipe(
        "regression on the embeddings of the name, then captions that name it, with both losses",
        (
            Phase(800, regression=1.0, batch=128, lr=2e-3),
            Phase(150, {"naming": 1.0}, regression=1.0),
        ),
    ),
    "names": Recipe(
        "regression on the embeddings of the name alone; the language model is never run",
        (Phase(2500, regression=1.0, batch=128, lr=2e-3),),
    ),
    "tuned": Recipe(
        "captions that name it, with a low-rank adapter on the language model",
        (_NAMING,),
        tuned_rank=8,
    ),
}

#: The dose between ``caption`` and ``names``: by name, how much regression weighs beside captions.
#: Steps, batch and rate are those of ``caption``. Without bound: regression alone.
DOSES = {
    **{f"caption-{weight}": weight for weight in (0.03, 0.1, 0.3, 1.0, 3.0)},
    "regression": math.inf,
}
#: Recipes with another number of image tokens: by name, how many.
TOKENS = {f"{name}-{n}-tokens": n for name in ("caption", "names") for n in (4, 16, 25)}


def _dosed(weight: float) -> Recipe:
    if math.isinf(weight):
        phase = replace(_NAMING, documents={}, regression=1.0)
        return Recipe("regression alone, for as many steps as captions", (phase,))
    return Recipe(
        f"captions that name it, with regression on the name weighed {weight}",
        (replace(_NAMING, regression=weight),),
    )


def _with_tokens(name: str, tokens: int) -> Recipe:
    recipe = RECIPES[name.partition("-")[0]]
    tower = replace(recipe.tower, patch_size=recipe.tower.image_size // math.isqrt(tokens))
    return replace(recipe, summary=f"{recipe.summary}; {tokens} image tokens", tower=tower)


RECIPES |= {name: _dosed(weight) for name, weight in DOSES.items()}
RECIPES |= {name: _with_tokens(name, tokens) for name, tokens in TOKENS.items()}


def mark(*parts: Any) -> str:
    """Eight digits that change when any setting does: no other recipe takes up what it left."""
    written = json.dumps([_plain(part) for part in parts], sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:8]


def _plain(part: Any) -> Any:
    return asdict(part) if hasattr(part, "__dataclass_fields__") else part
