"""The command as it is typed: a failure is one line, help comes at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import twohop_lib
from twohop_lib import cli
from twohop_lib.commands import app
from twohop_lib.organisms import SHIPPED, path

TWOHOP = Path(sys.executable).parent / "twohop"
COMMANDS = [[], *([c] for c in "models check bench rerun benchmark organism version".split())]
COMMANDS += [["benchmark", c] for c in ("build", "validate", "show")]
COMMANDS += [["organism", c] for c in ("list", "path", "train", "study")]


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
        (["check", "--vlm", "lat"], "no hub id (owner/name); did you mean 'late'?"),
        (["models", "--fits", "much"], "--fits takes an amount of memory such as 16GB"),
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
    assert twohop("--version").stdout.strip() == twohop_lib.__version__


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_a_short_help(command):
    result = CliRunner().invoke(app, [*command, "-h"])
    assert result.exit_code == 0 and "Usage" in result.output


# --- JSON, whatever comes ---


def no_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["models", "--json", "--class", "adaptor"], 1, "did you mean 'adapter'"),
        (["check", "--json", "--vlm", "lat"], 1, "did you mean 'late'"),
        (["check", "--json"], 2, "--vlm"),
        (["models", "--json", "--nothing"], 2, "--nothing"),
    ],
)
def test_what_is_refused_is_told_in_json(arguments, code, told):
    done = twohop(*arguments)
    said = json.loads(done.stdout, parse_constant=no_constant)
    assert done.returncode == code and said["ok"] is False and told in said["error"]
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_model_is_told_in_json(tmp_path, monkeypatch, capsys, heraldry):
    asked = ["check", "--json", "--vlm", str(tmp_path), "--benchmark", str(heraldry.root)]
    monkeypatch.setattr(sys, "argv", ["twohop", *asked])
    with pytest.raises(SystemExit, match="error: "):
        cli.main()
    said = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert said["ok"] is False and str(tmp_path) in said["error"]


def test_a_model_that_computes_nan_is_told_in_json_and_in_words(tmp_path, heraldry):
    broken = tmp_path / "broken"
    shutil.copytree(path("middle"), broken)
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.3.mlp.down_proj.weight"))
    weights[name][:] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    asked = ["check", "--vlm", str(broken), "--benchmark", str(heraldry.root)]
    done = twohop(*asked, "--json")
    said = json.loads(done.stdout, parse_constant=no_constant)
    assert done.returncode == 1 and said["ok"] is False and said["nan"] is True
    assert said["checks"]["no_op_patch"]["distance"] is None
    assert done.stderr == ""  # no bars of weights either
    told = CliRunner().invoke(app, asked).stdout
    assert "computes NaN" in told and "--dtype" in told


# --- Ctrl-C ---


@pytest.mark.parametrize("begun", ["loading", "asking"])
def test_an_interrupt_is_one_line(begun, heraldry):
    """While Python loads libraries, and while a model is at work."""
    slow = {
        "loading": "import typer; typer.Typer = stop",
        "asking": "import twohop_lib.models.pair as p; p.load_pair = stop",
    }[begun]
    code = (
        "import os, signal, sys, time, twohop_lib.cli as cli\n"
        # A shell lets what it starts in the background ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def stop(*a, **k):\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        f"{slow}\nsys.argv = ['twohop', 'check', '--vlm', 'late', '--json', '--benchmark',"
        f" {str(heraldry.root)!r}]\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert json.loads(done.stdout) == {"ok": False, "error": "interrupted"}


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


@pytest.mark.parametrize("module", ["twohop_lib.commands", "twohop_lib.organisms"])
def test_the_command_starts_without_the_heavy_libraries(module):
    heavy = "{'torch', 'transformers', 'altair', 'papermill'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "1"], "--model and --seed are of --causes"),
        (["--causes", "--model", "unraed"], "has no 'unraed'; did you mean 'unread'"),
    ],
)
def test_a_study_refuses_what_it_would_leave_out(arguments, told):
    result = CliRunner().invoke(app, ["organism", "study", *arguments])
    assert told in str(result.exception)
