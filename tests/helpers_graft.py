"""A tiny random language model with a real byte-level tokenizer, as a folder and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from twohop_lib.benchmark import flags
from twohop_lib.grafts.recipes import Phase, Recipe, TowerRecipe

TOWER = TowerRecipe(
    image_size=20, patch_size=10, width=16, layers=1, heads=2, steps=4, batch=8, draws=2
)
TINY = {
    "caption": Recipe("captions", (Phase(4, {"naming": 1.0}, batch=3),), tower=TOWER),
    "described": Recipe(
        "descriptions", (Phase(4, {"naming": 0.5, "seen": 0.5}, batch=3),), tower=TOWER
    ),
    "facts": Recipe("facts", (Phase(4, {"facts": 1.0}, batch=3),), tower=TOWER),
    "aligned": Recipe(
        "both",
        (Phase(3, regression=1.0, batch=5), Phase(3, {"naming": 1.0}, regression=0.5, batch=3)),
        tower=TOWER,
    ),
    "names": Recipe("regression", (Phase(4, regression=1.0, batch=5),), tower=TOWER),
    "tuned": Recipe("tuned", (Phase(4, {"naming": 1.0}, batch=3),), tuned_rank=2, tower=TOWER),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over what is said of flags; nothing is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [" ".join(c.names) for c in flags.countries()[:40]]
    texts += [w for wordings in flags.RELATIONS.values() for w in wordings]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def tiny_llm(folder: Path, spare: int = 8) -> Path:
    """A two-block Llama with ``spare`` rows that no token of its tokenizer uses."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_gguf(file: Path, architecture: str = "llama", tokens: bool = True) -> Path:
    """The GGUF file of a random one-block Llama, with or without its tokenizer."""
    tokenizer, width, inner = byte_tokenizer(), 32, 48
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    size = len(tokenizer)
    writer.add_vocab_size(size)
    if tokens:
        listed = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(listed)
        writer.add_token_merges([" ".join(m) for m in _merges(tokenizer)])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
    shapes = {
        "token_embd.weight": (size, width),
        "output_norm.weight": (width,),
        "output.weight": (size, width),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.attn_{k}.weight": (width, width) for k in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (inner, width),
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _merges(tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
