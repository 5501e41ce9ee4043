"""A loaded model taken as a decoder: what recordings, hooks and the engine need to know of it."""

from __future__ import annotations

from typing import Any

from twohop_lib.models.blocks import Blocks
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.roles import ImageSite


class Decoder:
    """A loaded model with its blocks found, and with the place where pictures enter it.

    ``site`` is None for a text model. Raises TwohopError if the model's layout is not one that can
    be worked with (:meth:`Blocks.of`, :meth:`ImageSite.of`).
    """

    def __init__(self, owner: Vlm | Llm) -> None:
        self.owner = owner
        self.blocks = Blocks.of(owner.model)
        self.site = ImageSite.of(owner, self.blocks) if isinstance(owner, Vlm) else None

    @property
    def model(self) -> Any:
        """The module that is run."""
        return self.owner.model

    @property
    def n_blocks(self) -> int:
        """How many blocks there are, cross-attention blocks counted."""
        return self.blocks.n_blocks
