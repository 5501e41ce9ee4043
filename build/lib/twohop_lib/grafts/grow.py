"""Growing one graft from names alone: its language model and benchmark are found first."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from twohop_lib.benchmark import Benchmark, load, sources
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import check_name, language
from twohop_lib.grafts.recipes import RECIPES, Recipe
from twohop_lib.grafts.shipped import grafts_folder
from twohop_lib.grafts.train import TRAINING, fingerprint, locked, train
from twohop_lib.records import content_hash


def grow(
    name: str,
    seed: int = 0,
    llm: str | Path = language.GEMMA,
    benchmark: str = "flags",
    out: Path | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> Path:
    """Grow graft ``name`` of ``seed``; returns its checkpoint's folder, made already or not.

    ``steps`` shortens every stage, for a trial. ``out`` None is a folder in the cache.

    Raises:
        TwohopError: unknown recipe, or model or benchmark cannot be had or do not serve.
    """
    check_name(name)
    recipe = RECIPES[name] if steps is None else shortened(RECIPES[name], steps)
    folder = language.language_model(llm, progress)
    opened = training_benchmark(benchmark)
    if out is None:
        kind = "" if (str(llm), benchmark, steps) == (language.GEMMA, "flags", None) else "other/"
        mark = f"{folder.name}-{opened.name}-{steps}/" if kind else ""
        out = grafts_folder() / f"{kind}{mark}seed{seed}" / name
    if made_by(out, recipe, seed, folder, opened):
        return out
    if (out / "config.json").is_file() and not (out / TRAINING).is_file():
        raise TwohopError(f"{out} holds another model; name another folder.")
    work = grafts_folder() / "work"
    with locked(out):
        if made_by(out, recipe, seed, folder, opened):  # Meanwhile, by another process.
            return out
        return train(name, recipe, opened, folder, seed, out, work, progress)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with every stage cut to ``steps`` steps."""
    phases = tuple(replace(phase, steps=min(steps, phase.steps)) for phase in recipe.phases)
    tower = replace(recipe.tower, steps=min(steps, recipe.tower.steps))
    return replace(recipe, phases=phases, tower=tower)


def training_benchmark(name: str) -> Benchmark:
    """The benchmark that a graft is trained on; of the flags those without a look-alike.

    The flags are built once by one version of the code, since processes side by side read them.
    """
    folder = grafts_folder() / "work" / "benchmarks"
    if name != "flags":
        return sources.open_benchmark(name, folder / Path(name).name)
    code = [
        f for f in Path(sources.__file__).parent.rglob("*") if f.suffix in (".py", ".csv", ".jsonl")
    ]
    kept = folder / f"flags-{content_hash(code)[:8]}"
    with locked(kept):
        return load(kept) if kept.is_dir() else sources.build(name, kept, distinct=True)


def made_by(out: Path, recipe: Recipe, seed: int, llm: Path, benchmark: Benchmark) -> bool:
    """Whether ``out`` holds this very graft."""
    try:
        about = json.loads((out / TRAINING).read_text())
    except (OSError, ValueError):
        return False
    wanted = json.loads(json.dumps(asdict(recipe)))
    of = (about.get("recipe"), about.get("seed"), about.get("llm_hash"), about.get("benchmark"))
    return of == (wanted, seed, fingerprint(llm), benchmark.name)
