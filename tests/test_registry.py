"""The table of known models, what it computes, and how it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twohop_lib.commands import app
from twohop_lib.errors import TwohopError
from twohop_lib.models.registry import CLASSES, ENTRIES, OVERHEAD, find, parse_memory

REFERENCES = Path(__file__).parents[1] / "book" / "references.bib"


def run(*arguments: str, columns: int = 80):
    return CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": str(columns)})


def test_the_table_is_sound():
    assert len(ENTRIES) >= 28 and len({entry.vlm.casefold() for entry in ENTRIES}) == len(ENTRIES)
    assert list(ENTRIES) == sorted(ENTRIES, key=lambda entry: (entry.parameters_b, entry.vlm))
    assert ENTRIES[0].parameters_b < 0.3 and ENTRIES[-1].parameters_b >= 124
    assert {entry.architecture_class for entry in ENTRIES} == set(CLASSES)
    for entry in ENTRIES:
        for model in filter(None, (entry.vlm, entry.llm)):
            assert re.fullmatch(r"[\w-]+/[\w.-]+", model), model
        # Some native models have no backbone but themselves; of all others, everything is told.
        alone = entry.llm is None
        told = (entry.llm, entry.llm_parameters_b, entry.backbone_certainty)
        assert all((value is None) == alone for value in told), entry.vlm
        assert alone or entry.llm_parameters_b < entry.parameters_b
        assert entry.architecture_class == "native" or not alone
        # Who says so.
        documented = (entry.backbone_certainty or "").startswith("documented")
        assert (entry.source is not None) == documented, entry.vlm
        assert not documented or entry.source.startswith("https://")


def test_native_models_are_held_against_the_backbone_they_start_from():
    backbones = {
        "Qwen/Qwen2.5-VL-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2-VL-2B-Instruct": "Qwen/Qwen2-1.5B-Instruct",
        "OpenGVLab/InternVL3-8B-hf": "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct": "Qwen/Qwen3-8B",
    }
    assert {vlm: find(vlm).llm for vlm in backbones} == backbones
    alone = {entry.family for entry in ENTRIES if entry.llm is None}
    assert alone == {"Gemma 3", "Llama 4"}


def test_a_size_in_a_name_is_near_the_parameters():
    told = 0
    for entry in ENTRIES:
        sizes = [(entry.vlm, entry.parameters_b)] + [(entry.llm, entry.llm_parameters_b)] * bool(
            entry.llm
        )
        for name, parameters in sizes:
            said = re.search(r"[-_](\d+(?:\.\d+)?)([bBM])(?:[-_]|$)", name)
            if said and "Scout" not in name:  # there the name says what is active at a time
                scale = 1e-3 if said[2] == "M" else 1
                named = float(said[1]) * scale
                # Families round down, and a small one may name its language model only.
                assert 0.85 * named < parameters < 1.3 * named + 0.3, (name, parameters)
                told += 1
    assert told > len(ENTRIES)


def test_reported_figures_say_so_and_cite_what_the_book_lists():
    reported = [entry for entry in ENTRIES if entry.reported_figure or entry.reported_citation]
    assert len(reported) == 3
    for entry in reported:
        assert entry.reported_figure.startswith("reported on PopVQA: gap 0.")
        assert f"{{{entry.reported_citation}," in REFERENCES.read_text()
        gap, text, image = map(float, re.findall(r"0\.\d+", entry.reported_figure))
        assert gap == pytest.approx(text - image, abs=0.0015)


def test_find_takes_an_id_in_any_case():
    assert find("LLaVA-hf/LLaVA-1.5-7B-HF").llm == "lmsys/vicuna-7b-v1.5"
    assert find("llava-hf/llava-1.5-7b") is None


def test_memory_is_computed_from_the_parameters():
    llava = find("llava-hf/llava-1.5-7b-hf")
    assert llava.memory_bf16_gb == pytest.approx(2 * llava.parameters_b)
    assert llava.memory_4bit_gb == pytest.approx(0.75 * llava.parameters_b, abs=1e-3)
    both = llava.parameters_b + llava.llm_parameters_b
    assert llava.memory_gb("8-bit", pair=True) == pytest.approx(1.25 * both, abs=1e-3)
    needed = {p: llava.memory_gb(p) * (1 + OVERHEAD) for p in ("bf16", "8-bit", "4-bit")}
    for precision, memory in needed.items():
        assert llava.fits(memory + 1e-6) == precision
    assert llava.fits(needed["4-bit"] - 1e-6) is None
    assert llava.fits(16) == "8-bit" and llava.fits(16, pair=True) == "4-bit"


@pytest.mark.parametrize(
    ("text", "gb"),
    [
        ("16GB", 16),
        (" 16 gb ", 16),
        ("16", 16),
        ("0.5G", 0.5),
        ("800MB", 0.8),
        ("1GiB", 1.073741824),
    ],
)
def test_amounts_of_memory(text, gb):
    assert parse_memory(text) == pytest.approx(gb)


@pytest.mark.parametrize("text", ["", "lots", "-3GB", "0", "16TB", "1e3", "16 GB RAM", "nan"])
def test_what_is_no_amount_of_memory_is_told(text):
    with pytest.raises(TwohopError, match="--fits takes an amount of memory such as 16GB"):
        parse_memory(text)


@pytest.mark.parametrize("arguments", [(), ("--fits", "1000GB")])
def test_the_table_keeps_every_id_whole_in_80_columns(arguments):
    shown = run(*arguments)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for entry in ENTRIES:
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [entry.vlm])
        assert (entry.llm or "itself, without a picture") in lines[at + 1]
        assert ("*" in lines[at].split()) == entry.gated
        assert lines[at + 1].rstrip().endswith("~") == (
            entry.backbone_certainty == "same size and family"
        )
    text = " ".join(shown.stdout.split())
    for entry in ENTRIES:
        assert (entry.reported_figure or "") in text
    assert "20% more" in text and "not documented" in text and "accept its terms" in text


def test_what_fits_is_shown_for_the_model_and_for_the_pair():
    lines = run("--fits", "16GB").stdout.splitlines()
    told = {line.split()[0]: line.split()[-2:] for line in lines if "/" in line}
    assert told["llava-hf/llava-1.5-7b-hf"] == ["8-bit", "4-bit"]
    assert told["llava-hf/llava-1.5-13b-hf"] == ["4-bit", "–"]


def test_marks_are_explained_only_where_they_occur():
    text = run("--class", "native", columns=120).stdout
    assert "\n~ Which" in text and "\n+ It starts" in text
    text = run("--class", "cross-attention", columns=120).stdout
    assert "~" not in text and "+" not in text and "vicuna" not in text and "Gated" in text
    text = run("--class", "cross-attention", columns=120).stdout
    assert "reported" not in text


def test_json_is_the_same_rows():
    everything = json.loads(run("--json").stdout)
    assert [entry["vlm"] for entry in everything] == [entry.vlm for entry in ENTRIES]
    assert all({"memory_bf16_gb", "memory_4bit_gb"} <= entry.keys() for entry in everything)
    small = json.loads(run("--json", "--fits", "16GB", "--class", "adapter").stdout)
    assert {entry["architecture_class"] for entry in small} == {"adapter"}
    by_id = {entry["vlm"]: entry for entry in small}
    llava = by_id["llava-hf/llava-1.5-7b-hf"]
    assert (llava["fits"], llava["pair_fits"]) == ("8-bit", "4-bit")
    assert by_id["llava-hf/llava-1.5-13b-hf"]["pair_fits"] is None
    assert "llava-hf/llava-v1.6-34b-hf" not in by_id


def test_nothing_that_fits_is_said():
    assert run("--fits", "10MB").stdout.startswith("No known model")
    assert json.loads(run("--fits", "10MB", "--json").stdout) == []


def test_an_unknown_class_is_told():
    failure = run("--class", "adaptor").exception
    assert isinstance(failure, TwohopError) and "did you mean 'adapter'?" in str(failure)
