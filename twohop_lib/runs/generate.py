"""Loading a model and asking it: batched greedy answers and log-probabilities.

Any image-text model and any text model that ``transformers`` opens goes through this one code
path; a checkpoint folder and a hub id are loaded by the same call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub.errors as hub
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from twohop_lib.errors import TwohopError
from twohop_lib.prompts import Prompt, render

BATCH_SIZE = 64
MAX_NEW_TOKENS = 32
GREY = (128, 128, 128)

#: Greedy search, whatever the checkpoint's own generation settings say.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}

#: Makes a progress bar: called with ``total=`` (prompts), returns what has ``update`` and
#: ``close``. ``tqdm`` is one.
Progress = Callable[..., Any]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Vlm:
    """A loaded image-text model. ``source`` is the folder or hub id it was loaded from."""

    model: Any
    processor: Any
    name: str
    source: str = ""

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


@dataclass(frozen=True)
class Llm:
    """A loaded text model. ``source`` is the folder or hub id it was loaded from."""

    model: Any
    tokenizer: Any
    name: str
    source: str = ""


# --- loading ----------------------------------------------------------------------------------


def load_vlm(
    path_or_id: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **options: Any,
) -> Vlm:
    """Load an image-text model and its processor from a folder or from the hub.

    ``dtype`` "auto" is the checkpoint's own; ``device`` None is the GPU if there is one, "auto"
    spreads the model over all there are. ``options`` go to ``from_pretrained`` (a
    ``quantization_config``, an ``attn_implementation``).

    Raises TwohopError if there is no such model, it is damaged or incomplete, takes no pictures,
    or has no processor.
    """
    source, name = _locate(path_or_id)
    model = _load_model(
        AutoModelForImageTextToText, source, "image-text", dtype, device, revision, options
    )
    processor = _load_front(AutoProcessor, source, "processor", revision)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise TwohopError(
            f"{source} has no processor for pictures and text; add the processor files of the "
            "model it was made from."
        )
    _prepare_tokenizer(processor.tokenizer)
    return Vlm(model, processor, name, source)


def load_llm(
    path_or_id: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    **options: Any,
) -> Llm:
    """Load a text model and its tokenizer; arguments and errors as in :func:`load_vlm`."""
    source, name = _locate(path_or_id)
    model = _load_model(AutoModelForCausalLM, source, "text", dtype, device, revision, options)
    tokenizer = _load_front(AutoTokenizer, source, "tokenizer", revision)
    _prepare_tokenizer(tokenizer)
    return Llm(model, tokenizer, name, source)


def load_config(path_or_id: str | Path, revision: str | None = None) -> Any:
    """Load a checkpoint's configuration only: what kind of model it is, and its sizes.

    Raises TwohopError if there is no such model, or ``transformers`` does not know its kind.
    """
    source, _ = _locate(path_or_id)
    try:
        # False, not the default: a checkpoint with code of its own would ask at the keyboard.
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _loading_error(error, source, "language") from error


def _locate(path_or_id: str | Path) -> tuple[str, str]:
    """Return what to load from (a folder that is there, or a hub id) and the model's name."""
    text = str(path_or_id)
    if not text.strip():
        raise TwohopError("The model's name is empty; give a folder or a Hugging Face id.")
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TwohopError(
                f"{folder} holds no model (there is no config.json); give the folder that "
                "save_pretrained wrote."
            )
        return str(folder), folder.resolve().name
    if folder.is_file():
        raise TwohopError(f"{folder} is a file; give the model's folder instead.")
    is_path = isinstance(path_or_id, Path) or text.startswith((".", "/", "~"))
    if is_path or text.count("/") > 1 or "\\" in text:
        raise TwohopError(f"There is no model folder at {text}; check the path.")
    return text, text.split("/")[-1]


def _load_model(
    auto: Any,
    source: str,
    what: str,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    revision: str | None,
    options: dict[str, Any],
) -> Any:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise TwohopError("torch finds no GPU here; leave the device out to run on the CPU.")
    known = dtype == "auto" or isinstance(getattr(torch, str(dtype), dtype), torch.dtype)
    if not known:
        raise TwohopError(f"Unknown dtype {dtype!r}; use float32, bfloat16, float16 or auto.")
    placed = str(device) == "auto" or options.get("quantization_config") is not None
    if placed:
        options = {"device_map": "auto" if str(device) == "auto" else {"": device}, **options}
    try:
        model, info = auto.from_pretrained(
            source, dtype=dtype, revision=revision, output_loading_info=True, **options
        )
        if not placed:
            model = model.to(device)
    except Exception as error:
        raise _loading_error(error, source, what) from error
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        raise TwohopError(
            f"{source} is incomplete: {len(missing)} weight(s) missing and {len(mismatched)} of "
            f"the wrong shape (such as {(missing + mismatched)[0]}); download it again."
        )
    return model.eval()


def _load_front(auto: Any, source: str, what: str, revision: str | None) -> Any:
    try:
        return auto.from_pretrained(source, revision=revision)
    except Exception as error:
        hub_error = _hub_error(error, source)
        if hub_error is None and isinstance(error, ImportError):
            raise TwohopError(
                f"The {what} of {source} needs a package that is not installed "
                f"({_first_sentence(error)}); install it."
            ) from error
        raise hub_error or TwohopError(
            f"The {what} of {source} cannot be loaded ({_first_sentence(error)}); add the {what} "
            "files of the model it was made from."
        ) from error


def _prepare_tokenizer(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _loading_error(error: Exception, source: str, what: str) -> TwohopError:
    if found := _hub_error(error, source):
        return found
    if isinstance(error, torch.OutOfMemoryError):
        return TwohopError(
            f"{source} does not fit into the memory of the GPU; load it with a smaller dtype, "
            "quantised, or with device='auto'."
        )
    line = _first_sentence(error)
    # torch says so of the CPU's memory, accelerate of a quantised model's layers.
    words = ("can't allocate memory", "not enough memory", "dispatched on the CPU or the disk")
    if isinstance(error, MemoryError) or any(said in str(error) for said in words):
        return TwohopError(
            f"{source} does not fit into memory here; load it with a smaller dtype, quantised, "
            "or on a larger machine (twohop models lists what fits where)."
        )
    if "trust_remote_code" in str(error):
        return TwohopError(
            f"{source} brings code of its own, which is not run here; pick a model that "
            "transformers itself implements."
        )
    if isinstance(error, ImportError):
        return TwohopError(f"Loading {source} needs a package that is not installed ({line}).")
    if isinstance(error, ValueError) and "onfiguration class" in line:
        article = "an" if what[0] in "aeiou" else "a"
        return TwohopError(
            f"{source} is not {article} {what} model that "
            f"transformers knows ({line.split(' for this kind')[0]}); pick another."
        )
    if isinstance(error, ValueError) and "does not recognize this architecture" in line:
        return TwohopError(
            f"The installed transformers does not know the architecture of {source}; "
            "install a newer one."
        )
    if "no file named" in line:
        return TwohopError(f"{source} holds no weights; download or save the model again.")
    if "ignore_mismatched_sizes" in line:
        return TwohopError(
            f"The weights in {source} have other shapes than its config.json says; "
            "get both from the same place again."
        )
    if isinstance(error, SafetensorError | RuntimeError | EOFError):
        return TwohopError(
            f"The weights in {source} are damaged or of another model ({line}); get them again."
        )
    return TwohopError(f"{source} cannot be loaded as {what} model: {line}.")


def _hub_error(error: BaseException, source: str) -> TwohopError | None:
    """Say what the hub answered, if the error came from there."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if any_of(hub.GatedRepoError):
        return TwohopError(
            f"{source} is gated; accept its terms on its page at huggingface.co, then log in "
            "with: hf auth login"
        )
    if any_of(hub.RevisionNotFoundError):
        return TwohopError(f"{source} has no such revision; check it on the model's page.")
    if any_of(hub.RepositoryNotFoundError, hub.HFValidationError):
        return TwohopError(
            f"There is no model {source!r} on the Hugging Face hub, and no such folder here; "
            "check the spelling (private models need: hf auth login)."
        )
    offline = any_of(hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError)
    if offline or (not Path(source).is_dir() and any("connect" in str(e).lower() for e in chain)):
        return TwohopError(
            f"{source!r} is neither a folder here nor in the local cache, and the Hugging Face "
            "hub cannot be reached; connect, or give the folder of a downloaded model."
        )
    return None


def _first_sentence(error: BaseException) -> str:
    """The first sentence of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].strip().rstrip(".:") if lines else type(error).__name__


# --- asking -----------------------------------------------------------------------------------


def blank_like(image: Image.Image) -> Image.Image:
    """Return a mid-grey picture of the size of another: what a blank condition shows."""
    return Image.new("RGB", image.size, GREY)


def answer(
    model: Vlm | Llm,
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image | None] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """Return the model's greedy answer to each prompt, in order: new text only, stripped.

    ``images[i]`` (RGB) is the picture of ``prompts[i]``, ignored where the prompt shows none and
    replaced by a grey one of the same size where it shows a blank. Neither the prompt nor its
    prefill is part of an answer, which ends at the model's own end of turn or after
    ``max_new_tokens``.

    Raises TwohopError if a picture is missing, or memory does not suffice for a single prompt.
    """
    texts = [render(_front(model), prompt) for prompt in prompts]
    shown = _shown(prompts, images)

    def run(rows: list[int]) -> list[str]:
        inputs = encode(model, [texts[i] for i in rows], [shown[i] for i in rows], "left")
        out = model.model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=model.tokenizer.pad_token_id,
        )
        new = out[:, inputs["input_ids"].shape[1] :].tolist()
        stops = stop_ids(model)
        return [decoded(model.tokenizer, row, stops) for row in new]

    return _in_batches(model, texts, shown, batch_size, run, progress)


def score(
    model: Vlm | Llm,
    prompts: Sequence[Prompt],
    images: Sequence[Image.Image | None] | None = None,
    continuations: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[float]:
    """Return the log-probability (nats) of each continuation as the answer to its prompt.

    ``continuations[i]`` follows ``prompts[i]`` (and its prefill) with the spacing of the model's
    own template; the sum runs over its tokens and leaves out the end of turn. Pictures as in
    :func:`answer`.

    Raises TwohopError if the lengths differ, a continuation is empty, or the model reads its
    prompt in both directions.
    """
    if _reads_ahead(model):
        raise TwohopError(
            f"{model.name} reads its prompt in both directions, so the probability of a given "
            "continuation cannot be read off one run; use generated answers instead."
        )
    if len(continuations) != len(prompts):
        raise TwohopError(
            f"{len(prompts)} prompts need as many continuations, not {len(continuations)}."
        )
    shown = _shown(prompts, images)
    texts, lengths = [], []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        text, length = continued(model, prompt, continuation)
        texts.append(text)
        lengths.append(length)

    def run(rows: list[int]) -> list[float]:
        # Padding on the right: every position is what it would be for the row alone.
        inputs = encode(model, [texts[i] for i in rows], [shown[i] for i in rows], "right")
        ids, ends = inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()
        first = min(end - lengths[i] for i, end in zip(rows, ends, strict=True)) - 1
        keep = ids.shape[1] - first
        if "logits_to_keep" in inspect.signature(model.model.forward).parameters:
            inputs["logits_to_keep"] = keep
        logits = model.model(**inputs, use_cache=False).logits[:, -keep:]
        sums = []
        for row, (i, end) in enumerate(zip(rows, ends, strict=True)):
            start = end - lengths[i]
            # Logits at a position are about the next one, hence the shift by one.
            steps = logits[row, start - 1 - first : end - 1 - first].float().log_softmax(-1)
            wanted = ids[row, start:end].to(steps.device)
            sums.append(steps.gather(1, wanted[:, None]).sum().item())
        return sums

    return _in_batches(model, texts, shown, batch_size, run, progress)


@torch.inference_mode()
def _reads_ahead(model: Vlm | Llm) -> bool:
    """Whether what follows a token changes the logits at it (prefix language models)."""
    inputs = encode(model, ["Which one is it? This or that?"], [None], "left")
    length = inputs["input_ids"].shape[1]
    part = {name: value[:, : length // 2] for name, value in inputs.items()}
    whole = model.model(**inputs, use_cache=False).logits[0, length // 2 - 1].float()
    alone = model.model(**part, use_cache=False).logits[0, -1].float()
    return bool((whole - alone).abs().max() > 0.05 * max(1.0, whole.abs().max().item()))


def _front(model: Vlm | Llm) -> Any:
    """What a prompt goes in through: the processor, or the tokenizer of a text model."""
    return model.processor if isinstance(model, Vlm) else model.tokenizer


def _shown(
    prompts: Sequence[Prompt], images: Sequence[Image.Image | None] | None
) -> list[Image.Image | None]:
    given = [None] * len(prompts) if images is None else list(images)
    if len(given) != len(prompts):
        raise TwohopError(f"{len(prompts)} prompts need as many pictures, not {len(given)}.")
    shown: list[Image.Image | None] = []
    for prompt, image in zip(prompts, given, strict=True):
        if not prompt.image:
            shown.append(None)
        elif image is None:
            raise TwohopError(f"A prompt of kind {prompt.kind!r} was given no picture.")
        else:
            shown.append(blank_like(image) if prompt.blank else image.convert("RGB"))
    return shown


def special_tokens(model: Vlm | Llm, text: str) -> dict[str, bool]:
    """Keep the tokenizer from writing a second <bos> where the template wrote one."""
    bos = model.tokenizer.bos_token
    return {"add_special_tokens": False} if bos and text.startswith(bos) else {}


def encode(
    model: Vlm | Llm, texts: list[str], images: list[Image.Image | None], padding_side: str
) -> dict[str, Any]:
    """Return the model's inputs for a batch in which all rows show a picture or none does.

    ``texts`` are rendered prompts, ``images[i]`` the picture of ``texts[i]`` or None. Rows of
    different length are padded on ``padding_side``. Tensors are on the model's device, pictures
    in its dtype.
    """
    options = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
    options |= special_tokens(model, texts[0])
    if images[0] is None:
        inputs = model.tokenizer(texts, **options)
    else:
        inputs = _processed(model, texts, images, options)
    accepted = inspect.signature(model.model.forward).parameters
    encoded = {}
    if images[0] is None and "token_type_ids" in accepted and "token_type_ids" not in inputs:
        # Prefix models tell what is read in both directions by it; without it, padding decides.
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    for name, value in inputs.items():
        # Some processors add labels, which are for training.
        if name == "labels" or (name == "token_type_ids" and name not in accepted):
            continue
        if isinstance(value, torch.Tensor):
            # Pixels come as float32; the model may be in half precision.
            dtype = model.model.dtype if value.is_floating_point() else None
            value = value.to(model.model.device, dtype)
        encoded[name] = value
    return encoded


def _processed(
    model: Vlm | Llm, texts: list[str], images: list[Image.Image | None], options: dict[str, Any]
) -> Any:
    """Return what the processor makes of one picture a text, in either form that they take it."""
    told: Exception | None = None
    for form in ([[image] for image in images], list(images)):
        try:
            return model.processor(text=texts, images=form, **options)
        except Exception as error:  # Processors raise what they like.
            told = told or error
    raise TwohopError(
        f"The processor of {model.name} cannot take a prompt with a picture "
        f"({_first_sentence(told)}); check its chat template, image processor and special tokens."
    ) from told


def stop_ids(model: Vlm | Llm) -> set[int]:
    """Return the ids of the tokens that end the model's turn."""
    eos = getattr(model.model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = model.tokenizer.eos_token_id
    return set(eos) if isinstance(eos, list | tuple) else {eos}


def decoded(tokenizer: Any, ids: list[int], stops: set[int]) -> str:
    """Return generated ids as text, up to the first that ends the turn."""
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def continued(model: Vlm | Llm, prompt: Prompt, continuation: str) -> tuple[str, int]:
    """Return prompt and continuation as one text, and how many tokens the continuation is."""
    if not continuation.strip():
        raise TwohopError("A continuation to be scored is empty; give the answer's text.")
    before = render(_front(model), prompt)
    said = f"{prompt.prefill} {continuation.strip()}".strip()
    whole = render(_front(model), replace(prompt, prefill=said))
    if not whole.startswith(before):
        # Templates that open their own answer in another way than a given one (a thinking tag).
        whole = before + (" " if prompt.prefill else "") + continuation.strip()
    options = special_tokens(model, before)
    ids = [model.tokenizer(text, **options)["input_ids"] for text in (before, whole)]
    # A tokenizer may join the prompt's end to the answer's start; what differs is the answer's.
    shared = 0
    while shared < min(map(len, ids)) and ids[0][shared] == ids[1][shared]:
        shared += 1
    return whole, len(ids[1]) - shared


def _in_batches(
    model: Vlm | Llm,
    texts: list[str],
    images: list[Image.Image | None],
    batch_size: int,
    run: Callable[[list[int]], list[_Result]],
    progress: Progress | None,
) -> list[_Result]:
    """Run rows in batches of similar length, halving the batch when memory runs out.

    Rows with and without picture are kept apart, and the longest come first, so that memory
    runs out early if it does.
    """
    if batch_size < 1:
        raise TwohopError(f"A batch needs at least one prompt, not {batch_size}.")
    results: dict[int, _Result] = {}
    bar = progress(total=len(texts)) if progress else None
    for with_picture in (True, False):
        group = [i for i in range(len(texts)) if (images[i] is not None) == with_picture]
        if not group:
            continue
        encoded = model.tokenizer([texts[i] for i in group], add_special_tokens=False)
        length = dict(zip(group, map(len, encoded["input_ids"]), strict=True))
        group.sort(key=lambda i: (-length[i], i))
        while group:
            rows = group[:batch_size]
            done = _or_out_of_memory(run, rows)
            if done is None:
                if len(rows) == 1:
                    raise TwohopError(
                        "The GPU runs out of memory on a single prompt; load the model with a "
                        "smaller dtype, quantised, or with device='auto'."
                    )
                batch_size = len(rows) // 2
                continue
            results.update(zip(rows, done, strict=True))
            group = group[len(rows) :]
            if bar is not None:
                bar.update(len(rows))
    if bar is not None:
        bar.close()
    return [results[i] for i in range(len(texts))]


@torch.inference_mode()
def _or_out_of_memory(
    run: Callable[[list[int]], list[_Result]], rows: list[int]
) -> list[_Result] | None:
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        pass
    # Only out here is the failed run's memory free: the exception held on to its tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
