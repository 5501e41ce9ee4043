"""Prompts that begin alike: what they share is run once, and its keys and values are read by all.

A causal model computes each position from earlier ones alone. So what stands before the picture,
and before anything that differs (a system's text, solved exemplars), has the same keys and values
in every run. They are computed once and kept; only what follows is run, at the positions that it
has in the whole run. Nothing here knows a model's name, and nothing is taken on trust: who uses
this tries it first against a whole run (:func:`verdicts` keeps what came of it).
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from twohop_lib.models.blocks import UnsupportedSite, as_unsupported
from twohop_lib.models.decoder import OF_TEXT, Features
from twohop_lib.models.inputs import GREEDY

#: Tokens from which on a shared beginning is worth a run of its own.
LEAST = 32
#: Bytes of keys and values that are kept for a model.
LIMIT = 256 * 2**20

#: Keys and values of a beginning, ``[1, heads, n, d_head]`` each, a pair for each layer.
Kept = tuple[tuple[Tensor, Tensor], ...]

_KEPT: WeakKeyDictionary[nn.Module, Features] = WeakKeyDictionary()
_VERDICTS: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()


# --- who begins alike -------------------------------------------------------------------------


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two rows have in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((k for k, (x, y) in pairs if x != y), min(len(a), len(b)))


def alike(rows: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Part rows of token ids into groups that begin alike.

    Returns the members of each group and how many tokens they share: at least :data:`LEAST`, and
    not all of any row. Rows that share fewer are groups of one, with 0.
    """
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    shared = [
        min(common(rows[i], rows[j]), len(rows[i]) - 1, len(rows[j]) - 1)
        for i, j in itertools.pairwise(order)
    ]
    groups: list[tuple[list[int], int]] = []
    for at, i in enumerate(order):
        n = shared[at - 1] if at else 0
        # Neighbours part where one of them shares far more with that on its other side.
        if n >= max([LEAST, *(x / 2 for x in shared[max(0, at - 2) : at + 1])]):
            members, least = groups[-1]
            groups[-1] = ([*members, i], min(n, least or n))
        else:
            groups.append(([i], 0))
    return groups


def beginning(model: Any, inputs: Mapping[str, Any], most: int) -> tuple[int, ...]:
    """The tokens, ``most`` at most, that all rows of a left-padded batch begin with.

    They end before the picture, and before the last token of any row; none if they are fewer than
    :data:`LEAST`.
    """
    if most < LEAST:
        return ()
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    rows = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
    n = min(most, *(len(row) - 1 for row in rows), *(common(rows[0], row) for row in rows))
    if pictured(inputs):
        image = placeholder(model)
        n = 0 if image is None else next((p for p in range(n) if rows[0][p] == image), n)
    return tuple(rows[0][:n]) if n >= LEAST else ()


def pictured(inputs: Mapping[str, Any]) -> bool:
    """Whether a picture goes with the text."""
    return any(name not in OF_TEXT for name in inputs)


def placeholder(model: Any) -> int | None:
    """The token that a picture's features take the place of, or that announces it."""
    for name in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(model.config, name, None), int):
            return token
    return None


# --- keys and values --------------------------------------------------------------------------


@torch.inference_mode()
def kept(model: Any, ids: Iterable[int]) -> Kept:
    """The keys and values of a text that prompts begin with, run now or earlier.

    Raises UnsupportedSite if a block keeps none of every position (cross-attention, linear
    attention, a sliding window that the text does not fit into).
    """
    store = _KEPT.setdefault(model, Features(LIMIT))
    # Other weights, or the same in another precision, give other keys and values.
    weights = hash(tuple((p.data_ptr(), _version(p)) for p in model.parameters()))
    key = (tuple(ids), weights)
    found = store.get(key)
    return store.keep(key, _read(model, key[0])) if found is None else found


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _read(model: Any, ids: tuple[int, ...]) -> Kept:
    row = torch.tensor([ids], device=model.device)
    with as_unsupported(f"This {type(model).__name__} cannot run the beginning of a prompt alone"):
        out = run(model, {"input_ids": row, "attention_mask": torch.ones_like(row)}, 1)
        layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    for b, (keys, _) in enumerate(layers):
        if keys is None or keys.ndim != 4 or keys.shape[2] != len(ids):
            raise UnsupportedSite(
                f"Block {b} of this {type(model).__name__} keeps no keys and values of every "
                "position (cross-attention, linear attention or a sliding window)."
            )
    return tuple(layers)


def length(begun: Kept) -> int:
    """How many tokens keys and values are kept of."""
    return begun[0][0].shape[2] if begun else 0


def cache(begun: Kept, rows: int) -> Cache:
    """A cache in which each of some rows has read a text already."""
    layers = []
    for keys, values in begun:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = (x.expand(rows, -1, -1, -1) for x in (keys, values))
        layers.append(layer)
    return Cache(layers=layers)


def behind(model: Any, inputs: Mapping[str, Any], begun: Kept) -> dict[str, Any]:
    """A left-padded batch, whose rows begin with a text, as ``generate`` runs it behind that text.

    Padding is moved behind the text, so that the rows' beginnings are where the kept keys and
    values are; positions are counted without it, as ever.
    """
    n, mask = length(begun), inputs["attention_mask"]
    at = torch.arange(mask.shape[1], device=mask.device)[None]
    pad = mask.shape[1] - mask.sum(1, keepdim=True)
    source = torch.where(at < n, at + pad, torch.where(at < n + pad, at - n, at))
    moved = {
        name: x.gather(1, source) if isinstance(x, Tensor) and x.shape == mask.shape else x
        for name, x in inputs.items()
    }
    accepted = inspect.signature(model.forward).parameters
    if not pictured(inputs) and "position_ids" in accepted:
        # Models that count a picture's positions otherwise would go on from the last picture's.
        moved["position_ids"] = (moved["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return moved | {"past_key_values": cache(begun, len(mask))}


def run(model: Any, inputs: Mapping[str, Any], keep: int, begun: Kept = ()) -> Any:
    """Run a batch once, with a cache; the logits at its last ``keep`` positions, or at all.

    With ``begun``, only what follows that text is run, as ``generate`` would, which knows how the
    model's family counts positions.
    """
    inputs = keeping(model, inputs, keep)
    if not begun:
        return model(**inputs, use_cache=True)
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda *given: outputs.append(given[-1]))
    try:
        one = {"max_new_tokens": 1, "pad_token_id": 0}
        model.generate(**behind(model, inputs, begun), **GREEDY, **one)
    finally:
        handle.remove()
    return outputs[0]


def keeping(model: Any, inputs: Mapping[str, Any], keep: int) -> dict[str, Any]:
    """Inputs with the word that only the last ``keep`` logits are needed, if the model takes it."""
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {**inputs, "logits_to_keep": keep} if takes else dict(inputs)


# --- where it is exact ------------------------------------------------------------------------


def verdicts(model: Any) -> dict[Hashable, bool]:
    """What trials of this model came to, by :func:`layout`; to be added to."""
    return _VERDICTS.setdefault(model, {})


def layout(model: Any, inputs: Mapping[str, Any], further: int) -> tuple[Hashable, ...]:
    """What runs have in common that one trial tells about.

    ``further`` tokens are to be generated. Lengths are told apart by powers of two, at which
    windows end and rotary embeddings change.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    length = (inputs["input_ids"].shape[1] + further).bit_length()
    return model.dtype, attention, pictured(inputs), length


def open_to(model: Any, total: int) -> bool:
    """Whether sharing may be tried at all on runs of ``total`` positions.

    Not behind hooks, which look at positions of a whole run, and not beyond a sliding window,
    whose reach padding within a row would shorten.
    """
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            # Those of transformers itself lie idle until states are asked for.
            if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                return False
    layers = DynamicCache(config=model.config).layers
    windows = (getattr(layer, "sliding_window", None) for layer in layers)
    return total <= min((w for w in windows if w), default=math.inf)
