"""Citations where no Sphinx resolves them: in notebooks, and on a run's pages."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

#: Beside the library, in a clone of the repository.
REFERENCES = Path(__file__).parents[2] / "book" / "references.bib"


def cited(keys: str, in_text: bool = True) -> str:
    """``Cohen et al. (2025)``, or ``(Cohen et al., 2025)`` if not in the text; ``keys`` by commas.

    A key that the references lack stays as it is.
    """
    found = [_references().get(key.strip(), (key.strip(), "")) for key in keys.split(",")]
    if in_text:
        return "; ".join(f"{who} ({year})" if year else who for who, year in found)
    return f"({'; '.join(f'{who}, {year}' if year else who for who, year in found)})"


@cache
def _references() -> dict[str, tuple[str, str]]:
    """Authors and year of every reference, by its key."""
    if not REFERENCES.is_file():
        return {}
    found = {}
    entries = re.findall(r"^@\w+\{([^,]+),(.*?)^\}", REFERENCES.read_text("utf-8"), re.M | re.S)
    for key, body in entries:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", body, re.M))
        who = [a.partition(",")[0].strip(" {}") for a in fields.get("author", key).split(" and ")]
        named = who[0] if len(who) == 1 else f"{who[0]} and {who[1]}"
        found[key] = named if len(who) < 3 else f"{who[0]} et al.", fields.get("year", "")
    return found
