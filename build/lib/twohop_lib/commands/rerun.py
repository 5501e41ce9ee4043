"""``twohop rerun``: the book's chapters for another model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from twohop_lib.errors import TwohopError, suggest


class TwoWords(TyperCommand):
    """A command whose ``-p name value`` may be given in two words, as papermill's is."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        joined, rest = [], list(args)
        while rest:
            word = rest.pop(0)
            joined.append(word)
            if word in ("-p", "--parameter") and rest and "=" not in rest[0]:
                name = rest.pop(0)
                if not rest:
                    raise TwohopError(f"Parameter {name!r} has no value; write: -p {name} VALUE")
                joined.append(f"{name}={rest.pop(0)}")
        return super().parse_args(ctx, joined)


def rerun(
    vlm: Annotated[str, typer.Option(help="Hub id, folder, or name of an organism or graft.")],
    llm: Annotated[str | None, typer.Option(help="Text backbone; the registry's if left out.")] = (
        None
    ),
    benchmark: Annotated[
        str,
        typer.Option(
            help="heraldry, flags, popvqa, or a path: a built benchmark, a copy of PopVQA, or a "
            "table. Left out, an organism gets heraldry and any other model flags."
        ),
    ] = "",
    chapters: Annotated[
        list[str] | None,
        typer.Option(help="Names of chapters, parted by commas; may be given again. All if not."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME VALUE: set a parameter of the chapters."),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="quick: twelve entities of the test split; standard: all of it, in the standard "
            "wording; full: every split and wording."
        ),
    ] = "standard",
    seed: Annotated[int, typer.Option(help="Seed of the benchmark.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, or auto: all GPUs.")] = (
        None
    ),
    quantise: Annotated[str | None, typer.Option(help="4bit or 8bit (needs bitsandbytes).")] = None,
    revision: Annotated[str | None, typer.Option(help="The VLM's revision on the hub.")] = None,
    llm_revision: Annotated[str | None, typer.Option(help="The backbone's revision.")] = None,
    skip_check: Annotated[bool, typer.Option(help="Run although a check fails.")] = False,
) -> None:
    """Run the book's chapters for a model, into one folder that a second call goes on with."""
    from twohop_lib.rerun.run import (
        PROFILES,
        Request,
        chapters_folder,
        parse_value,
        rerunnable,
        run,
    )
    from twohop_lib.runs.named import locate_pair

    if profile not in PROFILES:
        raise TwohopError(f"No profile is called {profile!r}; {suggest(profile, PROFILES)}.")
    defaults = {
        name: d for own in rerunnable(chapters_folder()).values() for name, d in own.items()
    }
    given = {}
    for text in parameter or ():
        name, sign, value = text.partition("=")
        if not sign:
            raise TwohopError(f"Parameter {name!r} has no value; write: -p {name} VALUE")
        given[name] = parse_value(value, defaults.get(name))
    if quantise not in (None, "4bit", "8bit"):
        raise TwohopError(f"Unknown quantisation {quantise!r}; use 4bit or 8bit.")
    load = {
        "dtype": dtype,
        "device": device,
        "quantise": quantise,
        "vlm_revision": revision,
        "llm_revision": llm_revision,
    }
    vlm_at, llm_at = locate_pair(vlm, llm, seed)
    request = Request(
        vlm=vlm_at,
        llm=llm_at,
        benchmark=benchmark,
        seed=seed,
        chapters=tuple(c.strip() for c in ",".join(chapters or ()).split(",") if c.strip()),
        parameters=given,
        profile=profile,  # type: ignore[arg-type]
        skip_check=skip_check,
        load={name: value for name, value in load.items() if value is not None},
    )
    outcome = run(request, out, typer.echo)
    if outcome.failed:
        names = ", ".join(outcome.failed)
        others = "; the others are done" if outcome.done else ""
        raise TwohopError(f"{len(outcome.failed)} chapter(s) failed: {names}{others}.")
    if outcome.ran:
        typer.echo(f"done: {outcome.folder / 'html' / 'index.html'}")
    else:
        typer.echo(f"nothing to do: {outcome.folder} is up to date")
