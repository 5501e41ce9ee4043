"""A VLM and the text backbone it was made from, loaded and held against each other.

>>> pair = load_pair("llava-hf/llava-1.5-7b-hf")  # doctest: +SKIP
>>> pair.llm.name  # doctest: +SKIP
'vicuna-7b-v1.5'
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    BitsAndBytesConfig,
)

from twohop_lib.errors import TwohopError
from twohop_lib.models.inputs import encode
from twohop_lib.models.loading import (
    Llm,
    Vlm,
    in_float32,
    load_config,
    load_llm,
    load_vlm,
)
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.models.registry import Entry, find

Quantise = Literal["4bit", "8bit"]

#: What both tokenizers have to turn into the same ids: names, accents, digits, punctuation. None
#: starts with a space: there, conversions of one and the same tokenizer are known to differ.
TEXTS = (
    "Who was the architect of St. Peter's Basilica?",
    "The capital of Côte d'Ivoire is Yamoussoukro; São Tomé, Łódź and Malmö are cities.",
    "In 1961, 3.14 % of 12,345 people paid $9.99 (or £7/€8) - twice!",
    'She said: "Jay-Z & Beyoncé?" … [No], it\'s {Zoë} <Müller>.',
    "First name the person.\nThen answer: where were they born?",
    "東京 Москва Αθήνα القاهرة",
)
#: Nats between what is said in half precision and in float32, above which it is another thing.
GIBBERISH = 1.0
#: How many numbers of a weight are compared at a time, so that no copy of it is made in float32.
CHUNK = 2**24


@dataclass(frozen=True)
class Shape:
    """What has to agree for states of one model to be written into the other.

    ``blocks`` counts decoder blocks with self-attention; those that only attend to the picture
    (cross-attention models) have no counterpart in a backbone.
    """

    width: int
    blocks: int
    vocabulary: int


@dataclass(frozen=True)
class Compatibility:
    """A VLM and a backbone that fit: equal width, blocks and text tokens.

    ``vocabularies`` are the sizes of the embeddings (VLM, backbone), which may differ by what was
    added for pictures; ``only_vlm`` and ``only_llm`` are special tokens that one of them lacks.
    """

    width: int
    blocks: int
    vocabularies: tuple[int, int]
    only_vlm: tuple[str, ...]
    only_llm: tuple[str, ...]


@dataclass(frozen=True)
class Drift:
    """How far a VLM's language weights are from its backbone's: ||vlm - llm|| / ||llm||.

    ``blocks[b]`` is block b of the backbone; ``embed`` are the rows of tokens both have;
    ``total`` is over all blocks at once.
    """

    blocks: tuple[float, ...]
    embed: float
    total: float


@dataclass(frozen=True)
class ModelPair:
    """A VLM and its backbone. ``llm`` is None if the VLM's own text mode is the backbone.

    ``entry`` is the registry's entry, if there is one. ``notes`` are sentences on how the pair came
    about, to be shown beside any result.
    """

    vlm: Vlm
    llm: Llm | None
    entry: Entry | None = None
    compatibility: Compatibility | None = None
    notes: tuple[str, ...] = ()

    @property
    def backbone(self) -> Llm | Vlm:
        """What is asked as the backbone: the text model, or the VLM itself without a picture."""
        return self.llm or self.vlm

    @property
    def name(self) -> str:
        """``vlm`` or ``vlm + backbone``, by their short names."""
        return self.vlm.name if self.llm is None else f"{self.vlm.name} + {self.llm.name}"


# --- loading ----------------------------------------------------------------------------------


def load_pair(
    vlm: str | Path,
    llm: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantise: Quantise | None = None,
    vlm_revision: str | None = None,
    llm_revision: str | None = None,
) -> ModelPair:
    """Load a VLM and its text backbone, each from a folder or from the hub.

    Without ``llm`` the registry names the backbone; a VLM that it does not know, or knows to have
    none, uses itself without a picture. ``dtype`` "auto" is bfloat16 on a GPU that
    computes in it, float16 on others, float32 without one. ``device`` None is the GPU if there is
    one, "auto" spreads each model over all there are. ``quantise`` needs bitsandbytes. Where "auto"
    takes half precision it is tried on a prompt, and given up, with a note, for the next dtype if
    the model computes NaN in it, or something else than in float32.

    Raises TwohopError if a model cannot be loaded, is of the other kind, or the two do not fit
    together; their kinds and sizes are checked before any weights are loaded.
    """
    entry = find(str(vlm))
    llm, notes = _choose_backbone(vlm, llm, entry)
    vlm_config = load_config(vlm, vlm_revision)
    _require_vlm(vlm, vlm_config)
    if llm is not None:
        llm_config = load_config(llm, llm_revision)
        _require_llm(llm, llm_config)
        _require_same_shape(str(vlm), shape(vlm_config), str(llm), shape(llm_config))
    chosen = _dtypes(dtype, device)
    for dtype in chosen:
        options = _quantisation(quantise, dtype)
        loaded_vlm = load_vlm(vlm, dtype, device, vlm_revision, **options)
        # The last is float32, or what was asked for.
        why = trouble_in_half_precision(loaded_vlm) if dtype != chosen[-1] else ""
        if not why:
            break
        notes += (why,)
    if llm is None:
        return ModelPair(loaded_vlm, None, entry, None, notes)
    loaded_llm = load_llm(llm, dtype, device, llm_revision, **options)
    if not loaded_llm.tokenizer.chat_template:
        loaded_llm = asked_through(loaded_llm, loaded_vlm)
        notes += (
            f"{loaded_llm.name} has no chat template of its own, so it is asked through that of "
            f"{loaded_vlm.name}.",
        )
    return ModelPair(loaded_vlm, loaded_llm, entry, compatibility(loaded_vlm, loaded_llm), notes)


def asked_through(llm: Llm, vlm: Vlm) -> Llm:
    """Have a base model asked through its VLM's processor: the same words, and the same ids.

    Raises TwohopError if the VLM's template writes tokens that the base model has no embedding of.
    """
    asked = replace(llm, through=vlm.processor)
    ids = encode(vlm, [render(vlm.processor, Prompt("by_name", "Who?", False))], [None], "left")
    written = ids["input_ids"][0].tolist()
    size = len(llm.model.get_input_embeddings().weight)
    if unknown := [token for token in written if token >= size]:
        raise TwohopError(
            f"{llm.name} has no chat template, and that of {vlm.name} writes tokens it does not "
            f"have ({vlm.tokenizer.decode(unknown[:1])!r}); give an instruction-tuned backbone, or "
            "leave the backbone out."
        )
    return asked


def _choose_backbone(
    vlm: str | Path, llm: str | Path | None, entry: Entry | None
) -> tuple[str | Path | None, tuple[str, ...]]:
    if llm is not None:
        if entry and entry.llm and str(llm).casefold() != entry.llm.casefold():
            return llm, (f"{vlm} is held against {llm}; it was made from {entry.llm}.",)
        return llm, ()
    if entry is None:
        return None, (
            f"{vlm} is not among the known models and no backbone was given, so it is held "
            "against itself without a picture.",
        )
    if entry.llm is None:
        return None, (
            f"{vlm} is natively multimodal, so it is held against itself without a picture.",
        )
    if entry.backbone_certainty == "documented":
        return entry.llm, (f"{vlm} was made from {entry.llm}, as its authors document.",)
    if entry.backbone_certainty == "documented base":
        return entry.llm, (
            f"{vlm} starts from the pre-trained weights that {entry.llm} was tuned from, as its "
            f"authors document ({entry.source}); the two were then trained apart.",
        )
    return entry.llm, (
        f"Which checkpoint {vlm} was made from is not documented; {entry.llm} has the same size "
        "and family.",
    )


def _require_vlm(source: str | Path, config: Any) -> None:
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise TwohopError(
            f"{source} is a text model ({config.model_type}) and takes no pictures; give it as "
            "the backbone, and a vision-language model before it."
        )
    raise TwohopError(
        f"{source} is not an image-text model that transformers knows ({config.model_type}); "
        "see twohop models for those that are known to work."
    )


def _require_llm(source: str | Path, config: Any) -> None:
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise TwohopError(
            f"{source} takes pictures itself ({config.model_type}), so it is no text backbone; "
            "give the text model it was made from, or leave the backbone out."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise TwohopError(
            f"{source} is not a text model that transformers knows ({config.model_type}); give "
            "the text model that the vision-language model was made from."
        )


def _dtypes(dtype: str | torch.dtype, device: str | torch.device | None) -> list[str | torch.dtype]:
    """Dtypes to try on a device, in order: the one asked for, or those that suit it."""
    if dtype != "auto":
        return [dtype]
    wanted = "cuda" if device is None else str(device)
    if not torch.cuda.is_available() or not wanted.startswith(("cuda", "auto")):
        return ["float32"]
    # Without emulation: a GPU that only emulates bfloat16 is many times slower in it.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return ["bfloat16", "float32"]
    return ["float16", "bfloat16", "float32"]


@torch.inference_mode()
def trouble_in_half_precision(vlm: Vlm) -> str:
    """In a sentence, why a model cannot be used in the dtype that it is loaded in; "" if it can.

    One prompt, with a picture and without, gives logits of numbers, and about those of float32
    where there is memory for that.
    """
    model, dtype = vlm.model, str(vlm.model.dtype).removeprefix("torch.")
    if model.dtype == torch.float32 or not getattr(vlm.processor, "chat_template", None):
        return ""
    noise = torch.randint(0, 256, (96, 96, 3), dtype=torch.uint8, generator=torch.Generator())
    pictures = [None, Image.fromarray(noise.numpy())]
    texts = [
        render(vlm.processor, Prompt("by_name", "What is this?", picture is not None))
        for picture in pictures
    ]

    def likely() -> list[torch.Tensor]:
        inputs = (encode(vlm, [t], [p], "left") for t, p in zip(texts, pictures, strict=True))
        runs = (model(**one, use_cache=False).logits[0, -1].float() for one in inputs)
        return [run.log_softmax(-1) for run in runs]

    got = likely()
    if any(x.isnan().any() for x in got):
        return f"{vlm.name} computes NaN (not a number) in {dtype}, so another dtype was taken."
    try:
        with in_float32(model):
            wanted = likely()
    except (TwohopError, RuntimeError):
        return ""  # Quantised, spread over devices, or too large: there is nothing to hold it to.
    apart = max(
        torch.nn.functional.kl_div(x, y, log_target=True, reduction="sum").item()
        for x, y in zip(got, wanted, strict=True)
    )
    if apart <= GIBBERISH:
        return ""
    return (
        f"In {dtype} {vlm.name} says something else than in float32 ({apart:.1f} nats apart on one "
        "prompt), so another dtype was taken."
    )


def _quantisation(quantise: Quantise | None, dtype: str | torch.dtype) -> dict[str, Any]:
    if quantise is None:
        return {}
    if quantise not in ("4bit", "8bit"):
        raise TwohopError(f"A model is quantised to '4bit' or '8bit', not {quantise!r}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TwohopError(
            "Quantising needs bitsandbytes, which is not installed; install it with: "
            "pip install bitsandbytes"
        )
    if quantise == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    compute = getattr(torch, str(dtype).removeprefix("torch."), None)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    }


# --- do they fit? -----------------------------------------------------------------------------


def shape(config: Any) -> Shape:
    """The sizes of a model's text stack, from the configuration of a VLM or of a text model."""
    text = config.get_text_config(decoder=True)
    cross = getattr(text, "cross_attention_layers", None) or ()
    return Shape(text.hidden_size, text.num_hidden_layers - len(cross), text.vocab_size)


def compatibility(vlm: Vlm, llm: Llm) -> Compatibility:
    """Hold the text stacks and the tokenizers of a VLM and a backbone against each other.

    Raises TwohopError, with both numbers or both tokenisations, unless width and blocks are equal
    and every text becomes the same ids; special tokens may differ.
    """
    of_vlm, of_llm = shape(vlm.model.config), shape(llm.model.config)
    _require_same_shape(vlm.name, of_vlm, llm.name, of_llm)
    _require_same_tokens(vlm, llm)
    special_vlm, special_llm = _special(vlm.tokenizer), _special(llm.tokenizer)
    return Compatibility(
        width=of_vlm.width,
        blocks=of_vlm.blocks,
        vocabularies=(of_vlm.vocabulary, of_llm.vocabulary),
        only_vlm=tuple(sorted(special_vlm - special_llm)),
        only_llm=tuple(sorted(special_llm - special_vlm)),
    )


def _require_same_shape(vlm: str, of_vlm: Shape, llm: str, of_llm: Shape) -> None:
    for a, b, what in (
        (of_vlm.width, of_llm.width, "numbers in a state (its width)"),
        (of_vlm.blocks, of_llm.blocks, "self-attention blocks (its depth)"),
    ):
        if a != b:
            raise TwohopError(
                f"{vlm} has {a} {what} and {llm} has {b}, so it is not the text model that the "
                "VLM was made from; give that one, or leave the backbone out."
            )


def _require_same_tokens(vlm: Vlm, llm: Llm) -> None:
    advice = f"give the text model that {vlm.name} was made from, or leave the backbone out."
    for text in TEXTS:
        a, b = (m.tokenizer(text, add_special_tokens=False)["input_ids"] for m in (vlm, llm))
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            raise TwohopError(
                f"{vlm.name} and {llm.name} have different tokenizers: from token {at} on, "
                f"{text!r} is {a[at : at + 4]} in one and {b[at : at + 4]} in the other; {advice}"
            )
    # Texts alone would not do: words that neither tokenizer knows become the same unknown token.
    special = _special(vlm.tokenizer) | _special(llm.tokenizer)
    ids_vlm, ids_llm = vlm.tokenizer.get_vocab(), llm.tokenizer.get_vocab()
    for token in sorted((ids_vlm.keys() & ids_llm.keys()) - special):
        if ids_vlm[token] != ids_llm[token]:
            raise TwohopError(
                f"{vlm.name} and {llm.name} have different tokenizers: {token!r} is token "
                f"{ids_vlm[token]} in one and {ids_llm[token]} in the other; {advice}"
            )


def _special(tokenizer: Any) -> set[str]:
    return {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


# --- how far apart are their weights? ---------------------------------------------------------


def drift(vlm: Vlm, llm: Llm) -> Drift | None:
    """Measure how far the VLM's language weights are from the backbone's, block by block.

    Weights are matched by their names within a block; blocks that only attend to the picture are
    left out. None if either model is quantised, as its weights are then no numbers to compare.

    Raises TwohopError if the two stacks do not have the same weights, or some are not in memory.
    """
    if _is_quantised(vlm.model) or _is_quantised(llm.model):
        return None
    stack_vlm, stack_llm = text_stack(vlm.model), text_stack(llm.model)
    blocks_vlm, blocks_llm = self_attention_blocks(vlm.model), self_attention_blocks(llm.model)
    if len(blocks_vlm) != len(blocks_llm):
        raise TwohopError(
            f"{vlm.name} has {len(blocks_vlm)} self-attention blocks and {llm.name} has "
            f"{len(blocks_llm)}; their weights can be compared only for the backbone it was made "
            "from."
        )
    squares = [
        _squares_of_block(vlm.name, a, llm.name, b)
        for a, b in zip(blocks_vlm, blocks_llm, strict=True)
    ]
    embed_vlm, embed_llm = (s.get_input_embeddings().weight for s in (stack_vlm, stack_llm))
    shared = min(len(embed_vlm), len(embed_llm))
    return Drift(
        blocks=tuple(_relative(*pair) for pair in squares),
        embed=_relative(*_squares(embed_vlm[:shared], embed_llm[:shared])),
        total=_relative(*(sum(column) for column in zip(*squares, strict=True))),
    )


def text_stack(model: Any) -> Any:
    """The module that holds a model's decoder blocks (``.layers``) and embeddings.

    Raises TwohopError if it is not where the models of ``transformers`` have it.
    """
    at = model.get_decoder()
    while at is not None:
        if isinstance(getattr(at, "layers", None), torch.nn.ModuleList):
            return at
        # A language model inside a VLM, with a head of its own (Llama 4).
        at = getattr(at, "model", None)
    raise TwohopError(f"The decoder blocks of a {type(model).__name__} were not found.")


def self_attention_blocks(model: Any) -> list[Any]:
    """A model's decoder blocks in order, without those that only attend to the picture."""
    text = model.config.get_text_config(decoder=True)
    cross = set(getattr(text, "cross_attention_layers", None) or ())
    return [block for i, block in enumerate(text_stack(model).layers) if i not in cross]


def _is_quantised(model: Any) -> bool:
    return getattr(model, "hf_quantizer", None) is not None or not all(
        weight.is_floating_point() for weight in model.parameters()
    )


def _squares_of_block(vlm: str, of_vlm: Any, llm: str, of_llm: Any) -> tuple[float, float]:
    a, b = dict(of_vlm.named_parameters()), dict(of_llm.named_parameters())
    only = sorted(a.keys() ^ b.keys())
    other = only + [name for name in a.keys() & b.keys() if a[name].shape != b[name].shape]
    if other:
        raise TwohopError(
            f"The blocks of {vlm} and {llm} do not have the same weights (such as {other[0]}), "
            "so they cannot be compared; give the backbone it was made from."
        )
    sums = [_squares(a[name], b[name]) for name in sorted(a)]
    return sum(x for x, _ in sums), sum(y for _, y in sums)


@torch.no_grad()
def _squares(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """``||a - b||^2`` and ``||b||^2``, a few rows at a time on the CPU."""
    if a.is_meta or b.is_meta:
        raise TwohopError(
            "Some weights are kept on disk for want of memory, so they cannot be compared; use a "
            "smaller dtype or a larger machine."
        )
    a, b = (x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1) for x in (a, b))
    step = max(1, CHUNK // a.shape[1])
    apart = size = 0.0
    for start in range(0, len(a), step):
        x, y = (t[start : start + step].to("cpu", torch.float32) for t in (a, b))
        apart += torch.linalg.vector_norm(x - y, dtype=torch.float64).item() ** 2
        size += torch.linalg.vector_norm(y, dtype=torch.float64).item() ** 2
    return apart, size


def _relative(apart: float, size: float) -> float:
    if size == 0:
        return 0.0 if apart == 0 else float("inf")
    return (apart / size) ** 0.5
