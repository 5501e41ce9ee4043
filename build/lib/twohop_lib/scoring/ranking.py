"""Likelihood ranking: is an accepted answer likelier than every other answer of its relation?

No wording can tip this, and no parser: a model ranks its answers whether or not it would say any
of them. Two readings of "likelier": by the mean log-probability of an answer's tokens
(``by_length``), which lets answers of different length compete, and by the log-probability of the
first token alone (``by_first``), which asks what the model would begin to say. An answer stands for
the likeliest of its names, on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from twohop_lib.errors import TwohopError

#: Columns of a table of scored candidates, beside those that tell items apart.
SCORES = ("candidate", "accepted", "logprob", "n_tokens", "first_logprob", "first_token")


def likeliest(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Whether an accepted candidate of each item is the likeliest.

    Args:
        scores: one row per item and candidate: the columns ``by``, which tell items apart, and
            :data:`SCORES`: ``candidate`` (text), ``accepted`` (boolean), ``logprob`` (nats, the sum
            over its ``n_tokens`` tokens), ``first_logprob`` (nats) and ``first_token`` (id).

    Returns one row per item, in order: the columns ``by``, ``n_candidates``, ``candidate`` (the
    likeliest by length), ``by_length``, ``margin`` (nats per token, best accepted minus best
    other), ``by_first`` and ``first_margin`` (nats). ``by_first`` is null where the likeliest first
    token begins accepted candidates and others alike. A tie is no victory.

    Raises:
        TwohopError: a log-probability is NaN, or an item has no accepted candidate or no other.
    """
    if scores[["logprob", "first_logprob"]].isna().any(axis=None):
        raise TwohopError(
            "A candidate's log-probability is not a number; load the model in another dtype."
        )
    rows = []
    for item, group in scores.groupby(list(by), sort=False):
        accepted = group["accepted"].to_numpy(bool)
        if accepted.all() or not accepted.any():
            raise TwohopError(
                f"Item {item} has no {'other' if accepted.all() else 'accepted'} candidate; rank "
                "it against all answers of its relation."
            )
        mean = group["logprob"].to_numpy(float) / group["n_tokens"].to_numpy(float)
        first, token = group["first_logprob"].to_numpy(float), group["first_token"].to_numpy()
        margin, first_margin = _margin(mean, accepted), _margin(first, accepted)
        top = token[np.argmax(first)]
        shared = set(accepted[token == top]) == {True, False}
        rows.append(
            {
                **dict(zip(by, item, strict=True)),
                "n_candidates": len(group),
                "candidate": group["candidate"].iloc[int(np.argmax(mean))],
                "by_length": margin > 0,
                "margin": margin,
                "by_first": pd.NA if shared else first_margin > 0,
                "first_margin": first_margin,
            }
        )
    columns = [*by, "n_candidates", "candidate", "by_length", "margin", "by_first", "first_margin"]
    return pd.DataFrame(rows, columns=columns).astype({"by_length": bool, "by_first": "boolean"})


def _margin(values: np.ndarray, accepted: np.ndarray) -> float:
    """The best accepted value minus the best other; ``values`` and ``accepted`` are ``[n]``."""
    return float(values[accepted].max() - values[~accepted].max())


def first_tokens(
    logits: np.ndarray, accepted: Collection[int], others: Collection[int]
) -> np.ndarray:
    """Margins by first token, read off next-token logits: what a sweep has at hand.

    Args:
        logits: ``[batch, vocab]``.
        accepted: first tokens of the accepted answers.
        others: first tokens of all other answers; those of accepted ones are left out.

    Returns ``[batch]``: the best accepted logit minus the best other (a difference of logits is
    one of log-probabilities), positive where an accepted answer would be begun.

    Raises:
        TwohopError: one of the two sides has no token of its own.
    """
    rest = sorted(set(others) - set(accepted))
    if not accepted or not rest:
        raise TwohopError("Accepted and other answers all begin with the same token.")
    return logits[:, sorted(set(accepted))].max(axis=1) - logits[:, rest].max(axis=1)


def verdicts(answers: pd.DataFrame, ranked: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Answer records beside their ranking: the rows that were ranked, with both verdicts.

    ``answers`` has ``correct`` (by matching) and the columns ``by``; ``ranked`` comes from
    :func:`likeliest`. The answers' columns, then ``by_length`` and ``by_first``. To measure by
    ranking what is measured by matching, put one of these in the place of ``correct``.

    Raises:
        TwohopError: no answer was ranked, or one twice.
    """
    if ranked.duplicated(list(by)).any():
        raise TwohopError(f"An item is ranked twice; tell items apart by more than {list(by)}.")
    both = answers.merge(ranked[[*by, "by_length", "by_first"]], on=list(by), how="inner")
    if both.empty:
        raise TwohopError("No answer was ranked; rank the same questions and conditions.")
    return both


def parted(both: pd.DataFrame, verdict: str = "by_length") -> pd.DataFrame:
    """How often matching and ranking agree, for each condition.

    ``both`` comes from :func:`verdicts`. Columns ``condition, n, both, matching_only,
    ranking_only, neither`` (counts; undecided rankings are left out).
    """
    decided = both[both[verdict].notna()]
    matched, likely = decided["correct"].astype(bool), decided[verdict].astype(bool)
    counted = pd.DataFrame(
        {
            "condition": decided["condition"],
            "n": 1,
            "both": matched & likely,
            "matching_only": matched & ~likely,
            "ranking_only": ~matched & likely,
            "neither": ~matched & ~likely,
        }
    )
    return counted.groupby("condition", sort=False).sum().astype(int).reset_index()
