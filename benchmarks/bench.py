"""``twohop bench``: the engine against the loops that everyone writes, same work, one run."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from torch import Tensor

from twohop_lib.benchmark import heraldry
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.interventions import hooks, reference
from twohop_lib.interventions.edits import CrossPatch, Edit, Freeze, Knockout, Write
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.agreement import farthest
from twohop_lib.models.blocks import hooked
from twohop_lib.models.loading import Vlm
from twohop_lib.models.prompts import Prompt

WORKS = ("cross-patch", "freeze", "knockout", "mlp-patch")
#: A prompt of about as many tokens as published chat templates make of a question.
QUESTION = "First name the house, then answer. Who founded the house in this picture?"
SIDE = 336
#: MLP patching: how many blocks' outputs are written, at how many positions.
PATCHED_BLOCKS, NAME_TOKENS = 4, 3


@dataclass(frozen=True)
class Timing:
    """One measurement; seconds, mebibytes, and ratios to the engine.

    ``runs`` interventions were timed for the engine and ``reference_runs`` of them for each of
    the loops, whose seconds are scaled up to the same work (each of their runs costs the same, and
    a donor's states, taken once, cost one).
    ``share`` is the worst difference as a share of the distance between the runs that differ most
    (:mod:`twohop_lib.models.agreement`). Peaks are above what the loaded model holds.

    ``*_token_layers`` are positions that were sent through a whole block, by the nnsight loop, and
    by the engine with its recordings and its own trial; ``least_token_layers`` are those that no
    exact method can do without (:func:`least`). ``ratio_limit`` is the loop's number over that
    least: what could be gained if a token cost the same everywhere.
    """

    work: str
    model: str
    device: str
    dtype: str
    n_blocks: int
    d_model: int
    prompt_tokens: int
    image_tokens: int
    runs: int
    reference_runs: int
    engine_s: float
    nnsight_s: float
    hooks_s: float
    ratio_nnsight: float
    ratio_hooks: float
    max_abs_diff: float
    share: float
    allowed: float
    agree: bool
    peak_mb_engine: float
    peak_mb_nnsight: float
    loop_token_layers: int
    engine_token_layers: int
    least_token_layers: int
    ratio_limit: float
    threads: int


def llava_shaped(width: int, dtype: torch.dtype, device: str, n_blocks: int = 32) -> Vlm:
    """Return a LLaVA of random weights with LLaVA-1.5's 32 blocks and 576 image tokens.

    The vision tower is a small one: what is measured is the language model's work.
    """
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from twohop_lib.organisms import corpus, tokens

    tokenizer = tokens.make_tokenizer(corpus.all_texts())
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=int(width * 11008 / 4096),
        num_hidden_layers=n_blocks,
        num_attention_heads=max(4, width // 128),
        num_key_value_heads=max(4, width // 128),
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=576,
        vision_feature_layer=-1,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        # Pictures must matter: features of the size of embeddings.
        model.model.multi_modal_projector.linear_2.weight.mul_(10)
    size = {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokens.CHAT_TEMPLATE,
    )
    return Vlm(model, processor, f"LLaVA-1.5-shaped, width {width}, random weights")


def measure(
    vlm: Vlm,
    work: str,
    entities: int = 8,
    pairs: int = 16,
    reference_runs: int = 0,
    batch_size: int = 64,
) -> Timing:
    """Time one kind of work on a model, by engine, by nnsight and by plain hooks.

    ``pairs`` of target and donor among ``entities`` pictures, at every layer (one window of
    blocks a layer for knockouts). ``reference_runs`` 0 runs every loop in full.

    Raises TwohopError for an unknown kind of work.
    """
    if work not in WORKS:
        raise TwohopError(f"No work is called {work!r}; {suggest(work, WORKS)}.")
    world = heraldry.make_world(0)
    pictures = [heraldry.picture(world, h).resize((SIDE, SIDE)) for h in world.houses[:entities]]
    chosen = [(i % entities, (i + 1 + i // entities) % entities) for i in range(pairs)]
    prompt = Prompt("by_picture", QUESTION, True)
    probe = Engine(vlm, batch_size)
    probe.logits(plan(probe, work, prompt, pictures[:2], [(0, 1)])[:1])  # Warm.
    before = _held()
    with _Peak() as peak_engine, _TokenLayers(probe) as by_engine:
        began = time.perf_counter()
        engine = Engine(vlm, batch_size)
        planned = plan(engine, work, prompt, pictures, chosen)
        fast = engine.logits(planned)
        _wait()
        engine_s = time.perf_counter() - began
    some = planned
    if reference_runs:
        step = max(1, len(planned) // reference_runs)
        some = planned[::step][:reference_runs]
    index = {id(edit): i for i, edit in enumerate(planned)}
    compared = fast[[index[id(edit)] for edit in some]]
    slow, hooks_s = _timed(lambda: _by_hooks(engine, some))
    record = some[0].target
    place = (record.n, record.span)
    with _Peak() as peak_nnsight:
        traced, nnsight_s = _timed(lambda: _by_nnsight(engine, some))
    held = [
        engine.agreement(got, wanted, farthest(wanted, loop))
        for loop in (slow, traced)
        for got, wanted in zip(compared, loop, strict=True)
    ]
    share = _runs(planned) / _runs(some)
    needed = least(planned, engine.n_blocks)
    by_loop = _runs(planned) * place[0] * engine.n_blocks
    return Timing(
        work=work,
        model=vlm.name,
        device=_device(vlm),
        dtype=str(vlm.model.dtype).removeprefix("torch."),
        n_blocks=engine.n_blocks,
        d_model=engine.blocks.d_model,
        prompt_tokens=place[0],
        image_tokens=place[1][1] - place[1][0],
        runs=len(planned),
        reference_runs=len(some),
        engine_s=engine_s,
        nnsight_s=nnsight_s * share,
        hooks_s=hooks_s * share,
        ratio_nnsight=nnsight_s * share / engine_s,
        ratio_hooks=hooks_s * share / engine_s,
        max_abs_diff=max(one.distance for one in held),
        share=max(one.share for one in held),
        allowed=held[0].allowed,
        agree=all(one.ok for one in held),
        peak_mb_engine=peak_engine.mb - before,
        peak_mb_nnsight=peak_nnsight.mb - before,
        loop_token_layers=by_loop,
        engine_token_layers=by_engine.number,
        least_token_layers=needed,
        ratio_limit=by_loop / needed,
        threads=torch.get_num_threads(),
    )


def plan(
    engine: Engine,
    work: str,
    prompt: Prompt,
    pictures: Sequence[Image.Image],
    pairs: Sequence[tuple[int, int]],
) -> list[Edit]:
    """Record the pictures' prompts and return the interventions of one kind of work."""
    both = work in ("cross-patch", "mlp-patch")
    needed = sorted({i for pair in pairs for i in (pair if both else pair[:1])})
    from_start = work in ("freeze", "mlp-patch")
    made = {i: engine.record(prompt, pictures[i], from_start=from_start) for i in needed}
    edits: list[Edit] = []
    outputs = {}
    if work == "mlp-patch":
        outputs = {
            i: hooks.activations(engine, r, "mlp", range(engine.n_blocks)) for i, r in made.items()
        }
    for target, donor in pairs:
        a = made[target]
        for layer in range(engine.n_blocks):
            if work == "cross-patch":
                edits.append(CrossPatch(a, made[donor], layer))
            elif work == "mlp-patch":
                # Four blocks' outputs, at as many positions as a name may have tokens.
                at = tuple(range(a.span[1] - NAME_TOKENS, a.span[1]))
                values = {
                    b: outputs[donor][b][list(at)]
                    for b in range(layer, min(layer + PATCHED_BLOCKS, engine.n_blocks))
                }
                edits.append(Write(a, "mlp", at, values))
            elif work == "freeze":
                edits.append(
                    Freeze(a, min(layer, engine.n_blocks * 2 // 3), engine.n_blocks * 2 // 3)
                )
            else:
                queries = a.roles.question + a.roles.last
                edits.append(Knockout(a, queries, a.roles.image, layer, engine.n_blocks))
    return edits


def _runs(edits: Sequence[Edit]) -> int:
    """How many whole runs a loop makes: one an edit, and one a donor."""
    return len(edits) + len({id(e.donor) for e in edits if isinstance(e, CrossPatch)})


def _by_nnsight(engine: Engine, edits: Sequence[Edit]) -> list[Tensor]:
    """One trace for each edit; a donor's states are taken once, at all layers."""
    blocks, found, taken = engine.blocks, [], {}
    for edit in edits:
        target, at = edit.target.inputs, list(range(*edit.target.span))
        if isinstance(edit, CrossPatch):
            if id(edit.donor) not in taken:
                every = range(engine.n_blocks)
                taken[id(edit.donor)] = reference.states(blocks, edit.donor.inputs, at, every)
            donor = {edit.layer: taken[id(edit.donor)][edit.layer]}
            found.append(reference.cross_patch(blocks, target, at, donor))
        elif isinstance(edit, Freeze):
            found.append(reference.freeze(blocks, target, at, edit.layer, edit.until))
        elif isinstance(edit, Write):
            found.append(reference.mlp_patch(blocks, target, edit.positions, edit.values))
        else:
            edge = (edit.queries, edit.keys, edit.start, edit.stop)
            found.append(reference.knockout(blocks, target, *edge))
    return found


def _by_hooks(engine: Engine, edits: Sequence[Edit]) -> list[Tensor]:
    """One run with a plain hook for each edit; a donor's states are taken once."""
    found, taken = [], {}
    for edit in edits:
        if not isinstance(edit, CrossPatch):
            found.append(hooks.runs(engine, [edit])[0][0])
            continue
        if id(edit.donor) not in taken:
            every = range(engine.n_blocks)
            taken[id(edit.donor)] = hooks.activations(engine, edit.donor, "resid", every)
        span = slice(*edit.target.span)
        state = taken[id(edit.donor)][edit.layer][span]

        def write(x: Tensor, state: Tensor = state, span: slice = span) -> Tensor:
            x = x.clone()
            x[:, span] = state
            return x

        with torch.inference_mode(), hooked({engine.blocks.blocks[edit.layer]: write}):
            found.append(engine.model(**edit.target.inputs, use_cache=False).logits[0, -1].float())
    return found


# --- what must be computed --------------------------------------------------------------------


def least(edits: Sequence[Edit], n_blocks: int) -> int:
    """The token-layers that no exact method can do without: positions sent through whole blocks.

    Each prompt once; then, for each edit, every position whose stream differs from the recorded
    one, in every block from the first that it enters changed. In the last block only the last
    position counts, as no other is read. What makes keys and values alone is not counted.
    """
    prompts = {id(r): r for e in edits for r in (e.target, getattr(e, "donor", e.target))}
    recorded = sum(r.n * (n_blocks - 1) + 1 for r in prompts.values())
    return recorded + sum(_changed(edit, n_blocks) for edit in edits)


def _changed(edit: Edit, n_blocks: int) -> int:
    (start, stop), n = edit.target.span, edit.target.n

    def through(positions: int, first: int) -> int:
        """``positions``, the last among them, from block ``first`` to the top."""
        return positions * (n_blocks - 1 - first) + 1 if first < n_blocks else 0

    if isinstance(edit, CrossPatch):
        return through(n - stop, edit.layer)
    if isinstance(edit, Knockout):
        return through(n - min(edit.queries), edit.start)
    if isinstance(edit, Write):
        # A block's MLP comes last in it: the next one is the first that is entered changed.
        return through(n - min(edit.positions), min(edit.values) + (edit.site != "resid"))
    if edit.layer == edit.until:
        return 0
    behind = through(n - stop, edit.layer + 1)
    return behind + (stop - start) * max(0, n_blocks - 1 - edit.until)


class _TokenLayers:
    """Counts the positions that are sent through blocks while it is open."""

    def __init__(self, engine: Engine) -> None:
        self.blocks = engine.blocks.blocks
        self.number = 0

    def __enter__(self) -> _TokenLayers:
        self.handles = [
            b.register_forward_pre_hook(self._count, with_kwargs=True) for b in self.blocks
        ]
        return self

    def _count(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keys_alone = getattr(kwargs.get("past_key_values"), "stop", False)
        if keys_alone or "forward" in vars(block):
            return  # It stops at its keys and values, or passes the stream on unchanged.
        stream = args[0] if args else kwargs["hidden_states"]
        self.number += stream.shape[0] * stream.shape[1]

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


# --- time and memory --------------------------------------------------------------------------


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    _wait()
    return result, time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device(vlm: Vlm) -> str:
    kind = vlm.model.device.type
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _held() -> float:
    gc.collect()
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20


class _Peak:
    """The most memory held while the block runs, in mebibytes (GPU, or this process)."""

    mb = 0.0

    def __enter__(self) -> _Peak:
        gc.collect()
        self.over = threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self.watch = threading.Thread(target=self._look, daemon=True)
            self.watch.start()
        return self

    def _look(self) -> None:
        process = psutil.Process()
        while not self.over.wait(0.02):
            self.mb = max(self.mb, process.memory_info().rss / 2**20)

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        if torch.cuda.is_available():
            self.mb = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.watch.join()
            self.mb = max(self.mb, _held())


def as_json(timings: Sequence[Timing]) -> str:
    """Return timings as JSON."""
    return json.dumps([asdict(t) for t in timings], indent=2)


def write(timings: Sequence[Timing], path: Path) -> None:
    """Write timings to a file."""
    path.write_text(as_json(timings) + "\n")
