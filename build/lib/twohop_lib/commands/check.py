"""``twohop check``: is this model one that the chapters can work with?"""

from __future__ import annotations

import contextlib
import json as jsonlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twohop_lib.errors import TwohopError, suggest

if TYPE_CHECKING:
    from twohop_lib.interventions.check import Report
    from twohop_lib.rerun.rehearse import Rehearsal

#: One colour a role, for a terminal.
COLOURS = {
    "prefix": "dim",
    "image": "black on yellow",
    "separator": "yellow",
    "entity": "bold magenta",
    "question": "cyan",
    "last": "bold white on blue",
}


def check(
    vlm: Annotated[str, typer.Option(help="Hub id, folder, or name of an organism or graft.")],
    llm: Annotated[str | None, typer.Option(help="Text backbone; the registry's if left out.")] = (
        None
    ),
    benchmark: Annotated[
        str, typer.Option(help="A source's name or a path; left out, what suits the model.")
    ] = "",
    revision: Annotated[str | None, typer.Option(help="The VLM's revision on the hub.")] = None,
    llm_revision: Annotated[str | None, typer.Option(help="The backbone's revision.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, or auto: all GPUs.")] = (
        None
    ),
    quantise: Annotated[str | None, typer.Option(help="4bit or 8bit (needs bitsandbytes).")] = None,
    profile: Annotated[
        str, typer.Option(help="What chapters are timed for: quick, standard or full.")
    ] = "standard",
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check that a model's blocks, prompts and patches are what they seem, and time the chapters.

    Every experiment of the chapters is run on a few entities. Exits with 0 only if every check
    holds and every chapter can be run.
    """
    from twohop_lib.runs.named import locate_pair, suited_benchmark

    vlm_at, llm_at = locate_pair(vlm, llm)  # A mistyped name is told before anything heavy starts.

    from twohop_lib.benchmark import sources
    from twohop_lib.interventions.check import check as run
    from twohop_lib.models.pair import load_pair
    from twohop_lib.rerun.rehearse import Rehearsal, rehearse, starting
    from twohop_lib.rerun.run import PROFILES, NoChapters, chapters_folder, rerunnable

    if quantise not in (None, "4bit", "8bit"):
        raise TwohopError(f"Unknown quantisation {quantise!r}; use 4bit or 8bit.")
    if profile not in PROFILES:
        raise TwohopError(f"No profile is called {profile!r}; {suggest(profile, PROFILES)}.")
    with tempfile.TemporaryDirectory() as folder:
        suited = benchmark or suited_benchmark(vlm_at)
        asked = sources.open_benchmark(suited, Path(folder) / "benchmark")
        started = time.perf_counter()
        pair = load_pair(
            vlm_at,
            llm_at,
            dtype=dtype,
            device=device,
            quantise=quantise,  # type: ignore[arg-type]
            vlm_revision=revision,
            llm_revision=llm_revision,
        )
        loading = time.perf_counter() - started
        report, done = run(pair, asked), Rehearsal({}, {})
        if not json:
            _print(pair.name, report)
        if report.ok:  # Where a check fails, experiments would mean nothing.
            with contextlib.suppress(NoChapters):
                chapters = rerunnable(chapters_folder())
                done = rehearse(pair, asked, chapters, profile, fixed=starting() + loading)
    ok = report.ok and not done.refused
    if json:
        found = {"seconds_by_chapter": dict(done.seconds), "refused": dict(done.refused)}
        typer.echo(jsonlib.dumps({**report.json(), "ok": ok, **found}, indent=2))
    else:
        _print_chapters(done, profile)
    if not ok:
        raise typer.Exit(1)


def _print_chapters(done: Rehearsal, profile: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("chapter", "minutes, about", box=None, pad_edge=False)
    for chapter, seconds in done.seconds.items():
        table.add_row(chapter, f"{seconds / 60:.1f}")
    if done.seconds:
        console.print(f"Chapters at profile {profile}, finished work shared between them:")
        console.print(table)
    for chapter, why in done.refused.items():
        console.print(f"{chapter} cannot be run: {why}", style="bold red", markup=False)


def _print(name: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(f"[bold]{name}[/bold]: {report.family}, {report.architecture_class}")
    console.print(
        f"{report.n_blocks} decoder blocks, {report.image_tokens} image tokens a picture, "
        f"{report.memory_mb:.0f} MB of weights"
    )
    if report.drift is not None:
        console.print(
            f"its language weights lie {report.drift:.1%} from the backbone's (relative distance)"
        )
    for note in report.notes:
        console.print(note)
    drawn = Text()
    run, last = 0, ""
    for token, role in (*report.tokens, ("", "")):
        if last == "image" and role != "image":
            drawn.append(f" picture × {run} ", style=COLOURS["image"])
            run = 0
        if role == "image":
            run += 1
        elif role:
            drawn.append(token.replace("\n", "⏎") or "·", style=COLOURS[role]).append("\u200a ")
        last = role
    legend = Text("roles: ")
    for role in dict.fromkeys(role for _, role in report.tokens):
        legend.append(f" {role} ", style=COLOURS[role]).append(" ")
    console.print(drawn)
    console.print(legend)
    for asked, said in report.answers.items():
        console.print(Text(f"{asked}  →  {said}"))
    table = Table("check", "off by (nats)", "share", "allowed", "holds", box=None, pad_edge=False)
    for check_name, held in report.checks.items():
        sign = "≥" if check_name == "picture_matters" else "≤"
        table.add_row(
            check_name.replace("_", " "),
            f"{held.distance:.1e}",
            f"{held.share:.1e}",
            f"{sign} {held.allowed:g}",
            "yes" if held.ok else "[bold red]NO[/bold red]",
        )
    console.print(table)
    console.print(
        "Shares are of the distance to the run that must be told apart; of another picture's "
        "difference, in what rounding may do."
    )
    for sentence in report.unlike_a_session or ("Prompts and answers are a plain session's.",):
        console.print(Text(sentence, style="bold red" if report.unlike_a_session else ""))
    if report.computation == "reference":
        console.print("Splicing is not exact for this model: interventions run whole, and slowly.")
    if report.nan:
        console.print(
            "[bold]It computes NaN (not a number), so no comparison holds; give another "
            "--dtype, such as float32 or bfloat16.[/bold]"
        )
    if report.untrained:
        console.print("[bold]These weights look random: nothing they say is a result.[/bold]")


__all__ = ["check"]
