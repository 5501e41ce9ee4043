"""``twohop benchmark``: build, validate and look at benchmarks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark

benchmark_app = typer.Typer(help="What is asked: build, validate, look.", no_args_is_help=True)


def _summary(benchmark: Benchmark, where: Path) -> str:
    return (
        f"{benchmark.name} (seed {benchmark.seed}): {len(benchmark.entities())} entities, "
        f"{len(benchmark.questions)} questions\nhash {benchmark.hash}\n{where}"
    )


Source = Annotated[
    Path | None, typer.Option(help="popvqa: a local copy; table: the CSV, TSV or Parquet file.")
]
Images = Annotated[
    Path | None, typer.Option(help="table: the folder of pictures, if not the table's own.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="popvqa, table: leave out rows with problems.")
]


@benchmark_app.command()
def build(
    name: Annotated[str, typer.Argument(help="heraldry, flags, popvqa or table.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Which world, and which distractors.")] = 0,
    source: Source = None,
    images: Images = None,
    skip_bad: SkipBad = False,
    entities: Annotated[
        int | None, typer.Option(min=0, help="popvqa: how many; 0 for all. 400 if left out.")
    ] = None,
    revision: Annotated[
        str, typer.Option(help="popvqa: the hub's commit, to read what an earlier run read.")
    ] = "",
    distinct: Annotated[
        bool, typer.Option("--distinct", help="flags: leave out those with a look-alike.")
    ] = False,
) -> None:
    """Build a benchmark: questions.parquet and images/; the same seed gives the same bytes."""
    from twohop_lib.benchmark.sources import build as build_source

    given = {
        "source": source,
        "images": images,
        "skip_bad": skip_bad or None,
        "entities": entities,
        "revision": revision or None,
        "distinct": distinct or None,
    }
    options = {option: value for option, value in given.items() if value is not None}
    built = build_source(name, out, seed, **options)
    typer.echo(_funnel(built), nl=False)
    typer.echo(_summary(built, built.root))


def _funnel(benchmark: Benchmark) -> str:
    """What each filter left, a line each, and what was skipped."""
    try:
        counts = benchmark.notes.get("counts", ())
        lines = [
            f"{row['entities']:>7} entities {row['facts']:>8} facts  {row['step']}"
            for row in counts
            if len(counts) > 1  # one step is no filter
        ]
        if skipped := benchmark.notes.get("skipped rows"):
            lines.append(f"{skipped} row(s) skipped:")
            lines += [f"  {problem}" for problem in benchmark.notes["skipped"]]
    except (TypeError, KeyError, ValueError):  # notes that somebody else wrote
        return ""
    return "".join(f"{line}\n" for line in lines)


@benchmark_app.command()
def validate(
    where: Annotated[Path, typer.Argument(help="A benchmark's folder, a PopVQA copy, or a table.")],
    images: Images = None,
    skip_bad: SkipBad = False,
) -> None:
    """Check every row and picture, and list what is wrong by row and column."""
    from twohop_lib.benchmark.faults import LISTED, BadTable

    try:
        with _opened(where, images, skip_bad) as found:
            typer.echo(_funnel(found), nl=False)
            typer.echo(_summary(found, where))
    except BadTable as error:
        for problem in error.problems[:LISTED]:
            typer.echo(f"{error.table}, {problem}")
        if more := len(error.problems) - LISTED:
            typer.echo(f"… and {more} more" if more > 0 else "", nl=more > 0)
        raise


@contextmanager
def _opened(where: Path, images: Path | None, skip_bad: bool) -> Iterator[Benchmark]:
    """The benchmark at ``where``; one that has to be built goes when the command ends."""
    from twohop_lib.benchmark import sources

    with tempfile.TemporaryDirectory(prefix="twohop-") as folder:
        out = Path(folder) / "benchmark"
        if os.path.isfile(where):
            yield sources.build("table", out, source=where, images=images, skip_bad=skip_bad)
        elif os.path.isdir(where) and sources.is_popvqa(where):
            yield sources.build("popvqa", out, source=where, entities=0, skip_bad=skip_bad)
        else:
            yield sources.load(where)


@benchmark_app.command()
def show(
    where: Annotated[Path, typer.Argument(help="A benchmark's folder, a PopVQA copy, or a table.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    limit: Annotated[int, typer.Option(min=1, help="How many entities at most.")] = 60,
    images: Images = None,
    skip_bad: SkipBad = False,
) -> None:
    """Write a contact sheet: picture, both questions, accepted answers."""
    from twohop_lib.benchmark.sheet import contact_sheet
    from twohop_lib.errors import TwohopError

    if out.suffix.lower() not in (".html", ".htm"):
        raise TwohopError(f"{out} is not named as a web page; give a name that ends in .html.")
    with _opened(where, images, skip_bad) as found:
        page = contact_sheet(found, limit)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TwohopError(
            f"{out} cannot be written ({error.strerror}); choose another file."
        ) from error
    typer.echo(out)
