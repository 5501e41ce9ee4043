"""A minute's check of a model before any long run: is what we read and write what we think it is?

Every check compares two ways of computing the same next-token logits, at the last position of a
prompt. It holds if they agree (:mod:`twohop_lib.models.agreement`): if they are nearer each
other, by far, than to a run that they must be told from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import hooks, plain_session, reference
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.plain_session import differences
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.agreement import SHARE, Agreement, agreement, farthest, ulps
from twohop_lib.models.blocks import Blocks
from twohop_lib.models.inputs import continued, encode
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.pair import ModelPair, drift
from twohop_lib.models.prefix import keeping
from twohop_lib.models.prompts import Prompt, build, render
from twohop_lib.models.registry import architecture_class
from twohop_lib.models.roles import TokenRoles, token_roles
from twohop_lib.runs.generate import answer

#: New tokens of the cache check.
STEPS = 4
#: Weights count as random if text surprises the model more than this share of what it would a
#: uniform guess (:func:`surprise`), over so many questions.
UNTRAINED, READ = 0.9, 8


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    ``checks`` are agreements, by name; of ``picture_matters`` it is the difference that another
    picture makes, its ``share`` counted in what rounding may do (holds above 1). ``computation``
    is how cross-patches are carried out ("splice", or "reference": as whole runs, since splicing
    is not exact for this model). ``untrained``: the weights look random, so no answer is a result.
    ``surprise`` is that of :func:`surprise`; ``answers`` are by prompt; ``tokens`` are the
    identify prompt's, each with its role; memory is that of the VLM's weights. ``drift`` is how far
    the VLM's language weights are from the backbone's, relative to these (None: no backbone,
    quantised weights, or such as cannot be compared). ``unlike_a_session`` are sentences on what an
    ordinary ``transformers`` session asks or answers otherwise
    (:mod:`twohop_lib.interventions.plain_session`).
    """

    family: str
    architecture_class: str
    n_blocks: int
    image_tokens: int
    untrained: bool
    surprise: float
    checks: dict[str, Agreement]
    computation: str
    answers: dict[str, str]
    tokens: tuple[tuple[str, str], ...]
    memory_mb: float
    drift: float | None
    notes: tuple[str, ...] = field(default=())
    unlike_a_session: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every check holds, and prompts and answers are those of a plain session."""
        return all(check.ok for check in self.checks.values()) and not self.unlike_a_session

    @property
    def nan(self) -> bool:
        """Whether the model computes NaN, with which no comparison holds."""
        return any(math.isnan(check.distance) for check in self.checks.values())

    def json(self) -> dict[str, Any]:
        """Return the report as JSON can hold it (NaN is null), ``ok`` first."""
        found = {"ok": self.ok, "nan": self.nan, **asdict(self)}
        return json.loads(json.dumps(found), parse_constant=lambda _: None)


def check(pair: ModelPair, benchmark: Benchmark) -> Report:
    """Check a pair on two entities of a benchmark.

    Raises TwohopError if the model's layout is not one that can be worked with; what merely does
    not hold is in the report.
    """
    vlm = pair.vlm
    engine = Engine(vlm)
    if pair.llm is not None:
        Blocks.of(pair.llm.model)
    target, donor = _two(benchmark)
    shown = benchmark.image(target).convert("RGB")
    # Of one size, so that both pictures take up the same positions.
    other = benchmark.image(donor).convert("RGB").resize(shown.size)
    prompt = build("identify", target)
    # With room for an answer: some models' answers cannot be spliced, though their edits can.
    a, b = (engine.record(prompt, picture, max_new_tokens=STEPS) for picture in (shown, other))
    edit = CrossPatch(a, b, engine.n_blocks // 2)
    edit.check(engine.n_blocks)
    checks = {
        "picture_matters": _picture_matters(engine, a, b),
        "no_op_patch": _no_op(engine, a, b),
        "full_patch": _full_patch(engine, a, b),
        "batch_is_single": _batch_is_single(engine, target, shown, other),
        "cache_on_is_off": _cache_on_is_off(engine, prompt, shown),
        "nnsight_is_hooks": _nnsight_is_hooks(engine, edit),
    }
    asked = [prompt, build("by_name", target), build("by_picture", target)]
    said = answer(vlm, asked, [shown, None, shown])
    read = list({q.entity_id: q for q in benchmark.questions}.values())[:READ]
    surprised = surprise(vlm, read)
    return Report(
        family=str(vlm.model.config.model_type),
        architecture_class=architecture_class(
            pair.entry, str(vlm.model.config.model_type), bool(engine.blocks.cross)
        ),
        n_blocks=engine.n_blocks,
        image_tokens=len(a.roles.image),
        untrained=surprised > UNTRAINED,
        surprise=surprised,
        checks=checks,
        computation=engine.computation(edit),
        answers={p.text: text for p, text in zip(asked, said, strict=True)},
        tokens=_drawn(vlm, a.ids, a.roles),
        memory_mb=sum(p.numel() * p.element_size() for p in vlm.model.parameters()) / 2**20,
        drift=_drift(pair),
        notes=(*pair.notes, *plain_session.notes(vlm), *_of_precision(engine)),
        unlike_a_session=_unlike_a_session(pair, target, shown),
    )


def _unlike_a_session(pair: ModelPair, question: Question, shown: Image.Image) -> tuple[str, ...]:
    """Hold both arms, and the backbone's, against a plain session of ``transformers``."""
    asked: list[tuple[Vlm | Llm, str, Image.Image | None, str]] = [
        (pair.vlm, "by_name", None, "By name"),
        (pair.vlm, "by_picture", shown, "By picture"),
    ]
    if pair.llm is not None:
        asked.append((pair.llm, "by_name", None, "The backbone, by name"))
    return tuple(
        sentence
        for model, kind, picture, arm in asked
        for sentence in differences(model, build(kind, question), picture, arm)  # type: ignore[arg-type]
    )


def _drift(pair: ModelPair) -> float | None:
    try:
        found = None if pair.llm is None else drift(pair.vlm, pair.llm)
    except TwohopError:
        return None  # Their weights are laid out in another way (Molmo 2 and Qwen 3).
    return None if found is None else found.total


def _two(benchmark: Benchmark) -> tuple[Question, Question]:
    first = benchmark.questions[0]
    for question in benchmark.questions:
        if question.entity_id != first.entity_id:
            return first, question
    raise TwohopError(f"Benchmark {benchmark.name} has one entity; a check needs two.")


# --- the comparisons --------------------------------------------------------------------------


@torch.inference_mode()
def last_logits(vlm: Vlm, inputs: dict[str, Any]) -> Tensor:
    """Return the next-token logits [batch, vocab], float32 on the CPU, of a left-padded batch."""
    return vlm.model(**inputs, use_cache=False).logits[:, -1].float().cpu()


def _worst(held: Sequence[Agreement]) -> Agreement:
    return max(held, key=lambda one: (not one.ok, one.share))


def _of_precision(engine: Engine) -> tuple[str, ...]:
    dtype = engine.model.dtype
    if dtype == torch.float32:
        return ()
    name, allowed = str(dtype).removeprefix("torch."), SHARE[dtype]
    return (
        f"In {name} no two ways of computing one thing agree exactly, in plain transformers either "
        "(a prompt in a batch and alone, with a cache and without): sums are rounded in another "
        f"order. Differences up to {allowed:g} of the distance to the run that must be told apart "
        "are allowed; a patch at a neighbouring layer is off by about 1.",
    )


def _picture_matters(engine: Engine, a: Recording, b: Recording) -> Agreement:
    """Another picture must change the logits by more than rounding."""
    held = engine.agreement(b.logits, a.logits, b.logits)
    rounding = ulps(a.logits, engine.model.dtype)
    times = held.distance / rounding if rounding else math.inf
    return replace(held, share=times, allowed=1.0, ok=bool(times > 1))


def _alike(got: Tensor, wanted: Tensor, away: Tensor) -> Agreement:
    """Hold runs of one shape: they are rounded alike, so half precision is no excuse."""
    return agreement(got, wanted, away, torch.float32)


def _no_op(engine: Engine, a: Recording, b: Recording) -> Agreement:
    """Writing a run's own states back, at every layer, must change nothing."""
    runs, _ = hooks.runs(engine, [CrossPatch(a, a, layer) for layer in range(engine.n_blocks)])
    alone = _left_alone(engine, a)
    return _worst([_alike(run, alone, b.logits) for run in runs])


def _full_patch(engine: Engine, a: Recording, b: Recording) -> Agreement:
    """The donor's picture, written in from the start, must give the donor's run."""
    run = hooks.runs(engine, [CrossPatch(a, b, 0)])[0][0]
    return _alike(run, _left_alone(engine, b), a.logits)


@torch.inference_mode()
def _left_alone(engine: Engine, recording: Recording) -> Tensor:
    """Next-token logits ``[vocab]`` of a run without an edit, of the shape of those with one.

    A recording's own were computed beside those of later positions, and so rounded otherwise.
    """
    with engine.seeing(recording.inputs):
        out = engine.model(**keeping(engine.model, recording.inputs, 1), use_cache=False)
    return out.logits[0, -1].float()


def _nnsight_is_hooks(engine: Engine, edit: CrossPatch) -> Agreement:
    """The same patch, half-way up, as nnsight traces and as plain hooks."""
    blocks, (a, b), layer = engine.blocks, (edit.target, edit.donor), edit.layer
    if engine.site.kind == "stream":
        at, layers = range(*a.span), [layer, *(late for late in engine.site.late if late > layer)]
        donor = reference.states(blocks, b.inputs, at, layers)
        traced = reference.cross_patch(blocks, a.inputs, at, donor)
    else:
        traced = reference.cross_patch_beside(blocks, a.inputs, b.inputs, layer)
    wanted = hooks.runs(engine, [edit])[0][0]
    return _alike(traced, wanted, farthest(wanted, [a.logits, b.logits]))


def _batch_is_single(
    engine: Engine, question: Question, shown: Image.Image, other: Image.Image
) -> Agreement:
    """Prompts of different length in one left-padded batch must give what each gives alone."""
    vlm, named = engine.owner, build("by_name", question)
    of_pictures = [build(kind, question) for kind in ("identify", "by_picture", "full_information")]
    batches = [
        (of_pictures, [shown, other, shown]),
        ([named, replace(named, text="Who?")], [None, None]),
    ]
    held = []
    for prompts, pictures in batches:
        texts = [render(vlm.processor, prompt) for prompt in prompts]
        alone = [
            last_logits(vlm, encode(vlm, [text], [picture], "left"))[0]
            for text, picture in zip(texts, pictures, strict=True)
        ]
        batch = last_logits(vlm, encode(vlm, texts, list(pictures), "left"))
        held += [
            engine.agreement(got, wanted, farthest(wanted, alone))
            for got, wanted in zip(batch, alone, strict=True)
        ]
    return _worst(held)


@torch.inference_mode()
def _cache_on_is_off(engine: Engine, prompt: Prompt, shown: Image.Image) -> Agreement:
    """Greedy steps with a KV cache must give the logits of steps that run everything again."""
    vlm = engine.owner
    inputs = encode(vlm, [render(vlm.processor, prompt)], [shown], "left")
    runs = [
        vlm.model.generate(
            **inputs,
            use_cache=cache,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            # Random weights may write a picture's placeholder, which stands for no picture.
            suppress_tokens=sorted(engine.site.token_ids) or None,
            return_dict_in_generate=True,
            pad_token_id=vlm.tokenizer.pad_token_id,
        )
        for cache in (True, False)
    ]
    on, off = ([step[0].float().cpu() for step in run.logits] for run in runs)
    tokens = [run.sequences[0, -STEPS:].tolist() for run in runs]
    same = next((n for n in range(STEPS) if tokens[0][n] != tokens[1][n]), STEPS - 1)
    return _worst([engine.agreement(on[t], off[t], farthest(off[t], off)) for t in range(same + 1)])


def surprise(vlm: Vlm, questions: Sequence[Question]) -> float:
    """Return how surprised a model is by text, as a share of what a uniform guess would be.

    The mean negative log-probability (nats a token) of the questions' words or of the first
    token of their answers by name, whichever is lower: some models were never trained on
    questions, others do not know the answers, and random weights are no better than a guess at
    both.
    """
    guess = math.log(vlm.model.config.get_text_config().vocab_size)
    asked = [build("by_name", question) for question in questions]
    of_words = [_surprise_of_words(vlm, prompt) for prompt in asked]
    of_answers = [
        _surprise_of_answer(vlm, prompt, question.answers[0])
        for prompt, question in zip(asked, questions, strict=True)
    ]
    return min(sum(of_answers) / len(of_answers), sum(of_words) / len(of_words)) / guess


def _surprise_of_answer(vlm: Vlm, prompt: Prompt, said: str) -> float:
    """Nats of the first token of an answer."""
    before = render(vlm.processor, prompt)
    whole, length = continued(vlm, prompt, said)
    first = encode(vlm, [whole], [None], "left")["input_ids"][0, -length].item()
    logits = last_logits(vlm, encode(vlm, [before], [None], "left"))[0]
    return -logits.log_softmax(-1)[first].item()


@torch.inference_mode()
def _surprise_of_words(vlm: Vlm, prompt: Prompt) -> float:
    """Nats a token, over the words of a prompt's question."""
    inputs = encode(vlm, [render(vlm.processor, prompt)], [None], "left")
    ids = inputs["input_ids"][0].tolist()
    at = [p for p in token_roles(vlm, prompt, ids).question if p > 0]
    logits = vlm.model(**inputs, use_cache=False).logits[0].float().cpu().log_softmax(-1)
    return -sum(logits[p - 1, ids[p]].item() for p in at) / len(at)


def _drawn(vlm: Vlm, ids: list[int], roles: TokenRoles) -> tuple[tuple[str, str], ...]:
    return tuple((vlm.tokenizer.decode([token]), roles.of(p)) for p, token in enumerate(ids))
