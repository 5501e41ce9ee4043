"""Splices broken on purpose, and how far off each comes out: does the engine's trial catch it?

    python benchmarks/broken.py [--models late early …] [--dtypes float32 float16 bfloat16]

Prints a row for each model, dtype, kind of edit and breakage: the worst comparison of the trial,
its difference as a share of the distance between the runs to be told apart (allowed: …), and
whether it is caught; then share and whether caught once more, for the trial in float32 that half
precision is given beside its own (see ``twohop_lib.models.agreement``).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from PIL import Image

from twohop_lib.interventions import forward
from twohop_lib.interventions.edits import CrossPatch, Edit, Freeze, Knockout, Write
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.agreement import Agreement
from twohop_lib.models.loading import load_vlm
from twohop_lib.models.prompts import Prompt
from twohop_lib.organisms import path

ASKED = Prompt("identify", "Which house is this?", True)
#: New tokens for which prompts are recorded.
LENGTH = 5
#: The organisms that are shown pictures.
NAMES = ("late", "middle", "early", "cross")


# --- broken on purpose ------------------------------------------------------------------------


def _rerun(change: Callable[[list[Edit]], list[Edit]]) -> AbstractContextManager:
    """Carry out other edits than those asked for."""
    right = forward.run
    return mock.patch.object(
        forward, "run", lambda decoder, edits, words=0: right(decoder, change(list(edits)), words)
    )


def one_layer() -> AbstractContextManager:
    """Each edit one layer up."""

    def moved(edit: Edit) -> Edit:
        n_blocks = len(edit.target.keys)
        if isinstance(edit, CrossPatch):
            top = n_blocks if edit.until is None else edit.until
            return replace(edit, layer=min(edit.layer + 1, top))
        if isinstance(edit, Freeze):
            return replace(edit, layer=min(edit.layer + 1, edit.until))
        if isinstance(edit, Knockout):
            return replace(edit, start=min(edit.start + 1, edit.stop))
        return replace(edit, values={b + 1: v for b, v in edit.values.items() if b + 1 < n_blocks})

    return _rerun(lambda edits: [moved(edit) for edit in edits])


def one_position() -> AbstractContextManager:
    """One position of the donor's not taken; else, what is done is done one position beside."""

    def moved(edit: Edit) -> Edit:
        target = edit.target
        start, stop = target.span
        if isinstance(edit, CrossPatch):
            return replace(edit, donor=_but_for(edit.donor, target, stop - 1))
        if isinstance(edit, Freeze):
            resid = target.resid.clone()
            at = slice(start - target.first, stop - target.first)
            resid[:, at] = resid[:, at].roll(1, 1)
            return replace(edit, target=replace(target, resid=resid))
        if isinstance(edit, Knockout):
            return replace(edit, keys=tuple(k + 1 for k in edit.keys))
        by = 1 if max(edit.positions) + 1 < target.n else -1
        return replace(edit, positions=tuple(p + by for p in edit.positions))

    return _rerun(lambda edits: [moved(edit) for edit in edits])


def _but_for(donor: Recording, target: Recording, at: int) -> Recording:
    """A donor whose keys and values at one position are the target's."""

    def but_for(theirs: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> tuple:
        found = []
        for x, y in zip(theirs, own, strict=True):
            found.append(x.clone())
            found[-1][:, :, at] = y[:, :, at]
        return tuple(found)

    return replace(
        donor, keys=but_for(donor.keys, target.keys), values=but_for(donor.values, target.values)
    )


def one_position_late() -> AbstractContextManager:
    """The first position behind the span is not run again."""
    return mock.patch.object(CrossPatch, "since", property(lambda edit: edit.target.span[1] + 1))


def stale_positions() -> AbstractContextManager:
    """Rotary positions are those of one token earlier."""
    right = forward.between

    def stale(value: Any, name: str, total: int, lo: int, hi: int) -> Any:
        by = 1 if lo and name in ("position_embeddings", "position_ids") else 0
        return right(value, name, total, lo - by, hi - by)

    return mock.patch.object(forward, "between", stale)


@contextmanager
def rows_swapped() -> Iterator[None]:
    """Each row of a batch is given the next one's result."""
    right = forward.run

    def run(decoder: Any, edits: Sequence[Edit], words: int = 0) -> tuple[torch.Tensor, list[str]]:
        logits, said = right(decoder, edits, words)
        return logits.roll(1, 0), [*said[-1:], *said[:-1]]

    with mock.patch.object(forward, "run", run):
        yield


def another_donor() -> AbstractContextManager:
    """All rows read the first row's donor."""
    return _rerun(
        lambda edits: [
            replace(e, donor=edits[0].donor) if isinstance(e, CrossPatch) else e for e in edits
        ]
    )


BREAKAGES = {
    "intact": nullcontext,
    "one layer": one_layer,
    "one position": one_position,
    "one position late": one_position_late,
    "stale positions": stale_positions,
    "rows swapped": rows_swapped,
    "another donor": another_donor,
}


def touches(broken: str, edit: Edit) -> bool:
    """Whether a breakage is one of edits like this."""
    if broken in ("one position late", "another donor"):
        return isinstance(edit, CrossPatch)
    if broken == "stale positions":
        return edit.since > 0
    # A picture outside of the stream has no positions.
    return broken != "one position" or edit.target.span[1] > 0 or not isinstance(edit, CrossPatch)


# --- what is tried ----------------------------------------------------------------------------


def picture(seed: int) -> Image.Image:
    """Coarse noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((48, 48), Image.Resampling.NEAREST)


def edits(engine: Engine) -> dict[str, Edit]:
    """One edit of each kind that the model allows, by name."""
    a, b = (engine.record(ASKED, picture(seed), None, LENGTH, True) for seed in (1, 2))
    found: dict[str, Edit] = {"cross-patch": CrossPatch(a, b, 1)}
    if a.span[1]:
        found["freeze"] = Freeze(a, 0, 1)
    keys = tuple(range(*a.span)) or (0,)
    found["knockout"] = Knockout(a, a.roles.last, keys, 0, engine.n_blocks)
    found["write"] = Write(a, "resid", ((a.span[1] or 2) - 1,), {})
    return found


def tried(engine: Engine, edit: Edit, broken: str) -> tuple[list[Agreement], list[Agreement]]:
    """The trial's comparisons under a breakage: in the model's own dtype, and in float32."""
    with BREAKAGES[broken]():
        own = engine.trial(edit)
        wide = own if engine.model.dtype == torch.float32 else engine.trial_in_float32(edit)
    return own, wide


def worst(held: Sequence[Agreement]) -> Agreement:
    """The comparison that is furthest off."""
    return max(held, key=lambda one: (not one.ok, one.share))


def table(engine: Engine, breakages: Sequence[str] = tuple(BREAKAGES)) -> Iterator[dict[str, Any]]:
    """One row for each kind of edit and breakage of it: how far off, and whether it is caught."""
    for kind, edit in edits(engine).items():
        for broken in breakages:
            if touches(broken, edit):
                own, wide = (worst(held) for held in tried(engine, edit, broken))
                yield {
                    "kind": kind,
                    "breakage": broken,
                    "share": f"{own.share:.2g}",
                    "allowed": own.allowed,
                    "caught": not own.ok,
                    "share in float32": f"{wide.share:.2g}",
                    "caught in float32": not wide.ok,
                }


def main() -> None:
    """Print the table."""
    from tests.zoo import FAMILIES, build  # The zoo is the tests'.

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*FAMILIES, *NAMES])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--breakages", nargs="*", default=list(BREAKAGES))
    given = parser.parse_args()
    for name, dtype in itertools.product(given.models, given.dtypes):
        with TemporaryDirectory() as folder:
            where = build(name, Path(folder)).vlm if name in FAMILIES else path(name)
            engine = Engine(load_vlm(where, dtype, "cpu"))
        for row in table(engine, given.breakages):
            print(*({"model": name, "dtype": dtype} | row).values(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
