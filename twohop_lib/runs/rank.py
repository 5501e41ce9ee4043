"""Scoring every answer of a relation behind every prompt: the ground of likelihood ranking.

A prompt, with its picture, is run once; its keys and values are read by all candidates, which are
the rows of a batch. Where that does not give what whole runs give (:func:`.generate.score`), whole
runs are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from twohop_lib.errors import TwohopError
from twohop_lib.models.inputs import continued, encode, front, shown_pictures, special_tokens
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.runs import evaluate, generate, store
from twohop_lib.runs.generate import Progress
from twohop_lib.scoring.matching import matches

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark, Question

#: Conditions whose answer follows the prompt at once, and is free.
CONDITIONS = tuple(
    c for c in evaluate.CONDITIONS if c != "name_first" and not c.startswith("choice_")
)
#: Candidates that tell whether reading shared keys and values is exact, and the largest difference
#: allowed in nats, by dtype.
PROBED = 4
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}


class Scored(NamedTuple):
    """A candidate's log-probability (nats, summed over its tokens), and its first token's."""

    logprob: float
    n_tokens: int
    first_logprob: float
    first_token: int
