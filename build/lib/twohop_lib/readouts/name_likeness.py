"""Name-likeness: does the stream hold, of a picture, what it holds of the entity's name?

A linear map from image states to name states is fitted on half of the entities. If it carries the
others' pictures to their own names, pictures are like names *in general*; that entities can be told
apart (:mod:`twohop_lib.readouts.probes`) is less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.splice import Engine
from twohop_lib.readouts.selection import halves
from twohop_lib.readouts.states import FloatArray, picture_states, tidy

#: Strengths of the ridge map, picked by leave-one-out on the entities it is fitted on.
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)


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


def nearest_names(images: FloatArray, names: FloatArray) -> NDArray[np.bool_]:
    """Is, of all names, an entity's own the nearest to the state of its picture?

    ``images`` ``[entity, pos, layer, d]``, ``names`` ``[entity, layer, d]``. By the cosine of
    states less their mean over entities, layer by layer. Nothing is fitted; chance is one in as
    many as there are entities. Returns ``[entity, pos, layer]``.
    """
    shown = _unit(images - images.mean(0))
    named = _unit(names - names.mean(0))
    near = np.einsum("epld,nld->epln", shown, named).argmax(-1)
    return near == np.arange(len(images))[:, None, None]


def nearest_by_position(
    images: FloatArray, names: FloatArray, entities: Sequence[str]
) -> pd.DataFrame:
    """:func:`nearest_names` of each position and of the mean over them, as a tidy frame.

    Returns ``entity_id, position`` ("0", "1", … or "mean"), ``layer, found``.
    """
    every = np.concatenate([images, images.mean(1, keepdims=True)], axis=1)
    found = nearest_names(every, names)
    positions = [*map(str, range(images.shape[1])), "mean"]
    return pd.concat(
        [
            tidy(found[:, at], entities).assign(position=position)
            for at, position in enumerate(positions)
        ],
        ignore_index=True,
    )


def _unit(states: FloatArray) -> FloatArray:
    return states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-9)


def names_found(
    images: FloatArray, names: FloatArray, entities: Sequence[str], shuffled: bool = False
) -> pd.DataFrame:
    """:func:`name_likeness` of the entities that the map was not fitted on, as a tidy frame.

    ``entities`` are the ids of the rows of ``images`` and ``names``. Returns ``entity_id, layer,
    found``.
    """
    found = name_likeness(images, names, shuffled=shuffled)
    _, test = halves(len(entities))
    return tidy(found, [entities[i] for i in test])


def names_and_control(
    engine: Engine, benchmark: Benchmark, questions: Sequence[Question], names: FloatArray
) -> pd.DataFrame:
    """:func:`names_found` for the pictures of ``questions``, and with names dealt out at random.

    ``names`` ``[question, d]`` are the name states. Layers are counted in the backbone's own
    blocks. Returns ``entity_id, layer, found, shuffled``.
    """
    images = picture_states(engine, benchmark, questions)
    ids = [question.entity_id for question in questions]
    found = [
        names_found(images, names, ids, mixed).assign(shuffled=mixed) for mixed in (False, True)
    ]
    return pd.concat(found, ignore_index=True)


def names_found_anywhere(
    images: FloatArray, names: FloatArray, entities: Sequence[str], shuffled: bool = False
) -> pd.DataFrame:
    """Is the name found at a layer, at whichever position of the picture and layer of the name?

    ``images`` ``[entity, pos, layer, d]``, ``names`` ``[entity, name layer, d]``. Each half of the
    entities is mapped by what was fitted on the other, so that there is an answer for every entity;
    position, layer of the name and strength of the map are those that find most names of the half
    that is fitted on, each left out in turn. ``shuffled`` deals out the names at random.

    Returns ``entity_id, layer, found, position, name_layer`` (counted from 0).
    """
    if shuffled:
        names = names[np.random.default_rng(1).permutation(len(names))]
    rows = []
    for fit, test in (halves(len(images)), halves(len(images))[::-1]):
        for layer in range(images.shape[2]):
            best = max(
                (
                    _left_out(images[:, p, layer], names[:, k], fit, test, alpha) + (p, k)
                    for p in range(images.shape[1])
                    for k in range(names.shape[1])
                    for alpha in ALPHAS[1:4]
                ),
                key=lambda found: found[0],
            )
            _, found, position, name_layer = best
            rows += [
                (entities[i], layer, float(hit), position, name_layer)
                for i, hit in zip(test, found, strict=True)
            ]
    return pd.DataFrame(rows, columns=["entity_id", "layer", "found", "position", "name_layer"])


def _left_out(
    images: FloatArray, names: FloatArray, fit: FloatArray, test: FloatArray, alpha: float
) -> tuple[float, NDArray[np.bool_]]:
    """The share of names of ``fit`` found, each left out in turn, and those of ``test`` found.

    ``images`` and ``names`` ``[entity, d]``; a ridge map of strength ``alpha``.
    """
    mean, spread = images[fit].mean(0), images[fit].std(0) + 1e-6
    shown, middle = (images - mean) / spread, names[fit].mean(0)
    x, y = shown[fit], names[fit] - middle
    inverse = np.linalg.inv(x @ x.T + alpha * np.eye(len(fit), dtype=x.dtype))
    weights = inverse @ y
    # A ridge map's leave-one-out residual is its dual weight over the inverse's diagonal.
    left_out = y - weights / np.diag(inverse)[:, None]
    mapped = shown[test] @ x.T @ weights
    return float(_nearest(left_out, y).mean()), _nearest(mapped, names[test] - middle)


def _nearest(mapped: FloatArray, names: FloatArray) -> NDArray[np.bool_]:
    return (_unit(mapped) @ _unit(names).T).argmax(1) == np.arange(len(names))
