"""The ``twohop`` command."""

from __future__ import annotations

import sys

import typer

from twohop_lib import __version__
from twohop_lib.commands.bench import bench
from twohop_lib.commands.benchmark import benchmark_app
from twohop_lib.commands.check import check
from twohop_lib.commands.models import models
from twohop_lib.commands.organism import organism_app
from twohop_lib.commands.rerun import TwoWords, rerun
from twohop_lib.errors import TwohopError

app = typer.Typer(
    help="The two-hop problem in vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(organism_app, name="organism")
app.command()(models)
app.command()(check)
app.command()(bench)
app.command(cls=TwoWords)(rerun)


@app.command()
def version() -> None:
    """Print the version of this package."""
    typer.echo(__version__)


def main() -> None:
    """Run the command; a failure is one sentence on standard error and exit code 1."""
    try:
        app()
    except TwohopError as error:
        sys.exit(f"error: {error}")
