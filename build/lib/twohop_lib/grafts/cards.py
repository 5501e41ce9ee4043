"""Cards: what a graft is, what it was grown on, and what was measured of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from twohop_lib.errors import TwohopError
from twohop_lib.grafts import ADAPTERS, NAMES, cache_folder
from twohop_lib.grafts.assemble import ADAPTER
from twohop_lib.organisms.cards import Measured

CARD = "card.json"


class Card(BaseModel):
    """One graft of one seed.

    ``named``: entities named from pictures never trained on; ``by_picture``: facts that the same
    language model gives by name, and not for a blank picture, given by picture; ``own_name``: the
    answers to those that are the entity's name instead. All in the format ``chat``.
    """

    name: str
    seed: int
    made: str
    llm: str
    llm_hash: str
    benchmark: str
    adapter_sha256: str
    named: Measured | None = None
    by_picture: Measured | None = None
    own_name: Measured | None = None
    name_first: Measured | None = None


def adapter_hash(folder: Path) -> str:
    """SHA-256 of a graft's adapter, in hexadecimal.

    Raises:
        TwohopError: there is none.
    """
    if not (folder / ADAPTER).is_file():
        raise TwohopError(f"{folder} has no {ADAPTER}; restore it, or train the graft again.")
    return hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest()


def write_card(folder: Path, card: Card) -> None:
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n")


def read_card(folder: Path) -> Card:
    """The card beside an adapter.

    Raises:
        TwohopError: no card there, it is damaged, or it describes another adapter.
    """
    file = folder / CARD
    if not file.is_file():
        raise TwohopError(f"{folder} has no {CARD}; measure it with: twohop graft study")
    try:
        card = Card.model_validate_json(file.read_text())
    except ValueError as error:
        raise TwohopError(
            f"{file} is damaged; restore it, or measure again with: twohop graft study"
        ) from error
    if adapter_hash(folder) != card.adapter_sha256:
        raise TwohopError(
            f"the adapter in {folder} is not the one its card describes (hash differs); restore "
            f"it, or train it again with: twohop graft train --recipe {card.name} "
            f"--seed {card.seed}"
        )
    return card


def cards() -> list[Card]:
    """The cards of all grafts on this machine, shipped ones first."""
    found = {}
    for root in (ADAPTERS, cache_folder() / "grafts"):
        for folder in sorted(root.glob("seed*/*")):
            key = (folder.parent.name, folder.name)
            if (folder / CARD).is_file() and key not in found:
                found[key] = read_card(folder)
    return sorted(
        found.values(),
        key=lambda c: (c.seed, NAMES.index(c.name) if c.name in NAMES else len(NAMES), c.name),
    )


def _share(measured: Measured | None) -> str:
    if measured is None:
        return "–"
    interval = (
        "" if measured.low is None else f" [{100 * measured.low:.0f}, {100 * measured.high:.0f}]"
    )
    return f"{100 * measured.value:.0f} %{interval} (n={measured.n})"


def print_cards(listed: list[Card]) -> None:
    """Print the cards as a table; on a terminal and in a pipe alike."""
    if not listed:
        print("No graft on this machine has a card. Grow and measure one: twohop graft study")
        return
    table = Table(title="Grafts (pictures never trained on, format chat)")
    columns = ("name", "seed", "made", "grown on", "names", "facts by picture", "own name instead")
    for column in (*columns, "naming first"):
        table.add_column(column, overflow="fold")
    for card in listed:
        shares = (card.named, card.by_picture, card.own_name, card.name_first)
        grown = f"{card.llm} ({card.llm_hash})"
        table.add_row(card.name, str(card.seed), card.made, grown, *map(_share, shares))
    Console(width=None if Console().is_terminal else 180).print(table)
