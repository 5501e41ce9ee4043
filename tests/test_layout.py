"""The layout of the library: rooms import from rooms below them alone, and never in a circle."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    command += ["--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "checkpoints", "*.parquet")
    shutil.copytree(ROOT / "twohop_lib", tmp_path / "twohop_lib", ignore=ignore)
    return tmp_path


def test_no_room_imports_upwards_and_nothing_in_a_circle(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "turned"),
    [
        ("scoring/matching.py", "from twohop_lib.runs import store"),
        ("records.py", "from twohop_lib.chapter import show"),
        ("interventions/recording.py", "from twohop_lib.interventions import sweep"),
    ],
)
def test_an_import_turned_round_is_found(copy, file, turned):
    at = copy / "twohop_lib" / file
    at.write_text(at.read_text(encoding="utf-8") + f"\n{turned}  # noqa\n", encoding="utf-8")
    assert lint(copy).returncode != 0
