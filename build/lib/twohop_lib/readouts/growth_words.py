"""How a chapter tells of organisms: what they recall, and what their image tokens spell.

All functions return values by the names under which they are glued; shares are in percent.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from twohop_lib.benchmark.heraldry import RELATIONS, World
from twohop_lib.readouts.captions import listed, percent, percent_range

#: Wordings that no organism was trained on.
HELD_OUT = ["held-out-1", "held-out-2"]


def recall_values(recall: pd.DataFrame, model: Any, world: World) -> dict[str, object]:
    """The backbone's size, what there is to know, and its recall; what a new wording costs.

    ``recall`` are answer records in the standard wording and in :data:`HELD_OUT`; the cost is that
    of the worst of these, in points. ``model`` is the module, ``world`` what it was trained on.
    """
    share = recall.groupby("wording")["correct"].mean()
    cost = max(0.0, share["standard"] - share[HELD_OUT].min())
    return {
        "backbone_millions": f"{model.num_parameters() / 1e6:.1f}",
        "n_houses": len(world.houses),
        "n_facts": len(world.houses) * len(RELATIONS),
        "text_recall": percent(share["standard"], 1),
        "wording_cost": percent(cost, 1),
    }


def organism_values(standard: pd.DataFrame, spelled: pd.DataFrame) -> dict[str, str]:
    """How many houses are named; of each model, what is spelled and what is recalled by picture.

    ``standard`` are answer records in one wording, ``spelled`` is that of
    :func:`twohop_lib.readouts.vocabulary.names_spelled`.
    """
    share = standard.groupby(["condition", "model"])["correct"].mean()
    values = {"recognition_range": percent_range(share["identify"]).removesuffix(" %")}
    for model, found in spelled.groupby("model")["found"].mean().items():
        values[f"spelled_{model}"] = percent(found)
        values[f"{model}_facts"] = percent(share["by_picture", model])
    return values


def arrival_values(answers: pd.DataFrame, last: pd.DataFrame, seed: int) -> dict[str, str]:
    """What each model recalls by picture in a world, and how far its states are off over all.

    ``answers`` are answer records, ``last`` has ``model`` in its index and a column
    ``state_error``: the last logged step of each world's training.
    """
    here = answers[(answers["seed"] == seed) & (answers["condition"] == "by_picture")]
    facts = here.groupby("model")["correct"].mean()
    error = last.groupby("model", sort=False)["state_error"].mean()
    values = {f"{model.replace('-', '_')}_facts": percent(share) for model, share in facts.items()}
    values["state_errors"] = listed([f"{value:.3f} ({model})" for model, value in error.items()])
    return values
