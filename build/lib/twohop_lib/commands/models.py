"""``twohop models``: the known models, their backbones, and what fits into a given memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from twohop_lib.errors import TwohopError, suggest

if TYPE_CHECKING:
    from twohop_lib.models.registry import Entry


def models(
    fits: Annotated[
        str | None, typer.Option(help="Only what runs in so much memory, such as 16GB.")
    ] = None,
    class_: Annotated[
        str | None, typer.Option("--class", help="adapter, native or cross-attention.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List known models with their text backbones, sizes and the memory they take."""
    from twohop_lib.models.registry import CLASSES, ENTRIES, parse_memory

    memory = None if fits is None else parse_memory(fits)
    if class_ is not None and class_ not in CLASSES:
        raise TwohopError(f"No architecture class is called {class_!r}; {suggest(class_, CLASSES)}")
    entries = [
        entry
        for entry in ENTRIES
        if (class_ is None or entry.architecture_class == class_)
        and (memory is None or entry.fits(memory) is not None)
    ]
    if as_json:
        listed = [entry.model_dump() for entry in entries]
        for entry, told in zip(entries, listed, strict=True):
            if memory is not None:
                told |= {"fits": entry.fits(memory), "pair_fits": entry.fits(memory, pair=True)}
        typer.echo(json.dumps(listed, indent=2))
    elif not entries:
        typer.echo("No known model of that class runs in that memory, not even in 4-bit.")
    else:
        _print(entries, memory)


def _print(entries: list[Entry], memory: float | None) -> None:
    """Print entries by class as a table whose ids stay whole in 80 columns, then its marks."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from twohop_lib.models.registry import CLASSES, RULE

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("model, and its text backbone", overflow="fold")
    numbers = ("bf16 GB", "4-bit GB") if memory is None else ("alone in", "pair in")
    for title in ("size", *numbers):
        table.add_column(title, justify="right", no_wrap=True)
    for class_ in CLASSES:
        of_class = [entry for entry in entries if entry.architecture_class == class_]
        if of_class:
            table.add_section()
            table.add_row(f"[bold]{class_}[/bold]")
        for entry in of_class:
            table.add_row(*_cells(entry, memory))
    console = Console(highlight=False)
    console.print(table)
    notes = [RULE]
    if memory is not None:
        notes.append(
            "The highest precision that fits, for the model alone and for the pair loaded together."
        )
    if any(entry.gated for entry in entries):
        notes.append("* Gated (it or its backbone): accept its terms on the hub first.")
    if any(entry.backbone_certainty == "same size and family" for entry in entries):
        notes.append(
            "~ Which checkpoint it was made from is not documented; this one has the same size "
            "and family."
        )
    if any(entry.backbone_certainty == "documented base" for entry in entries):
        notes.append(
            "+ It starts from the pre-trained weights that this one was tuned from; the two were "
            "then trained apart."
        )
    notes += [
        f"{entry.vlm}: {entry.reported_figure} "
        f"({entry.reported_citation} in the book's references)."
        for entry in entries
        if entry.reported_figure
    ]
    for note in notes:
        console.print(note)


def _cells(entry: Entry, memory: float | None) -> tuple[str, str, str, str]:
    marks = {"same size and family": " ~", "documented base": " +"}
    mark = marks.get(entry.backbone_certainty or "", "")
    backbone = f"{entry.llm}{mark}" if entry.llm else "itself, without a picture"
    name = f"{entry.vlm} *" if entry.gated else entry.vlm
    size = f"{entry.parameters_b:.{2 if entry.parameters_b < 1 else 1}f} B"
    if memory is None:
        told = f"{entry.memory_bf16_gb:.1f}", f"{entry.memory_4bit_gb:.1f}"
    else:
        told = entry.fits(memory) or "–", entry.fits(memory, pair=True) or "–"
    return f"{name}\n  [dim]{backbone}[/dim]", size, *told
