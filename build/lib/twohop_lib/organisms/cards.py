"""Cards: what an organism is, how it was made, and what was measured of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from twohop_lib.errors import TwohopError
from twohop_lib.organisms import FURTHER, NAMES, SHIPPED, cache_folder

WEIGHTS = "model.safetensors"
CARD = "card.json"


class Measured(BaseModel):
    """A share with its count, and a 95 % interval where one was computed."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


class Card(BaseModel):
    """One organism of one seed; every figure is measured on the test split."""

    name: str
    seed: int
    made: str
    weights_sha256: str
    text_recall: Measured
    recognition: Measured | None = None
    gap: Measured | None = None


def weights_hash(folder: Path) -> str:
    """SHA-256 of the checkpoint's weights file, in hexadecimal.

    Raises:
        TwohopError: there is no weights file.
    """
    if not (folder / WEIGHTS).is_file():
        raise TwohopError(f"{folder} has no {WEIGHTS}; restore it, or train the organism again.")
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def write_card(folder: Path, card: Card) -> None:
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n")


def read_card(folder: Path) -> Card:
    """The card beside a checkpoint.

    Raises:
        TwohopError: no card there, or the weights are not those the card was written for.
    """
    file = folder / CARD
    if not file.exists():
        raise TwohopError(f"{folder} has no {CARD}; measure it with: twohop organism study")
    try:
        card = Card.model_validate_json(file.read_text())
    except ValueError as error:
        raise TwohopError(
            f"{file} is damaged; restore it, or measure again with: twohop organism study"
        ) from error
    if weights_hash(folder) != card.weights_sha256:
        raise TwohopError(
            f"the weights in {folder} are not those its card describes (hash differs); restore "
            f"the file, or train it again with: twohop organism train {card.name} "
            f"--seed {card.seed}"
        )
    return card


def cards() -> list[Card]:
    """The cards of all organisms on this machine, shipped ones first."""
    found, known = {}, (*NAMES, *FURTHER)
    for root in (SHIPPED, cache_folder()):
        for folder in sorted(root.glob("seed*/*")):
            key = (folder.parent.name, folder.name)
            if folder.name in known and (folder / CARD).exists() and key not in found:
                found[key] = read_card(folder)
    return sorted(found.values(), key=lambda c: (c.seed, known.index(c.name)))


def _share(measured: Measured | None) -> str:
    return "–" if measured is None else f"{100 * measured.value:.1f} % (n={measured.n})"


def _gap(measured: Measured | None) -> str:
    if measured is None:
        return "–"
    return (
        f"{100 * measured.value:.1f} [{100 * measured.low:.1f}, {100 * measured.high:.1f}] points"
        f" (n={measured.n})"
    )


def print_cards(listed: list[Card]) -> None:
    """Print the cards as a table; on a terminal and in a pipe alike."""
    table = Table(title="Organisms (figures: test split, standard wording)")
    for column in ("name", "seed", "made", "weights", "text recall", "recognition", "gap"):
        table.add_column(column, overflow="fold")
    for card in listed:
        table.add_row(
            card.name,
            str(card.seed),
            card.made,
            card.weights_sha256[:12],
            _share(card.text_recall),
            _share(card.recognition),
            _gap(card.gap),
        )
    Console(width=None if Console().is_terminal else 160).print(table)


def training_rows(folder: Path) -> list[dict[str, float]]:
    """The figures logged while the organism was trained (``stage``, ``step``, losses)."""
    return json.loads((folder / "training.json").read_text())["rows"]
