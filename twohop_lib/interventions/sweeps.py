"""Sweeps: an intervention over all layers, for many items, as tidy answer records.

Each sweep carries its controls and raises :class:`ControlFailed` if one fails. Work is stored as
it is done (``folder``), so that a sweep cut off at any moment goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from twohop_lib import prompts
from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.engine import CrossPatch, Engine, Freeze, Knockout
from twohop_lib.interventions.recording import Recording
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.prompts import Prompt, count_tokens
from twohop_lib.readouts.matching import matches
from twohop_lib.runs import store
from twohop_lib.runs.evaluate import judge
from twohop_lib.runs.generate import Vlm, continued

#: What is asked: the entity's name, or a fact about it.
Task = Literal["identify", "fact"]
#: Attention edges, written query→key.
EDGES = ("question→image", "last→image", "last→question")
Mode = Literal["below", "above", "window"]
#: Targets whose recordings are held at once.
AT_ONCE = 4
#: Tokens of an answer.
LENGTH = 8
#: Below this difference of logits (nats) between target and donor, nothing can be calibrated.
LEAST = 0.5


class ControlFailed(TwohopError):
    """A control of a sweep did not come out as it must; its results would mean nothing."""


class NothingLeft(TwohopError):
    """A sweep has no item that it could be run on."""


@dataclass(frozen=True)
class Pair:
    """A target and a donor: whose prompt is run, and whose picture (or name) is written in."""

    target: Question
    donor: Question

    @property
    def same_type(self) -> bool:
        """Whether both are the same kind of thing (two houses; a landmark and a painting not)."""
        return self.target.noun == self.donor.noun


# --- choosing what to ask ---------------------------------------------------------------------


def pick_pairs(
    model: Any,
    questions: Sequence[Question],
    task: Task,
    per_target: int = 2,
    seed: int = 0,
    alike_names: bool = False,
) -> list[Pair]:
    """Give each question donors that can be told apart from it by the first token of the answer.

    Donors are drawn from the other entities among ``questions``; for facts they must have the
    same relation and another answer. Where there are several types of entity, one donor in two is
    of another type. ``questions`` are one per entity for "identify". With ``alike_names`` a
    donor's name has as many tokens as the target's. A target for which no donor is found is left
    out.
    """
    rng = np.random.default_rng(seed)
    picture = isinstance(model, Vlm)
    first = {
        id(q): first_token(model, prompt_of(q, task, picture), accepted(q, task)[0])
        for q in questions
    }
    length = {q.entity: count_tokens(q.entity, model.tokenizer) for q in questions}
    # The same few answers are compared again and again.
    right = lru_cache(maxsize=None)(matches)
    groups: dict[tuple[str, str], list[Question]] = {}
    for q in questions:
        groups.setdefault(_kind_of(q, task), []).append(q)
    pairs = []
    for target in questions:
        able = [
            q
            for q in groups[_kind_of(target, task)]
            if q.entity_id != target.entity_id
            and first[id(q)] != first[id(target)]
            and not right(accepted(q, task)[0], accepted(target, task))
            and (not alike_names or length[q.entity] == length[target.entity])
        ]
        drawn = [able[i] for i in rng.permutation(len(able))]
        other = [q for q in drawn if q.noun != target.noun]
        chosen = drawn[:per_target]
        if other and task == "identify":
            same = [q for q in drawn if q.noun == target.noun]
            chosen = [*same[: (per_target + 1) // 2], *other[: per_target // 2]]
        pairs += [Pair(target, donor) for donor in chosen]
    return pairs


def _kind_of(question: Question, task: Task) -> tuple[str, str]:
    """What a donor must have in common with its target: nothing, if both are to be named."""
    return ("", "") if task == "identify" else (question.relation, question.wording)


def one_per_entity(questions: Sequence[Question]) -> list[Question]:
    """One question for each entity; which of its facts is asked goes round from one to the next."""
    by: dict[str, list[Question]] = {}
    for question in questions:
        by.setdefault(question.entity_id, []).append(question)
    return [own[i % len(own)] for i, own in enumerate(by.values())]


def pairs_for(
    model: Any,
    benchmark: Benchmark,
    task: Task,
    entities: Collection[str],
    per_target: int = 2,
    seed: int = 0,
    alike_names: bool = False,
) -> list[Pair]:
    """Pairs for a task: targets and donors among ``entities``, one question for each target.

    A donor's own question is one about the same relation. With ``alike_names`` its name has as
    many tokens as the target's.
    """
    asked = [q for q in one_per_entity(benchmark.questions) if q.entity_id in entities]
    pool = asked
    if task == "fact":
        pool = [q for q in benchmark.questions if q.entity_id in entities]
    chosen = {q.question_id for q in asked}
    found = pick_pairs(model, pool, task, per_target, seed, alike_names)
    return [pair for pair in found if pair.target.question_id in chosen]


def prompt_of(question: Question, task: Task, picture: bool) -> Prompt:
    """The prompt of a task, with the picture or with the name in its place."""
    if picture:
        return prompts.build("identify" if task == "identify" else "by_picture", question)
    if task == "fact":
        return prompts.build("by_name", question)
    return Prompt("by_name", f"{question.entity}\n{question.identify_prompt}", False)


def accepted(question: Question, task: Task) -> tuple[str, ...]:
    """What counts as the right answer."""
    return (question.entity, *question.aliases) if task == "identify" else question.answers


def first_token(model: Any, prompt: Prompt, said: str) -> int:
    """The first token of an answer, as it follows the prompt."""
    text, length = continued(model, prompt, said)
    return _ids(model, text)[-length]


def _ids(model: Any, text: str) -> list[int]:
    from twohop_lib.runs.generate import special_tokens

    return model.tokenizer(text, **special_tokens(model, text))["input_ids"]


# --- cross-patching ---------------------------------------------------------------------------


def cross_patch(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    task: Task = "identify",
    by: Literal["picture", "name"] = "picture",
    bands: Sequence[tuple[int, int | None]] | None = None,
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Write the donor's stream over the target's picture (or name) and read out what is said.

    ``bands`` are (layer, until) as in :class:`CrossPatch`; None: from each layer 0 … n to the top.
    ``by`` "name" patches the name's tokens in a text prompt; pairs whose names differ in their
    number of tokens are left out.

    With "identify", questions are one per entity and only their identify prompt is asked.

    Returns answer records (``correct``: as for the target) with the columns ``experiment, task,
    by, donor_id, same_type, layer, until, says`` ("target", "donor" or "neither"), ``calibrated``
    (difference of the two answers' first-token logits: 0 as in the target's own run, 1 as in the
    donor's; null where the two runs hardly differ) and ``path``.

    Raises ControlFailed if patching a run with itself changes it, or patching from layer 0 does
    not give the donor's run.
    """
    chosen = list(bands) if bands is not None else [(layer, None) for layer in range(engine.n + 1)]

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, by == "picture", length)
        rows: list[CrossPatch] = []
        kept: list[tuple[Pair, CrossPatch]] = []
        for pair in part:
            target, donor = record(pair.target), record(pair.donor, pair.target)
            if (target.n, target.span) != (donor.n, donor.span):
                continue
            kept += [(pair, CrossPatch(target, donor, layer, until)) for layer, until in chosen]
        if not kept:
            return []
        rows = [row for _, row in kept]
        _itself(engine, rows[0].target)
        logits, said = engine.answers(rows, length)
        _full_patch(engine, rows, logits)
        return [
            _patched(engine, pair, row, task, by, logits[i], said[i])
            for i, (pair, row) in enumerate(kept)
        ]

    what = {"experiment": "cross-patch", "task": task, "by": by, "bands": chosen, "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)


def _patched(
    engine: Engine, pair: Pair, row: CrossPatch, task: Task, by: str, logits: Tensor, said: str
) -> dict[str, Any]:
    first = [
        first_token(engine.owner, prompt_of(q, task, by == "picture"), accepted(q, task)[0])
        for q in (pair.target, pair.donor)
    ]

    def lead(run: Tensor) -> float:
        return (run[first[0]] - run[first[1]]).item()

    own, donors = lead(row.target.logits), lead(row.donor.logits)
    apart = own - donors
    calibrated = (own - lead(logits)) / apart if abs(apart) >= LEAST else None
    right = [matches(said, accepted(q, task)) for q in (pair.target, pair.donor)]
    says = "neither" if right[0] == right[1] else "target" if right[0] else "donor"
    return _record(pair.target, task, by, said) | {
        "donor_id": pair.donor.entity_id,
        "same_type": pair.same_type,
        "layer": row.layer,
        "until": row.until,
        "says": says,
        "calibrated": calibrated,
        "path": engine.path(row),
    }


def _itself(engine: Engine, target: Recording) -> None:
    """Patching a run with itself, half-way up, must change nothing."""
    row = CrossPatch(target, target, engine.n // 2)
    if not engine.close(engine.logits([row])[0], target.logits):
        raise ControlFailed("Patching a run with itself changed it; results would mean nothing.")


def _full_patch(engine: Engine, rows: Sequence[CrossPatch], logits: Tensor) -> None:
    """Patching from layer 0 must reproduce the donor's run, from the top the target's."""
    for row, got in zip(rows, logits, strict=True):
        wanted = {0: row.donor, engine.n: row.target}.get(row.layer)
        if row.until is None and wanted is not None and not engine.close(got, wanted.logits):
            raise ControlFailed(
                f"Patching at layer {row.layer} did not reproduce the "
                f"{'donor' if row.layer == 0 else 'target'}'s own run; results would mean nothing."
            )


# --- freezing ---------------------------------------------------------------------------------


def freeze_ends(n_blocks: int, switch: float | None = None) -> list[int]:
    """Last frozen blocks to try: at the switch layer if known, at two thirds, and at the top."""
    at = [] if switch is None else [min(max(round(switch), 1), n_blocks - 1)]
    return sorted({*at, 2 * n_blocks // 3, n_blocks - 1})


def freeze(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    task: Task = "identify",
    by: Literal["picture", "name"] = "picture",
    until: Sequence[int] = (),
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Hold the picture's (or name's) stream at ``resid[layer]`` up to a block, for every layer.

    ``until`` are the last frozen blocks. Returns answer records with ``experiment, task, by,
    layer, until, unchanged`` (the answer is word for word that of the run left alone) and
    ``path``; ``layer`` = ``until`` is the run left alone.

    Raises UnsupportedSite where pictures have no positions in the stream, ControlFailed if
    freezing nothing changes a run.
    """
    ends = sorted(set(until))

    def work(part: list[Question]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, by == "picture", length, whole=True)
        kept = [
            (question, Freeze(record(question), layer, end))
            for question in part
            for end in ends
            for layer in range(end + 1)
        ]
        rows = [row for _, row in kept]
        logits, said = engine.answers(rows, length)
        own = {}
        for (question, row), got, text in zip(kept, logits, said, strict=True):
            if row.layer == row.until:
                own[question.question_id] = text
                if not engine.close(got, row.target.logits):
                    raise ControlFailed("Freezing nothing changed a run; results mean nothing.")
        return [
            _record(question, task, by, text)
            | {
                "layer": row.layer,
                "until": row.until,
                "unchanged": text == own[question.question_id],
                "path": engine.path(row),
            }
            for (question, row), text in zip(kept, said, strict=True)
        ]

    what = {"experiment": "freeze", "task": task, "by": by, "until": ends, "length": length}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)


# --- knockout ---------------------------------------------------------------------------------


def windows(n_blocks: int, mode: Mode, width: int = 0) -> list[tuple[int, int]]:
    """Blocks [start, stop) to knock out: cumulative from below or above, or a sliding window."""
    if mode == "below":
        return [(0, stop) for stop in range(n_blocks + 1)]
    if mode == "above":
        return [(start, n_blocks) for start in range(n_blocks + 1)]
    if not 1 <= width <= n_blocks:
        raise TwohopError(f"A window needs a width from 1 to {n_blocks}, not {width}.")
    return [(start, start + width) for start in range(n_blocks - width + 1)]


def knockout(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    task: Task = "identify",
    edges: Sequence[str] = EDGES,
    modes: Sequence[tuple[Mode, int]] = (("below", 0), ("above", 0)),
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Cut attention edges in a window of blocks, and read out what is left.

    ``modes`` are (mode, width of a sliding window). "question→image" cuts every token behind the
    picture off from it, the last one included. Returns answer records with ``experiment, task,
    edge, mode, start, stop, unchanged`` and ``path``.

    Raises ControlFailed if cutting nothing changes a run.
    """
    spans = [(mode, *window) for mode, width in modes for window in windows(engine.n, mode, width)]

    def work(part: list[Question]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, True, length)
        kept = []
        for question in part:
            target = record(question)
            for edge in edges:
                queries, keys = edge_positions(target, edge)
                kept += [
                    (question, edge, mode, Knockout(target, queries, keys, start, stop))
                    for mode, start, stop in spans
                ]
        logits, said = engine.answers([row for *_, row in kept], length)
        own = {}
        for (question, _, _, row), got, text in zip(kept, logits, said, strict=True):
            if row.start == row.stop:
                own[question.question_id] = text
                if not engine.close(got, row.target.logits):
                    raise ControlFailed("Knocking out nothing changed a run; results mean nothing.")
        return [
            _record(question, task, "picture", text)
            | {
                "edge": edge,
                "mode": mode,
                "start": row.start,
                "stop": row.stop,
                "unchanged": text == own.get(question.question_id, text),
                "path": engine.path(row),
            }
            for (question, edge, mode, row), text in zip(kept, said, strict=True)
        ]

    what = {"experiment": "knockout", "task": task, "edges": list(edges), "windows": spans}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what | {"length": length}, labels, folder)


def edge_positions(target: Recording, edge: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query and key positions of an edge; no keys for a picture outside of the stream.

    Raises TwohopError for an unknown edge, UnsupportedSite if the prompt has no such positions.
    """
    if edge not in EDGES:
        raise TwohopError(f"No edge is called {edge!r}; use one of {', '.join(EDGES)}.")
    query, key = edge.split("→")
    behind = tuple(p for p in range(target.span[1], target.n) if p not in target.roles.last)
    queries = target.roles.last if query == "last" else (*behind, *target.roles.last)
    if key == "image":
        start, stop = target.span
        return queries, tuple(range(start, stop))
    return queries, behind


# --- parts ------------------------------------------------------------------------------------


class Recorder:
    """Records prompts of one task, each once."""

    def __init__(
        self,
        engine: Engine,
        benchmark: Benchmark,
        task: Task,
        picture: bool,
        length: int,
        whole: bool = False,
    ) -> None:
        self.engine, self.benchmark, self.task = engine, benchmark, task
        self.picture, self.length, self.whole = picture, length, whole
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
            self.made[key] = self.engine.record(prompt, image, entity, self.length, self.whole)
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


#: Modules that bear on a sweep's records, besides those of answer records.
MODULES = (
    "interventions/recording.py",
    "interventions/engine.py",
    "interventions/hooks.py",
    "interventions/sweeps.py",
    "interventions/recall.py",
    "interventions/attribution.py",
    "models/roles.py",
    "models/blocks.py",
)


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
        code = store.code_key((*store.MODULES, *MODULES))
        key = {**what, **labels, **code, "weights": weights, "benchmark": benchmark.hash}
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


# --- part of the picture ----------------------------------------------------------------------


def part_patch(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    task: Task = "identify",
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Cross-patch only the last quarter of the picture's positions, or only the others.

    These are whole runs with hooks. Columns as of :func:`cross_patch`, and ``part``.

    Raises UnsupportedSite where pictures have no positions in the stream.
    """
    from twohop_lib.interventions import hooks

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, True, length)
        rows = []
        for pair in part:
            target, donor = record(pair.target), record(pair.donor, pair.target)
            for name, positions in _quarters(target).items():
                for layer in range(engine.n):
                    row = CrossPatch(target, donor, layer)
                    said = hooks.answer(engine, row, length, positions)
                    right = [matches(said, accepted(q, task)) for q in (pair.target, pair.donor)]
                    says = "neither" if right[0] == right[1] else "target" if right[0] else "donor"
                    rows.append(
                        _record(pair.target, task, "picture", said)
                        | {
                            "donor_id": pair.donor.entity_id,
                            "part": name,
                            "layer": layer,
                            "says": says,
                            "path": "reference",
                        }
                    )
        return rows

    what = {"experiment": "part-patch", "task": task, "by": "picture", "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)


def _quarters(target: Recording) -> dict[str, list[int]]:
    start, stop = target.span
    if start == stop:
        raise UnsupportedSite("A picture shown through cross-attention has no positions to part.")
    at = stop - max(1, (stop - start) // 4)
    return {"last quarter": list(range(at, stop)), "the others": list(range(start, at))}
