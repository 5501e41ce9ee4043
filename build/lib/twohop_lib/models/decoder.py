"""A loaded model taken as a decoder: what recordings, hooks and the engine need to know of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from twohop_lib.models.blocks import Blocks
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.roles import ImageSite

#: Bytes of pictures' features that are kept for a model.
FEATURES = 256 * 2**20
#: Inputs that say nothing of the picture.
OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids"}


class Decoder:
    """A loaded model with its blocks found, and with the place where pictures enter it.

    ``site`` is None for a text model. ``features`` are those of pictures shown lately, shared by
    all decoders of one model. Raises TwohopError if the model's layout is not one that can be
    worked with (:meth:`Blocks.of`, :meth:`ImageSite.of`).
    """

    def __init__(self, owner: Vlm | Llm) -> None:
        self.owner = owner
        self.blocks = Blocks.of(owner.model)
        self.site = ImageSite.of(owner, self.blocks) if isinstance(owner, Vlm) else None
        self.features = _FEATURES.setdefault(owner.model, Features())

    @property
    def model(self) -> Any:
        """The module that is run."""
        return self.owner.model

    @property
    def n_blocks(self) -> int:
        """How many blocks there are, cross-attention blocks counted."""
        return self.blocks.n_blocks

    @contextmanager
    def seeing(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Let the model take a picture's features from an earlier run with the same pixels.

        Its weights are taken not to have changed since.
        """
        inner = getattr(self.model, "model", None)
        shown = any("pixel_values" in name for name in inputs)
        if not shown or not hasattr(inner, "get_image_features"):
            yield
            return
        compute, key = inner.get_image_features, _digest(inputs)

        @wraps(compute)  # Its signature is looked at.
        def remembered(*args: Any, **kwargs: Any) -> Any:
            made = self.features.get(key)
            return made if made is not None else self.features.keep(key, compute(*args, **kwargs))

        inner.get_image_features = remembered
        try:
            yield
        finally:
            del inner.get_image_features


class Features:
    """What a vision tower made of pictures, the latest first to stay, bounded in bytes."""

    def __init__(self, limit: int = FEATURES) -> None:
        self.limit, self.held = limit, 0
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str) -> Any:
        """Return what was kept under a key, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: str, made: Any) -> Any:
        """Keep what was made, in the place of the longest unused; returns it."""
        self._kept[key] = made
        self.held += _bytes(made)
        while self.held > self.limit:
            self.held -= _bytes(self._kept.popitem(last=False)[1])
        return made

    def clear(self) -> None:
        """Forget all, as when memory runs out."""
        self._kept.clear()
        self.held = 0


_FEATURES: WeakKeyDictionary[nn.Module, Features] = WeakKeyDictionary()


def _digest(inputs: Mapping[str, Any]) -> str:
    """Tells pictures apart, by pixels and what goes with them (sizes, grids)."""
    total = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor) and name not in OF_TEXT:
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()


def _bytes(made: Any) -> int:
    if isinstance(made, Tensor):
        return made.numel() * made.element_size()
    parts = made.values() if isinstance(made, Mapping) else made
    return sum(map(_bytes, parts)) if isinstance(made, list | tuple | Mapping) else 0
