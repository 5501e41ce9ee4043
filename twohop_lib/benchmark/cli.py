"""``twohop benchmark``: build, validate and look at benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark

benchmark_app = typer.Typer(help="What is asked: build, validate, look.", no_args_is_help=True)


def _summary(benchmark: Benchmark) -> str:
    return (
        f"{benchmark.name} (seed {benchmark.seed}): {len(benchmark.entities())} entities, "
        f"{len(benchmark.questions)} questions\nhash {benchmark.hash}\n{benchmark.root}"
    )


@benchmark_app.command()
def build(
    name: Annotated[str, typer.Argument(help="Which benchmark, such as heraldry.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Which world.")] = 0,
) -> None:
    """Build a benchmark: questions.parquet and images/; the same seed gives the same bytes."""
    from twohop_lib.benchmark.sources import build as build_source

    typer.echo(_summary(build_source(name, out, seed)))


@benchmark_app.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="The benchmark's folder.")],
) -> None:
    """Check every row and picture of a benchmark."""
    from twohop_lib.benchmark.store import load

    typer.echo(_summary(load(folder)))


@benchmark_app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The benchmark's folder.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    limit: Annotated[int, typer.Option(min=1, help="How many entities at most.")] = 60,
) -> None:
    """Write a contact sheet: picture, both questions, accepted answers."""
    from twohop_lib.benchmark.sheet import contact_sheet
    from twohop_lib.benchmark.store import load
    from twohop_lib.errors import TwohopError

    page = contact_sheet(load(folder), limit)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TwohopError(
            f"{out} cannot be written ({error.strerror}); choose another file."
        ) from error
    typer.echo(out)
