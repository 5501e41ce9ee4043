"""The families: a configuration of two to six blocks, its processor, its tokenizer's kind.

Weights are random and wide enough that picture and words change what is said; a checkpoint's
backbone holds the very weights of its language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as t
from torch import nn

from tests.zoo.tokens import CHATML, Turns, byte_level, metaspace

#: Every text decoder: width 32, and weights large enough for attention to be uneven.
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.25,
}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@dataclass(frozen=True)
class Checkpoint:
    """Folders of a VLM and, where its class has one, of its text backbone."""

    vlm: Path
    llm: Path | None


@dataclass(frozen=True)
class Parts:
    """A family before it is saved; ``llm`` is the backbone's class."""

    model: Any
    processor: Any
    llm: Any = None
    llm_template: str | None = None


def build(name: str, root: Path, seed: int = 0) -> Checkpoint:
    """Write a family's checkpoint under ``root`` and return its folders."""
    torch.manual_seed(seed)
    parts = (BUILDERS | {"paligemma_bare": paligemma_bare})[name]()
    model = _with_weights(parts.model)
    vlm = root / name / "vlm"
    model.save_pretrained(vlm)
    parts.processor.save_pretrained(vlm)
    if parts.llm is None:
        return Checkpoint(vlm, None)
    llm = root / name / "llm"
    _backbone(model, parts.llm).save_pretrained(llm)
    tokenizer = parts.processor.tokenizer
    tokenizer.chat_template = parts.llm_template
    tokenizer.save_pretrained(llm)
    return Checkpoint(vlm, llm)


@torch.no_grad()
def _with_weights(model: nn.Module) -> nn.Module:
    """Fill what starts at zero or hardly above: connectors, gates, positions."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all() or "gate" in name.rsplit(".", 1)[-1]:
            weight.normal_(1.0, 0.1)
        elif weight.ndim > 1 and weight.std() < 0.1:
            weight.normal_(0, 0.25)
    return model.eval()


@torch.no_grad()
def _backbone(vlm: Any, cls: Any) -> Any:
    """Return the VLM's language model as a text model of its own."""
    stack = getattr(vlm.model, "language_model", None) or vlm.model.text_model
    config = stack.config
    own = stack.state_dict()
    if cross := getattr(config, "cross_attention_layers", None):
        kept = [n for n in range(config.num_hidden_layers) if n not in cross]
        own = {
            key.replace(f"layers.{old}.", f"layers.{new}."): value
            for new, old in enumerate(kept)
            for key, value in stack.state_dict().items()
            if key.startswith(f"layers.{old}.")
        } | {key: value for key, value in stack.state_dict().items() if "layers." not in key}
        # The picture's placeholder has an embedding here and none in the backbone.
        own["embed_tokens.weight"] = own["embed_tokens.weight"][: config.vocab_size]
        config = t.LlamaConfig(
            **TEXT | {"num_hidden_layers": len(kept)},
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=config.rope_parameters,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
    llm = cls(config)
    llm.model.load_state_dict(own)
    llm.lm_head.weight.copy_(vlm.lm_head.weight)
    return llm.eval()


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


# --- LLaVA ------------------------------------------------------------------------------------

VICUNA = Turns("USER: ", " ", "ASSISTANT: ", "</s>", "<image>\n", opening="ASSISTANT:")
MISTRAL = Turns("[INST] ", " [/INST]", " ", "</s>", "<image>\n", opening="")
QWEN = replace(CHATML, image="<image>\n")


def _llama2_tokens() -> Any:
    return metaspace(
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        "<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def _clip(side: int = 48, patch: int = 12) -> Any:
    return t.CLIPVisionConfig(**VISION, image_size=side, patch_size=patch, projection_dim=32)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def llava() -> Parts:
    tokenizer = _llama2_tokens()
    config = t.LlavaConfig(
        vision_config=_clip(),
        text_config=t.LlamaConfig(**TEXT, **_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = t.LlavaProcessor(
        image_processor=t.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=_square(48)),
        tokenizer=tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA.template(),
    )
    return Parts(
        t.LlavaForConditionalGeneration(config),
        processor,
        # As published: Vicuna has no chat template.
        t.LlamaForCausalLM,
    )


def llava_next() -> Parts:
    tokenizer = _llama2_tokens()
    grid = [[24, 48], [48, 24], [48, 48]]
    config = t.LlavaNextConfig(
        vision_config=_clip(24),
        text_config=t.MistralConfig(**TEXT, **_ids(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=4,
        vision_feature_layer=-2,
    )
    processor = t.LlavaNextProcessor(
        image_processor=t.LlavaNextImageProcessor(
            size={"shortest_edge": 24}, crop_size=_square(24), image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MISTRAL.template(),
    )
    return Parts(
        t.LlavaNextForConditionalGeneration(config),
        processor,
        t.MistralForCausalLM,
        replace(MISTRAL, start="<s>").template(),
    )


def _qwen_tokens(extra: dict[str, str]) -> Any:
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra.values()],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=extra,
    )


def llava_onevision() -> Parts:
    tokenizer = _qwen_tokens({"image_token": "<image>", "video_token": "<video>"})
    grid = [[24, 24], [24, 48], [48, 24], [48, 48]]
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, image_size=24, patch_size=12),
        text_config=t.Qwen2Config(**TEXT, **_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessor(size=_square(24), image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=t.LlavaOnevisionVideoProcessor(size=_square(24)),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=QWEN.template(),
    )
    return Parts(
        t.LlavaOnevisionForConditionalGeneration(config),
        processor,
        t.Qwen2ForCausalLM,
        QWEN.template(),
    )


# --- Qwen-VL ----------------------------------------------------------------------------------

QWEN_VL = replace(CHATML, image="<|vision_start|><|image_pad|><|vision_end|>")
QWEN_MARKS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        name + "_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in QWEN_MARKS.items()
    }


def _qwen_processor(cls: Any, tokenizer: Any, patch: int, video: Any) -> Any:
    pixels = {"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}
    return cls(
        image_processor=t.Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=pixels),
        tokenizer=tokenizer,
        video_processor=video(patch_size=patch, merge_size=2),
        chat_template=QWEN_VL.template(),
    )


def _mrope(sections: list[int]) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": sections,
        }
    }


def qwen2_vl() -> Parts:
    tokenizer = _qwen_tokens(QWEN_MARKS)
    config = t.Qwen2VLConfig(
        text_config=TEXT | _ids(tokenizer) | _mrope([2, 3, 3]),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 12,
            "spatial_merge_size": 2,
            "initializer_range": 0.25,
        },
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(t.Qwen2VLProcessor, tokenizer, 12, t.Qwen2VLVideoProcessor)
    return Parts(t.Qwen2VLForConditionalGeneration(config), processor)


def qwen2_5_vl() -> Parts:
    tokenizer = _qwen_tokens(QWEN_MARKS)
    config = t.Qwen2_5_VLConfig(
        text_config=TEXT | _ids(tokenizer) | _mrope([2, 3, 3]),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 12,
            "spatial_merge_size": 2,
            "fullatt_block_indexes": [1],
            "window_size": 48,
            "initializer_range": 0.25,
        },
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(t.Qwen2_5_VLProcessor, tokenizer, 12, t.Qwen2VLVideoProcessor)
    return Parts(t.Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl() -> Parts:
    tokenizer = _qwen_tokens(QWEN_MARKS)
    config = t.Qwen3VLConfig(
        text_config=TEXT | {"num_hidden_layers": 4} | _ids(tokenizer) | _mrope([2, 3, 3]),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 12,
            "spatial_merge_size": 2,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.25,
        },
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(t.Qwen3VLProcessor, tokenizer, 12, t.Qwen3VLVideoProcessor)
    return Parts(t.Qwen3VLForConditionalGeneration(config), processor)


# --- others shown in the stream ---------------------------------------------------------------


def internvl() -> Parts:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _qwen_tokens(marks)
    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(
            **VISION, image_size=[48, 48], patch_size=[12, 12], layer_scale_init_value=1.0
        ),
        text_config=t.Qwen2Config(**TEXT, **_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = t.InternVLProcessor(
        image_processor=t.GotOcr2ImageProcessor(size=_square(48), crop_to_patches=False, **HALF),
        tokenizer=tokenizer,
        video_processor=t.InternVLVideoProcessor(size=_square(48)),
        image_seq_length=4,
        chat_template=replace(CHATML, image="<IMG_CONTEXT>\n").template(),
    )
    return Parts(t.InternVLForConditionalGeneration(config), processor)


def gemma3() -> Parts:
    marks = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = metaspace(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *marks.values()],
        "<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=marks,
    )
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(
            **TEXT | {"num_hidden_layers": 4},
            **_ids(tokenizer),
            query_pre_attn_scalar=16,
            sliding_window=512,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 1
            + ["sliding_attention"],
        ),
        vision_config=t.SiglipVisionConfig(
            **VISION, image_size=48, patch_size=12, vision_use_head=False
        ),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    turns = Turns(
        "<start_of_turn>user\n",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<end_of_turn>\n",
        "<start_of_image>",
        start="<bos>",
    )
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessor(size=_square(48), **HALF),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=turns.template(),
    )
    return Parts(t.Gemma3ForConditionalGeneration(config), processor)


TEKKEN = Turns("[INST]", "[/INST]", "", "</s>", "[IMG]", start="<s>")


def _pixtral_parts() -> tuple[Any, Any, Any]:
    marks = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    tokenizer = byte_level(
        ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", *marks.values()],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=marks,
    )
    vision = t.PixtralVisionConfig(
        **VISION, head_dim=16, image_size=48, patch_size=12, rope_theta=10000.0
    )
    pictures = t.PixtralImageProcessor(size={"longest_edge": 48}, patch_size=_square(12), **HALF)
    return tokenizer, vision, pictures


def pixtral() -> Parts:
    tokenizer, vision, pictures = _pixtral_parts()
    config = t.LlavaConfig(
        vision_config=vision,
        text_config=t.MistralConfig(**TEXT, **_ids(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = t.PixtralProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=12,
        chat_template=TEKKEN.template(),
    )
    return Parts(
        t.LlavaForConditionalGeneration(config), processor, t.MistralForCausalLM, TEKKEN.template()
    )


def mistral3() -> Parts:
    return _mistral3(partial(t.MistralConfig, sliding_window=None), t.MistralForCausalLM)


def _mistral3(text: Callable[..., Any], backbone: Any) -> Parts:
    tokenizer, vision, pictures = _pixtral_parts()
    config = t.Mistral3Config(
        vision_config=vision,
        text_config=text(**TEXT, **_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = t.PixtralProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=12,
        spatial_merge_size=2,
        chat_template=TEKKEN.template(),
    )
    return Parts(t.Mistral3ForConditionalGeneration(config), processor, backbone, TEKKEN.template())


IDEFICS = Turns(
    "User: ",
    "<end_of_utterance>\n",
    "Assistant: ",
    "<end_of_utterance>\n",
    "<image>",
    start="<|im_start|>",
    opening="Assistant:",
)


def _idefics_tokens() -> Any:
    marks = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    rows = [f"<row_{r + 1}_col_{c + 1}>" for r in range(6) for c in range(6)]
    return byte_level(
        ["<|begin_of_text|>", "<|im_start|>", "<pad>", *marks, *rows],
        bos_token="<|begin_of_text|>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
    )


def _idefics(
    model: Any, config: Any, vision: Any, processor: Any, pictures: Any, **more: Any
) -> Parts:
    tokenizer = _idefics_tokens()
    made = config(
        vision_config=vision(**VISION, image_size=24, patch_size=6),
        text_config=t.LlamaConfig(**TEXT, **_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    front = processor(
        image_processor=pictures(
            size={"longest_edge": 48}, max_image_size={"longest_edge": 24}, **HALF
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS.template(),
        **more,
    )
    return Parts(model(made), front, t.LlamaForCausalLM, IDEFICS.template())


def idefics3() -> Parts:
    return _idefics(
        t.Idefics3ForConditionalGeneration,
        t.Idefics3Config,
        t.Idefics3VisionConfig,
        t.Idefics3Processor,
        t.Idefics3ImageProcessor,
    )


def smolvlm() -> Parts:
    return _idefics(
        t.SmolVLMForConditionalGeneration,
        t.SmolVLMConfig,
        t.SmolVLMVisionConfig,
        t.SmolVLMProcessor,
        t.SmolVLMImageProcessor,
        video_processor=t.SmolVLMVideoProcessor(
            size={"longest_edge": 48},
            max_image_size={"longest_edge": 24},
            fps=1,
            num_frames=4,
            video_sampling={"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 48}},
        ),
    )


#: PaliGemma is published without one. Its processor closes a prompt with a picture by a newline
#: of its own, and text alone does not pass through it.
PALIGEMMA = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% if m['content'] | length == 1 and m['role'] == 'user' %}"
    "{{ '\n' }}{% endif %}{% endif %}{% endfor %}"
)


def paligemma(template: str | None = PALIGEMMA) -> Parts:
    tokenizer = metaspace(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"],
        "<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pictures = t.SiglipImageProcessor(size=_square(48), **HALF)
    pictures.image_seq_length = 16
    processor = t.PaliGemmaProcessor(
        image_processor=pictures, tokenizer=tokenizer, chat_template=template
    )
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(
            **VISION, image_size=48, patch_size=12, projection_dim=32, vision_use_head=False
        ),
        text_config=t.GemmaConfig(**TEXT, **_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return Parts(t.PaliGemmaForConditionalGeneration(config), processor)


def paligemma_bare() -> Parts:
    """As published: without a chat template."""
    return paligemma(None)


COHERE = Turns(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<image>",
    start="<BOS_TOKEN>",
)


def aya_vision() -> Parts:
    marks = [
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        *(f"TILE_{n}" for n in range(1, 13)),
        "<image>",
    ]
    turns = [
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
    ]
    tokenizer = byte_level(
        ["<PAD>", "<BOS_TOKEN>", *turns, *marks],
        bos_token="<BOS_TOKEN>",
        eos_token="<|END_OF_TURN_TOKEN|>",
        pad_token="<PAD>",
    )
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = t.AyaVisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, image_size=48, patch_size=12),
        text_config=t.Cohere2Config(**text, **_ids(tokenizer), sliding_window=512),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    processor = t.AyaVisionProcessor(
        image_processor=t.GotOcr2ImageProcessor(
            size=_square(48), crop_to_patches=True, min_patches=1, max_patches=2, **HALF
        ),
        tokenizer=tokenizer,
        patch_size=12,
        img_size=48,
        downsample_factor=2,
        chat_template=COHERE.template(),
    )
    return Parts(
        t.AyaVisionForConditionalGeneration(config),
        processor,
        t.Cohere2ForCausalLM,
        COHERE.template(),
    )


def llama4() -> Parts:
    marks = [
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    ]
    tokenizer = byte_level(
        ["<|begin_of_text|>", "<|eot|>", "<|pad|>", "<|header_start|>", "<|header_end|>", *marks],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|pad|>",
    )
    config = t.Llama4Config(
        vision_config={
            **VISION,
            "image_size": 48,
            "patch_size": 12,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "pixel_shuffle_ratio": 0.5,
            "intermediate_size": 128,
        },
        text_config={
            **TEXT,
            **_ids(tokenizer),
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 1024,
            "use_qk_norm": True,
        },
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        tie_word_embeddings=False,
    )
    header = "<|header_start|>{}<|header_end|>\n\n"
    turns = Turns(
        header.format("user"),
        "<|eot|>",
        header.format("assistant"),
        "<|eot|>",
        "<|image|>",
        start="<|begin_of_text|>",
    )
    processor = t.Llama4Processor(
        image_processor=t.Llama4ImageProcessor(size=_square(48), max_patches=2, **HALF),
        tokenizer=tokenizer,
        patch_size=12,
        pixel_shuffle_ratio=0.5,
        chat_template=turns.template(),
    )
    return Parts(t.Llama4ForConditionalGeneration(config), processor)


# --- shown through cross-attention ------------------------------------------------------------


def mllama() -> Parts:
    # The picture's mark comes last: it has an embedding and no logit.
    words = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|pad|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|python_tag|>",
    ]
    tokenizer = byte_level(
        words, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|pad|>"
    )
    ids = _ids(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = t.MllamaConfig(
        vision_config={
            **VISION,
            "attention_heads": 2,
            "num_global_layers": 1,
            "image_size": 48,
            "patch_size": 12,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={
            **text,
            **ids,
            "num_hidden_layers": 6,
            "cross_attention_layers": [1, 4],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = Turns(
        header.format("user"),
        "<|eot_id|>",
        header.format("assistant"),
        "<|eot_id|>",
        "<|image|>",
        start="<|begin_of_text|>",
    )
    processor = t.MllamaProcessor(
        image_processor=t.MllamaImageProcessor(size=_square(48), max_image_tiles=2, **HALF),
        tokenizer=tokenizer,
        chat_template=turns.template(),
    )
    return Parts(
        t.MllamaForConditionalGeneration(config), processor, t.LlamaForCausalLM, turns.template()
    )


BUILDERS: dict[str, Callable[[], Parts]] = {
    f.__name__: f
    for f in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        internvl,
        gemma3,
        pixtral,
        mistral3,
        idefics3,
        smolvlm,
        paligemma,
        aya_vision,
        llama4,
        mllama,
    )
}


def register(more: dict[str, Callable[[], Parts]]) -> None:
    """Have further families built by :func:`build`."""
    BUILDERS.update(more)
