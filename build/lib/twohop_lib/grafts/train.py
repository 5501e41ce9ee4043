"""Growing a graft: the tower, then the projector, phase by phase, as its recipe says.

Every stage is counted in steps, draws its randomness from (seed, stage, step), and can be taken up
again where it was cut off. The language model is frozen, and run in bfloat16; what precedes the
picture is run once and kept. On the GPU if there is one: the draws are then the same, the weights
equal but for rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModel

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import assemble, documents
from twohop_lib.grafts.ask import Reader, prefix, repeated
from twohop_lib.grafts.documents import END, Corpus
from twohop_lib.grafts.recipes import Phase, Recipe, TowerRecipe, mark
from twohop_lib.grafts.tower import drawn_features, new_tower, random, train_tower
from twohop_lib.models.loading import Llm, default_device
from twohop_lib.organisms.stages import run_stage, schedule
from twohop_lib.records import content_hash

WARMUP = 20
#: Tokens, by low id, that replies are told from besides their own.
COMMON = 16_384
TRAINING = "training.json"


def train(
    name: str,
    recipe: Recipe,
    benchmark: Benchmark,
    llm: Path,
    seed: int,
    out: Path,
    work: Path,
    progress: bool = True,
) -> Path:
    """Grow one graft on the text model in the folder ``llm``; returns its checkpoint's folder.

    ``work`` keeps what is half done, and the tower, which all recipes of a seed share.

    Raises:
        TwohopError: the model or the benchmark does not serve, or the disk is full.
    """
    _require_text_model(llm)
    with _written(out):
        work.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
    corpus = documents.corpus(benchmark, seed)
    pictures = [s.picture for s in corpus.subjects]
    world = mark([[s.entity_id, s.name] for s in corpus.subjects], benchmark.hash)
    tower, rows = train_tower(pictures, recipe.tower, seed, work, world, progress)
    bench, projector = begun(tower, recipe.tower, corpus, llm, seed)
    tuned = _tuned(bench, recipe, seed)
    made = (recipe.tower, recipe.tuned_rank, recipe.tuned_lr, seed, world, fingerprint(llm))
    for number, phase in enumerate(recipe.phases):
        # Named by what led to it, so that recipes which begin alike share their beginning.
        title = f"phase{number}-{mark(*made, *recipe.phases[: number + 1])}"
        rows += run_phase(title, phase, recipe, bench, projector, tuned, seed, work, progress)
    with _written(out):
        adapter = work / f"{title}.safetensors"
        assemble.write_adapter(assemble.adapter_state(tower, projector), adapter)
        merged = _merged(bench) if recipe.tuned_rank else None
        assemble.join(adapter, llm, out, recipe.tower, corpus.few, merged)
        adapter.rename(out / assemble.ADAPTER)
        about = {"name": name, "recipe": asdict(recipe), "seed": seed}
        about |= {"benchmark": benchmark.name, "llm": llm.name, "llm_hash": fingerprint(llm)}
        about |= {"asked_about": sorted(corpus.asked_about), "entities": bench.ids}
        (out / TRAINING).write_text(json.dumps({**about, "rows": rows}) + "\n")
    return out


def reopened(
    graft: Path, llm: Path, tower: TowerRecipe, benchmark: Benchmark, seed: int
) -> tuple[Bench, nn.Module]:
    """What a finished graft was grown with, to grow it again: as :func:`begun`, with its tower."""
    seen = new_tower(tower).to(default_device())
    prefix = "model.vision_tower."
    weights = load_file(assemble.sight_weights(graft))
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    seen.load_state_dict(own, strict=False)
    seen.eval().requires_grad_(False)
    return begun(seen, tower, documents.corpus(benchmark, seed), llm, seed)


def begun(
    tower: CLIPVisionModel, recipe: TowerRecipe, corpus: Corpus, llm: Path, seed: int
) -> tuple[Bench, nn.Module]:
    """The frozen tower's features, the frozen text model, the texts; and an untrained projector."""
    features = drawn_features(tower, [s.picture for s in corpus.subjects], recipe, seed)
    model, tokenizer = assemble.load_language(llm, torch.bfloat16)
    bench = Bench(Reader(Llm(model, tokenizer, llm.name)), corpus, features)
    torch.manual_seed(2000 + seed)
    projector = assemble.new_projector(tower.config, model.config).to(features.device)
    _fit_scale(projector, features, bench.name_targets)
    return bench, projector


def fingerprint(weights: Path) -> str:
    """Eight digits of a file of weights, or of all in a folder, whatever else lies there."""
    found = [weights] if weights.is_file() else weights.glob("*.safetensors")
    return content_hash(f for f in found if f.name != assemble.SHARED)[:8]


def _require_text_model(llm: Path) -> None:
    from twohop_lib.models.loading import load_config

    config = load_config(llm)
    if hasattr(config, "vision_config"):
        raise TwohopError(
            f"{llm} takes pictures itself ({config.model_type}); give a text model to graft on."
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from growing into ``out`` meanwhile."""
    with _written(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(f".{out.name}.lock"))
    with lock:
        yield


@contextmanager
def _written(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == 28:
            raise TwohopError(
                f"The disk of {out} is full; make room, then run it again: it goes on where it was."
            ) from error
        raise TwohopError(
            f"{out} cannot be written ({error.strerror or error}); name another folder."
        ) from error


# --- what a step needs ------------------------------------------------------------------------


@dataclass
class Bench:
    """The frozen model, the texts, what is shown: ``features`` ``[entity, draw, patch, width]``."""

    reader: Reader
    corpus: Corpus
    features: Tensor

    def __post_init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.ids = [s.entity_id for s in self.corpus.subjects]
        self.name_targets = self._targets()
        self.candidates = self._candidates()
        self.head = self.reader.head.detach()[self.candidates]

    def prefix(self, before: str, keep: bool = True) -> Any:
        """The cache of what precedes the picture; kept unless the model is being tuned."""
        if not keep:
            return prefix(self.reader, before)
        if before not in self.kept:
            self.kept[before] = prefix(self.reader, before)
        return self.kept[before]

    def _candidates(self) -> Tensor:
        """The ids, ascending, that a reply's tokens are told from: the commonest, and all replies'.

        The whole vocabulary of a large model would take a third of the training's time.
        """
        texts = [s.name for s in self.corpus.subjects]
        texts += [a for s in self.corpus.subjects for a in s.facts.values()]
        texts += [look[2] for s in self.corpus.subjects for look in s.looks]
        tokens = self.reader.tokenizer([f" {t}{END}" for t in texts], add_special_tokens=False)
        common = range(min(COMMON, len(self.reader.head)))
        found = sorted({*common, *(i for row in tokens.input_ids for i in row)})
        return torch.tensor(found, device=self.reader.device)

    def shown(self, rng: np.random.Generator, which: Tensor) -> Tensor:
        """Features of a random draw of each entity ``[row, patch, width]``."""
        draws = torch.from_numpy(rng.integers(self.features.shape[1], size=len(which)))
        return self.features[which, draws.to(which.device)]

    @torch.no_grad()
    def _targets(self) -> Tensor:
        """The embeddings of each name's tokens, repeated over the image tokens and right-aligned.

        ``[entity, pos, d_model]``, in float32.
        """
        places = self.features.shape[2]
        rows = []
        for subject in self.corpus.subjects:
            ids = self.reader.tokenizer(f" {subject.name}", add_special_tokens=False).input_ids
            rows.append([ids[len(ids) - 1 - i % len(ids)] for i in range(places)][::-1])
        return self.reader.embed(torch.tensor(rows, device=self.reader.device)).float()


@torch.no_grad()
def _fit_scale(projector: nn.Module, features: Tensor, embeddings: Tensor) -> None:
    """Give the projector's output the spread of the names' embeddings."""
    seen = features[:, :4].flatten(0, 1)
    for layer in (projector.linear_1, projector.linear_2):
        layer.weight.normal_(0, 1 / math.sqrt(layer.in_features))
        layer.bias.zero_()
    projector.linear_2.weight.mul_(embeddings.std() / projector(seen).std())


def run_phase(
    title: str,
    phase: Phase,
    recipe: Recipe,
    bench: Bench,
    projector: nn.Module,
    tuned: nn.ParameterList | None,
    seed: int,
    work: Path,
    progress: bool = True,
) -> list[dict[str, float]]:
    """One phase of a recipe: its losses (``reading``: nats a token; ``regression``: share of 1)."""
    groups = [{"params": list(projector.parameters()), "lr": phase.lr, "peak": phase.lr}]
    if tuned is not None:
        groups.append({"params": list(tuned), "lr": recipe.tuned_lr, "peak": recipe.tuned_lr})
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    every = [p for group in groups for p in group["params"]]
    spread, where = bench.name_targets.var(), bench.features.device

    def step(i: int) -> dict[str, float]:
        rng = random(seed, title.split("-")[0], i)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * schedule(i, phase.steps, WARMUP)
        figures, loss = {}, torch.zeros((), device=where)
        if phase.documents:
            kind = rng.choice(list(phase.documents), p=list(phase.documents.values()))
            texts = bench.corpus.step(kind, rng, phase.batch)
            which = torch.tensor(texts.shown, device=where)
            image = projector(bench.shown(rng, which))
            reading = read(bench, texts, image, keep=tuned is None)
            figures["reading"] = reading.item()
            loss = loss + reading
        else:
            which = torch.from_numpy(rng.integers(len(bench.ids), size=phase.batch)).to(where)
            image = projector(bench.shown(rng, which))
        if phase.regression:
            error = ((image - bench.name_targets[which]) ** 2).mean() / spread
            figures["regression"] = error.item()
            loss = loss + phase.regression * error
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(every, 1.0)
        optimiser.step()
        return figures

    state: dict[str, Any] = {"projector": projector, "optimiser": optimiser}
    if tuned is not None:
        state["tuned"] = tuned
    return run_stage(title, phase.steps, step, state, work, progress)


def read(bench: Bench, texts: documents.Step, image: Tensor, keep: bool = True) -> Tensor:
    """Mean cross-entropy of the replies, given image tokens ``[row, pos, d_model]``.

    Over the candidates of ``bench``.
    """
    tokenizer, stack = bench.reader.tokenizer, bench.reader.stack
    after = tokenizer(texts.asked.after, add_special_tokens=False).input_ids
    replies = [tokenizer(f" {r}{END}", add_special_tokens=False).input_ids for r in texts.replies]
    longest = max(map(len, replies))
    pad = tokenizer.eos_token_id
    ids = [after + r + [pad] * (longest - len(r)) for r in replies]
    real = [[True] * len(r) + [False] * (longest - len(r)) for r in replies]
    ids, real = (torch.tensor(rows, device=image.device) for rows in (ids, real))
    embeds = torch.cat([image.to(bench.head.dtype), bench.reader.embed(ids)], 1)
    kept = bench.prefix(texts.asked.before, keep)
    past = 0 if kept is None else kept.get_seq_length()
    states = stack(
        inputs_embeds=embeds,
        attention_mask=ids.new_ones(len(ids), past + embeds.shape[1]),
        position_ids=torch.arange(past, past + embeds.shape[1], device=ids.device).expand(
            len(ids), -1
        ),
        past_key_values=repeated(kept, len(ids)),
        use_cache=True,
    ).last_hidden_state[:, -longest - 1 : -1]
    logits = F.linear(states[real], bench.head).float()
    labels = torch.searchsorted(bench.candidates, ids[:, -longest:][real])
    return F.cross_entropy(logits, labels)


# --- the low-rank adapter ---------------------------------------------------------------------


def _tuned(bench: Bench, recipe: Recipe, seed: int) -> nn.ParameterList | None:
    """Put a low-rank adapter on the language model, if the recipe says so; its parameters."""
    if not recipe.tuned_rank:
        return None
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3000 + seed)
    config = LoraConfig(
        r=recipe.tuned_rank, lora_alpha=2 * recipe.tuned_rank, target_modules="all-linear"
    )
    owner = bench.reader.owner
    peft = get_peft_model(owner.model, config)
    bench.reader = Reader(Llm(peft.base_model.model, owner.tokenizer, owner.name))
    return nn.ParameterList([p for p in peft.parameters() if p.requires_grad])


def _merged(bench: Bench) -> Mapping[str, Tensor]:
    """The tuned text stack's weights with the low-rank adapter folded in."""
    from peft.tuners.lora import LoraLayer

    model = bench.reader.owner.model
    for module in list(model.modules()):
        if isinstance(module, LoraLayer):
            module.merge()
    stack = model.base_model if hasattr(model, "base_model") else model.model
    return {
        name.replace(".base_layer.", "."): value.detach()
        for name, value in stack.state_dict().items()
        if "lora_" not in name
    }
