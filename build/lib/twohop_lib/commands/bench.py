"""``twohop bench``: how much faster is the engine than the loops that everyone writes?"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from twohop_lib.errors import TwohopError

#: Width of the LLaVA-shaped model: 7 B parameters on a GPU, small enough for minutes on a CPU.
GPU_WIDTH, CPU_WIDTH = 4096, 256


def bench(
    vlm: Annotated[
        str, typer.Option(help="Hub id, folder or organism; left out: LLaVA-1.5's shape.")
    ] = "",
    llm: Annotated[str | None, typer.Option(help="Its text backbone.")] = None,
    work: Annotated[
        str, typer.Option(help="cross-patch, freeze, knockout or mlp-patch.")
    ] = "cross-patch",
    width: Annotated[int, typer.Option(help="Width of the shaped model; 0: by device.")] = 0,
    entities: Annotated[int, typer.Option(help="Pictures.", min=2)] = 8,
    pairs: Annotated[int, typer.Option(help="Pairs of target and donor.", min=1)] = 16,
    sample: Annotated[
        int, typer.Option(help="Time so many runs of the slow loops, scaled up; 0: all.", min=0)
    ] = 64,
    batch_size: Annotated[int, typer.Option(help="Interventions run at once.", min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to a file, too.")] = None,
) -> None:
    """Time the engine against an nnsight loop and plain hooks: same work, one run.

    Exits with 0 only if all three agree.
    """
    import torch

    benches = _benches()

    if vlm:
        from twohop_lib.models.pair import load_pair
        from twohop_lib.runs.named import locate_pair

        model = load_pair(*locate_pair(vlm, llm), dtype=dtype).vlm
    else:
        gpu = torch.cuda.is_available()
        usual = "bfloat16" if gpu else "float32"
        kind = getattr(torch, usual if dtype == "auto" else dtype, None)
        if not isinstance(kind, torch.dtype):
            raise TwohopError(f"Unknown dtype {dtype!r}; use float32, bfloat16, float16 or auto.")
        size = width or (GPU_WIDTH if gpu else CPU_WIDTH)
        model = benches.llava_shaped(size, kind, "cuda" if gpu else "cpu")
    timing = benches.measure(model, work, entities, pairs, sample, batch_size)
    if out is not None:
        benches.write([timing], out)
    if json:
        typer.echo(benches.as_json([timing])[1:-1].strip())
    else:
        _print(timing)
    if not timing.agree:
        raise typer.Exit(1)


def _benches() -> ModuleType:
    """The measurements themselves: beside the library, in a clone of the repository."""
    folder = Path(__file__).parents[2] / "benchmarks"
    if not (folder / "bench.py").is_file():
        raise TwohopError(
            "The benchmarks are not installed with the library; clone the repository and install "
            "from there with: pip install -e ."
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("bench")


def _print(t: Any) -> None:
    table = Table(title=f"{t.work}, {t.model}, {t.device}, {t.dtype}")
    for column in ("", "seconds", "times the engine's", "peak MiB"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("engine", f"{t.engine_s:.1f}", "1", f"{t.peak_mb_engine:.0f}")
    table.add_row("plain hooks", f"{t.hooks_s:.1f}", f"{t.ratio_hooks:.1f}", "")
    table.add_row(
        "nnsight loop", f"{t.nnsight_s:.1f}", f"{t.ratio_nnsight:.1f}", f"{t.peak_mb_nnsight:.0f}"
    )
    Console().print(table)
    Console().print(
        f"{t.runs} interventions on {t.n_blocks} blocks, {t.prompt_tokens} positions, "
        f"{t.image_tokens} of them the picture's; {t.reference_runs} of them timed for the loops. "
        f"Largest difference {t.max_abs_diff:.1e} nats, {t.share:.1e} of the distance between the "
        f"runs that differ most (allowed: {t.allowed:g})."
    )
    Console().print(
        f"Positions sent through a block: {t.loop_token_layers:,} by a loop, "
        f"{t.engine_token_layers:,} by the engine. No exact method needs fewer than "
        f"{t.least_token_layers:,}, which would be {t.ratio_limit:.0f} times fewer than the loop."
    )
