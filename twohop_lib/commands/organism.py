"""``twohop organism``: train, find and list the miniature models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twohop_lib.errors import TwohopError, suggest

organism_app = typer.Typer(help="Miniature models with the truth known.", no_args_is_help=True)
Seed = Annotated[int, typer.Option(help="Which world and backbone.", min=0)]


@organism_app.command("list")
def list_() -> None:
    """Print the cards: how each organism was made, its hash, recall, recognition, gap."""
    from twohop_lib.organisms.cards import cards, print_cards

    print_cards(cards())


@organism_app.command()
def path(name: str, seed: Seed = 0) -> None:
    """Print the checkpoint folder of an organism."""
    from twohop_lib.organisms import path as find

    typer.echo(find(name, seed))


@organism_app.command()
def train(
    name: str,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to train in.")] = None,
) -> None:
    """Train an organism (its backbone first, if need be); taken up again where it was cut off."""
    from twohop_lib.organisms import cache_folder, check_name

    check_name(name)
    from twohop_lib.organisms.grow import train_organism

    folder = (out or cache_folder()) / f"seed{seed}"
    typer.echo(train_organism(name, seed, folder))


@organism_app.command()
def study(
    out: Annotated[Path | None, typer.Option(help="Folder for the records.")] = None,
    causes: Annotated[
        bool, typer.Option("--causes", help="Measure what tells causes apart.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option(help="With --causes: these alone.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="With --causes: these worlds.")] = None,
) -> None:
    """Train every organism of every seed, measure all on the test split, write the records."""
    from twohop_lib.organisms import STUDY, cache_folder

    if (model or seed) and not causes:
        raise TwohopError("--model and --seed are of --causes; the whole study takes neither.")
    if causes:
        from twohop_lib.organisms.recipes import SEEDS
        from twohop_lib.study.causes import MODELS, run_causes

        for name in model or ():
            if name not in MODELS:
                raise TwohopError(f"The study of causes has no {name!r}; {suggest(name, MODELS)}.")
        run_causes(cache_folder(), out or STUDY, seed or SEEDS, model or MODELS)
        return
    from twohop_lib.study.organisms import run_study

    run_study(cache_folder(), out or STUDY)
