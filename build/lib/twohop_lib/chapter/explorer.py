"""A menu for a live notebook: choose target, donor and layer, and the model says what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.pairs import Pair, Task, condition_of, whose
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.splice import Engine

if TYPE_CHECKING:
    from ipywidgets import Widget


class PatchExplorer:
    """Cross-patches one pair at a time, on a loaded model; prompts are run once and kept."""

    def __init__(
        self, engine: Engine, benchmark: Benchmark, questions: Sequence[Question], length: int = 8
    ) -> None:
        self.engine, self.questions, self.length = engine, list(questions), length
        self.recorders = {
            task: Recorder(engine, benchmark, condition_of(task, "picture"), length)
            for task in ("identify", "fact")
        }

    def say(self, target: Question, donor: Question, layer: int, task: Task) -> tuple[str, str]:
        """Return what the model answers under the patch, and whose answer that is."""
        record = self.recorders[task]
        row = CrossPatch(record(target), record(donor, target), layer)
        text = self.engine.answers([row], self.length)[1][0]
        same = [q for q in self.questions if q.entity_id == donor.entity_id]
        theirs = next((q for q in same if q.relation == target.relation), donor)
        return text, whose(Pair(target, theirs), condition_of(task, "picture"), text)

    def widget(self) -> Widget:
        """Return the menu, for a notebook with a kernel."""
        import ipywidgets as widgets

        names = [(q.entity, q) for q in self.questions]
        target = widgets.Dropdown(options=names, description="target", index=0)
        donor = widgets.Dropdown(options=names, description="donor", index=min(1, len(names) - 1))
        layer = widgets.IntSlider(
            self.engine.n_blocks // 2,
            0,
            self.engine.n_blocks,
            description="layer",
            continuous_update=False,
        )
        task = widgets.ToggleButtons(
            options=[("name it", "identify"), ("a fact", "fact")], description="asked"
        )
        said = widgets.HTML()

        def ask(_: Any = None) -> None:
            text, whose = self.say(target.value, donor.value, layer.value, task.value)
            asked = (
                target.value.identify_prompt
                if task.value == "identify"
                else target.value.question_by_picture
            )
            whom = "neither" if whose == "neither" else f"the {whose}"
            said.value = f"{escape(asked)}<br><b>{escape(text)}</b> ({whom}'s)"

        for control in (target, donor, layer, task):
            control.observe(ask, names="value")
        ask()
        return widgets.VBox([target, donor, layer, task, said])
