"""The layout of the library: a package imports from those below it alone, never in a circle."""

import re
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


def test_no_package_imports_upwards_and_nothing_in_a_circle(copy):
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


def test_the_map_has_every_package_and_only_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = {init.parent.name for init in (ROOT / "twohop_lib").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in text} == set()
    folders = ("twohop_lib", "tests", "book", "benchmarks")
    there = {file.name for folder in folders for file in (ROOT / folder).rglob("*.py")}
    assert {Path(n).name for n in re.findall(r"`([\w/]+\.py)`", text)} - there == set()
    ours = set(re.findall(r"^\| `(\w+)/`", text, re.M)) - {"benchmarks", "tests"}
    assert ours <= packages
