"""What attribution says of recall: shares by component and block, against the backbone, the truth.

Scores are those of :func:`twohop_lib.interventions.attribution.by_role`, one row a pair of prompts
and place: ``component`` ("mlp", "attn"), ``role`` ("entity", "question", "last"), ``block``,
``score``. Positive scores restore the clean answer; shares are of positive mean scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twohop_lib.stats import Interval, resample_entities

PLACE = ["component", "role", "block"]


def profile(scored: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each place over the pairs of prompts, and its share of all that is positive.

    Returns ``component, role, block, score, share``, after a column ``model`` if there is one;
    shares sum to 1 within a model.
    """
    by = [column for column in ("model",) if column in scored]
    means = scored.groupby([*by, *PLACE])["score"].mean().reset_index()
    positive = means["score"].clip(lower=0)
    total = positive.groupby(means["model"]).transform("sum") if by else positive.sum()
    return means.assign(share=positive / total)


def largest(places: pd.DataFrame) -> pd.Series:
    """The place of the largest share, of one model's :func:`profile`."""
    return places.loc[places["share"].idxmax()]


def shares_by_half(places: pd.DataFrame, n_blocks: int) -> dict[str, float]:
    """How recall is spread over the halves of the blocks, of one model's :func:`profile`.

    The lower half are blocks b < n / 2, the upper half b >= n / 2; a middle block of an odd
    number is in the lower. ``early_mlp``: of all at the entity, what lies in MLPs of the lower
    half. ``late_attn``: of the attention's at the last token, what lies in the upper half.
    ``late_mlp``: of all there is, what lies in MLPs of the upper half at the last token.
    """
    share, role = places["share"], places["role"]
    lower, mlp = places["block"] < n_blocks / 2, places["component"] == "mlp"

    def part(some: pd.Series, among: pd.Series) -> float:
        total = share[among].sum()
        return float(share[some & among].sum() / total) if total else float("nan")

    return {
        "early_mlp": part(mlp & lower, role == "entity"),
        "late_attn": part(~lower, (role == "last") & ~mlp),
        "late_mlp": part(mlp & ~lower & (role == "last"), share > 0),
    }


#: How often a model's blocks are shuffled for the null of :func:`overlap`.
SHUFFLES = 500


def overlap(
    profiles: pd.DataFrame,
    models: Sequence[str],
    inserted: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Correlate each model's :func:`profile` with the backbone's, place by place.

    ``inserted`` are a model's blocks that the backbone does not have; they are left out, as are
    roles at which the model has no positions (all scores 0: a picture shown through
    cross-attention). The null shuffles the model's blocks :data:`SHUFFLES` times. Returns ``model,
    correlation, null_95`` (the null's 95th percentile) and ``p`` (one-sided).
    """
    wanted = _by_block(profiles, "backbone")
    rows = []
    for model in models:
        own = _by_block(profiles, model).drop(columns=list((inserted or {}).get(model, ())))
        own = own.reindex(wanted.index)
        there = own.ne(0).groupby(level="role").transform("any").any(axis=1).to_numpy()
        mine, theirs = own.to_numpy()[there], wanted.to_numpy()[there]
        found = _correlation(mine, theirs)
        rng = np.random.default_rng(0)
        orders = [rng.permutation(mine.shape[1]) for _ in range(SHUFFLES)]
        null = np.array([_correlation(mine[:, order], theirs) for order in orders])
        p = (1 + int((null >= found).sum())) / (SHUFFLES + 1)
        rows.append((model, found, float(np.quantile(null, 0.95)), p))
    return pd.DataFrame(rows, columns=["model", "correlation", "null_95", "p"])


def truth_correlation(truth: pd.DataFrame, column: str) -> Interval:
    """Correlation of an estimate with true patching, place by place, resampling pairs of prompts.

    ``truth`` as of :func:`twohop_lib.interventions.attribution.against_truth`.
    """
    estimated, true = truth[column].to_numpy(), truth["true"].to_numpy()
    return resample_entities(
        truth["contrast"], lambda rows: _correlation(estimated[rows], true[rows])
    )


def signs_agree(truth: pd.DataFrame, column: str, least: float = 0.05) -> tuple[float, int]:
    """How often an estimate has the sign of the true effect, and of how many places.

    Of true effects whose size is above ``least`` (nats); NaN of none.
    """
    large = truth[truth["true"].abs() > least]
    agree = np.sign(large[column]) == np.sign(large["true"])
    return (float(agree.mean()) if len(large) else float("nan")), len(large)


def _by_block(profiles: pd.DataFrame, model: str) -> pd.DataFrame:
    own = profiles[profiles["model"] == model]
    return own.pivot(index=["component", "role"], columns="block", values="score")


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
