"""A graft as an ordinary checkpoint: a LLaVA of the language model, the tower and the projector.

What is trained is the *adapter* (tower and projector, about 5 MB in float16). Joined to the
language model it is a folder that ``AutoModelForImageTextToText`` loads with nothing of ours. The
language model's weights lie in a file of their own, which all grafts on one disk share.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from twohop_lib.errors import TwohopError
from twohop_lib.grafts import LANGUAGE
from twohop_lib.grafts.ask import line_ends
from twohop_lib.grafts.fewshot import FewShot, chat_template
from twohop_lib.grafts.recipes import TowerRecipe
from twohop_lib.grafts.tower import image_processor, new_tower
from twohop_lib.grafts.weights import link, set_dtype

ADAPTER = "adapter.safetensors"
#: Tokens that published tokenizers keep for other uses, and that text never becomes.
SPARE = (
    "<image>",
    "<unused0>",
    "<|image_pad|>",
    "<|reserved_special_token_0|>",
    "<|extra_0|>",
    "<unused_token_0>",
)
#: The text model under LLaVA's names, kept beside it for all grafts.
SHARED = "llava-language.safetensors"
_TEXT, _SIGHT = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def load_language(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The frozen text model of a folder, and its tokenizer.

    Raises:
        TwohopError: it cannot be loaded.
    """
    from twohop_lib.models.loading import load_llm

    llm = load_llm(folder, dtype)
    return llm.model.requires_grad_(False), llm.tokenizer


def image_token(tokenizer: Any, vocabulary: int) -> str:
    """A token that stands for the picture: a spare one, or a new one in a spare row.

    ``vocabulary`` is the number of rows of the embeddings. A new token is added to ``tokenizer``.

    Raises:
        TwohopError: the model has neither a spare token nor a spare row.
    """
    known = tokenizer.get_vocab()
    for token in SPARE:
        if token in known and len(tokenizer(token, add_special_tokens=False).input_ids) == 1:
            return token
    if len(tokenizer) >= vocabulary:
        raise TwohopError(
            "The language model has no spare token to stand for a picture; give one whose "
            "embeddings have more rows than its tokenizer has tokens."
        )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return "<image>"


def new_projector(vision: Any, text: Any) -> LlavaMultiModalProjector:
    """LLaVA's two-layer projector from a vision to a text configuration, untrained."""
    # As dictionaries: a LlavaConfig changes the configuration objects that it is given.
    config = LlavaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), vision_feature_layer=-1
    )
    return LlavaMultiModalProjector(config)


def adapter_state(tower: CLIPVisionModel, projector: LlavaMultiModalProjector) -> dict[str, Tensor]:
    """Tower and projector under LLaVA's names, in float16."""
    parts = {"model.vision_tower.": tower, "model.multi_modal_projector.": projector}
    return {
        prefix + name: value.detach().half().contiguous()
        for prefix, part in parts.items()
        for name, value in part.state_dict().items()
        if value.is_floating_point()
    }


def write_adapter(state: dict[str, Tensor], out: Path) -> None:
    """Write an adapter, whole or not at all."""
    partial = out.with_suffix(".partial")
    save_file(state, partial, metadata={"format": "pt"})
    partial.replace(out)


def join(
    adapter: Path,
    llm: Path,
    out: Path,
    tower: TowerRecipe,
    few: FewShot,
    merged: dict[str, Tensor] | None = None,
) -> Path:
    """Join an adapter to the text model in ``llm``: a checkpoint in ``out``, whole or not at all.

    Beside it, in :data:`~twohop_lib.grafts.LANGUAGE`, the text model with the same chat template.
    ``merged`` are weights that replace the text model's own in the graft alone.

    Raises:
        TwohopError: adapter and text model do not fit together.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Given here and not set later, or it would not be saved: batches end together.
    tokenizer = AutoTokenizer.from_pretrained(llm, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16)
    token = image_token(tokenizer, model.get_input_embeddings().weight.shape[0])
    config = llava_config(model.config, tower, tokenizer, token)
    _check_fit(adapter, config)
    processor = _processor(tokenizer, tower, few, token)
    ends = line_ends(tokenizer)
    _write_text(model, llm, partial, merged)
    save_file(load_file(adapter), partial / _SIGHT, metadata={"format": "pt"})
    _write_index(partial)
    config.save_pretrained(partial)
    set_dtype(partial, "float32")
    _settings(model, tokenizer, ends).save_pretrained(partial)
    processor.save_pretrained(partial)
    _write_language(llm, partial / LANGUAGE, tokenizer, model, ends)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def llava_config(text: Any, recipe: TowerRecipe, tokenizer: Any, token: str) -> LlavaConfig:
    """The configuration of a graft."""
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=new_tower(recipe).config.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(token),
        image_seq_length=recipe.image_tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=bool(text.tie_word_embeddings),
        dtype="float32",
    )


def _check_fit(adapter: Path, config: LlavaConfig) -> None:
    with torch.device("meta"):
        wanted = LlavaForConditionalGeneration(config).state_dict()
    for name, value in load_file(adapter).items():
        if name not in wanted or wanted[name].shape != value.shape:
            raise TwohopError(
                f"The adapter {adapter} was not grown on this language model ({name} does not "
                "fit); give the one that its card names."
            )


def _processor(tokenizer: Any, recipe: TowerRecipe, few: FewShot, token: str) -> LlavaProcessor:
    template = chat_template(few, tokenizer.bos_token or "", token)
    tokenizer.chat_template = template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LlavaProcessor(
        image_processor=image_processor(recipe),
        tokenizer=tokenizer,
        patch_size=recipe.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=token,
        chat_template=template,
    )


def sight_weights(graft: Path) -> Path:
    """The file of a graft's tower and projector."""
    return graft / _SIGHT


def text_weights(graft: Path) -> Path:
    """The file with a graft's text stack."""
    return graft / _TEXT


def _settings(model: Any, tokenizer: Any, ends: list[int]) -> GenerationConfig:
    """Greedy answers that end with the line."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )


def _write_text(model: Any, llm: Path, out: Path, merged: dict[str, Tensor] | None) -> None:
    """The text model's weights under LLaVA's names; shared by all grafts of one text model."""
    shared = llm / SHARED
    if merged is None and shared.is_file():
        link(shared, out / _TEXT)
        return
    state = model.base_model.state_dict()
    state.update(merged or {})
    named = {f"model.language_model.{k}": v.to(torch.bfloat16) for k, v in state.items()}
    if not model.config.tie_word_embeddings:
        named["lm_head.weight"] = model.get_output_embeddings().weight.detach()
    named = {k: v.clone().contiguous() for k, v in named.items()}
    save_file(named, out / _TEXT, metadata={"format": "pt"})
    if merged is None and _ours(llm):
        link(out / _TEXT, shared)


def _ours(llm: Path) -> bool:
    """Whether a folder is in our cache, so that a file may be left there."""
    from twohop_lib.grafts import cache_folder

    return cache_folder().resolve() in llm.resolve().parents


def _write_index(folder: Path) -> None:
    where, total = {}, 0
    for file in (_TEXT, _SIGHT):
        for name, value in load_file(folder / file).items():
            where[name] = file
            total += value.numel() * value.element_size()
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_language(llm: Path, out: Path, tokenizer: Any, model: Any, ends: list[int]) -> None:
    """The text model as it is, with the graft's chat template and ends."""
    out.mkdir()
    for file in llm.iterdir():
        if file.suffix == ".safetensors" and file.name != SHARED:
            link(file.resolve(), out / file.name)
        elif file.name in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(file, out / file.name)
    tokenizer.save_pretrained(out)
    _settings(model, tokenizer, ends).save_pretrained(out)
