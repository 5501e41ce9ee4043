"""Draw README's picture of the main result from the study's records (``make picture``)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import vl_convert

from twohop_lib import records
from twohop_lib.figures.dots import accuracy_by_arm
from twohop_lib.figures.theme import ARM_OF_CONDITION, fixed
from twohop_lib.organisms import STUDY
from twohop_lib.readouts import gap

ARMS = ("by_name", "by_picture")


def main() -> None:
    """Write ``book/_static/gap.png``: accuracy by name and by picture, seed 0, test houses."""
    answers = records.read(STUDY / "answers.parquet")
    answers = answers[(answers["seed"] == 0) & (answers["wording"] == "standard")]
    tables = [
        gap.accuracy_table(rows, "recognised")
        for name, rows in gap.split_models(answers).items()
        if name != "backbone"
    ]
    arms = pd.concat(tables)
    arms = arms[arms["condition"].isin(ARMS)]
    arms = arms.assign(arm=arms["condition"].map(ARM_OF_CONDITION))
    out = Path(__file__).parent / "_static" / "gap.png"
    drawn = fixed(accuracy_by_arm(arms).to_dict(), 700)
    out.write_bytes(vl_convert.vegalite_to_png(drawn, scale=2))
    print(out)


if __name__ == "__main__":
    main()
