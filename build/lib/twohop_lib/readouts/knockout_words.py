"""How a chapter tells of cut attention: titles, tables and sentences.

Frames are records of knockouts (``model, task, edge, mode, start, stop, correct``); tables of
switches are those of :mod:`twohop_lib.readouts.switch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from twohop_lib.readouts import switch
from twohop_lib.readouts.captions import percent
from twohop_lib.readouts.layers import curves, extremes, first_below, lowest
from twohop_lib.stats import ENTITY

NOTHING = "nothing cut"


def names_need(turn: pd.DataFrame) -> str:
    """A title: how many blocks must read the picture for half of the names, least and most."""
    ends = extremes(turn.set_index("model")["switch"])
    if ends is None:
        return "The cut does not turn the answer anywhere"
    title = f"Half of the names need {ends.lowest:.1f} ({ends.at_lowest})"
    if not ends.one:
        title += f" to {ends.highest:.1f} ({ends.at_highest})"
    return f"{title} blocks that read the picture"


def names_lost(lost: pd.DataFrame) -> str:
    """A title: with how many of the lowest blocks cut (``stop``) half of the names are lost."""
    at = {name: first_below(curve) for name, curve in curves(lost, "stop").items()}
    told = [f"{stop} ({name})" for name, stop in at.items() if stop is not None]
    if not told:
        return "Cuts from below lose less than half of the names"
    return f"Half of the names are lost with the first {', '.join(told)} blocks cut"


def cut_in_all_blocks(swept: pd.DataFrame) -> pd.DataFrame:
    """The answers with each edge cut in every block, and with nothing cut: column ``cut``."""
    item = ["model", "task", *ENTITY]
    blocks = swept.groupby("model")["stop"].transform("max")
    everywhere = swept[swept["stop"] - swept["start"] == blocks]
    everywhere = everywhere.assign(cut=everywhere["edge"]).drop_duplicates([*item, "edge"])
    # The run left alone is there once for each edge and mode.
    nothing = swept[swept["start"] == swept["stop"]].assign(cut=NOTHING).drop_duplicates(item)
    return pd.concat([nothing, everywhere], ignore_index=True)


def width(windows: pd.DataFrame) -> int:
    """How many blocks a sliding window has."""
    return int((windows["stop"] - windows["start"]).iloc[0])


def worst_window(left: pd.DataFrame, model: str, blocks: int) -> str:
    """A title: the edge and the window whose cut leaves least; ``edge, start, value``."""
    worst = lowest(left)
    assert worst is not None
    first, last = int(worst["start"]), int(worst["start"]) + blocks - 1
    where = f"block {first}" if first == last else f"blocks {first} to {last}"
    return (
        f"{model} loses most ({percent(worst['value'])} % left) with {worst['edge']} cut in {where}"
    )


def on_one_axis(others: Mapping[str, pd.DataFrame], knockout: pd.DataFrame) -> pd.DataFrame:
    """Switches of every experiment on the axis of blocks that read the picture undisturbed.

    ``others`` are records by the experiment's name in the figure; ``knockout`` a table of switches.
    """
    parts = [knockout.assign(experiment="knockout")]
    for name, frame in others.items():
        if not len(frame):
            continue
        patched = "says" in frame
        value = switch.balance(frame) if patched else frame["correct"].astype(float)
        asked = frame.assign(blocks_read=switch.blocks_read(frame), value=value)
        parts.append(switch.switch_table(asked, "value").assign(experiment=name))
    return pd.concat(parts, ignore_index=True)


def settled_by(spread: pd.DataFrame) -> str:
    """A title: the last block, over models and experiments, by which names are settled."""
    latest = spread["max"].idxmax()
    return f"Names are settled by block {spread.loc[latest, 'max']:.1f} ({latest}) at the latest"


def axis_sentence(spread: pd.DataFrame, models: Sequence[str]) -> str:
    """A sentence: from which block to which each model's name is settled, by experiment."""
    told = [
        f"{model} {spread.loc[model, 'min']:.1f} to {spread.loc[model, 'max']:.1f}"
        for model in models
        if model in spread.index
    ]
    return f"{'; '.join(told)} by experiment." if told else "not to be had: no experiment turned."


def who_reads(edges: pd.DataFrame) -> str:
    """A sentence: in which models the last position reads the picture itself."""
    named = edges[(edges["task"] == "identify") & (edges["cut"] == "last→image")]
    left = named.groupby("model", sort=False)["correct"].mean()
    direct = [str(model) for model in left.index[left < 0.5]]
    if not direct:
        return (
            "in no model does cutting last→image alone lose half of the names: the words carry "
            "them."
        )
    return (
        "cutting last→image alone, in all blocks, leaves less than half of the names in "
        f"{', '.join(direct)}: there the last position reads the picture itself."
    )


def back_at(layer: str) -> str:
    """A sentence about one model: from which cut on half of the names are back."""
    if layer == switch.NEVER:
        return "With question→image cut from any block upwards, the share of names does not turn."
    return (
        f"With question→image cut from block b upwards, half of the names are back at b = {layer}."
    )


def cut_at(turn: pd.DataFrame) -> str:
    """From which cut on half of the names are back, in each model: ``b = 8.1 (a), none (b).``"""
    at = turn.set_index("model")["switch"].map(switch.switch_words)
    told = [layer if layer == switch.NEVER else f"b = {layer}" for layer in at]
    return ", ".join(f"{t} ({model})" for t, model in zip(told, at.index, strict=True)) + "."


def how_computed(swept: pd.DataFrame) -> pd.DataFrame:
    """How many answers were computed in which way, by model."""
    return swept.groupby(["model", "computation"]).size().rename("answers").to_frame()
