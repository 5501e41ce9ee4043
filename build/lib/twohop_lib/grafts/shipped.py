"""Finding a graft: one that ships is joined to its language model once, in the user's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from twohop_lib.benchmark import flags
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import (
    ADAPTERS,
    NAMES,
    assemble,
    cache_folder,
    check_name,
    fewshot,
    language,
)
from twohop_lib.grafts.cards import Card, adapter_hash, read_card
from twohop_lib.grafts.recipes import RECIPES
from twohop_lib.grafts.train import fingerprint


def grafts_folder() -> Path:
    """Where grafts trained or joined on this machine are."""
    return cache_folder() / "grafts"


def path(name: str, seed: int = 0, llm: str | Path | None = None) -> Path:
    """The checkpoint folder of a graft: shipped and joined here, or trained here.

    ``llm`` is where a shipped graft's language model is; None takes, and fetches if need be, the
    conversion that the package index carries.

    Raises:
        TwohopError: unknown name, not on this machine, or its language model cannot be had.
    """
    check_name(name)
    adapter = ADAPTERS / f"seed{seed}" / name
    if (adapter / assemble.ADAPTER).is_file():
        return joined(adapter, llm)
    trained = grafts_folder() / f"seed{seed}" / name
    if (trained / "config.json").is_file():
        return trained
    raise TwohopError(
        f"graft {name!r} of seed {seed} is not on this machine; train it with: "
        f"twohop graft train --recipe {name} --seed {seed}"
    )


def joined(adapter: Path, llm: str | Path | None = None) -> Path:
    """The checkpoint of a shipped adapter, joined to its language model if that was not done yet.

    Raises:
        TwohopError: the language model is not the one that the adapter was grown on.
    """
    card = read_card(adapter)
    out = _joined_folder(card)
    if llm is None and (out / "config.json").is_file():
        return out
    # Not whatever copy the hub's cache holds: its weights are others than the conversion's.
    folder = language.packaged() if llm is None else language.language_model(llm)
    found = fingerprint(folder)
    if found != card.llm_hash:
        raise TwohopError(
            f"The graft {card.name} was grown on {card.llm} (weights {card.llm_hash}), not on "
            f"{folder.name} ({found}); give that one, or train a graft on yours with: "
            f"twohop graft train --llm {folder} --recipe {card.name}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(out.name + ".lock")):
        if not (out / "config.json").is_file():
            few = fewshot.of_flags(flags.read(distinct=True).questions)
            recipe = RECIPES[card.name]
            assemble.join(adapter / assemble.ADAPTER, folder, out, recipe.tower, few)
            shutil.copy(ADAPTERS / "NOTICE", out)
    return out


def _joined_folder(card: Card) -> Path:
    name = f"{card.name}-seed{card.seed}-{card.adapter_sha256[:8]}"
    return grafts_folder() / "joined" / name


def here(seed: int = 0) -> dict[str, str]:
    """The grafts that can be opened without fetching anything: name to the hash of its adapter."""
    found = {}
    fetched = (language.packaged_folder() / "config.json").is_file()
    for name in NAMES:
        adapter = ADAPTERS / f"seed{seed}" / name
        trained = grafts_folder() / f"seed{seed}" / name
        if (adapter / assemble.ADAPTER).is_file():
            card = read_card(adapter)
            if fetched or (_joined_folder(card) / "config.json").is_file():
                found[name] = card.adapter_sha256
        elif (trained / "config.json").is_file():
            found[name] = adapter_hash(trained)
    return found
