"""Known models: each VLM with the text backbone it was made from, and what it takes to run it.

The table is ``registry.csv``. Parameters are those of the published checkpoint; memory is computed
from them, never typed. A figure that a paper reports is quoted as reported, with its citation.

Left out are LLaVA-MORE, whose checkpoints are in the format of their authors' own code, which
``transformers`` does not open, and InstructBLIP, which has no chat template and whose picture
features depend on the question, so that no picture can be patched from one question to another.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field, field_validator

from twohop_lib.errors import TwohopError

ArchitectureClass = Literal["adapter", "native", "cross-attention"]
Precision = Literal["bf16", "8-bit", "4-bit"]
CLASSES: tuple[ArchitectureClass, ...] = ("adapter", "native", "cross-attention")

#: GB of weights per billion parameters. Quantised models keep embeddings, norms and the scales of
#: their blocks in 16 or 32 bits, hence 1.25 and 0.75 rather than 1 and 0.5.
BYTES: dict[Precision, float] = {"bf16": 2.0, "8-bit": 1.25, "4-bit": 0.75}
#: What a run takes beside the weights: activations, keys and values, as a share of the weights.
OVERHEAD = 0.2
RULE = (
    "Weights in GB: parameters (billions) x 2 in bf16, x 1.25 in 8-bit, x 0.75 in 4-bit (the parts "
    f"kept in 16 bits included); fitting counts {OVERHEAD:.0%} more, for what a run takes beside "
    "them."
)


class Entry(BaseModel):
    """One known VLM. ``llm`` is None if its own text mode, without a picture, is its backbone.

    ``backbone_certainty``: "documented" if its authors say that it was made from ``llm``,
    "documented base" if they say that it starts from the pre-trained weights of which ``llm`` is
    the instruction-tuned release; ``source`` is where they say it. ``gated``: terms have to be
    accepted on the hub for it or for its backbone. ``image_tokens``: how many positions a picture
    takes, where that number is fixed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vlm: str
    llm: str | None
    family: str
    architecture_class: ArchitectureClass
    parameters_b: float
    llm_parameters_b: float | None
    backbone_certainty: Literal["documented", "documented base", "same size and family"] | None
    source: str | None
    gated: bool
    image_tokens: int | None
    reported_figure: str | None
    reported_citation: str | None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @computed_field
    @property
    def memory_bf16_gb(self) -> float:
        """GB of the VLM's weights at 2 bytes a parameter."""
        return self.memory_gb("bf16")

    @computed_field
    @property
    def memory_4bit_gb(self) -> float:
        """GB of the VLM's weights in 4-bit, by ``RULE``."""
        return self.memory_gb("4-bit")

    def memory_gb(self, precision: Precision, pair: bool = False) -> float:
        """GB of the weights of the VLM, or of VLM and backbone together."""
        parameters = self.parameters_b + (self.llm_parameters_b or 0) * pair
        return round(parameters * BYTES[precision], 3)

    def fits(self, memory_gb: float, pair: bool = False) -> Precision | None:
        """The best precision in which a run fits into so much memory, or None."""
        for precision in BYTES:
            if self.memory_gb(precision, pair) * (1 + OVERHEAD) <= memory_gb:
                return precision
        return None


def _read(file: Path) -> tuple[Entry, ...]:
    with file.open(newline="", encoding="utf-8") as lines:
        return tuple(Entry.model_validate(entry) for entry in csv.DictReader(lines))


#: Every known VLM, by size.
ENTRIES: tuple[Entry, ...] = _read(Path(__file__).with_name("registry.csv"))


def find(vlm_id: str) -> Entry | None:
    """The entry of a VLM by its hub id (in any case), or None if it is not known."""
    wanted = str(vlm_id).casefold()
    return next((entry for entry in ENTRIES if entry.vlm.casefold() == wanted), None)


def parse_memory(text: str) -> float:
    """GB from "16GB", "16 GB", "16GiB", "16" or "800MB".

    Raises TwohopError if it says no amount of memory above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([gm]i?b?)?\s*", text, re.IGNORECASE)
    unit = (match[2] or "g").lower() if match else ""
    scale = {"g": 1.0, "gi": 2**30 / 1e9, "m": 1e-3, "mi": 2**20 / 1e9}
    memory = float(match[1]) * scale[unit.rstrip("b")] if match else 0.0
    if memory <= 0:
        raise TwohopError(f"--fits takes an amount of memory such as 16GB, not {text!r}.")
    return memory


#: Which class the types of ``transformers`` belong to that are shown pictures in the stream.
_NATIVE_TYPES = ("qwen", "gemma3", "gemma4", "internvl", "llama4", "chameleon", "emu3", "glm")


def architecture_class(entry: Entry | None, model_type: str, cross_attention: bool) -> str:
    """Return a model's class: the registry's, or by its layout and its type."""
    if entry is not None:
        return entry.architecture_class
    if cross_attention:
        return "cross-attention"
    return "native" if model_type.startswith(_NATIVE_TYPES) else "adapter"
