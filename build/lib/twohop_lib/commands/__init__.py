"""The ``twohop`` command, one module a subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

from twohop_lib import __version__
from twohop_lib.commands.bench import bench
from twohop_lib.commands.benchmark import benchmark_app
from twohop_lib.commands.check import check
from twohop_lib.commands.graft import graft_app
from twohop_lib.commands.models import models
from twohop_lib.commands.organism import organism_app
from twohop_lib.commands.rerun import TwoWords, rerun

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(organism_app, name="organism")
app.add_typer(graft_app, name="graft")
app.command()(models)
app.command()(check)
app.command()(bench)
app.command(cls=TwoWords)(rerun)


@app.command()
def version() -> None:
    """Print the version of this package."""
    typer.echo(__version__)


def _version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def twohop(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The two-hop problem in vision-language models."""
