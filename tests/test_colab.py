"""The install cell on Colab replaces nothing that the image has: floors against what it has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
IMAGE = (ROOT / "tests" / "colab.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HELD = [line for line in IMAGE.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("held", HELD)
def test_what_colab_has_is_enough(held):
    name, version = held.removesuffix(".*").split("==")
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
    assert wanted[canonicalize_name(name)].specifier.contains(f"{version}.0")


def test_colabs_python_is_one_of_ours():
    version = re.search(r"# python (\S+)", IMAGE)[1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
