"""What the stream holds, layer by layer: entity probes, name-likeness, logit lens.

States are ``resid[l]``, l = 0 … n_blocks, at one position: the last of the picture's ("image") or
the last of the prompt ("last").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.pairs import accepted, first_token, prompt_of
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import receiving
from twohop_lib.models.prompts import Prompt

FloatArray = NDArray[np.float32]
ROLES = ("image", "last")
#: Strengths of the ridge map, picked by leave-one-out on the entities it is fitted on.
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)


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
        prompt = prompt_of(question, "identify", True)
        for number in views:
            made = engine.record(prompt, view(picture, number), from_start=True)
            places = {"image": receiving(engine, made)[-1], "last": made.n - 1}
            for role, at in places.items():
                found[role].append(made.resid[:, at - made.first].float().cpu().numpy())
    shape = (len(questions), len(views))
    return {role: np.stack(v).reshape(*shape, *v[0].shape) for role, v in found.items()}


def name_states(backbone: Engine, questions: Sequence[Question]) -> FloatArray:
    """The backbone's states at the last name token of a text, ``[question, layer, d_model]``."""
    states = []
    for question in questions:
        prompt = Prompt("by_name", f"{question.entity}\n{question.identify_prompt}", False)
        made = backbone.record(prompt, None, question.entity, from_start=True)
        at = made.roles.entity[-1] - made.first
        states.append(made.resid[:, at].float().cpu().numpy())
    return np.stack(states)


def halves(n: int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two halves of n entities, drawn at random: to fit on, and to test on."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def name_likeness(
    images: FloatArray, names: FloatArray, seed: int = 0, shuffled: bool = False
) -> NDArray[np.bool_]:
    """Does a linear map carry an entity's image state to the name of that very entity?

    ``images`` ``[entity, layer, d]``, ``names`` ``[entity, d]``. At each layer a ridge map is
    fitted on half of the entities; the others' image states are mapped, and count as found if
    the nearest name among *their* half (cosine) is their own. ``shuffled`` fits on names that
    were dealt out at random. Returns ``[test entity, layer]``.
    """
    if len(images) < 8:
        raise TwohopError(
            f"Name-likeness is fitted on half of the entities and needs 8 or more, not "
            f"{len(images)}; give a benchmark with more."
        )
    fit, test = halves(len(images), seed)
    target = names[fit]
    if shuffled:
        target = target[np.random.default_rng(seed + 1).permutation(len(fit))]
    unit = names[test] / np.linalg.norm(names[test], axis=1, keepdims=True)
    found = []
    for layer in range(images.shape[1]):
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
        mapped = model.fit(images[fit, layer], target).predict(images[test, layer])
        mapped = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        found.append((mapped @ unit.T).argmax(1) == np.arange(len(test)))
    return np.stack(found, axis=1)


def entity_probe(
    states: FloatArray, test_views: Sequence[int], shuffled: bool = False, seed: int = 0
) -> NDArray[np.bool_]:
    """Can a linear probe tell the entities apart, in views that it was not trained on?

    ``states`` ``[entity, view, layer, d]``. ``shuffled`` trains on shuffled labels. Returns
    ``[entity × test view, layer]``, entities first.
    """
    n, views = states.shape[:2]
    train = [v for v in range(views) if v not in test_views]
    labels = np.repeat(np.arange(n), len(train))
    if shuffled:
        labels = np.random.default_rng(seed).permutation(labels)
    wanted = np.repeat(np.arange(n), len(test_views))
    found = []
    for layer in range(states.shape[2]):
        x = states[:, train, layer].reshape(n * len(train), -1)
        y = states[:, list(test_views), layer].reshape(n * len(test_views), -1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(model.fit(x, labels).predict(y) == wanted)
    return np.stack(found, axis=1)


def fact_probe(states: FloatArray, answers: Sequence[str], seed: int = 0) -> NDArray[np.bool_]:
    """Can the answer be read off a state by a linear probe that was trained on other entities?

    ``states`` ``[entity, d]``; entities without an answer ("") are left out. Trained on one half,
    tested on the other; an answer that the first half never has cannot be found. Returns ``[test
    entity]``, empty if the first half does not have two answers to tell apart.
    """
    wanted = np.asarray(answers, dtype=object)
    states, wanted = states[wanted != ""], wanted[wanted != ""]
    fit, test = halves(len(states), seed)
    if len(set(wanted[fit])) < 2:
        return np.zeros(0, dtype=bool)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(states[fit], wanted[fit]).predict(states[test]) == wanted[test]


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


@torch.inference_mode()
def logit_lens(engine: Engine, benchmark: Benchmark, questions: Sequence[Question]) -> pd.DataFrame:
    """Probability, by layer, of the right and of the emitted first token, at the last position.

    The model's own head (final norm included) reads ``resid[l]``; at the top that is its output.
    Fact questions by picture. Columns ``entity_id, question_id, layer, right, emitted, correct``
    (whether the emitted first token is the right one).
    """
    rows = []
    for question in questions:
        prompt = prompt_of(question, "fact", True)
        made = engine.record(prompt, benchmark.image(question).convert("RGB"))
        right = first_token(engine.owner, prompt, accepted(question, "fact")[0])
        p = engine.head(made.resid[:, -1]).softmax(-1)
        emitted = int(made.logits.argmax())
        rows += [
            {
                "entity_id": question.entity_id,
                "question_id": question.question_id,
                "layer": layer,
                "right": p[layer, right].item(),
                "emitted": p[layer, emitted].item(),
                "correct": emitted == right,
            }
            for layer in range(len(p))
        ]
    return pd.DataFrame(rows)
