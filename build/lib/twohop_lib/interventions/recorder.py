"""The runs that sweeps start from: a question asked with its own or another's picture, or name."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image, ImageOps

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.models.inputs import GREY
from twohop_lib.runs.conditions import prompt_of


class Recorder:
    """Records the prompts of one condition, each once as long as the same question is asked.

    Where the condition shows no picture, the name is what a run is recorded for. ``max_new_tokens``
    and ``from_start`` as in :meth:`Engine.record`.
    """

    def __init__(
        self,
        engine: Engine,
        benchmark: Benchmark,
        condition: str,
        max_new_tokens: int = 0,
        from_start: bool = False,
    ) -> None:
        self.engine, self.benchmark, self.condition = engine, benchmark, condition
        self.max_new_tokens, self.from_start = max_new_tokens, from_start
        self.made: dict[tuple[str, str], Recording] = {}

    def __call__(self, shown: Question, asked: Question | None = None) -> Recording:
        """Record ``asked`` (itself, if None) with the picture, or the name, of ``shown``."""
        asked = asked or shown
        key = (asked.question_id, shown.entity_id)
        if key not in self.made:
            # A recording of a large model takes hundreds of MB: only one question's are held.
            self.made = {k: made for k, made in self.made.items() if k[0] == asked.question_id}
            self.made[key] = self._record(shown, asked)
        return self.made[key]

    def _record(self, shown: Question, asked: Question) -> Recording:
        prompt, picture = prompt_of(self.condition, asked, self.engine.owner.tokenizer), None
        if prompt.image:
            size = self.benchmark.image(asked).size
            picture = self.benchmark.image(shown)
            picture = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, GREY)
        else:
            prompt = replace(prompt, text=prompt.text.replace(asked.entity, shown.entity))
        entity = shown.entity if shown.entity in prompt.text + prompt.prefill else None
        return self.engine.record(prompt, picture, entity, self.max_new_tokens, self.from_start)


def own_blocks(engine: Engine) -> list[int]:
    """The blocks that a VLM shares with its backbone: all but inserted cross-attention ones."""
    return [b for b in range(engine.n_blocks) if b not in engine.blocks.cross]


def receiving(engine: Engine, target: Recording) -> tuple[int, ...]:
    """The positions that stand for the picture: its own, or the token that announces it.

    Raises UnsupportedSite if a cross-attention model's prompt has no such token.
    """
    if target.span[1]:
        return tuple(target.roles.image) or tuple(range(*target.span))
    site = engine.site
    at = tuple(p for p, i in enumerate(target.ids) if site is not None and i in site.token_ids)
    if not at:
        raise UnsupportedSite(
            "This model's prompt has no token that stands for the picture, so nothing can be "
            "written there."
        )
    return at
