"""A VLM and its backbone: how they are loaded, what does not fit, how far they are apart."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub.errors as hub
import pytest
import torch
from helpers_tiny import tiny_llm, tiny_tokenizer, tiny_vlm
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    Llama4Config,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
)

from twohop_lib.errors import TwohopError
from twohop_lib.models import loading, registry
from twohop_lib.models import pair as pair_module
from twohop_lib.models.loading import Llm, Vlm, load_llm, load_vlm
from twohop_lib.models.pair import compatibility, drift, load_pair, text_stack
from twohop_lib.organisms import path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return tiny_vlm(root / "seer"), tiny_llm(root / "reader", seed=1)


@pytest.fixture(scope="module")
def pair(folders):
    return load_pair(*folders)


@pytest.fixture
def known(monkeypatch, folders):
    """Put a entry for the tiny VLM into the registry; returns the function that does it."""

    def add(**values) -> registry.Entry:
        entry = registry.find("llava-hf/llava-1.5-7b-hf").model_copy(
            update={"vlm": str(folders[0]), "llm": str(folders[1]), **values}
        )
        monkeypatch.setattr(registry, "ENTRIES", (entry,))
        return entry

    return add


def changed(folder: Path, to: Path, **values) -> Path:
    """A copy of a checkpoint whose configuration says something else."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | values))
    return to


# --- which backbone ---------------------------------------------------------------------------


def test_folders_of_both_are_loaded(pair, folders):
    assert pair.name == "seer + reader"
    assert (pair.vlm.source, pair.llm.source) == (str(folders[0]), str(folders[1]))
    assert pair.entry is None and pair.notes == ()
    assert pair.vlm.model.dtype == pair.llm.model.dtype == torch.float32
    fits = pair.compatibility
    assert (fits.width, fits.blocks, fits.only_vlm, fits.only_llm) == (32, 2, (), ())


def test_the_registry_names_the_backbone(folders, known):
    entry = known()
    pair = load_pair(folders[0])
    assert pair.entry == entry and pair.llm.source == str(folders[1]) and pair.compatibility
    assert "was made from" in pair.notes[0] and "document" in pair.notes[0]


def test_an_undocumented_backbone_is_said_to_be_one(folders, known):
    known(backbone_certainty="same size and family")
    assert "is not documented" in load_pair(folders[0]).notes[0]


def test_a_backbone_that_is_given_goes_before_the_registry(folders, known):
    known(llm="someone/else")
    pair = load_pair(*folders)
    assert pair.llm.source == str(folders[1])
    assert pair.notes == (
        f"{folders[0]} is held against {folders[1]}; it was made from someone/else.",
    )


@pytest.mark.parametrize(("native", "said"), [(True, "natively"), (False, "not among the known")])
def test_a_model_without_a_backbone_is_held_against_itself(folders, known, native, said):
    if native:
        known(llm=None)
    pair = load_pair(folders[0])
    assert pair.llm is None and pair.compatibility is None and pair.name == "seer"
    assert said in pair.notes[0] and "itself without a picture" in pair.notes[0]


# --- how it is loaded -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "gpu", "bf16", "dtype"),
    [
        ("auto", None, False, False, "float32"),
        ("auto", "auto", False, False, "float32"),
        ("auto", "cpu", True, True, "float32"),
        ("auto", None, True, True, "bfloat16"),
        ("auto", "cuda:1", True, True, "bfloat16"),
        ("auto", torch.device("cuda"), True, False, "float16"),
        ("auto", "auto", True, False, "float16"),
        ("float16", None, False, False, "float16"),
        (torch.bfloat16, "cpu", False, False, torch.bfloat16),
    ],
)
def test_the_dtype_follows_the_device(monkeypatch, asked, device, gpu, bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # Emulated, every GPU has it.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    tried = pair_module._dtypes(asked, device)
    assert tried[0] == dtype and tried[-1] == ("float32" if asked == "auto" else dtype)


def test_a_dtype_in_which_a_model_fails_is_given_up_with_a_sentence(monkeypatch, tmp_path):
    """As float16 is for Gemma 3 and Qwen2-VL, on a GPU that only emulates bfloat16."""
    large = tmp_path / "large"
    shutil.copytree(path("late"), large)
    weights = load_file(large / "model.safetensors")
    up, down = (
        next(name for name in weights if name.endswith(f"layers.3.mlp.{part}_proj.weight"))
        for part in ("up", "down")
    )
    weights[up], weights[down] = weights[up] * 2**18, weights[down] / 2**18
    save_file(weights, large / "model.safetensors", {"format": "pt"})
    halves = ["float16", "bfloat16", "float32"]
    monkeypatch.setattr(pair_module, "_dtypes", lambda *_: halves)
    pair = load_pair(large, path("backbone"))
    assert pair.vlm.model.dtype == pair.llm.model.dtype == torch.bfloat16
    assert [note for note in pair.notes if "NaN" in note] == [
        "large computes NaN (not a number) in float16, so another dtype was taken."
    ]
    # What is sound is left alone, and what says something else is not.
    assert load_pair(path("late"), path("backbone")).vlm.model.dtype == torch.float16
    monkeypatch.setattr(pair_module, "GIBBERISH", -1.0)
    pair = load_pair(path("late"), path("backbone"))
    assert pair.vlm.model.dtype == torch.float32
    assert sum("than in float32" in note for note in pair.notes) == 2


def test_a_half_precision_checkpoint_is_float32_on_the_cpu(folders, tmp_path):
    load_llm(folders[1], dtype="bfloat16").model.save_pretrained(tmp_path / "half")
    shutil.copy(folders[1] / "tokenizer.json", tmp_path / "half")
    shutil.copy(folders[1] / "tokenizer_config.json", tmp_path / "half")
    assert load_llm(tmp_path / "half").model.dtype == torch.bfloat16
    pair = load_pair(folders[0], tmp_path / "half", device="cpu")
    assert pair.llm.model.dtype == torch.float32


def test_a_dtype_that_is_asked_for_is_taken(folders):
    pair = load_pair(*folders, dtype="bfloat16")
    assert pair.vlm.model.dtype == pair.llm.model.dtype == torch.bfloat16


def test_device_auto_spreads_both_models(monkeypatch, folders):
    spread = []
    for auto in (loading.AutoModelForImageTextToText, loading.AutoModelForCausalLM):
        load = auto.from_pretrained

        def noting(*args, load=load, **options):
            spread.append(options["device_map"])
            return load(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", noting)
    assert load_pair(*folders, device="auto").compatibility
    assert spread == ["auto", "auto"]


@pytest.mark.parametrize(
    ("quantise", "settings"),
    [
        (
            "4bit",
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": torch.float16,
            },
        ),
        ("8bit", {"load_in_8bit": True, "load_in_4bit": False}),
    ],
)
def test_quantising_is_passed_to_both(monkeypatch, folders, quantise, settings):
    asked = []

    def load(path, dtype, device, revision, quantization_config):
        asked.append(quantization_config)
        return (load_llm if len(asked) == 2 else load_vlm)(path)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "bitsandbytes")
    monkeypatch.setattr(pair_module, "load_vlm", load)
    monkeypatch.setattr(pair_module, "load_llm", load)
    load_pair(*folders, dtype="float16", quantise=quantise)
    assert len(asked) == 2
    for config in asked:
        assert {name: getattr(config, name) for name in settings} == settings


def test_revisions_go_to_their_own_model(monkeypatch, folders):
    asked = []

    def noting(load):
        def loads(path, *arguments, **options):
            asked.append((Path(path).name, arguments[-1]))
            return load(path)

        return loads

    for name in ("load_config", "load_vlm", "load_llm"):
        monkeypatch.setattr(pair_module, name, noting(getattr(pair_module, name)))
    load_pair(*folders, vlm_revision="v", llm_revision="l")
    assert sorted(asked) == [("reader", "l")] * 2 + [("seer", "v")] * 2


# --- what cannot be loaded --------------------------------------------------------------------


def fails(message: str, *arguments, **options) -> None:
    with pytest.raises(TwohopError, match=message) as told:
        load_pair(*arguments, **options)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_models_of_the_other_kind_are_told_before_weights_are_loaded(monkeypatch, folders):
    for name in ("load_vlm", "load_llm"):
        monkeypatch.setattr(pair_module, name, None)
    vlm, llm = folders
    fails(r"reader is a text model \(llama\) and takes no pictures; give it as the backbone", llm)
    fails(r"is a text model \(llama\)", llm, vlm)
    fails(r"seer takes pictures itself \(llava\), so it is no text backbone", vlm, vlm)


def test_models_of_neither_kind_are_told(folders, tmp_path):
    other = tmp_path / "encoder"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    fails(r"not an image-text model that transformers knows \(clip_vision_model\)", other)
    fails(r"not a text model that transformers knows \(clip_vision_model\)", folders[0], other)


def test_a_backbone_of_another_width_or_depth_is_told_with_both_numbers(folders, tmp_path):
    wide = changed(folders[1], tmp_path / "wide", hidden_size=64)
    fails(r"seer has 32 numbers in a state \(its width\) and .*wide has 64", folders[0], wide)
    deep = changed(folders[1], tmp_path / "deep", num_hidden_layers=5)
    fails(r"seer has 2 self-attention blocks \(its depth\) and .*deep has 5", folders[0], deep)


def test_a_backbone_of_another_tokenizer_is_told(pair, folders, tmp_path):
    other = tiny_llm(tmp_path / "other", texts=["Who was the"])
    fails(
        "seer and other .* different tokenizers: from token 0 on, .Who was the", folders[0], other
    )
    # Here every shared text is the same, most of its words being unknown to both.
    shifted = replace(pair.llm, tokenizer=tiny_tokenizer(["the0"]))
    with pytest.raises(TwohopError, match="'then' is token [0-9]+ in one and [0-9]+ in the other"):
        compatibility(pair.vlm, shifted)


def test_special_tokens_may_differ(pair):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.add_tokens(["<loc0001>"])
    fits = compatibility(pair.vlm, replace(pair.llm, tokenizer=tokenizer))
    assert fits.only_llm == ("<loc0001>", "<|end|>") and fits.only_vlm == ()


def test_a_missing_processor_is_told(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    fails("processor of .*bare cannot be loaded", tmp_path / "bare", folders[1])


def test_a_package_that_a_processor_needs_is_told(monkeypatch, folders):
    def from_pretrained(*args, **kwargs):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but. More.\n")

    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", from_pretrained)
    fails("needs a package that is not installed .*the Torchvision library", *folders)


def test_missing_bitsandbytes_is_told(monkeypatch, folders):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails("needs bitsandbytes, which is not installed; .*pip install", *folders, quantise="4bit")


def test_an_unknown_quantisation_is_told(folders):
    fails("'4bit' or '8bit', not '2bit'", *folders, quantise="2bit")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(folders):
    fails("finds no GPU", *folders, device="cuda")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "into the memory of the GPU"),
        (MemoryError(), "does not fit into memory here"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "does not fit into memory here",
        ),
        (
            ValueError("Some modules are dispatched on the CPU or the disk. Make sure you have"),
            "does not fit into memory here",
        ),
    ],
)
def test_too_little_memory_is_told(monkeypatch, folders, error, message):
    def from_pretrained(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    fails(message, *folders)


def hub_says(kind) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/x/y")
    return kind("no", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (hub_says(hub.GatedRepoError), "x/y is gated; accept its terms"),
        (hub_says(hub.RepositoryNotFoundError), "There is no model 'x/y' on the Hugging Face hub"),
        (hub.OfflineModeIsEnabled("offline"), "nor in the local cache, and .* cannot be reached"),
        (hub.LocalEntryNotFoundError("no"), "nor in the local cache, and .* cannot be reached"),
    ],
)
def test_what_the_hub_says_is_told(monkeypatch, folders, cause, message):
    local = loading.AutoConfig.from_pretrained

    def from_pretrained(source, **kwargs):
        if source != "x/y":
            return local(source, **kwargs)
        raise OSError("We couldn't load x/y ...") from cause

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", from_pretrained)
    fails(message, "x/y")
    fails(message, folders[0], "x/y")


def test_a_checkpoint_with_code_of_its_own_is_told_and_nothing_asked(
    monkeypatch, folders, tmp_path
):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "n")
    own = changed(
        folders[0],
        tmp_path / "own",
        model_type="someones",
        auto_map={"AutoConfig": "configuration_someones.SomeonesConfig"},
    )
    fails("brings code of its own, which is not run here", own)
    assert not asked


def test_an_unknown_architecture_is_told(folders, tmp_path):
    fails(
        "does not know the architecture", changed(folders[0], tmp_path / "n", model_type="llava9")
    )


# --- how far the weights are apart ------------------------------------------------------------


def test_a_backbone_has_not_drifted_from_itself():
    backbone = load_llm(path("backbone"))
    apart = drift(backbone, backbone)
    assert apart.blocks == (0.0,) * 8 and apart.embed == apart.total == 0


def test_an_organism_has_drifted_from_its_backbone():
    pair = load_pair(path("late"), path("backbone"))
    apart = drift(pair.vlm, pair.llm)
    assert len(apart.blocks) == pair.compatibility.blocks == 8
    assert all(0 < block < 1 for block in (*apart.blocks, apart.embed))
    assert min(apart.blocks) < apart.total < max(apart.blocks)


def test_drift_is_the_relative_distance_in_every_block(pair, monkeypatch):
    vlm = replace(pair.vlm, model=load_vlm(pair.vlm.source).model)
    text = text_stack(vlm.model)
    text.load_state_dict(text_stack(pair.llm.model).state_dict())
    with torch.no_grad():
        for weight in text.layers[1].parameters():
            weight.mul_(1.5)
        text.embed_tokens.weight.mul_(0.75)
    whole = drift(vlm, pair.llm)
    assert whole.blocks == pytest.approx((0, 0.5)) and whole.embed == pytest.approx(0.25)
    sizes = [
        sum(p.double().square().sum().item() for p in block.parameters())
        for block in text_stack(pair.llm.model).layers
    ]
    assert whole.total == pytest.approx(0.5 * (sizes[1] / sum(sizes)) ** 0.5)
    monkeypatch.setattr(pair_module, "CHUNK", 40)
    assert drift(vlm, pair.llm).blocks == pytest.approx(whole.blocks)


def test_rows_added_for_pictures_are_left_out_of_the_embeddings(pair):
    vlm = replace(pair.vlm, model=load_vlm(pair.vlm.source).model)
    before = drift(vlm, pair.llm).embed
    vlm.model.resize_token_embeddings(len(pair.vlm.tokenizer) + 64)
    assert drift(vlm, pair.llm).embed == pytest.approx(before)


def test_drift_of_a_quantised_model_is_none(pair):
    model = load_vlm(pair.vlm.source).model
    model.hf_quantizer = SimpleNamespace()
    assert drift(replace(pair.vlm, model=model), pair.llm) is None
    assert drift(pair.vlm, replace(pair.llm, model=model)) is None


def test_drift_of_blocks_with_other_weights_is_told(pair, folders):
    config = LlamaConfig.from_pretrained(folders[1])
    config.attention_bias = True
    biased = Llm(LlamaForCausalLM(config), pair.llm.tokenizer, "biased")
    with pytest.raises(TwohopError, match=r"such as self_attn.k_proj.bias"):
        drift(pair.vlm, biased)
    config = LlamaConfig.from_pretrained(folders[1])
    config.num_hidden_layers = 3
    with pytest.raises(TwohopError, match="2 self-attention blocks and longer has 3"):
        drift(pair.vlm, Llm(LlamaForCausalLM(config), None, "longer"))


def test_weights_left_on_disk_are_told(pair, folders):
    with torch.device("meta"):
        absent = LlamaForCausalLM(LlamaConfig.from_pretrained(folders[1]))
    with pytest.raises(TwohopError, match="kept on disk"):
        drift(pair.vlm, Llm(absent, pair.llm.tokenizer, "absent"))


# --- where other families keep their text stack -----------------------------------------------

TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def mllama():
    """A cross-attention VLM of five blocks, the second and fourth of which see the picture."""
    vision = VISION | {
        "attention_heads": 2,
        "num_global_layers": 1,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
    }
    config = MllamaConfig(
        text_config=TEXT | {"cross_attention_layers": [1, 3]}, vision_config=vision
    )
    return AutoModelForImageTextToText.from_config(config)


def test_cross_attention_blocks_are_no_blocks_of_the_backbone(mllama):
    seen = Vlm(mllama, SimpleNamespace(tokenizer=tiny_tokenizer()), "seen")
    config = LlamaConfig(**TEXT | {"num_hidden_layers": 3})
    read = Llm(LlamaForCausalLM(config), tiny_tokenizer(), "read")
    assert compatibility(seen, read).blocks == 3
    with torch.no_grad():
        for ours, theirs in zip(read.model.model.layers, (0, 2, 4), strict=True):
            ours.load_state_dict(text_stack(mllama).layers[theirs].state_dict())
        text_stack(mllama).layers[4].mlp.up_proj.weight.add_(0.1)
    assert [block > 0 for block in drift(seen, read).blocks] == [False, False, True]


@pytest.mark.parametrize(
    "config",
    [
        Idefics3Config(text_config=TEXT | {"model_type": "llama"}, vision_config=VISION),
        Llama4Config(
            text_config=TEXT
            | {
                "num_local_experts": 2,
                "head_dim": 16,
                "intermediate_size_mlp": 64,
                "moe_layers": [],
            },
            vision_config=VISION
            | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        ),
    ],
    ids=["text_model", "nested language model"],
)
def test_the_text_stack_is_found(config):
    assert len(text_stack(AutoModelForImageTextToText.from_config(config)).layers) == 5


def test_a_model_without_decoder_blocks_is_told():
    with pytest.raises(TwohopError, match="decoder blocks of a SimpleNamespace were not found"):
        text_stack(SimpleNamespace(get_decoder=lambda: SimpleNamespace(model=None)))
