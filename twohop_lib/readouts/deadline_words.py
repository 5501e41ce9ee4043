"""How a chapter tells of attribution and of the recall deadline: tables, titles, sentences.

``written`` are records of :func:`twohop_lib.interventions.deadlines.recall_deadline` and
:func:`~twohop_lib.interventions.deadlines.reading_deadline`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twohop_lib.benchmark.schema import Question
from twohop_lib.readouts import attribution_shares as places
from twohop_lib.readouts import switch
from twohop_lib.readouts.arrival import recalled_by_layer
from twohop_lib.readouts.captions import counted, percent
from twohop_lib.readouts.layers import around_half, curves
from twohop_lib.readouts.probes import facts_read_off
from twohop_lib.readouts.shares import share_table
from twohop_lib.readouts.tables import share_words, whose_table
from twohop_lib.stats import Interval

#: What the shares of :func:`~twohop_lib.readouts.attribution_shares.shares_by_half` are of.
SHARES = {
    "early_mlp": "MLPs of the lower half, of all at the name",
    "late_attn": "attention of the upper half, of the attention's at the last token",
    "late_mlp": "MLPs of the upper half at the last token, of all",
}
#: The experiments of the two deadlines, by the names in their records.
RECALL, READING = "deadline", "reading-deadline"
#: What figures call the states that arrive: of one block, and of the layer itself.
ENRICHED, READ = "state after {} blocks", "the layer's own state"


def largest_share(own: pd.DataFrame) -> str:
    """A title: the place of the largest share of attribution."""
    top = places.largest(own)
    role = {"entity": "name", "last": "last token"}.get(top["role"], top["role"])
    return (
        f"The largest share ({percent(top['share'])} %) is the {top['component']} of block "
        f"{int(top['block'])} at the {role}"
    )


def readable_overlap(table: pd.DataFrame) -> pd.DataFrame:
    """Correlations of attribution with the backbone's, to read."""
    return pd.DataFrame(
        {
            "model": table["model"],
            "correlation with the backbone": table["correlation"].map("{:.2f}".format),
            "null, 95th percentile": table["null_95"].map("{:.2f}".format),
            "p": table["p"].map("{:.3f}".format),
        }
    )


# --- deadlines ----------------------------------------------------------------------------


def arriving(written: pd.DataFrame, task: str = "fact", arm: str = "entity") -> pd.DataFrame:
    """The records in which an arm's states are written; ``arrives`` says which states these are."""
    rows = written[(written["task"] == task) & (written["arm"] == arm)]
    rows = rows[rows["experiment"].isin([RECALL, READING])]
    depth = rows["state"].astype(int).astype(str)
    own = rows["experiment"] == READING
    return rows.assign(arrives=depth.map(ENRICHED.format).mask(own, READ))


def deadline_curves(
    written: pd.DataFrame, task: str = "fact", arm: str = "entity", gives: str = "right"
) -> pd.DataFrame:
    """How often an answer comes from a state that is written: ``arrives, layer, value, …``.

    ``arm`` "wrong entity" with ``gives`` "donor" counts the answers that are the written entity's.
    """
    rows = arriving(written, task, arm).astype({"layer": int})
    return share_table(rows.assign(given=rows["follows"] == gives), "given", ["arrives", "layer"])


def half_gone(written: pd.DataFrame, state: int) -> Interval:
    """The layer of arrival at which half of the facts are gone, with its interval."""
    own = arriving(written)
    own = own[own["state"] == state]
    lost = own.assign(lost=1 - own["correct"].astype(float))
    return switch.switch_layer(lost, "lost", x="layer")


def last_layers(table: pd.DataFrame) -> dict[str, int | None]:
    """Each deadline of :func:`deadline_curves`, by the state that arrives.

    The last layer at which half or more comes of what comes at the first; None if nothing does.
    """
    return {which: around_half(curve)[0] for which, curve in curves(table, group="arrives").items()}


def two_deadlines_title(table: pd.DataFrame, state: int) -> str:
    """A title: until which layers a state can be enriched, and the layer's own state is read.

    Of :func:`deadline_curves`, with the state after ``state`` blocks.
    """
    last = last_layers(table)
    recall, reading = last.get(ENRICHED.format(state)), last.get(READ)
    if recall is None or reading is None:
        return "No state that is written brings a fact"
    if recall == reading:
        return f"Both deadlines stand at layer {recall}"
    return (
        f"A state after {state} blocks must arrive by layer {recall} to be enriched; what is "
        f"enriched is read until layer {reading}"
    )


def two_deadlines_sentence(written: pd.DataFrame) -> str:
    """The end of a sentence: what comes at the last layer before each deadline, and behind it."""
    told = []
    for arrives, share in curves(deadline_curves(written), group="arrives").items():
        last, gone = around_half(share)
        if last is None:
            continue
        behind = "" if gone is None else f" and in {percent(share[gone])} % at layer {gone}"
        told.append(
            f"the {arrives.removeprefix('the ')} gives the fact in {percent(share[last])} % at "
            f"layer {last}{behind}"
        )
    n, alone = arriving(written)["entity_id"].nunique(), left_alone(written)
    return f"{', '.join(told) or 'none gives a fact'} (n = {n}; {alone} come with nothing written)."


def unwritten(written: pd.DataFrame, task: str = "fact") -> pd.DataFrame:
    """The records with nothing written over the placeholder, one a question."""
    rows = written[(written["arm"] == "nothing") & (written["task"] == task)]
    return rows.drop_duplicates(["seed", "entity_id", "question_id"])


def left_alone(written: pd.DataFrame, task: str = "fact") -> str:
    """The share of answers that come with nothing written over the placeholder: ``8 %``."""
    rows = unwritten(written, task)
    return counted(rows["correct"].mean(), len(rows))


def deadline_values(
    written: pd.DataFrame, state: int, layers: Sequence[int] = (4, 6)
) -> dict[str, str]:
    """Values to glue: what is recalled of a state on arrival, at later layers, and half-way."""
    recalled = recalled_by_layer(written, state)
    found = {"s_main": str(state), "at_start": percent(recalled.iloc[0])}
    found |= {f"at_{layer}": percent(recalled.get(layer)) for layer in layers}
    return found | {"deadline": half_gone(written, state).words(1)}


def reading_values(written: pd.DataFrame, layers: Sequence[int] = (4, 6)) -> dict[str, str]:
    """Values to glue: how often the own state gives its fact, written at later layers, and n."""
    own = written[written["arm"] == "entity"]
    recalled = own.groupby("layer")["correct"].mean()
    found = {f"read_{layer}": percent(recalled.get(layer)) for layer in layers}
    return found | {"n_written": str(own["entity_id"].nunique())}


def about_one(written: pd.DataFrame, state: int, n_blocks: int) -> str:
    """A sentence about one model's backbone."""
    start = percent(recalled_by_layer(written, state).iloc[0])
    return (
        f"An entity's state that arrives at layer {state} of its backbone is turned into its fact "
        f"in {start} % of cases; half of them are gone at layer "
        f"{switch.switch_words(half_gone(written, state).estimate)} of {n_blocks}."
    )


def whose_facts(written: pd.DataFrame) -> pd.DataFrame:
    """Whose fact is given, by arm, state and layer, as texts."""
    rows = written.dropna(subset=["layer"]).sort_values(["arm", "state", "layer"], kind="stable")
    return whose_table(rows, ("arm", "state", "layer"))


def what_states_carry(
    written: pd.DataFrame,
    states: NDArray[np.float32],
    entities: Sequence[str],
    questions: Sequence[Question],
) -> pd.DataFrame:
    """Is the fact in the state already? Recalled on arrival, and read off by a probe, as texts.

    ``states`` ``[entity, layer, d_model]`` are the name states of ``entities``.
    """
    entity = arriving(written)
    rows = []
    for state in sorted(entity["state"].astype(int).unique()):
        on_arrival = entity[(entity["state"] == state) & (entity["layer"] == state)]["correct"]
        read = pd.Series(facts_read_off(states[:, state], entities, questions), dtype=float)
        told = share_words(0)
        rows.append((state, told(on_arrival), told(read), len(read)))
    columns = ["state after", "recalled on arrival", "read off by a probe", "facts probed"]
    return pd.DataFrame(rows, columns=columns)


# --- attribution against the truth ------------------------------------------------------------


@dataclass(frozen=True)
class Checks:
    """How estimates agree with true patching, and one of them with small steps."""

    estimated: Interval
    integrated: Interval
    signs: float
    finite: float
    n_places: int


def checks(truth: pd.DataFrame, stepped: NDArray[np.float64]) -> Checks:
    """Compare estimates with the truth.

    ``truth`` as of :func:`~twohop_lib.interventions.attribution.against_truth`; ``stepped``
    ``[place, 2]`` are scores by gradient and by a small step.
    """
    return Checks(
        estimated=places.truth_correlation(truth, "estimated"),
        integrated=places.truth_correlation(truth, "integrated"),
        signs=places.signs_agree(truth, "estimated")[0],
        finite=float(np.corrcoef(stepped[:, 0], stepped[:, 1])[0, 1]),
        n_places=len(truth),
    )


def readable_checks(found: Checks) -> pd.DataFrame:
    """The same to read."""
    return pd.DataFrame(
        {
            "correlation with true patching [95 %]": found.estimated.words(2),
            "the same, integrated variant": found.integrated.words(2),
            "signs that agree (effects above 0.05)": f"{percent(found.signs)} %",
            "correlation with finite differences": f"{found.finite:.3f}",
        },
        index=["value"],
    ).T


def check_values(found: Checks) -> dict[str, str]:
    """Values to glue."""
    return {
        "correlation": found.estimated.words(2),
        "correlation_integrated": found.integrated.words(2),
        "n_places": str(found.n_places),
        "signs": percent(found.signs),
        "finite": f"{found.finite:.3f}",
    }


def readable_shares(shares: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Shares of attribution by half, one column a variant, to read."""
    return pd.DataFrame(
        {
            variant: {SHARES[name]: f"{percent(value)} %" for name, value in found.items()}
            for variant, found in shares.items()
        }
    )


def share_values(shares: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Values to glue: ``early_mlp``, ``early_mlp_integrated``, …"""
    return {
        name + ("" if variant == "one gradient" else f"_{variant}"): percent(value)
        for variant, found in shares.items()
        for name, value in found.items()
    }
