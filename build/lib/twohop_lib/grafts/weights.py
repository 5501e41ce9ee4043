"""Checkpoint files: what dtype a folder says it is, and copies that take no room."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def set_dtype(folder: Path, dtype: str) -> None:
    """Have ``config.json`` say that the model is computed in ``dtype``, whatever its file holds."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    _set(config, dtype)
    file.write_text(json.dumps(config, indent=2) + "\n")


def _set(config: dict[str, Any], dtype: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict):
            _set(value, dtype)


def link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``; a copy where the disk knows no links.

    At once: processes side by side may link to the same target.
    """
    made = target.with_name(f".{target.name}.{os.getpid()}.partial")
    made.unlink(missing_ok=True)
    try:
        os.link(source, made)
    except OSError:
        shutil.copyfile(source, made)
    os.replace(made, target)
    made.unlink(missing_ok=True)  # Of two names for one file, replacing leaves both.
