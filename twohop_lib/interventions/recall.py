"""Recall and its repair: MLP patching from backbone to VLM, back-patching, the recall deadline.

Venhoff et al. 2025 ("Too Late to Recall"): what the backbone's early MLPs add at the tokens of a
*named* entity is written into the VLM's run on the *shown* one. Their rule for the receiving
positions is not known; ours are in :data:`SPANS`, and tokens and positions are aligned at their
ends: the last name token goes to the last position of the span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks
from twohop_lib.interventions.attribution import image_relevance
from twohop_lib.interventions.engine import Engine, Write
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.sweeps import LENGTH, Pair, Recorder, accepted, stored, together
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.prompts import Prompt
from twohop_lib.readouts.matching import matches
from twohop_lib.runs.evaluate import judge

#: Where the backbone's outputs are written: the window that attribution picks, one drawn at
#: random, all positions of the picture (each gets the last name token's), the last ones.
SPANS = ("heuristic", "random", "all", "last")
#: Variants of the patch, besides the spans; each on the heuristic span.
CONTROLS = ("wrong entity", "late blocks", "noise", "residual stream", "added")


def own_blocks(engine: Engine) -> list[int]:
    """The blocks that a VLM shares with its backbone: all but inserted cross-attention ones."""
    return [b for b in range(engine.n) if b not in engine.blocks.cross]


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


def window(positions: Sequence[int], scores: Tensor, width: int) -> tuple[int, ...]:
    """The run of ``width`` neighbouring ``positions`` with the largest sum of scores."""
    width = min(width, len(positions))
    sums = scores.unfold(0, width, 1).sum(-1)
    start = int(sums.argmax())
    return tuple(positions[start : start + width])


# --- MLP patching -----------------------------------------------------------------------------


def mlp_patch(
    engine: Engine,
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    early: int | None = None,
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    seed: int = 0,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Write the backbone's early MLP outputs at the name into the VLM's run on the picture.

    ``early`` are how many blocks, from the lowest (None: a quarter of them, at least two). A
    pair's donor is the *wrong entity* of that control, asked the same relation.

    Returns answer records of the fact questions, one row a pair and ``method``: "unpatched", one
    for each of :data:`SPANS` and :data:`CONTROLS`; with ``follows`` ("right", "donor" or
    "neither": whose fact is given), ``span`` (positions written) and ``path``.

    Raises ControlFailed if writing a run's own MLP outputs back changes it; TwohopError if VLM
    and backbone differ in depth or width.
    """
    from twohop_lib.interventions.sweeps import ControlFailed

    own = own_blocks(engine)
    if len(own) != backbone.n or engine.blocks.d_model != backbone.blocks.d_model:
        raise TwohopError(
            f"The VLM has {len(own)} blocks of width {engine.blocks.d_model}, the backbone "
            f"{backbone.n} of {backbone.blocks.d_model}; patching needs the same of both."
        )
    early = early or max(2, backbone.n // 4)
    first, late = list(range(early)), list(range(backbone.n - early, backbone.n))

    def to_vlm(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {own[b]: v for b, v in values.items()}

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, "fact", True, length, whole=True)
        planned: list[tuple[Pair, str, Write]] = []
        rows = []
        for pair in part:
            target = record(pair.target)
            at = receiving(engine, target)
            named = named_recording(backbone, pair.target)
            other = named_recording(backbone, pair.target, pair.donor)
            mlp, wrong = (
                _at_name(hooks.added(backbone, r, "mlp", [*first, *late]), r)
                for r in (named, other)
            )
            resid = _at_name(hooks.added(backbone, named, "resid", [early]), named)
            width = len(named.roles.entity)
            rng = np.random.default_rng([seed, _number(pair.target.question_id)])
            best = window(at, image_relevance(engine, target, at, pair.target), width)
            start = int(rng.integers(len(at) - len(best) + 1))
            spans = {
                "heuristic": best,
                "random": tuple(at[start : start + len(best)]),
                "all": at,
                "last": tuple(at[-len(best) :]),
            }

            def write(
                values: dict[int, Tensor],
                span: tuple[int, ...],
                site: Any = "mlp",
                add: bool = False,
                target: Recording = target,
                at: tuple[int, ...] = at,
            ) -> Write:
                fitted = {b: _fitted(v, len(span), span == at) for b, v in values.items()}
                return Write(target, site, span, to_vlm(fitted), add)

            low = {b: mlp[b] for b in first}
            noise = {b: _like(v, rng) for b, v in low.items()}
            writes = {name: write(low, span) for name, span in spans.items()} | {
                "wrong entity": write({b: wrong[b] for b in first}, best),
                "late blocks": write({b: mlp[b] for b in late}, best),
                "noise": write(noise, best),
                "residual stream": write(resid, best, "resid"),
                "added": write(low, best, add=True),
            }
            if pair is part[0]:
                _nothing_written(engine, target, best, [own[b] for b in first], ControlFailed)
            planned += [(pair, method, row) for method, row in writes.items()]
            rows.append((pair, target))
        logits, said = engine.answers([row for *_, row in planned], length)
        found = [
            _told(pair, text)
            | {"method": method, "span": list(row.positions), "path": engine.path(row)}
            for (pair, method, row), text in zip(planned, said, strict=True)
        ]
        free = [Write(t, "resid", (t.n - 1,), {}) for _, t in rows]
        texts = engine.answers(free, length)[1]
        found += [
            _told(pair, text) | {"method": "unpatched", "span": [], "path": "splice"}
            for (pair, _), text in zip(rows, texts, strict=True)
        ]
        return found

    what = {"experiment": "mlp-patch", "task": "fact", "early": early, "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    weights = {"backbone": backbone}
    return stored(engine, benchmark, groups, work, what | {"draw": seed}, labels, folder, weights)


def named_recording(
    backbone: Engine, question: Question, named: Question | None = None
) -> Recording:
    """The backbone's run on a question that names an entity (another's name: ``named``)."""
    entity = (named or question).entity
    text = question.question_by_name.replace(question.entity, entity)
    return backbone.record(Prompt("by_name", text, False), None, entity, whole=True)


def _at_name(values: Mapping[int, Tensor], recording: Recording) -> dict[int, Tensor]:
    return {b: v[list(recording.roles.entity)] for b, v in values.items()}


def _fitted(value: Tensor, width: int, everywhere: bool) -> Tensor:
    """Rows for ``width`` positions: aligned at their ends, or the last one everywhere."""
    if everywhere or width > len(value):
        repeated = value[-1:].expand(width, -1)
        if everywhere:
            return repeated
        return torch.cat([repeated[: width - len(value)], value])
    return value[-width:]


def _like(value: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise with the norms of ``value``'s rows."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(value.shape))).to(value.device, value.dtype)
    return drawn * (value.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))


def _number(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _nothing_written(
    engine: Engine, target: Recording, span: Sequence[int], blocks: list[int], failed: Any
) -> None:
    """Writing a run's own MLP outputs back must change nothing."""
    ours = hooks.added(engine, target, "mlp", blocks)
    row = Write(target, "mlp", tuple(span), {b: ours[b][list(span)] for b in blocks})
    if not engine.close(engine.logits([row])[0], target.logits):
        raise failed("Writing a run's own MLP outputs back changed it; results mean nothing.")


def _told(pair: Pair, said: str) -> dict[str, Any]:
    """One answer's record, and whose fact it is."""
    right = [matches(said, accepted(q, "fact")) for q in (pair.target, pair.donor)]
    follows = "neither" if right[0] == right[1] else "right" if right[0] else "donor"
    row = judge(pair.target, "by_picture", said)
    row = {k: v for k, v in row.items() if k not in ("named", "named_right")}
    return row | {"donor_id": pair.donor.entity_id, "follows": follows}


# --- back-patching ----------------------------------------------------------------------------


def back_patch(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    routes: Sequence[tuple[int, int]] | None = None,
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Biran et al. 2024: the picture's own ``resid[source]`` written over ``resid[layer]``.

    ``routes`` are (source, layer) with source > layer; None: all of them. Returns answer records
    with ``source, layer`` and ``path``; source = layer is the run left alone.
    """
    own = own_blocks(engine)
    chosen = list(routes or [(s, d) for d in own for s in own if s > d])

    def work(part: list[Question]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, "fact", True, length, whole=True)
        planned = []
        for question in part:
            target = record(question)
            at = receiving(engine, target)
            for source, layer in [*chosen, (own[0], own[0])]:
                stream = target.resid[source, [p - target.first for p in at]]
                planned.append(
                    (question, source, layer, Write(target, "resid", at, {layer: stream}))
                )
        said = engine.answers([row for *_, row in planned], length)[1]
        return [
            {k: v for k, v in judge(q, "by_picture", text).items() if not k.startswith("named")}
            | {"source": source, "layer": layer, "path": engine.path(row)}
            for (q, source, layer, row), text in zip(planned, said, strict=True)
        ]

    what = {"experiment": "back-patch", "task": "fact", "routes": chosen, "length": length}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)


# --- the recall deadline ----------------------------------------------------------------------

#: Words that stand where a name would, tried in this order.
PLACEHOLDERS = ("X", "it", "here", "that", "one")


def deadline(
    backbone: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    states: Sequence[int] = (2,),
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Until which layer can the backbone turn an arriving entity into its fact?

    A question with a placeholder instead of the name is run; the entity's own state, ``resid[s]``
    at its last name token, is written over the placeholder at ``resid[l]``, for each s of
    ``states`` and l ≥ s. Returns answer records with ``state`` (s), ``layer`` (l), ``arm``
    ("entity", "wrong entity": the pair's donor, or "nothing": the placeholder's own state) and
    ``follows``.

    Raises ControlFailed if the entity's state, written into its own prompt where it comes from,
    changes the run.
    """
    from twohop_lib.interventions.sweeps import ControlFailed

    word = placeholder(backbone)

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        planned = []
        for pair in part:
            asked = pair.target
            text = asked.question_by_name.replace(asked.entity, word)
            empty = backbone.record(Prompt("by_name", text, False), None, word, length, whole=True)
            at = (empty.roles.entity[-1],)
            runs = {
                "entity": named_recording(backbone, asked),
                "wrong entity": named_recording(backbone, asked, pair.donor),
            }
            values = {
                arm: hooks.added(backbone, r, "resid", list(states)) for arm, r in runs.items()
            }
            for s in states:
                _same_layer(backbone, runs["entity"], values["entity"][s], s, ControlFailed)
                for layer in range(s, backbone.n):
                    for arm, r in runs.items():
                        state = values[arm][s][[r.roles.entity[-1]]]
                        row = Write(empty, "resid", at, {layer: state})
                        planned.append((pair, arm, s, layer, row))
            planned.append((pair, "nothing", -1, -1, Write(empty, "resid", at, {})))
        said = backbone.answers([row for *_, row in planned], length)[1]
        return [
            _told(pair, text) | {"condition": "llm_by_name", "arm": arm, "state": s, "layer": layer}
            for (pair, arm, s, layer, _), text in zip(planned, said, strict=True)
        ]

    what = {"experiment": "deadline", "task": "fact", "states": list(states), "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    return stored(backbone, benchmark, groups, work, what | {"word": word}, labels, folder)


def placeholder(backbone: Engine) -> str:
    """A word that stands for no entity, of known tokens.

    Raises TwohopError if the tokenizer knows none of :data:`PLACEHOLDERS`.
    """
    tokenizer = backbone.owner.tokenizer
    for word in PLACEHOLDERS:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.unk_token_id not in ids:
            return word
    raise TwohopError(f"The tokenizer knows none of {', '.join(PLACEHOLDERS)}.")


def _same_layer(
    backbone: Engine, named: Recording, state: Tensor, layer: int, failed: Callable[[str], Any]
) -> None:
    last = named.roles.entity[-1]
    row = Write(named, "resid", (last,), {layer: state[[last]]})
    if not backbone.close(backbone.logits([row])[0], named.logits):
        raise failed("A state written where it comes from changed the run; results mean nothing.")
