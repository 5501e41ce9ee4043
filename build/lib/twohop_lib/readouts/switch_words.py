"""How a chapter tells of switch layers: titles and sentences, from tables of ``switch``.

Frames are records of cross-patches and tables of :mod:`twohop_lib.readouts.switch`. What did not
turn is said not to have.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from twohop_lib.readouts.captions import listed
from twohop_lib.readouts.layers import curves, extremes, first_below
from twohop_lib.readouts.switch import NEVER, switch_words


def first_and_last_to_turn(table: pd.DataFrame) -> str:
    """A title: which model's answer turns at the lowest layer, and which at the highest."""
    ends = extremes(table.set_index("model")["switch"])
    if ends is None:
        return "The answer never turns"
    title = f"The answer turns first in {ends.at_lowest} (layer {ends.lowest:.1f})"
    return title if ends.one else f"{title} and last in {ends.at_highest} ({ends.highest:.1f})"


def leaves_the_donor(means: pd.DataFrame) -> str:
    """A title: by which layers the calibrated difference (1 donor, 0 target) is below one half."""
    below = {name: first_below(curve) for name, curve in curves(means, "blocks_read").items()}
    ends = extremes(pd.Series(below, dtype=object))
    if ends is None:
        return "The fact prompt follows the donor at every layer"
    title = f"The fact prompt leaves the donor by layer {ends.lowest:.0f} ({ends.at_lowest})"
    return title if ends.one else f"{title} to {ends.highest:.0f} ({ends.at_highest})"


def neither_shares(frame: pd.DataFrame) -> pd.Series:
    """Share of answers that are neither's, indexed by model and layer."""
    return frame["says"].eq("neither").groupby([frame["model"], frame["layer"]]).mean()


def neither_at_its_highest(frame: pd.DataFrame) -> tuple[float, str, int]:
    """The largest share of answers that are neither's, and the model and layer where it is."""
    shares = neither_shares(frame)
    model, layer = shares.idxmax()
    return float(shares.max()), str(model), int(layer)


def readable(table: pd.DataFrame, *by: str) -> pd.DataFrame:
    """A table of switches to read: ``*by, switch layer, share of depth, n_items, n_entities``."""
    layers = [switch_words(r.switch, r.low, r.high, 2) for r in table.itertuples()]
    shares = [switch_words(share, digits=2) for share in table["relative"]]
    shown = table[[*by, "n_items", "n_entities"]].copy()
    shown.insert(len(by), "switch layer", layers)
    shown.insert(len(by) + 1, "share of depth", shares)
    return shown


def turns_at(table: pd.DataFrame) -> str:
    """A sentence: where each model's answer turns, and which never do."""
    at = table.set_index("model")["switch"].map(switch_words)
    told = [f"{model} at layer {layer}" for model, layer in at.items() if layer != NEVER]
    silent = [str(model) for model, layer in at.items() if layer == NEVER]
    if not told:
        return "the answer turns in none of the models."
    sentence = f"the answer turns in {', '.join(told)}"
    if silent:
        sentence += (
            f", and in {', '.join(silent)} never, since hardly any of its answers is either's"
        )
    return f"{sentence}."


def order_in_worlds(order: tuple[int, int], models: Sequence[str]) -> str:
    """A sentence: does the naming switch follow the gap? ``order``: in so many worlds of so many.

    ``models`` are in the order of their gaps, the smallest first
    (:func:`twohop_lib.readouts.switch.in_order`).
    """
    held, worlds = order
    first, *rest = models
    said = " before ".join([f"{first}", *rest])
    if held == worlds:
        return f"The switch of the naming prompt follows the gap: {said}, in all {worlds} worlds."
    return (
        f"The switch of the naming prompt does not follow the gap: {said}, the order of the gaps "
        f"of the LLaVA-style organisms, holds in {held} of {worlds} worlds."
    )


def blocks_that_read(bands: pd.DataFrame) -> str:
    """A title: the blocks in which a picture is read most (``model, layer, until, moved``)."""
    moved = bands.astype({"moved": float}).groupby(["model", "layer", "until"])["moved"].mean()
    model, first, until = moved.idxmax()
    blocks = listed([str(b) for b in range(int(first), int(until))])
    return f"{model} reads the picture most in blocks {blocks}"


def ends_of_the_sweep(frame: pd.DataFrame, n_blocks: dict[str, int]) -> pd.DataFrame:
    """How often the ends of a sweep say whom, by model and computation: rows with counts."""
    top = frame["model"].map(n_blocks)
    ends = frame[(frame["layer"] == 0) | (frame["layer"] == top)]
    where = ends["layer"].eq(0).map({True: "from layer 0", False: "from the top"})
    by = ["model", "computation", "patched"]
    told = ends.assign(patched=where).groupby(by, sort=False)["says"].value_counts()
    return told.unstack(fill_value=0)
