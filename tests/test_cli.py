"""The command as it is typed: a failure is one line, help comes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import twohop_lib
from twohop_lib.organisms import SHIPPED

TWOHOP = Path(sys.executable).parent / "twohop"


def twohop(*arguments, cache=None) -> subprocess.CompletedProcess:
    env = {**os.environ, "TWOHOP_CACHE": str(cache)} if cache else None
    return subprocess.run(
        [TWOHOP, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["organism", "path", "midle"], "no organism is called 'midle'; did you mean 'middle'?"),
        (["organism", "path", "late", "--seed", 9], "train it with: twohop organism train late"),
        (["organism", "train", "midle"], "no organism is called 'midle'; did you mean 'middle'?"),
        (["benchmark", "build", "heraldy"], "No benchmark is called 'heraldy'; did you mean"),
        (["benchmark", "validate", "none"], "none is not a folder"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(tmp_path, arguments, told):
    if "build" in arguments:
        arguments = [*arguments, "--out", tmp_path / "out"]
    done = twohop(*arguments, cache=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert not list(tmp_path.iterdir())


def test_what_succeeds_prints_to_standard_output(tmp_path):
    done = twohop("organism", "path", "middle", cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == SHIPPED / "seed0" / "middle"
    assert twohop("version").stdout.strip() == twohop_lib.__version__


def test_help_comes_at_once():
    took = []
    for _ in range(3):  # the best of three: the machine may be busy
        started = time.perf_counter()
        done = twohop("--help")
        took.append(time.perf_counter() - started)
        if took[-1] < 3:
            break
    assert done.returncode == 0 and "organism" in done.stdout and "benchmark" in done.stdout
    assert min(took) < 3, took


@pytest.mark.parametrize("module", ["twohop_lib.cli", "twohop_lib.organisms"])
def test_the_command_starts_without_the_heavy_libraries(module):
    heavy = "{'torch', 'transformers', 'altair', 'papermill'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
