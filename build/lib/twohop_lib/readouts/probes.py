"""Linear probes: can the entity, or a fact about it, be told from a state at all?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.splice import Engine
from twohop_lib.readouts.selection import halves
from twohop_lib.readouts.states import FloatArray, image_states, tidy


def entity_probe(
    states: FloatArray, test_views: Sequence[int], shuffled: bool = False
) -> NDArray[np.bool_]:
    """Can a linear probe tell the entities apart, in views that it was not trained on?

    ``states`` ``[entity, view, layer, d]``. ``shuffled`` trains on shuffled labels. Returns
    ``[entity × test view, layer]``, entities first.
    """
    n, views = states.shape[:2]
    train = [v for v in range(views) if v not in test_views]
    labels = np.repeat(np.arange(n), len(train))
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    wanted = np.repeat(np.arange(n), len(test_views))
    found = []
    for layer in range(states.shape[2]):
        x = states[:, train, layer].reshape(n * len(train), -1)
        y = states[:, list(test_views), layer].reshape(n * len(test_views), -1)
        found.append(_predicted(x, labels, y) == wanted)
    return np.stack(found, axis=1)


def entities_and_control(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
) -> pd.DataFrame:
    """:func:`entity_probe` on slightly cropped views of pictures, and with shuffled labels.

    At the picture's last position; trained on three views, tested on two others. Returns
    ``entity_id, layer, found, shuffled``, one row an entity, test view and layer, twice.
    """
    views = range(5)
    states = image_states(engine, benchmark, questions, views)["image"]
    ids = [question.entity_id for question in questions]
    found = [
        tidy(entity_probe(states, views[3:], mixed), ids).assign(shuffled=mixed)
        for mixed in (False, True)
    ]
    return pd.concat(found, ignore_index=True)


def fact_probe(states: FloatArray, answers: Sequence[str]) -> NDArray[np.bool_]:
    """Can the answer be read off a state by a linear probe that was trained on other entities?

    ``states`` ``[entity, d]``; entities without an answer ("") are left out. Trained on one half,
    tested on the other; an answer that the first half never has cannot be found. Returns ``[test
    entity]``, empty if the first half does not have two answers to tell apart.
    """
    wanted = np.asarray(answers, dtype=object)
    states, wanted = states[wanted != ""], wanted[wanted != ""]
    fit, test = halves(len(states))
    if len(set(wanted[fit])) < 2:
        return np.zeros(0, dtype=bool)
    return _predicted(states[fit], wanted[fit], states[test]) == wanted[test]


def facts_read_off(
    states: FloatArray, entities: Sequence[str], questions: Sequence[Question]
) -> NDArray[np.bool_]:
    """:func:`fact_probe` for each relation that ``questions`` ask of ``entities``.

    ``states`` ``[entity, d]``, in the order of the ids in ``entities``; a fact's answer is its
    first. Returns all relations' results, one after another.
    """
    answers: dict[str, dict[str, str]] = {}
    for question in questions:
        answers.setdefault(question.relation, {})[question.entity_id] = question.answers[0]
    found = [
        fact_probe(states, [known.get(entity, "") for entity in entities])
        for known in answers.values()
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def _predicted(x: FloatArray, labels: ArrayLike, y: FloatArray) -> NDArray:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels).predict(y)
