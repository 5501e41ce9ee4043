"""Edits: what is changed in a run. How it is carried out is the business of splice and hooks.

An edit belongs to one recording (its target) and says at which block the run departs from it
(``enters``), from which position on (``since``), and whose keys and values are read before that
position (``source``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.interventions.recording import Recording
from twohop_lib.models.blocks import UnsupportedSite

#: Where a write goes: over the stream that enters a block, or over what its parts add.
Site = Literal["resid", "mlp", "attn"]


@dataclass(frozen=True, eq=False)
class CrossPatch:
    """The donor's stream at the span's positions from ``resid[layer]`` on.

    ``until`` None: to the end. Otherwise the target's own stream stands there again from
    ``resid[until]`` on (a band of layers).
    """

    target: Recording
    donor: Recording
    layer: int
    until: int | None = None

    @property
    def enters(self) -> int:
        return self.layer

    @property
    def since(self) -> int:
        return self.target.span[1]

    def source(self, block: int) -> Recording:
        """Whose keys and values block ``block`` reads at the span."""
        inside = block >= self.layer and (self.until is None or block < self.until)
        return self.donor if inside else self.target


@dataclass(frozen=True, eq=False)
class Knockout:
    """No attention from positions ``queries`` to ``keys`` in blocks [start, stop)."""

    target: Recording
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    start: int
    stop: int

    @property
    def enters(self) -> int:
        return self.start

    @property
    def since(self) -> int:
        return self.target.span[1]

    def source(self, block: int) -> Recording:
        """Whose keys and values block ``block`` reads before ``since``: the target's own."""
        return self.target


@dataclass(frozen=True, eq=False)
class Freeze:
    """The span's positions enter blocks ``layer`` + 1 … ``until`` with ``resid[layer]``.

    Behind block ``until`` they run on from there; ``until`` = ``layer`` changes nothing.
    """

    target: Recording
    layer: int
    until: int

    @property
    def enters(self) -> int:
        return self.layer + 1 if self.layer < self.until else len(self.target.keys)

    @property
    def since(self) -> int:
        return self.target.span[0]

    def source(self, block: int) -> Recording:
        """Whose keys and values block ``block`` reads before ``since``: the target's own."""
        return self.target


@dataclass(frozen=True, eq=False)
class Write:
    """Vectors written over a part of the stream, or over what an MLP or attention adds to it.

    ``values[b]`` ``[len(positions), d_model]`` takes the place of ``resid[b]`` (site "resid"),
    ``mlp_out[b]`` or ``attn_out[b]`` at ``positions``; with ``add`` it is added to it.
    """

    target: Recording
    site: Site
    positions: tuple[int, ...]
    values: Mapping[int, Tensor]
    add: bool = False

    @property
    def enters(self) -> int:
        return min(self.values, default=len(self.target.keys))

    @property
    def since(self) -> int:
        return min(self.positions)

    def source(self, block: int) -> Recording:
        """Whose keys and values block ``block`` reads before ``since``: the target's own."""
        return self.target

    def onto(self, x: Tensor, block: int, at: Sequence[int]) -> None:
        """Write into ``x`` ``[pos, d_model]``, whose row ``at[i]`` is position i of the write."""
        value = self.values[block].to(x.device, x.dtype)
        x[list(at)] = x[list(at)] + value if self.add else value


Edit = CrossPatch | Knockout | Freeze | Write


def telling(edit: Edit, n_blocks: int) -> Edit:
    """An edit of the same kind and prompt whose result depends on every part of the splice."""
    middle = n_blocks // 2
    if isinstance(edit, CrossPatch):
        return replace(edit, layer=middle, until=None)
    if isinstance(edit, Freeze):
        return replace(edit, layer=edit.until // 2)
    if isinstance(edit, Write):
        return edit
    return replace(edit, start=middle, stop=n_blocks)


def check(edit: Edit, n_blocks: int) -> None:
    """Refuse an edit whose parts do not fit together."""
    if isinstance(edit, Knockout):
        if not 0 <= edit.start <= edit.stop <= n_blocks:
            raise TwohopError(f"Blocks [{edit.start}, {edit.stop}) are not among the {n_blocks}.")
        return
    if isinstance(edit, Write):
        if not edit.positions or max(edit.positions) >= edit.target.n or min(edit.positions) < 0:
            raise TwohopError("A write needs positions within the prompt.")
        if any(not 0 <= b < n_blocks for b in edit.values):
            raise TwohopError(f"A write names a block that is not among the {n_blocks}.")
        if edit.target.first > edit.since:
            raise TwohopError(
                "Writing there needs the stream there; record it with from_start=True."
            )
        return
    if isinstance(edit, Freeze):
        if not 0 <= edit.layer <= edit.until < n_blocks:
            raise TwohopError(
                f"Freeze from 0 <= layer <= until < {n_blocks}, not {edit.layer} to {edit.until}."
            )
        if edit.target.span[0] == edit.target.span[1]:
            raise UnsupportedSite(
                "A picture shown through cross-attention has no positions in the stream that "
                "could be frozen."
            )
        if edit.target.first > edit.target.span[0]:
            raise TwohopError("Freezing needs the stream at the span; record it from_start.")
        return
    if not 0 <= edit.layer <= n_blocks:
        raise TwohopError(f"There is no resid[{edit.layer}]; layers run from 0 to {n_blocks}.")
    a, b = edit.target, edit.donor
    outside = [p for p in range(a.n) if not a.span[0] <= p < a.span[1]]
    if a.n != b.n or a.span != b.span or any(a.ids[p] != b.ids[p] for p in outside):
        raise TwohopError(
            f"Target ({a.n} positions) and donor ({b.n}) differ beyond the picture or the name; "
            "use the same prompt, pictures of one size, and names of as many tokens."
        )
    if a.positions != b.positions:
        raise TwohopError(
            "Target and donor lay out their positions differently; use pictures of one size."
        )
