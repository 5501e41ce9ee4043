"""The install cell on Colab replaces nothing that the image has: floors against what it has."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import colab
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


def test_what_pip_was_asked_is_on_record():
    """Made anew by benchmarks/colab.py when a floor or the image changes."""
    recorded = json.loads(colab.RECORDED.read_text())
    assert recorded["replaced"] == [] and recorded["packages"] > 100
    assert {name: of["image"] for name, of in recorded["held"].items()} == colab.image()
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
    for name, of in recorded["held"].items():
        assert wanted[canonicalize_name(name)].specifier.contains(of["left"])


@pytest.mark.skipif(not os.environ.get("TWOHOP_COLAB"), reason="long, and needs a package index")
def test_pip_replaces_nothing_on_colab():
    """Set TWOHOP_COLAB to run it."""
    found = colab.measure()
    assert found["replaced"] == [], found["held"]
