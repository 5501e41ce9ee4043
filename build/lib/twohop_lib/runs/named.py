"""What a model is called: where the organism or graft of a name lies, and what to ask it."""

from __future__ import annotations

from pathlib import Path

from twohop_lib import grafts, organisms
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.organisms.cards import CARD, Card


def locate_pair(vlm: str, llm: str | None = None, seed: int = 0) -> tuple[str, str | None]:
    """Where a VLM and its backbone are: the name of an organism or graft becomes its two folders.

    A folder or a hub id is returned as it is, a graft's folder with its own text model as the
    backbone where none is given.

    Raises:
        TwohopError: ``vlm`` is none of these, or an organism or graft that is not on this machine.
    """
    if "/" in vlm or Path(vlm).exists():
        return vlm, llm or _text_model(vlm)
    if vlm in grafts.NAMES:
        from twohop_lib.grafts import shipped  # Heavy, and seldom needed.

        folder = str(shipped.path(vlm, seed))
        return folder, llm or _text_model(folder)
    known = (*organisms.NAMES, *organisms.FURTHER)
    if vlm not in known:
        raise TwohopError(
            f"{vlm!r} is no folder, no organism, no graft and no hub id (owner/name); "
            f"{suggest(vlm, (*known, *grafts.NAMES))}."
        )
    return str(organisms.path(vlm, seed)), llm or str(organisms.path(organisms.NAMES[0], seed))


def _text_model(folder: str) -> str | None:
    beside = Path(folder) / grafts.LANGUAGE
    return str(beside) if beside.is_dir() else None


def suited_benchmark(vlm: str) -> str:
    """The benchmark that suits a model: organisms know their own world, all others the real one.

    ``vlm`` is a name, folder or hub id; empty means the book's organisms.
    """
    organism = not vlm or vlm in (*organisms.NAMES, *organisms.FURTHER) or _is_organism(Path(vlm))
    return "heraldry" if organism else "flags"


def _is_organism(folder: Path) -> bool:
    """Whether a folder has an organism's card; a graft's says other things."""
    try:
        return bool(Card.model_validate_json((folder / CARD).read_text()))
    except (OSError, ValueError):
        return False
