"""One country followed through a graft: named, asked by name, asked by picture.

Chosen by a rule, not by hand: of the countries whose fact shows what the graft does most often, the
first by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from twohop_lib.benchmark.schema import Question
from twohop_lib.errors import TwohopError
from twohop_lib.readouts import graft_gap

CAPITAL = "capital"


@dataclass(frozen=True)
class Example:
    """A country's question, and what was answered: ``named``, ``by_name`` and ``by_picture``."""

    question_id: str
    entity_id: str
    named: str
    by_name: str
    by_picture: str
    outcome: str

    def table(self, question: Question) -> pd.DataFrame:
        """The three prompts of ``question`` and their answers, as a page shows them."""
        rows = [
            (question.identify_prompt, self.named),
            (question.question_by_name, self.by_name),
            (question.question_by_picture, self.by_picture),
        ]
        return pd.DataFrame(rows, columns=["asked", "answered"]).set_index("asked")

    def told(self, question: Question) -> dict[str, str]:
        """The same, and the country, as values that a page quotes."""
        table = self.table(question).reset_index()
        values = {"example_country": question.entity}
        for at, row in zip(("name", "by_name", "by_picture"), table.itertuples(), strict=True):
            values |= {f"example_ask_{at}": row.asked, f"example_{at}": row.answered}
        return values


def example(answers: pd.DataFrame, graft: str, seed: int = 0, format: str = "chat") -> Example:
    """The example of one graft, from the study's answer records.

    Of countries that the graft names from the drawing, whose capital its language model gives by
    name and not for a blank picture; of these the ones with the commonest outcome.

    Raises:
        TwohopError: there is none.
    """
    own = answers[
        answers["model"].eq(graft) & answers["seed"].eq(seed) & answers["format"].eq(format)
    ]
    told = graft_gap.outcomes(own)
    told = told[told["relation"].eq(CAPITAL) & told["view"].eq(graft_gap.DRAWN)]
    if told.empty:
        raise TwohopError(f"No capital that {graft} could give was asked of it.")
    commonest = told["outcome"].mode().iloc[0]
    chosen = told[told["outcome"] == commonest].sort_values("entity").iloc[0]
    about = own[own["entity_id"] == chosen["entity_id"]]
    named = about[about["condition"].eq("identify") & about["view"].eq(graft_gap.DRAWN)]
    by_name = about[about["condition"].eq("by_name") & about["relation"].eq(CAPITAL)]
    return Example(
        chosen["question_id"],
        chosen["entity_id"],
        named["answer"].iloc[0],
        by_name["answer"].iloc[0],
        chosen["answer"],
        chosen["outcome"],
    )
