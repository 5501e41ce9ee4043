"""Do two ways of computing the same logits agree? Measured against what they must tell apart.

Rounding moves logits by some share of their size, and an intervention may move them by less. So a
difference says little by itself: it is set against the distance to the run that the result must
not be taken for (*away*). For a patch that is the other end of it, for a freeze or a knockout the
run left alone; of two neighbouring layers, each is the other's.

The shares allowed (:data:`SHARE`) lie between two measurements (``benchmarks/README.md``). Two
correct runs in half precision differ by up to .02 (float16) and .19 (bfloat16) of the distance
between neighbouring layers; an edit at the wrong layer is off by about 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.models.blocks import UnsupportedSite, raised_here
from twohop_lib.models.loading import in_float32
from twohop_lib.models.memory import out_of_memory

#: Largest difference allowed, as a share of the distance to the run to be told from, by dtype.
SHARE = {torch.float32: 5e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
#: Units in the last place (of the largest logit) within which two leading tokens are tied.
TIE = 16


@dataclass(frozen=True)
class Agreement:
    """How far a run is from the run that it must equal, and from the one it must be told from.

    ``distance`` is the largest difference of any logit (nats), ``share`` that difference as a
    share of the distance between the two runs (1: as far off as the other run is; infinite where
    those two are the same), ``allowed`` the largest share allowed in this dtype. ``same_top``:
    the wanted run's likeliest token is the likeliest, or rounding could have made it so. ``kl``
    are nats from the wanted distribution. Not a number, if a run has logits that are none.
    """

    distance: float
    share: float
    allowed: float
    same_top: bool
    kl: float
    ok: bool

    def words(self) -> str:
        """The comparison in words, as a failed control says it."""
        if math.isnan(self.distance):
            return "a run has NaN among its logits"
        if math.isinf(self.share):
            return "the two runs to be told apart are the same, so nothing can be told from it"
        top = "the same likeliest token" if self.same_top else "another likeliest token"
        return (
            f"off by {self.distance:.2g} nats, {self.share:.2g} of the distance between the two "
            f"runs to be told apart (allowed: {self.allowed:g}), with {top} and a divergence of "
            f"{self.kl:.1g} nats"
        )


def agreement(got: Tensor, wanted: Tensor, away: Tensor, dtype: torch.dtype) -> Agreement:
    """Hold logits ``[vocab]`` against those that they must equal, computed in ``dtype``.

    ``away`` are the logits of the run that ``got`` must be told from. They agree if the largest
    difference is no more than the share of ``dtype`` (:data:`SHARE`) of the largest difference
    between ``wanted`` and ``away``, the divergence from ``wanted`` no more than that share of the
    divergence of ``away``, and the likeliest token the same. A token of ``got``'s choice is
    taken for the same if ``wanted`` has it within :data:`TIE` units in the last place of its own:
    rounding to ``dtype`` may order such tokens either way.
    """
    got, wanted, away = (x.double().to(wanted.device) for x in (got, wanted, away))
    allowed = SHARE.get(dtype, SHARE[torch.bfloat16])
    if any(x.isnan().any() for x in (got, wanted, away)):
        return Agreement(math.nan, math.nan, allowed, False, math.nan, False)
    distance, apart = _distance(got, wanted), _distance(away, wanted)
    share = distance / apart if apart else math.inf
    lead = (wanted.max() - wanted[got.argmax()]).item()
    same_top = lead <= ulps(wanted, dtype)
    kl = _divergence(wanted, got)
    ok = share <= allowed and same_top and kl <= allowed * _divergence(wanted, away)
    return Agreement(distance, share, allowed, same_top, kl, ok)


def farthest(wanted: Tensor, runs: Sequence[Tensor]) -> Tensor:
    """Of some runs' logits ``[vocab]``, those farthest from ``wanted``: to be told from it."""
    return max(runs, key=lambda run: _distance(run.to(wanted.device), wanted))


def ulps(logits: Tensor, dtype: torch.dtype, number: int = TIE) -> float:
    """``number`` units in the last place, in ``dtype``, of the largest logit (nats)."""
    finite = logits[logits.isfinite()]
    return number * torch.finfo(dtype).eps * finite.max().abs().item() if len(finite) else 0.0


def holds(
    model: Any,
    trial: Callable[[], list[Agreement]],
    in_full: Callable[[], list[Agreement]] | None = None,
) -> bool:
    """Whether all comparisons of a trial agree; False if the model's own code cannot make them.

    In half precision rounding may hide a mistake. So the trial is made once more in float32
    (``in_full``, if that is done otherwise), on the same weights, where there is memory for them.
    """
    try:
        held = trial()
        if model.dtype != torch.float32 and all(one.ok for one in held):
            held = trial_in_float32(model, in_full or trial) or held
    except UnsupportedSite:
        return False
    return bool(held) and all(one.ok for one in held)


def trial_in_float32(model: Any, trial: Callable[[], list[Agreement]]) -> list[Agreement]:
    """The comparisons of a trial in float32; empty where the model cannot be run in it here."""
    if "flash" in str(getattr(model.config, "_attn_implementation", "")):
        return []
    try:
        with in_float32(model):
            return trial()
    except UnsupportedSite:
        raise
    except (TwohopError, RuntimeError, TypeError, ValueError) as error:
        # What the model's own code cannot do in float32 says nothing about the trial.
        known = isinstance(error, TwohopError) or out_of_memory(error)
        if not known and raised_here(error):
            raise
    return []


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; logits that are equal (both minus infinity, too) have none."""
    return torch.where(a == b, torch.zeros_like(a), (a - b).abs()).max().item()


def _divergence(p: Tensor, q: Tensor) -> float:
    """The Kullback-Leibler divergence of softmax(q) from softmax(p), in nats."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    there = p > -math.inf
    return max(0.0, (p.exp() * (p - q))[there].sum().item())
