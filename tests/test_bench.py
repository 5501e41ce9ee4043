"""The bench: all three ways do the same work and agree; speed itself is not tested."""

from __future__ import annotations

import json

import bench
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from twohop_lib import commands
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.loading import load_vlm
from twohop_lib.models.prompts import Prompt
from twohop_lib.organisms import path

FIELDS = {
    "engine_s",
    "nnsight_s",
    "hooks_s",
    "ratio_nnsight",
    "ratio_hooks",
    "max_abs_diff",
    "share",
    "agree",
    "peak_mb_engine",
    "peak_mb_nnsight",
    "work",
}


@pytest.mark.parametrize("work", bench.WORKS)
def test_all_three_ways_agree_on_an_organism(work):
    timing = bench.measure(load_vlm(path("middle"), device="cpu"), work, 3, 4)
    assert timing.work == work and timing.runs == timing.reference_runs == 4 * 8
    assert timing.agree and timing.share <= timing.allowed
    assert timing.ratio_nnsight == pytest.approx(timing.nnsight_s / timing.engine_s)
    assert timing.least_token_layers <= timing.engine_token_layers
    assert timing.loop_token_layers >= 4 * 8 * timing.n_blocks * timing.prompt_tokens
    assert min(timing.engine_s, timing.hooks_s, timing.nnsight_s) > 0


def test_the_shaped_model_is_shaped_as_said_and_sees_its_pictures():
    vlm = bench.llava_shaped(32, torch.float32, "cpu", n_blocks=4)
    timing = bench.measure(vlm, "cross-patch", 2, 2, reference_runs=2)
    assert (timing.n_blocks, timing.d_model, timing.image_tokens) == (4, 32, 576)
    assert timing.runs == 8 and timing.reference_runs == 2
    assert timing.agree and timing.share <= timing.allowed
    big = bench.llava_shaped(32, torch.float32, "cpu")
    assert big.model.config.text_config.num_hidden_layers == 32


def test_what_no_method_can_do_without_is_counted_by_hand():
    vlm = bench.llava_shaped(32, torch.float32, "cpu", n_blocks=4)
    engine, pictures = Engine(vlm), [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    prompt = Prompt("by_picture", bench.QUESTION, True)
    recording = engine.record(prompt, pictures[0])
    n, behind = recording.n, recording.n - recording.span[1]
    once = 3 * n + 1

    def needed(work):
        edits = bench.plan(engine, work, prompt, pictures, [(0, 1)])
        recordings = 2 if work == "cross-patch" else 1
        return bench.least(edits, 4) - recordings * once

    # From the block that is entered changed to the last but one, then the last position.
    assert needed("cross-patch") == (3 + 2 + 1) * behind + 4
    # Until block 2: what stands behind from block k + 1 on, the picture in block 2 alone.
    assert needed("freeze") == (2 * behind + 1 + 576) + (behind + 1 + 576)
    assert needed("mlp-patch") == (2 + 1 + 0) * (behind + bench.NAME_TOKENS) + 3


def test_the_command_prints_json_and_refuses_unknown_work():
    run = CliRunner().invoke(
        commands.app,
        "bench --vlm late --entities 2 --pairs 1 --sample 2 --json".split(),
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout[run.stdout.index("{") :])
    assert set(found) >= FIELDS
    with pytest.raises(TwohopError, match="did you mean 'freeze'"):
        bench.measure(load_vlm(path("late"), device="cpu"), "freezing")
