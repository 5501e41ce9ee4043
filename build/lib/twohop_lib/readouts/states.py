"""States of the stream that readouts are fitted on, and what was found in them as a tidy frame.

States are ``resid[l]``, l = 0 … n_blocks, at one position: the last of the picture's ("image") or
the last of the prompt ("last").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.recorder import own_blocks, receiving
from twohop_lib.interventions.splice import Engine
from twohop_lib.runs.conditions import prompt_of

FloatArray = NDArray[np.float32]
ROLES = ("image", "last")


def view(picture: Image.Image, number: int) -> Image.Image:
    """Another view of a picture: 0 is itself, others are cropped by up to 6 % on each side."""
    if not number:
        return picture
    rng = np.random.default_rng(number)
    width, height = picture.size
    left, top, right, bottom = rng.uniform(0, 0.06, 4)
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return picture.crop(tuple(round(side) for side in box)).resize(picture.size)


def image_states(
    engine: Engine, benchmark: Benchmark, questions: Sequence[Question], views: Sequence[int] = (0,)
) -> dict[str, FloatArray]:
    """States under the identify prompt: role -> ``[question, view, layer, d_model]``."""
    found: dict[str, list[FloatArray]] = {role: [] for role in ROLES}
    for question in questions:
        picture = benchmark.image(question).convert("RGB")
        prompt = prompt_of("identify", question)
        for number in views:
            made = engine.record(prompt, view(picture, number), from_start=True)
            places = {"image": receiving(engine, made)[-1], "last": made.n - 1}
            for role, at in places.items():
                found[role].append(made.resid[:, at - made.first].float().cpu().numpy())
    shape = (len(questions), len(views))
    return {role: np.stack(v).reshape(*shape, *v[0].shape) for role, v in found.items()}


def picture_states(
    engine: Engine, benchmark: Benchmark, questions: Sequence[Question]
) -> FloatArray:
    """States at the picture's last position, ``[question, layer, d_model]``.

    Layers are counted in the backbone's own blocks: blocks that were inserted for pictures do not
    shift them.
    """
    own = [*own_blocks(engine), engine.n_blocks]
    return image_states(engine, benchmark, questions)["image"][:, 0][:, own]


def states_of_all_positions(
    engine: Engine, benchmark: Benchmark, questions: Sequence[Question]
) -> FloatArray:
    """States at each position of the picture, ``[question, pos, layer, d_model]``, own blocks.

    Raises TwohopError if the pictures have unequal numbers of positions.
    """
    own, found = [*own_blocks(engine), engine.n_blocks], []
    for question in questions:
        picture = benchmark.image(question).convert("RGB")
        made = engine.record(prompt_of("identify", question), picture, from_start=True)
        at = [p - made.first for p in receiving(engine, made)]
        found.append(made.resid[own][:, at].transpose(0, 1).float().cpu().numpy())
    if len({len(one) for one in found}) > 1:
        raise TwohopError("These pictures have unequal numbers of positions; use one size.")
    return np.stack(found)


def name_states(backbone: Engine, questions: Sequence[Question]) -> FloatArray:
    """The backbone's states at the last name token of a text, ``[question, layer, d_model]``."""
    states = []
    for question in questions:
        prompt = prompt_of("llm_identify", question)
        made = backbone.record(prompt, None, question.entity, from_start=True)
        at = made.roles.entity[-1] - made.first
        states.append(made.resid[:, at].float().cpu().numpy())
    return np.stack(states)


def tidy(found: NDArray[np.bool_], entities: Sequence[str], name: str = "found") -> pd.DataFrame:
    """One row per entity (and view) and layer: ``entity_id, layer, name``."""
    rows, layers = found.shape
    ids = np.repeat(np.asarray(entities, dtype=object), rows // len(entities))
    return pd.DataFrame(
        {
            "entity_id": np.repeat(ids, layers),
            "layer": np.tile(np.arange(layers), rows),
            name: found.reshape(-1).astype(float),
        }
    )
