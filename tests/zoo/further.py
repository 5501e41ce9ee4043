"""What 2025 and 2026 brought, in the same terms as :mod:`tests.zoo.families`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import transformers as t

from tests.zoo.families import (
    HALF,
    QWEN_MARKS,
    TEXT,
    VISION,
    Parts,
    _ids,
    _mistral3,
    _mrope,
    _qwen_ids,
    _qwen_processor,
    _qwen_tokens,
    _square,
)
from tests.zoo.tokens import CHATML, Turns, byte_level, metaspace

QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 12,
    "spatial_merge_size": 2,
    "num_position_embeddings": 16,
    "initializer_range": 0.25,
}


def molmo2() -> Parts:
    """Its template writes no <bos>; the processor puts one before every prompt."""
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    ids = _ids(tokenizer)
    # Marks of pictures have embeddings of their own, behind those of words.
    marks = "<im_start> <im_end> <im_patch> <im_col> <low_res_im_start> <|image|> <im_low>".split()
    marks += ["<frame_start>", "<frame_end>", "<|video|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    of = tokenizer.convert_tokens_to_ids
    text = {k: v for k, v in TEXT.items() if k != "tie_word_embeddings"}
    config = t.Molmo2Config(
        vision_config=t.Molmo2VisionConfig(
            **VISION,
            num_key_value_heads=2,
            head_dim=16,
            image_size=[48, 48],
            patch_size=12,
            num_position_embeddings=16,
        ),
        adapter_config=t.Molmo2AdapterConfig(
            vision_feature_layer=[-1, -2],
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=64,
            text_hidden_size=32,
        ),
        text_config=t.Molmo2TextConfig(**text, **ids, additional_vocab_size=len(marks)),
        image_start_token_id=of("<im_start>"),
        low_res_image_start_token_id=of("<low_res_im_start>"),
        image_end_token_id=of("<im_end>"),
        image_patch_id=of("<im_patch>"),
        frame_start_token_id=of("<frame_start>"),
        frame_end_token_id=of("<frame_end>"),
    )
    processor = t.Molmo2Processor(
        image_processor=t.Molmo2ImageProcessor(
            size=_square(48), patch_size=12, max_crops=2, overlap_margins=[1, 1]
        ),
        tokenizer=tokenizer,
        video_processor=t.Molmo2VideoProcessor(size=_square(48), patch_size=12),
        chat_template=replace(CHATML, image="<|image|>").template(),
    )
    return Parts(t.Molmo2ForConditionalGeneration(config), processor)


def emu3() -> Parts:
    """Pictures are words of a codebook; the processor puts <bos> before every prompt."""
    marks = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    visual = [f"<|visual token {n:06d}|>" for n in range(16)]
    tokenizer = byte_level(
        ["<|extra_203|>", "<|extra_204|>", "<|endoftext|>", "<|extra_200|>", *marks.values()]
        + visual,
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=marks,
    )
    names = ["<image>", "<|extra_200|>", *visual]
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = t.Emu3Config(
        vq_config={
            "codebook_size": 16,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
            "temporal_downsample_factor": 1,
            "attn_resolutions": [],
        },
        text_config=text | _ids(tokenizer),
        vocabulary_map={name: tokenizer.convert_tokens_to_ids(name) for name in names},
    )
    processor = t.Emu3Processor(
        image_processor=t.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=32 * 32),
        tokenizer=tokenizer,
        chat_template=Turns(
            "USER: ", " ", "ASSISTANT: ", "", "<image>", opening="ASSISTANT:"
        ).template(),
    )
    return Parts(t.Emu3ForConditionalGeneration(config), processor)


def _gemma4(per_layer: int) -> Parts:
    marks = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = metaspace(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", *marks.values(), "<|video|>"],
        "<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=marks,
    )
    text = {k: v for k, v in TEXT.items() if k != "max_position_embeddings"}
    config = t.Gemma4Config(
        text_config={
            **text,
            **_ids(tokenizer),
            "num_hidden_layers": 4,
            "max_position_embeddings": 2048,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": per_layer,
            "vocab_size_per_layer_input": len(tokenizer),
        },
        vision_config={
            **VISION,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "position_embedding_size": 64,
        },
        audio_config=None,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<|image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<image|>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio|>"),
        boa_token_id=tokenizer.convert_tokens_to_ids("<|audio>"),
        eoa_token_index=tokenizer.convert_tokens_to_ids("<audio|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        tie_word_embeddings=False,
    )
    turns = Turns(
        "<|turn>user\n", "<turn|>\n", "<|turn>model\n", "<turn|>\n", "<|image|>", start="<bos>"
    )
    processor = t.Gemma4Processor(
        feature_extractor=t.Gemma4AudioFeatureExtractor(),
        image_processor=t.Gemma4ImageProcessor(
            patch_size=4, pooling_kernel_size=3, max_soft_tokens=70
        ),
        tokenizer=tokenizer,
        video_processor=t.Gemma4VideoProcessor(patch_size=4),
        image_seq_length=70,
        chat_template=turns.template(),
    )
    model = t.Gemma4ForConditionalGeneration(config)
    for block in model.model.language_model.layers:
        block.layer_scalar.fill_(0.7)  # Published blocks are scaled.
    return Parts(model, processor)


def gemma4() -> Parts:
    """The larger ones: without per-layer inputs."""
    return _gemma4(0)


def gemma4_per_layer() -> Parts:
    """The small ones: every block is given a further embedding of each token."""
    return _gemma4(8)


def qwen3_vl_moe() -> Parts:
    tokenizer = _qwen_tokens(QWEN_MARKS)
    config = t.Qwen3VLMoeConfig(
        text_config=TEXT
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        | _ids(tokenizer)
        | _mrope([2, 3, 3]),
        vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0, 1]},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(t.Qwen3VLProcessor, tokenizer, 12, t.Qwen3VLVideoProcessor)
    return Parts(t.Qwen3VLMoeForConditionalGeneration(config), processor)


def qwen3_5() -> Parts:
    """Three of four blocks have linear attention."""
    tokenizer = _qwen_tokens(QWEN_MARKS)
    rope = _mrope([1, 1, 0])["rope_parameters"] | {"partial_rotary_factor": 0.25}
    config = t.Qwen3_5Config(
        text_config=TEXT
        | {
            "num_hidden_layers": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "rope_parameters": rope,
        }
        | _ids(tokenizer),
        vision_config=QWEN_VISION,
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(t.Qwen3VLProcessor, tokenizer, 12, t.Qwen3VLVideoProcessor)
    return Parts(t.Qwen3_5ForConditionalGeneration(config), processor)


def kimi_k25() -> Parts:
    """Multi-head latent attention, and a mixture of experts above the first block."""
    marks = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    tokenizer = byte_level(
        ["[BOS]", "[EOS]", "[PAD]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>"]
        + ["<|im_middle|>", "<|media_begin|>", "<|media_content|>", "<|media_end|>"]
        + list(marks.values()),
        bos_token="[BOS]",
        eos_token="<|im_end|>",
        pad_token="[PAD]",
        extra_special_tokens=marks,
    )
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = t.Kimi_K25Config(
        text_config={
            **text,
            **_ids(tokenizer),
            "model_type": "deepseek_v3",
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
        },
        vision_config={
            **VISION,
            "patch_size": 12,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        projection_hidden_size=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|kimi_k25_video_placeholder|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|media_end|>"),
        tie_word_embeddings=False,
    )
    turns = Turns(
        "<|im_user|>user<|im_middle|>",
        "<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>",
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
    )
    processor = t.Kimi_K25Processor(
        image_processor=t.Kimi_K25ImageProcessor(
            size={"max_height": 4, "max_width": 4}, patch_size=12, max_patches=16, **HALF
        ),
        tokenizer=tokenizer,
        video_processor=t.Kimi_K25VideoProcessor(patch_size=12),
        chat_template=turns.template(),
    )
    return Parts(t.Kimi_K25ForConditionalGeneration(config), processor)


def ovis2() -> Parts:
    marks = ["<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>"]
    marks += ["<IMG_END>"]
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    config = t.Ovis2Config(
        vision_config=t.Ovis2VisionConfig(
            **VISION, image_size=48, patch_size=12, vocab_size=40, hidden_stride=2
        ),
        text_config=t.Qwen2Config(**TEXT, **_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(marks[2:]),
        vocab_size=len(tokenizer),
        hidden_size=32,
        tie_word_embeddings=False,
    )
    processor = t.Ovis2Processor(
        image_processor=t.Ovis2ImageProcessor(size=_square(48), crop_to_patches=False, **HALF),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=replace(CHATML, image="<image>\n").template(),
    )
    return Parts(t.Ovis2ForConditionalGeneration(config), processor, t.Qwen2ForCausalLM)


def aria() -> Parts:
    tokenizer = metaspace(
        ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|img|>"],
        "<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<|img|>"},
    )
    config = t.AriaConfig(
        # The processor makes every picture 980 pixels wide.
        vision_config=t.Idefics3VisionConfig(**VISION, image_size=980, patch_size=245),
        text_config=t.AriaTextConfig(
            **TEXT, **_ids(tokenizer), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
        ),
        projector_patch_to_query_dict={16: 4},
        image_token_index=tokenizer.convert_tokens_to_ids("<|img|>"),
    )
    processor = t.AriaProcessor(
        image_processor=t.AriaImageProcessor(**HALF),
        tokenizer=tokenizer,
        size_conversion={980: 4},
        chat_template=replace(CHATML, image="<|img|>").template(),
    )
    return Parts(t.AriaForConditionalGeneration(config), processor)


def ministral3() -> Parts:
    return _mistral3(t.Ministral3Config, t.Ministral3ForCausalLM)


def glm4v() -> Parts:
    marks = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    marks += ["<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer = byte_level(
        ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", *marks],
        eos_token="<|user|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
    )
    of = tokenizer.convert_tokens_to_ids
    config = t.Glm4vConfig(
        text_config=TEXT | _ids(tokenizer) | _mrope([2, 3, 3]),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "image_size": 48,
            "patch_size": 12,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "initializer_range": 0.25,
        },
        image_token_id=of("<|image|>"),
        video_token_id=of("<|video|>"),
        image_start_token_id=of("<|begin_of_image|>"),
        image_end_token_id=of("<|end_of_image|>"),
        video_start_token_id=of("<|begin_of_video|>"),
        video_end_token_id=of("<|end_of_video|>"),
    )
    turns = Turns(
        "<|user|>\n",
        "",
        "<|assistant|>\n",
        "",
        "<|begin_of_image|><|image|><|end_of_image|>",
        start="[gMASK]<sop>",
    )
    pixels = {"shortest_edge": 4 * 12**2, "longest_edge": 64 * 12**2}
    processor = t.Glm4vProcessor(
        image_processor=t.Glm4vImageProcessor(patch_size=12, size=pixels),
        tokenizer=tokenizer,
        video_processor=t.Glm4vVideoProcessor(patch_size=12, size=pixels),
        chat_template=turns.template(),
    )
    return Parts(t.Glm4vForConditionalGeneration(config), processor)


FURTHER: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        molmo2,
        emu3,
        gemma4,
        gemma4_per_layer,
        qwen3_vl_moe,
        qwen3_5,
        kimi_k25,
        ovis2,
        aria,
        ministral3,
        glm4v,
    )
}
