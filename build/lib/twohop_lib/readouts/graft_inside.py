"""What goes on inside grafts and their language model: records of ``graft study --internals``.

Deadlines are of the language model alone (names of one token), patches and name-likeness of each
graft and seed. The grafts' intervals are over entities and seeds, crossed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from twohop_lib.readouts import arrival, deadline_words
from twohop_lib.readouts.captions import (
    NOT_MEASURED,
    counted,
    counted_with_interval,
    n_range,
    points_with_interval,
)
from twohop_lib.readouts.cascade import names_itself
from twohop_lib.readouts.layers import first_at_least
from twohop_lib.readouts.shares import crossed_table

PATCH = "mlp-patch"
#: The mean of a picture's positions.
MEAN = "mean"
SITE = ["method", "start", "stop", "layer"]


# --- deadlines --------------------------------------------------------------------------------


def deadline_controls(internals: pd.DataFrame, layers: Sequence[int]) -> pd.DataFrame:
    """What comes instead, by the layer that is written, as texts: wrong entity, naming, nothing."""
    kinds = {
        "wrong country: its own fact": ("fact", "wrong entity", "donor"),
        "wrong country: the right fact": ("fact", "wrong entity", "right"),
        "naming: the right name": ("identify", "entity", "right"),
    }
    rows = {}
    for kind, (task, arm, gives) in kinds.items():
        table = deadline_words.deadline_curves(internals, task, arm, gives)
        for arrives, part in table.groupby("arrives", sort=False):
            at = part.set_index("layer")
            cells = {f"layer {x}": _cell(at, x) for x in layers}
            rows[f"{kind} ({arrives})"] = cells | {"n": n_range(part["n_items"])}
    for task, what in (("fact", "the right fact"), ("identify", "the right name")):
        told = deadline_words.left_alone(internals, task)
        cells = dict.fromkeys((f"layer {x}" for x in layers), told)
        n = len(deadline_words.unwritten(internals, task))
        rows[f"nothing written: {what}"] = cells | {"n": str(n)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _cell(table: pd.DataFrame, layer: int) -> str:
    if layer not in table.index:
        return NOT_MEASURED
    return counted(table.loc[layer, "value"], table.loc[layer, "n_items"])


# --- name-likeness ----------------------------------------------------------------------------


def likeness_curves(likeness: pd.DataFrame) -> pd.DataFrame:
    """How many pictures are nearest to their own name, by layer: ``model, layer, value, …``.

    Without a map, the mean over a picture's positions against names at the same layer.
    """
    plain = likeness[(likeness["map"] == "none") & (likeness["position"] == MEAN)]
    return crossed_table(plain, "found", ["model", "layer"])


def likeness_peaks(likeness: pd.DataFrame) -> pd.DataFrame:
    """The highest share of names found, by kind of search, with where it is.

    Columns ``model, search, value, n_items, where``, in four searches: the mean and each single
    position without a map, and a fitted map with its control, over all pairs of layers.
    """
    plain, mean = likeness["map"] == "none", likeness["position"] == MEAN
    searches = {
        "mean of positions": (likeness[plain & mean], ["layer"]),
        "best position": (likeness[plain & ~mean], ["position", "layer"]),
        "ridge map": (likeness[likeness["map"] == "ridge"], ["layer", "name_layer"]),
        "ridge map, shuffled": (likeness[likeness["map"] == "shuffled"], ["layer", "name_layer"]),
    }
    rows = []
    for model in likeness["model"].unique():
        for search, (part, by) in searches.items():
            found = part[part["model"] == model].groupby(by)["found"].agg(["mean", "size"])
            if len(found):
                at = found["mean"].idxmax()
                place = dict(zip(by, at if isinstance(at, tuple) else (at,), strict=True))
                where = ", ".join(f"{_PLACES[k]} {v}" for k, v in place.items())
                rows.append((model, search, *found.loc[at], where))
    return pd.DataFrame(rows, columns=["model", "search", "value", "n_items", "where"])


_PLACES = {"layer": "layer", "position": "position", "name_layer": "name at"}


def peak_table(peaks: pd.DataFrame) -> pd.DataFrame:
    """:func:`likeness_peaks` to read, a row a recipe."""
    told = peaks.assign(
        text=[f"{counted(r.value, int(r.n_items))} ({r.where})" for r in peaks.itertuples()]
    )
    wide = told.pivot(index="model", columns="search", values="text")
    order = [peaks["model"].drop_duplicates(), peaks["search"].drop_duplicates()]
    return wide.reindex(index=order[0], columns=order[1]).rename_axis(columns=None)


def arrives(curves: pd.DataFrame) -> dict[str, int | None]:
    """The first layer at which half of a recipe's pictures are name-like; None if never."""
    return {
        str(model): first_at_least(part.set_index("layer")["value"].sort_index(), arrival.THRESHOLD)
        for model, part in curves.groupby("model", sort=False)
    }


# --- patches ----------------------------------------------------------------------------------


def patches(internals: pd.DataFrame) -> pd.DataFrame:
    """Patched answers, with ``patch`` (in words), ``donor`` and ``own_name`` (whose words).

    ``blind`` facts, known with a blank picture, are among them.
    """
    # A file keeps whole numbers that may be missing as numbers with a point.
    kinds = dict.fromkeys(SITE[1:], "Int64") | {"blind": bool}
    rows = internals[internals["experiment"] == PATCH].astype(kinds)
    sites = list(rows[SITE].fillna(-1).itertuples(index=False, name=None))
    texts = {site: in_words(*site) for site in dict.fromkeys(sites)}
    return rows.assign(
        patch=[texts[site] for site in sites],
        donor=rows["follows"] == "donor",
        own_name=names_itself(rows, rows),
    )


def in_words(method: str, start: int, stop: int, layer: int) -> str:
    """A patch in words: ``MLP 0–3``, ``MLP 0–3, written at 8``, ``stream at 4``."""
    if method == "unpatched":
        return method
    blocks = f"MLP {start}–{stop - 1}"
    return {
        "mlp": blocks,
        "mlp later": f"{blocks}, written at {layer}",
        "residual stream": f"stream at {layer}",
        "wrong entity": f"wrong entity, {blocks}",
        "wrong residual": f"wrong entity, stream at {layer}",
        "noise": f"noise for {blocks}",
    }[method]


def patched(rows: pd.DataFrame, value: str = "correct") -> pd.DataFrame:
    """Shares by recipe and patch, without blind facts: ``model, patch, *SITE, value, low, …``.

    ``rows`` are :func:`patches`; ``value`` is "correct", "donor" or "own_name".
    """
    told = rows[~rows["blind"]]
    sites = told[["patch", *SITE]].drop_duplicates("patch")
    return crossed_table(told, value, ["model", "patch"]).merge(sites, on="patch")


def windows(rows: pd.DataFrame) -> pd.DataFrame:
    """Right answers by where a window of blocks begins: ``model, start, value, low, high, …``."""
    table = patched(rows)
    table = table[table["method"] == "mlp"]
    width = (table["stop"] - table["start"]).max()
    return table[table["stop"] - table["start"] == width]


def changed(rows: pd.DataFrame, patch: str) -> pd.DataFrame:
    """What a patch changes over all known facts, blind ones too: ``model, value, low, high, …``.

    In shares of the facts: brought back less lost.
    """
    return crossed_table(_against_unpatched(rows, patch), "change", ["model"])


def lost(rows: pd.DataFrame, patch: str) -> pd.DataFrame:
    """Of the facts that are right without it, how many a patch loses: ``model, value, …``."""
    pairs = _against_unpatched(rows, patch)
    right = pairs[pairs["unpatched"] == 1]
    return crossed_table(right.assign(lost=-right["change"]), "lost", ["model"])


def _against_unpatched(rows: pd.DataFrame, patch: str) -> pd.DataFrame:
    keys = ["model", "seed", "entity_id", "question_id"]
    both = rows[rows["patch"].isin([patch, "unpatched"])]
    both = both.assign(correct=both["correct"].astype(float))
    wide = both.pivot(index=keys, columns="patch", values="correct").dropna()
    return wide.assign(change=wide[patch] - wide["unpatched"]).reset_index()


def early_patch(rows: pd.DataFrame) -> str:
    """The words for the first and widest window: the patch of the paper."""
    first = rows[(rows["method"] == "mlp") & (rows["start"] == 0)]
    widest = first.loc[first["stop"].astype(int).idxmax()]
    return str(widest["patch"])


def late_patch(rows: pd.DataFrame) -> str:
    """The words for the last window of the same width."""
    table = rows[rows["method"] == "mlp"]
    return str(table.loc[table["start"].astype(int).idxmax(), "patch"])


def above(rows: pd.DataFrame) -> str:
    """The words for the stream that leaves the first window."""
    stop = rows.loc[rows["patch"] == early_patch(rows), "stop"].iloc[0]
    return in_words("residual stream", stop, stop + 1, stop)


def shown(rows: pd.DataFrame) -> list[str]:
    """The patches of the overview figure, in order."""
    early = early_patch(rows)
    wrong = rows.loc[rows["method"] == "wrong entity", "patch"].iloc[0]
    noise = rows.loc[rows["method"] == "noise", "patch"].iloc[0]
    return ["unpatched", early, above(rows), late_patch(rows), noise, wrong]


def later(rows: pd.DataFrame) -> pd.DataFrame:
    """The first window where it belongs and further up, and the stream: as :func:`patched`."""
    table = patched(rows)
    early = early_patch(rows)
    kinds = ["mlp later", "residual stream", "wrong residual"]
    kept = table[(table["patch"] == early) | table["method"].isin(kinds)]
    order = {kind: i for i, kind in enumerate(["mlp", *kinds])}
    return kept.sort_values(["method", "layer"], key=lambda c: c.map(order).fillna(c))


def width(table: pd.DataFrame) -> int:
    """How many blocks the windows of :func:`windows` have."""
    return int((table["stop"] - table["start"]).max())


def patch_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The early patch and its controls, a row a recipe, as texts.

    Right answers, the wrong entity's own facts, own names said; what is lost of the facts that
    were right, and the net change over all known facts, blind ones too.
    """
    early, right = early_patch(rows), patched(rows)
    wrong = f"wrong entity, {early}"
    columns = {
        "unpatched": _texts(right, "unpatched"),
        early: _texts(right, early),
        "wrong country: right": _texts(right, wrong),
        "wrong country: its own fact": _texts(patched(rows, "donor"), wrong),
        "own name, unpatched": _texts(patched(rows, "own_name"), "unpatched"),
        "own name, patched": _texts(patched(rows, "own_name"), early),
        "lost of right facts": _texts(lost(rows, early)),
        "net change, points": _texts(changed(rows, early), words=points_with_interval),
    }
    order = right["model"].drop_duplicates()
    return pd.DataFrame(columns).reindex(order).fillna(NOT_MEASURED).rename_axis("recipe")


def _texts(
    table: pd.DataFrame, patch: str | None = None, words: Any = counted_with_interval
) -> pd.Series:
    rows = table if patch is None else table[table["patch"] == patch]
    told = [words(r.value, r.low, r.high, r.n_items) for r in rows.itertuples()]
    return pd.Series(told, index=rows["model"], dtype=object)
