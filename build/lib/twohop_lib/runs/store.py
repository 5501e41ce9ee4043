"""A folder of finished work, so that a run cut off at any moment takes up where it was.

Each piece of work is one Parquet file, named after a hash of all that determines it and written
whole or not at all. Nothing in the folder is ever changed; deleting it costs time and no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from twohop_lib import records
from twohop_lib.errors import TwohopError
from twohop_lib.models.prompts import Prompt, render

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark, Question
    from twohop_lib.models.loading import Llm, Vlm


def cached(
    folder: str | Path | None, key: Mapping[str, Any], compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Return ``compute()``, or what an earlier call with the same key stored in ``folder``.

    ``key`` must hold all that determines the result, as JSON can hold it. Whether it was
    computed now or read, the frame returned is the one on disk. With ``folder`` None nothing is
    stored.
    """
    if folder is None:
        return compute()
    path = Path(folder) / f"{digest(key)}.parquet"
    if path.is_file():
        try:
            return records.read_frame(path)
        except (TwohopError, OSError):
            # A damaged file is work not done; it is written anew.
            pass
    frame = compute()
    try:
        records.write_frame(frame, path, key)
    except OSError as error:
        raise TwohopError(
            f"Finished work cannot be kept in {folder} ({error.strerror or error}); make room or "
            "choose another folder, then run it again: what is kept is not done twice."
        ) from error
    return records.read_frame(path)


def digest(key: Mapping[str, Any]) -> str:
    """Return the hash that names a piece of work; the order of the keys does not matter."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def model_key(model: Vlm | Llm) -> dict[str, Any]:
    """Return what identifies a loaded model: its weights, and the form they were loaded in.

    A folder is identified by the content of its files, a model from the hub by id and revision.
    """
    entry = records.ModelEntry.of("model", model.model, model.front).model_dump()
    if Path(model.source).is_dir():
        entry |= {"id": folder_hash(model.source), "revision": None}
    attention = getattr(model.model.config, "_attn_implementation", None)
    return entry | {"device": model.model.device.type, "attention": attention}


def folder_hash(folder: str | Path) -> str:
    """Return a hash of the names and contents of a folder's files, sub-folders left out."""
    return records.content_hash(f for f in Path(folder).iterdir() if f.is_file())


@lru_cache
def code_key() -> dict[str, Any]:
    """Return what identifies the code: a hash of the whole library, and the versions that matter.

    The whole library, not a list of modules: a list typed by hand misses what is imported later.
    """
    return {"code": records.library_hash(), "versions": records.versions()}


def asked_key(
    model: Vlm | Llm,
    benchmark: Benchmark,
    condition: str,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """Return what identifies questions put to a model in one condition, and the code that does."""
    # Some chat templates write today's date, or words for models alone.
    texts = [render(model.front, prompt) for prompt in prompts]
    return {
        **code_key(),
        "weights": model_key(model),
        "benchmark": benchmark.hash,
        "condition": condition,
        "questions": [question.question_id for question in questions],
        "prompts": digest({"texts": texts}),
    }
