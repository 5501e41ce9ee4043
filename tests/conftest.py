"""What many tests ask questions about: world 0 of the heraldry, built once a worker."""

from __future__ import annotations

import pytest

from twohop_lib.benchmark import Benchmark, sources


@pytest.fixture(scope="session")
def heraldry(tmp_path_factory) -> Benchmark:
    return sources.build("heraldry", tmp_path_factory.mktemp("world") / "heraldry", 0)


@pytest.fixture(scope="session")
def world(heraldry) -> Benchmark:
    """Its test houses, asked about in the standard wording."""
    return heraldry.select(split="test", wording="standard")
