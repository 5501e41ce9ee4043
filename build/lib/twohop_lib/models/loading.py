"""Loading models: one call for a checkpoint folder and for a hub id.

Any image-text model and any text model that ``transformers`` opens goes through this one code
path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.errors as hub
import psutil
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from twohop_lib.errors import TwohopError
from twohop_lib.models.memory import out_of_memory


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

    @property
    def front(self) -> Any:
        """What a prompt goes in through: the processor, with a picture and without."""
        return self.processor


@dataclass(frozen=True)
class Llm:
    """A loaded text model. ``source`` is the folder or hub id it was loaded from.

    ``through`` is the processor of the VLM made from it, for a base model: one without a chat
    template of its own, which is asked as the VLM is.
    """

    model: Any
    tokenizer: Any
    name: str
    source: str = ""
    through: Any = None

    @property
    def front(self) -> Any:
        """What a prompt goes in through: the tokenizer, or the VLM's processor."""
        return self.tokenizer if self.through is None else self.through


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Have a half-precision model compute in float32 for a while; its weights come back unchanged.

    Raises TwohopError if its weights are quantised or spread over devices, or there is no memory
    for twice their size.
    """
    weights = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if getattr(model, "hf_quantizer", None) or len({t.device for t in weights}) != 1:
        raise TwohopError("Only a model that is not quantised and on one device can be widened.")
    held = [(t, t.dtype) for t in weights if t.element_size() < 4]
    needed = sum(t.numel() * 4 for t, _ in held)
    if needed > free_memory(weights[0].device):
        raise TwohopError("There is no memory here for the model in float32.")
    try:
        _convert(held, torch.float32)
        yield
    finally:
        _convert(held)


def _convert(held: list[tuple[torch.Tensor, torch.dtype]], to: torch.dtype | None = None) -> None:
    """Convert weights, each to the precision that goes with it if none is given for all."""
    # Weights made in inference mode cannot be trained, and are multiplied by slices hundreds of
    # times slower.
    with torch.inference_mode(False):
        for tensor, dtype in held:
            tensor.data = tensor.data.to(to or dtype)


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in this machine's memory."""
    if device.type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + spare
    return psutil.virtual_memory().available


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
    device = device or default_device()
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
                f"({first_sentence(error)}); install it."
            ) from error
        raise hub_error or TwohopError(
            f"The {what} of {source} cannot be loaded ({first_sentence(error)}); add the {what} "
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
    line = first_sentence(error)
    # Accelerate says so of a quantised model's layers.
    if out_of_memory(error) or "dispatched on the CPU or the disk" in str(error):
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


def first_sentence(error: BaseException) -> str:
    """The first sentence of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].strip().rstrip(".:") if lines else type(error).__name__
