"""Edits: what is changed in a run. How it is carried out is the business of splice and hooks.

An edit belongs to one recording (its ``target``) and says at which block the run departs from it
(``enters``), from which position on it is run again (``since``), and whose keys and values are
read before that position (``source``). Its ``kind`` is what decides, beside the layout of the
positions, whether edits like it can be spliced; ``ladder`` are edits of its kind on its target, of
which one tells from the next by one layer; ``check`` raises a TwohopError if its parts do not fit
together. Layers and blocks are those of the index frame in :mod:`twohop_lib.models.blocks`:
``resid[l]`` enters block l.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.interventions.recording import Recording
from twohop_lib.models.blocks import Blocks, UnsupportedSite

#: Where a write goes: over the stream that enters a block, or over what its parts add.
Site = Literal["resid", "mlp", "attn"]


@dataclass(frozen=True, eq=False)
class CrossPatch:
    """The donor's stream at the span's positions from ``resid[layer]`` on.

    ``until`` None: to the end. Otherwise the target's own stream stands there again from
    ``resid[until]`` on (a band of layers). Cross-patching of Cohen et al. 2025, section 4.
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

    @property
    def kind(self) -> tuple[Hashable, ...]:
        return ("band" if self.until is not None else "to the end",)

    def source(self, block: int) -> Recording:
        inside = block >= self.layer and (self.until is None or block < self.until)
        return self.donor if inside else self.target

    def ladder(self, blocks: Blocks) -> list[CrossPatch]:
        until = None if self.until is None else max(1, 2 * blocks.n_blocks // 3)
        top = blocks.n_blocks if until is None else until
        return [replace(self, layer=layer, until=until) for layer in range(top + 1)]

    def check(self, n_blocks: int) -> None:
        if not 0 <= self.layer <= n_blocks:
            raise TwohopError(f"There is no resid[{self.layer}]; layers run from 0 to {n_blocks}.")
        a, b = self.target, self.donor
        outside = [p for p in range(a.n) if not a.span[0] <= p < a.span[1]]
        if a.n != b.n or a.span != b.span or any(a.ids[p] != b.ids[p] for p in outside):
            raise TwohopError(
                f"Target ({a.n} positions) and donor ({b.n}) differ beyond the picture or the "
                "name; use the same prompt, pictures of one size, and names of as many tokens."
            )
        if a.positions != b.positions:
            raise TwohopError(
                "Target and donor lay out their positions differently; use pictures of one size."
            )


@dataclass(frozen=True, eq=False)
class Knockout:
    """No attention from positions ``queries`` to ``keys`` in blocks [start, stop).

    Attention knockout of Geva et al. 2023. Without ``keys``: to the picture of a cross-attention
    block, which the queries pass unchanged.
    """

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

    @property
    def kind(self) -> tuple[Hashable, ...]:
        return ("mask" if self.keys else "cross-attention",)

    def source(self, block: int) -> Recording:
        return self.target

    def ladder(self, blocks: Blocks) -> list[Knockout]:
        # All behind the span is cut off from it, and from the first position behind it.
        (start, stop), n = self.target.span, self.target.n
        end = min(stop + 1, n - 1)
        queries, keys = (range(end, n), range(start, end)) if self.keys else (range(n), ())
        # Above the window all is read again, so that what was made of the cut is read too.
        top = max(1, 2 * blocks.n_blocks // 3)
        cut = replace(self, queries=tuple(queries), keys=tuple(keys), stop=top)
        return [replace(cut, start=b) for b in range(top + 1)]

    def check(self, n_blocks: int) -> None:
        if not 0 <= self.start <= self.stop <= n_blocks:
            raise TwohopError(f"Blocks [{self.start}, {self.stop}) are not among the {n_blocks}.")


@dataclass(frozen=True, eq=False)
class Freeze:
    """The span's positions enter blocks ``layer`` + 1 … ``until`` with ``resid[layer]``.

    Behind block ``until`` they run on from there; ``until`` = ``layer`` changes nothing. Forward
    patching of Cohen et al. 2025, section 4.
    """

    target: Recording
    layer: int
    until: int

    @property
    def enters(self) -> int:
        return self.layer + 1 if self.layer < self.until else self.target.n_blocks

    @property
    def since(self) -> int:
        return self.target.span[0]

    @property
    def kind(self) -> tuple[Hashable, ...]:
        return ()

    def source(self, block: int) -> Recording:
        return self.target

    def ladder(self, blocks: Blocks) -> list[Freeze]:
        # Below the top, so that the span is run along, too.
        until = max(1, min(2 * blocks.n_blocks // 3, blocks.n_blocks - 2))
        return [replace(self, layer=layer, until=until) for layer in range(until + 1)]

    def check(self, n_blocks: int) -> None:
        if not 0 <= self.layer <= self.until < n_blocks:
            raise TwohopError(
                f"Freeze from 0 <= layer <= until < {n_blocks}, not {self.layer} to {self.until}."
            )
        if self.target.span[0] == self.target.span[1]:
            raise UnsupportedSite(
                "A picture shown through cross-attention has no positions in the stream that "
                "could be frozen."
            )
        if self.target.first > self.since:
            raise TwohopError("Freezing needs the stream at the span; record it with from_start.")


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
        return min(self.values, default=self.target.n_blocks)

    @property
    def since(self) -> int:
        return min(self.positions)

    @property
    def kind(self) -> tuple[Hashable, ...]:
        return (self.site,)

    def source(self, block: int) -> Recording:
        return self.target

    def ladder(self, blocks: Blocks) -> list[Write]:
        # What a block would get or add is replaced by the stream's negative: that tells.
        at, n_blocks = [p - self.target.first for p in self.positions], blocks.n_blocks
        parts = {"resid": blocks.blocks, "mlp": blocks.mlps, "attn": blocks.attns}[self.site]
        written = [{b: -self.target.resid[b, at]} for b in range(n_blocks) if parts[b] is not None]
        return [replace(self, values=values, add=False) for values in [*written, {}]]

    def onto(self, x: Tensor, block: int, at: Sequence[int]) -> None:
        """Write into ``x`` ``[pos, d_model]``, whose row ``at[i]`` is position i of the write."""
        value = self.values[block].to(x.device, x.dtype)
        x[list(at)] = x[list(at)] + value if self.add else value

    def check(self, n_blocks: int) -> None:
        at = self.positions
        if not at or max(at) >= self.target.n or min(at) < 0:
            raise TwohopError("A write needs positions within the prompt.")
        if any(not 0 <= b < n_blocks for b in self.values):
            raise TwohopError(f"A write names a block that is not among the {n_blocks}.")
        if self.target.first > self.since:
            raise TwohopError("Writing there needs the stream there; record it with from_start.")


Edit = CrossPatch | Knockout | Freeze | Write


def layout(edit: Edit) -> tuple[Hashable, ...]:
    """What edits have in common that are carried out alike: kind, site and positions."""
    target = edit.target
    return (type(edit).__name__, *edit.kind, edit.since, target.n, target.positions)
