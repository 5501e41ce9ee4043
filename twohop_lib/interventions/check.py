"""A minute's check of a model before any long run: is what we read and write what we think it is?

Every check compares two ways of computing the same next-token logits, at the last position of a
prompt, and reports their largest difference. It holds if that is within rounding of the model's
dtype, relative to the largest logit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from nnsight import NNsight
from PIL import Image
from torch import Tensor, nn

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.reference import traced_module
from twohop_lib.models.blocks import Blocks, hooked, keys_and_values
from twohop_lib.models.inputs import continued, encode
from twohop_lib.models.loading import Vlm
from twohop_lib.models.pair import ModelPair, drift
from twohop_lib.models.prompts import Prompt, build, render
from twohop_lib.models.registry import architecture_class
from twohop_lib.models.roles import ImageSite, TokenRoles, token_roles
from twohop_lib.runs.generate import answer

#: Largest difference allowed, as a share of the largest logit (at least of 1).
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
#: New tokens of the cache check.
STEPS = 4
#: Weights count as random if text surprises the model more than this share of what it would a
#: uniform guess (:func:`surprise`), over so many questions.
UNTRAINED, READ = 0.9, 8


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference found, and the largest allowed."""

    max_abs_diff: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class Report:
    """What :func:`check` found. ``untrained``: the weights look random, so no answer is a result.

    ``surprise`` is that of :func:`surprise`; ``answers`` are by prompt; ``tokens`` are the
    identify prompt's, each with its role; memory is that of the VLM's weights. ``drift`` is how far
    the VLM's language weights are from the backbone's, relative to these (None: no backbone, or
    quantised weights).
    """

    family: str
    architecture_class: str
    n_blocks: int
    image_tokens: int
    untrained: bool
    surprise: float
    checks: dict[str, Check]
    answers: dict[str, str]
    tokens: tuple[tuple[str, str], ...]
    memory_mb: float
    drift: float | None
    seconds_per_answer: float
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks.values())

    @property
    def nan(self) -> bool:
        """Whether the model computes NaN, with which no comparison holds."""
        return any(math.isnan(check.max_abs_diff) for check in self.checks.values())

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
    blocks = Blocks.of(vlm.model)
    site = ImageSite.of(vlm, blocks)
    if pair.llm is not None:
        Blocks.of(pair.llm.model)
    target, donor = _two(benchmark)
    shown = benchmark.image(target).convert("RGB")
    # Of one size, so that both pictures take up the same positions.
    other = benchmark.image(donor).convert("RGB").resize(shown.size)
    prompt = build("identify", target)
    probe = _Probe(vlm, blocks, site, prompt, shown, other)
    checks = {
        "picture_matters": probe.picture_matters(),
        "no_op_patch": probe.no_op(),
        "full_patch": probe.full_patch(),
        "batch_is_single": _batch_is_single(vlm, target, shown, other),
        "cache_on_is_off": _cache_on_is_off(vlm, site, prompt, shown),
        "nnsight_is_hooks": probe.nnsight_is_hooks(),
    }
    asked = [prompt, build("by_name", target), build("by_picture", target)]
    started = time.perf_counter()
    said = answer(vlm, asked, [shown, None, shown])
    seconds = (time.perf_counter() - started) / len(asked)
    read = list({q.entity_id: q for q in benchmark.questions}.values())[:READ]
    surprised = surprise(vlm, read)
    return Report(
        family=str(vlm.model.config.model_type),
        architecture_class=architecture_class(
            pair.entry, str(vlm.model.config.model_type), bool(blocks.cross)
        ),
        n_blocks=blocks.n_blocks,
        image_tokens=len(probe.roles.image) if site.kind == "stream" else 0,
        untrained=surprised > UNTRAINED,
        surprise=surprised,
        checks=checks,
        answers={p.text: text for p, text in zip(asked, said, strict=True)},
        tokens=_drawn(vlm, probe.ids, probe.roles),
        memory_mb=sum(p.numel() * p.element_size() for p in vlm.model.parameters()) / 2**20,
        drift=_drift(pair),
        seconds_per_answer=seconds,
        notes=pair.notes,
    )


def _drift(pair: ModelPair) -> float | None:
    found = None if pair.llm is None else drift(pair.vlm, pair.llm)
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


def compare(vlm: Vlm, a: Tensor, b: Tensor) -> Check:
    """Hold two tensors of logits against each other, within rounding of the model's dtype."""
    scale = max(1.0, a.abs().max().item())
    tolerance = TOLERANCE.get(vlm.model.dtype, TOLERANCE[torch.bfloat16]) * scale
    off = (a - b).abs().max().item()
    return Check(off, tolerance, bool(off <= tolerance))  # NaN is no agreement.


class _Probe:
    """One prompt with a target's and a donor's picture, and where the picture stands in it."""

    def __init__(
        self,
        vlm: Vlm,
        blocks: Blocks,
        site: ImageSite,
        prompt: Prompt,
        target: Image.Image,
        donor: Image.Image,
    ) -> None:
        self.vlm, self.blocks, self.site = vlm, blocks, site
        text = [render(vlm.processor, prompt)]
        self.inputs = encode(vlm, text, [target], "left")
        self.donor_inputs = encode(vlm, text, [donor], "left")
        self.ids = self.inputs["input_ids"][0].tolist()
        if self.donor_inputs["input_ids"].shape != self.inputs["input_ids"].shape:
            raise TwohopError(
                f"{vlm.name} gives two pictures of one size prompts of different length; this "
                "layout is not supported."
            )
        self.roles = token_roles(vlm, prompt, self.ids, site)
        self.plain = last_logits(vlm, self.inputs)
        self.donor = last_logits(vlm, self.donor_inputs)

    def picture_matters(self) -> Check:
        """Another picture must change the logits by more than rounding."""
        held = compare(self.vlm, self.plain, self.donor)
        return Check(held.max_abs_diff, held.tolerance, held.max_abs_diff > held.tolerance)

    def no_op(self) -> Check:
        """Writing a run's own states back, at every depth, must change nothing."""
        own = self._states(self.inputs)
        depths = range(self.blocks.n_blocks) if self.site.kind == "stream" else (0,)
        runs = [self._patched(own, depth) for depth in depths]
        return max(
            (compare(self.vlm, self.plain, run) for run in runs),
            key=lambda held: (not held.ok, held.max_abs_diff),
        )

    def full_patch(self) -> Check:
        """The donor's picture, written in from the start, must give the donor's run."""
        return compare(self.vlm, self.donor, self._patched(self._states(self.donor_inputs), 0))

    def nnsight_is_hooks(self) -> Check:
        """The same patch, half-way up, as an nnsight trace and as plain hooks."""
        states = self._states(self.donor_inputs)
        depth = self.blocks.n_blocks // 2
        return compare(self.vlm, self._patched(states, depth), self._traced(states, depth))

    def _sites(self, depth: int) -> list[nn.Module]:
        """The modules at which a patch from ``depth`` upwards writes."""
        if self.site.kind == "stream":
            late = [layer for layer in self.site.late if layer > depth]
            return [self.blocks.blocks[layer] for layer in (depth, *late)]
        return [
            part
            for b in self.blocks.cross
            if b >= depth or not depth
            for part in keys_and_values(self.blocks.blocks[b])
        ]

    @torch.inference_mode()
    def _states(self, inputs: dict[str, Any]) -> dict[nn.Module, Tensor]:
        """What stands at every place that a patch may write to, picture positions alone."""
        found: dict[nn.Module, Tensor] = {}
        at = list(self.roles.image)

        def keep(module: nn.Module) -> Any:
            return lambda x: found.update({module: (x[:, at] if at else x).clone()})

        if self.site.kind == "stream":
            watch = {"before": {b: keep(b) for b in self.blocks.blocks}}
        else:
            watch = {"after": {m: keep(m) for m in self._sites(0)}}
        with hooked(**watch):
            self.vlm.model(**inputs, use_cache=False)
        return found

    def _patched(self, states: dict[nn.Module, Tensor], depth: int) -> Tensor:
        at = list(self.roles.image)

        def write(module: nn.Module) -> Any:
            def function(x: Tensor) -> Tensor:
                if not at:
                    return states[module]
                x = x.clone()
                x[:, at] = states[module]
                return x

            return function

        place = "before" if self.site.kind == "stream" else "after"
        with hooked(**{place: {m: write(m) for m in self._sites(depth)}}):
            return last_logits(self.vlm, self.inputs)

    def _traced(self, states: dict[nn.Module, Tensor], depth: int) -> Tensor:
        at = list(self.roles.image)
        in_stream = self.site.kind == "stream"
        traced = NNsight(self.vlm.model)
        # In the order in which they run, which a trace asks for.
        sites = [(traced_module(traced, self.blocks, m), states[m]) for m in self._sites(depth)]
        with torch.no_grad(), traced.trace(**self.inputs, use_cache=False):
            for site, state in sites:
                if in_stream:
                    site.input[:, at] = state
                else:
                    site.output[:] = state
            logits = traced.output.logits[:, -1].save()
        return logits.detach().float().cpu()


def _batch_is_single(vlm: Vlm, question: Question, shown: Image.Image, other: Image.Image) -> Check:
    """Prompts of different length in one left-padded batch must give what each gives alone."""
    named = build("by_name", question)
    shown_kinds = ("identify", "by_picture", "full_information")
    batches = [
        ([build(kind, question) for kind in shown_kinds], [shown, other, shown]),
        ([named, replace(named, text="Who?")], [None, None]),
    ]
    held = []
    for prompts, pictures in batches:
        texts = [render(vlm.processor, prompt) for prompt in prompts]
        single = torch.cat(
            [
                last_logits(vlm, encode(vlm, [text], [picture], "left"))
                for text, picture in zip(texts, pictures, strict=True)
            ]
        )
        together = last_logits(vlm, encode(vlm, texts, list(pictures), "left"))
        held.append(compare(vlm, single, together))
    return max(held, key=lambda check: (not check.ok, check.max_abs_diff))


@torch.inference_mode()
def _cache_on_is_off(vlm: Vlm, site: ImageSite, prompt: Prompt, shown: Image.Image) -> Check:
    """Greedy steps with a KV cache must give the logits of steps that run everything again."""
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
            suppress_tokens=sorted(site.token_ids) or None,
            return_dict_in_generate=True,
            pad_token_id=vlm.tokenizer.pad_token_id,
        )
        for cache in (True, False)
    ]
    on, off = (torch.stack(run.logits)[:, 0].float().cpu() for run in runs)
    tokens = [run.sequences[0, -STEPS:].tolist() for run in runs]
    same = next((n for n in range(STEPS) if tokens[0][n] != tokens[1][n]), STEPS - 1)
    return compare(vlm, on[: same + 1], off[: same + 1])


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
