"""Which position of a prompt is what: picture, entity, question, last.

Nothing here is a constant of a model. Which tokens stand for the picture is found by showing two
pictures and looking where the embeddings that enter block 0 differ; where text lies is found from
the tokenizer's character offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twohop_lib.errors import TwohopError
from twohop_lib.models.blocks import Blocks, hooked
from twohop_lib.models.inputs import encode, special_tokens
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.prompts import Prompt, render

Role = Literal["prefix", "image", "separator", "entity", "question", "last"]
ROLES: tuple[Role, ...] = get_args(Role)
#: Side, in pixels, of the two pictures of noise that tell where a picture goes.
PROBE_SIDE = 96
PROBE_TEXT = "What does the picture show?"


@dataclass(frozen=True)
class ImageSite:
    """How a model is shown a picture.

    ``kind`` "stream": the picture's features take the place of the embeddings of the tokens
    ``token_ids``. ``kind`` "cross-attention": they are keys and values of the blocks
    ``Blocks.cross``, and ``token_ids`` is the token that merely announces the picture.
    ``late`` are the l > 0 at which more of the picture comes to the stream that enters block l:
    added to it (Qwen3-VL's deepstack), or in the block below, by what that is called with beside
    it (Gemma 4's per-layer inputs). What stands there does not follow from ``resid[0]`` alone.
    """

    kind: Literal["stream", "cross-attention"]
    token_ids: frozenset[int]
    late: tuple[int, ...] = ()

    @classmethod
    def of(cls, vlm: Vlm, blocks: Blocks) -> ImageSite:
        """Find out by showing the model two pictures of noise.

        Raises TwohopError if the picture reaches neither stream nor logits, or its features do
        not stand at tokens of the prompt.
        """
        name = vlm.name
        a, b = (_look(vlm, blocks, _noise(seed)) for seed in (0, 1))
        if a.ids != b.ids or any(x.shape != y.shape for x, y in zip(a.enter, b.enter, strict=True)):
            raise TwohopError(
                f"{name} gives two pictures of one size prompts of different length; this layout "
                "is not supported."
            )
        if not a.enter:
            raise TwohopError(f"{name} ran no decoder block on a prompt with a picture.")
        if a.enter[0].shape[0] != len(a.ids):
            raise TwohopError(
                f"{name} puts a picture between the tokens of its prompt ({len(a.ids)} tokens "
                f"become {a.enter[0].shape[0]} positions) and not in the place of tokens; looked "
                "for placeholder tokens that the picture's features replace."
            )
        differ = (a.enter[0] != b.enter[0]).any(-1).nonzero().flatten().tolist()
        if differ:
            ids = frozenset(a.ids[p] for p in differ)
            if ids & set(vlm.tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]):
                raise TwohopError(
                    f"{name} lets the picture change the embeddings of words, not of placeholder "
                    "tokens alone; this layout is not supported."
                )
            return cls("stream", ids, tuple(sorted({*_late(a), *_beside(a, b)})))
        if blocks.cross:
            token = _placeholder(vlm)
            return cls("cross-attention", frozenset({token} if token is not None else ()))
        raise TwohopError(
            f"{name} does not look at its picture: two different ones give equal embeddings at "
            "every position, and it has no cross-attention blocks; give a model whose processor "
            "expands the picture to at least one token."
        )

    def positions(self, ids: list[int]) -> list[int]:
        """Return the positions of a prompt's ``ids`` at which the picture's features stand."""
        if self.kind != "stream":
            return []
        return [p for p, token in enumerate(ids) if token in self.token_ids]


@dataclass(frozen=True)
class TokenRoles:
    """The positions of one unpadded prompt; each of ``length`` positions has one role.

    ``image`` are the positions of the picture's features, ``separator`` other tokens among them
    (row ends, tile marks); ``prefix`` what comes before the picture, or, without one, before the
    question; ``entity`` the entity's name; ``last`` the one position that the answer is read
    from; ``question`` all the others. A model that shows pictures through cross-attention has no
    ``image`` positions.
    """

    length: int
    prefix: tuple[int, ...] = ()
    image: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    entity: tuple[int, ...] = ()
    question: tuple[int, ...] = ()
    last: tuple[int, ...] = ()

    def of(self, position: int) -> Role:
        """Return the role of a position."""
        return next(role for role in ROLES if position in getattr(self, role))


def token_roles(
    model: Vlm | Llm,
    prompt: Prompt,
    ids: list[int],
    site: ImageSite | None = None,
    entity: str | None = None,
) -> TokenRoles:
    """Return the roles of a prompt's positions.

    ``ids`` are the token ids [pos] of the encoded prompt, without padding. ``site`` is needed for
    prompts that show a picture. ``entity`` is looked for in the prompt's text and prefill.

    Raises TwohopError if a prompt's picture has no positions, the entity's name does not occur,
    or the tokenizer keeps no character offsets.
    """
    image = site.positions(ids) if prompt.image and site else []
    if prompt.image and site and site.kind == "stream" and not image:
        raise TwohopError(
            "The picture expands to zero tokens of the prompt; check the picture's size and that "
            "the chat template writes the image token."
        )
    at = _places(model, prompt, ids)
    begins = at.text_from if not image else max(image) + 1
    span = range(min(image), max(image) + 1) if image else range(0)
    last = len(ids) - 1
    named = at.of(entity) if entity else ()
    roles: dict[str, list[int]] = {role: [] for role in ROLES}
    for p in range(len(ids)):
        if p == last:
            role = "last"
        elif p in image:
            role = "image"
        elif p in span:
            role = "separator"
        elif p in named:
            role = "entity"
        elif p >= begins or at.text_from <= p < at.text_to:
            role = "question"
        else:
            role = "prefix"
        roles[role].append(p)
    return TokenRoles(len(ids), **{role: tuple(found) for role, found in roles.items()})


# --- where text lies --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """A rendered prompt's characters, and the positions [pos] of the tokens that hold them."""

    rendered: str
    searched_from: int
    spans: dict[int, tuple[int, int]]
    text_from: int
    text_to: int

    def of(self, name: str) -> tuple[int, ...]:
        start = self.rendered.find(name, self.searched_from)
        if start < 0:
            raise TwohopError(
                f"The name {name!r} does not occur in the prompt; ask by name, or leave the "
                "entity out."
            )
        return _within(self.spans, start, start + len(name))


def _within(spans: dict[int, tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    return tuple(p for p, (a, b) in spans.items() if a < end and b > start and b > a)


def _places(model: Vlm | Llm, prompt: Prompt, ids: list[int]) -> _Places:
    rendered = render(model.front, prompt)
    if not getattr(model.tokenizer, "is_fast", False):
        raise TwohopError(
            f"The tokenizer of {model.name} keeps no character offsets, which entity positions "
            "are found from; load its fast version."
        )
    plain = model.tokenizer(
        rendered, return_offsets_mapping=True, **special_tokens(model, rendered)
    )
    own, offsets = plain["input_ids"], plain["offset_mapping"]
    # The processor turns one picture mark into many, and may move a <bos>; the rest stays.
    spans = {
        block.b + n: tuple(offsets[block.a + n])
        for block in SequenceMatcher(None, own, ids, autojunk=False).get_matching_blocks()
        for n in range(block.size)
    }
    # The last: exemplars before it may hold the same question.
    text = rendered.rfind(prompt.text.strip())
    within = _within(spans, text, text + len(prompt.text.strip()))
    if not within:
        raise TwohopError(
            f"The question's text was not found among the tokens of {model.name}'s prompt; its "
            "processor rewords prompts in a way that is not supported."
        )
    return _Places(rendered, text, spans, min(within), max(within) + 1)


# --- where pictures go ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """A prompt's ids, and of each block that ran the stream [pos, d_model] entering and leaving.

    ``beside`` are the other tensors [batch, pos, …] that it is called with, of numbers.
    """

    ids: list[int]
    enter: list[Tensor]
    leave: list[Tensor]
    beside: list[list[Tensor]]


@torch.inference_mode()
def _look(vlm: Vlm, blocks: Blocks, picture: Image.Image) -> _Look:
    prompt = Prompt("identify", PROBE_TEXT, True)
    inputs = encode(vlm, [render(vlm.processor, prompt)], [picture], "left")
    enter: list[Tensor] = []
    leave: list[Tensor] = []
    beside: list[list[Tensor]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        further = [*args[1:], *(v for k, v in kwargs.items() if k != "hidden_states")]
        beside.append([x.cpu() for x in further if isinstance(x, Tensor) and x.is_floating_point()])

    handles = [b.register_forward_pre_hook(note, with_kwargs=True) for b in blocks.blocks]
    with hooked(
        {b: lambda x: enter.append(x[0].float().cpu().clone()) for b in blocks.blocks},
        {b: lambda x: leave.append(x[0].float().cpu().clone()) for b in blocks.blocks},
    ):
        try:
            vlm.model(**inputs, use_cache=False)
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TwohopError(
                f"{vlm.name} does not run on what its own processor makes of a picture ({line}); "
                "model and processor do not fit together."
            ) from error
        finally:
            for handle in handles:
                handle.remove()
    return _Look(inputs["input_ids"][0].tolist(), enter, leave, beside)


def _late(look: _Look) -> tuple[int, ...]:
    """The l at which what enters block l is not what left block l - 1."""
    return tuple(
        n + 1
        for n, (left, enters) in enumerate(zip(look.leave, look.enter[1:], strict=False))
        if not torch.equal(left, enters)
    )


def _beside(a: _Look, b: _Look) -> tuple[int, ...]:
    """The l that leave a block which is told of the picture by more than the stream."""
    return tuple(
        n + 1
        for n, (one, two) in enumerate(zip(a.beside[:-1], b.beside[:-1], strict=True))
        if any(x.shape == y.shape and not torch.equal(x, y) for x, y in zip(one, two, strict=False))
    )


def _noise(seed: int) -> Image.Image:
    # Coarse noise: fine noise is much the same picture to a model that averages over patches.
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    side = (PROBE_SIDE, PROBE_SIDE)
    return Image.fromarray(coarse).resize(side, Image.Resampling.NEAREST)


def _placeholder(vlm: Vlm) -> int | None:
    config: Any = vlm.model.config
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None
