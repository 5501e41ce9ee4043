"""What every sweep shares: recorded prompts, controls that raise, work stored as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.pairs import Pair, Task, accepted, prompt_of
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.models.prompts import Prompt
from twohop_lib.runs import store
from twohop_lib.runs.evaluate import judge
from twohop_lib.scoring.matching import matches

#: Targets whose recordings are held at once.
AT_ONCE = 4


#: Tokens of an answer.
LENGTH = 8


class ControlFailed(TwohopError):
    """A control of a sweep did not come out as it must; its results would mean nothing."""


class NothingLeft(TwohopError):
    """A sweep has no item that it could be run on."""


class Recorder:
    """Records prompts of one task, each once."""

    def __init__(
        self,
        engine: Engine,
        benchmark: Benchmark,
        task: Task,
        picture: bool,
        length: int,
        from_start: bool = False,
    ) -> None:
        self.engine, self.benchmark, self.task = engine, benchmark, task
        self.picture, self.length, self.from_start = picture, length, from_start
        self.made: dict[tuple[str, ...], Recording] = {}

    def __call__(self, shown: Question, asked: Question | None = None) -> Recording:
        """Record ``asked`` (itself, if None) with the picture, or the name, of ``shown``."""
        asked = asked or shown
        key = (shown.entity_id, asked.question_id)
        if key not in self.made:
            prompt = prompt_of(asked, self.task, self.picture)
            image, entity = None, None
            if self.picture:
                image = fitted(self.benchmark.image(shown), self.benchmark.image(asked))
            else:
                # The donor's name in the target's question.
                prompt = Prompt(prompt.kind, prompt.text.replace(asked.entity, shown.entity), False)
                entity = shown.entity
            self.made[key] = self.engine.record(prompt, image, entity, self.length, self.from_start)
        return self.made[key]


def fitted(picture: Image.Image, like: Image.Image) -> Image.Image:
    """A picture at the size of another: scaled to fit, centred on grey."""
    picture = picture.convert("RGB")
    if picture.size == like.size:
        return picture
    scale = min(a / b for a, b in zip(like.size, picture.size, strict=True))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    whole = Image.new("RGB", like.size, (128, 128, 128))
    at = tuple((a - b) // 2 for a, b in zip(like.size, size, strict=True))
    whole.paste(picture.resize(size, Image.Resampling.LANCZOS), at)
    return whole


def _record(question: Question, task: Task, by: str, said: str) -> dict[str, Any]:
    condition = {
        ("identify", "picture"): "identify",
        ("identify", "name"): "llm_identify",
        ("fact", "picture"): "by_picture",
        ("fact", "name"): "llm_by_name",
    }[task, by]
    row = judge(question, condition, said)
    return {k: v for k, v in row.items() if k not in ("named", "named_right")}


def together(items: Iterable[Any], key: Callable[[Any], str]) -> list[list[Any]]:
    """Items in parts that are run, and stored, at once: those of one target stay together."""
    by: dict[str, list[Any]] = {}
    for item in items:
        by.setdefault(key(item), []).append(item)
    groups = list(by.values())
    return [
        [item for group in groups[i : i + AT_ONCE] for item in group]
        for i in range(0, len(groups), AT_ONCE)
    ]


def stored(
    engine: Engine,
    benchmark: Benchmark,
    parts: list[list[Any]],
    work: Callable[[list[Any]], list[dict[str, Any]]],
    what: dict[str, Any],
    labels: dict[str, Any] | None,
    folder: str | Path | None,
    others: dict[str, Engine] | None = None,
) -> pd.DataFrame:
    """Run the parts, each stored as it is done; returns all their rows.

    ``others`` are further models that the work uses.
    """
    labels = {"model": engine.owner.name, "seed": benchmark.seed} | (labels or {})
    key: dict[str, Any] = {}
    if folder is not None:
        weights: Any = store.model_key(engine.owner)
        if others:
            weights = [weights, {k: store.model_key(e.owner) for k, e in others.items()}]
        key = {
            **what,
            **labels,
            **store.code_key(),
            "weights": weights,
            "benchmark": benchmark.hash,
        }
    frames = []
    for part in parts:
        named = [
            [q.question_id for q in (item.target, item.donor)]
            if isinstance(item, Pair)
            else item.question_id
            for item in part
        ]

        def compute(part: list[Any] = part) -> pd.DataFrame:
            rows = [
                labels | row | {"experiment": what["experiment"], "task": what["task"]}
                for row in work(part)
            ]
            frame = pd.DataFrame(rows)
            if "by" in what:
                frame["by"] = what["by"]
            return _typed(frame)

        frames.append(_typed(store.cached(folder, key | {"items": named}, compute)))
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        raise NothingLeft(
            "Nothing is left to run: no item has a donor or the positions that this sweep needs."
        )
    return pd.concat(frames, ignore_index=True)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that may be empty keep their types where all of their rows are."""
    types = {"until": "Int64", "calibrated": "Float64"}
    return frame.astype({k: v for k, v in types.items() if k in frame})


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


def named_recording(
    backbone: Engine, question: Question, named: Question | None = None
) -> Recording:
    """The backbone's run on a question that names an entity (another's name: ``named``)."""
    entity = (named or question).entity
    text = question.question_by_name.replace(question.entity, entity)
    return backbone.record(Prompt("by_name", text, False), None, entity, from_start=True)


def _told(pair: Pair, said: str) -> dict[str, Any]:
    """One answer's record, and whose fact it is."""
    right = [matches(said, accepted(q, "fact")) for q in (pair.target, pair.donor)]
    follows = "neither" if right[0] == right[1] else "right" if right[0] else "donor"
    row = judge(pair.target, "by_picture", said)
    row = {k: v for k, v in row.items() if k not in ("named", "named_right")}
    return row | {"donor_id": pair.donor.entity_id, "follows": follows}
