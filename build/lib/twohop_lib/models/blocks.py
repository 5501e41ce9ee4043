"""Where a model's decoder blocks sit, found by what the modules do in a short text run.

No table of model names: a list of modules is the decoder if each of its members, in order, takes
and returns the residual stream (``[batch, pos, d_model]``); a member's attention and MLP are the
two children whose outputs, added to what enters the block, make what leaves it (up to a factor
that the block puts on them, or on all).

Index frame, of L blocks: ``resid[l]``, l = 0 … L, is the stream *entering* block l; ``resid[0]``
are the embeddings with the picture's features merged in, and ``resid[L]`` leaves the last block,
before the final norm. ``mlp_out[b]`` and ``attn_out[b]`` are what block b's MLP and attention add,
before such a factor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twohop_lib.errors import TwohopError
from twohop_lib.models.loading import first_sentence
from twohop_lib.models.memory import out_of_memory

#: Tokens of the run that tells where the blocks are.
PROBE_LENGTH = 6


class UnsupportedSite(TwohopError):
    """An operation that has no meaning on this model, or none that is exact."""


def early_blocks(n_blocks: int) -> int:
    """How many of the lowest blocks count as early: a quarter of them, at least two."""
    return max(2, n_blocks // 4)


@contextmanager
def as_unsupported(what: str) -> Iterator[None]:
    """Raise what a model's own code cannot do as UnsupportedSite, which begins with ``what``.

    Errors of this library's code, and memory that runs out, pass as they are.
    """
    try:
        yield
    except UnsupportedSite:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error) or raised_here(error):
            raise
        raise UnsupportedSite(f"{what} ({first_sentence(error)}).") from error


def raised_here(error: BaseException) -> bool:
    """Whether an error was raised by this library's code, and not by a model's."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    name = at.tb_frame.f_globals.get("__name__", "") if at is not None else ""
    return name.split(".")[0] == __name__.split(".")[0]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The decoder of a model: ``n_blocks`` blocks of width ``d_model``, and what lies around them.

    ``attns[b]`` and ``mlps[b]`` are the modules whose outputs block b adds to the stream, None
    where no two children account for what the block adds (:meth:`mlp` and :meth:`attn` say so).
    ``cross`` are the indices of blocks that attend to a picture outside of the stream. ``name``
    is the list's dotted name in the model (``model.language_model.layers``).
    """

    model: Any
    name: str
    blocks: tuple[nn.Module, ...]
    attns: tuple[nn.Module | None, ...] = field(repr=False)
    mlps: tuple[nn.Module | None, ...] = field(repr=False)
    norm: nn.Module | None = field(repr=False)
    d_model: int = 0
    cross: tuple[int, ...] = ()

    @property
    def n_blocks(self) -> int:
        """How many blocks there are, cross-attention blocks counted."""
        return len(self.blocks)

    @property
    def embed(self) -> nn.Module:
        """The token embedding."""
        return self.model.get_input_embeddings()

    @property
    def head(self) -> nn.Module:
        """What turns the normed stream into logits."""
        return self.model.get_output_embeddings()

    def mlp(self, b: int) -> nn.Module:
        """Return the module whose output is ``mlp_out[b]``; raises UnsupportedSite if none is."""
        return self._part(b, self.mlps, "MLP")

    def attn(self, b: int) -> nn.Module:
        """Return the module whose output is ``attn_out[b]``; raises UnsupportedSite if none is."""
        return self._part(b, self.attns, "attention")

    def _part(self, b: int, parts: tuple[nn.Module | None, ...], what: str) -> nn.Module:
        part = parts[b]
        if part is None:
            raise UnsupportedSite(
                f"Block {b} of this {type(self.model).__name__} is not a stream plus the outputs "
                f"of an attention and an MLP, so what its {what} adds cannot be read or patched; "
                "use the residual stream instead."
            )
        return part

    @classmethod
    def of(cls, model: Any) -> Blocks:
        """Find the blocks of a loaded image-text or text model.

        Raises TwohopError, naming what was looked for, if the model is an encoder-decoder, does
        not run on text alone, or has no such list of blocks.
        """
        kind = type(model).__name__
        if getattr(model.config, "is_encoder_decoder", False):
            raise TwohopError(
                f"{kind} is an encoder-decoder; the experiments here need a decoder whose own "
                "residual stream holds question and answer (a causal language model)."
            )
        lists = _candidates(model)
        trace = _Trace()
        ids = _probe_ids(model)
        with trace.watch([member for _, _, members in lists for member in members]):
            try:
                with torch.inference_mode():
                    model(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        use_cache=False,
                    )
            except Exception as error:
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise TwohopError(
                    f"{kind} does not run on text alone ({line}), so its decoder blocks cannot be "
                    "found and no question can be asked by name; pick another model."
                ) from error
        fitting = [
            found
            for name, parent, members in lists
            if (found := _decoder(model, name, parent, members, trace, ids.shape[1]))
        ]
        if not fitting:
            raise TwohopError(
                f"No decoder blocks were found in {kind}: looked for a list of modules that, in "
                "order, each take and return a residual stream of shape [batch, pos, d_model] on "
                f"a text of {ids.shape[1]} tokens; this layout is not supported."
            )
        return max(fitting, key=lambda found: found.n_blocks)


def stream_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the residual stream among a block's arguments, or None."""
    first = args[0] if args else kwargs.get("hidden_states")
    return first if isinstance(first, Tensor) else None


def stream_out(output: Any) -> Tensor | None:
    """Return the tensor that a block or its part passes on, or None."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def with_stream_out(output: Any, value: Tensor) -> Any:
    """Return ``output`` with the tensor that it passes on replaced."""
    if isinstance(output, tuple | list):
        return type(output)((value, *output[1:]))
    return value


@contextmanager
def hooked(
    before: dict[nn.Module, Callable[[Tensor], Tensor | None]] | None = None,
    after: dict[nn.Module, Callable[[Tensor], Tensor | None]] | None = None,
) -> Iterator[None]:
    """Run functions on what enters (``before``) and leaves (``after``) modules, as plain hooks.

    A function is given the stream ``[batch, pos, d_model]`` and returns what takes its place, or
    None to leave it.
    """

    def enter(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = function(stream_in(args, kwargs))
            if value is None:
                return None
            return (
                ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})
            )

        return hook

    def leave(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            value = function(stream_out(output))
            return None if value is None else with_stream_out(output, value)

        return hook

    handles = [
        module.register_forward_pre_hook(enter(function), with_kwargs=True)
        for module, function in (before or {}).items()
    ]
    handles += [
        module.register_forward_hook(leave(function)) for module, function in (after or {}).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def keys_and_values(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the two maps of a cross-attention block that make keys and values of the picture."""
    parts = {name.rsplit(".", 1)[-1]: m for name, m in block.named_modules() if "cross" in name}
    if "k_proj" not in parts or "v_proj" not in parts:
        raise TwohopError(
            f"{type(block).__name__} attends to pictures without a k_proj and a v_proj, which "
            "were looked for; this layout is not supported."
        )
    return parts["k_proj"], parts["v_proj"]


# --- finding them -----------------------------------------------------------------------------


class _Trace:
    """What went into and came out of modules, in the order in which they returned."""

    def __init__(self) -> None:
        self.entered: dict[nn.Module, list[Tensor | None]] = {}
        self.left: dict[nn.Module, list[Tensor | None]] = {}
        self.order: list[nn.Module] = []

    @contextmanager
    def watch(self, members: list[nn.Module]) -> Iterator[None]:
        modules = dict.fromkeys(m for b in members for m in (b, *b.children()))
        handles = [m.register_forward_hook(self._note, with_kwargs=True) for m in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        entered, left = stream_in(args, kwargs), stream_out(output)
        # Copies: some blocks write to the stream in place.
        self.entered.setdefault(module, []).append(None if entered is None else entered.clone())
        self.left.setdefault(module, []).append(None if left is None else left.clone())
        self.order.append(module)


def _candidates(model: Any) -> list[tuple[str, nn.Module, tuple[nn.Module, ...]]]:
    found = []
    for parent_name, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child):
                where = f"{parent_name}.{name}" if parent_name else name
                found.append((where, parent, tuple(child)))
    return found


def _probe_ids(model: Any) -> Tensor:
    """Return a few ordinary token ids [1, pos], special and placeholder ones passed over."""
    config = model.config
    special = {
        value
        for part in (config, config.get_text_config())
        for key, value in part.to_dict().items()
        if ("token" in key or "index" in key) and isinstance(value, int)
    }
    size = config.get_text_config().vocab_size
    # From the middle of the vocabulary, where words are and bytes and specials are not.
    ids = (i for i in itertools.chain(range(size // 3, size), range(size)) if i not in special)
    chosen = list(itertools.islice(ids, PROBE_LENGTH))
    return torch.tensor([chosen], device=model.get_input_embeddings().weight.device)


def _decoder(
    model: Any,
    name: str,
    parent: nn.Module,
    members: tuple[nn.Module, ...],
    trace: _Trace,
    length: int,
) -> Blocks | None:
    """Return the blocks if these members are the decoder, judged by the probe; else None."""
    idle = [b for b, m in enumerate(members) if m not in trace.entered]
    ran = [m for m in members if m in trace.entered]
    if not ran or any(len(trace.entered[m]) != 1 for m in ran):
        return None
    # A block that a text leaves out must be one that attends to pictures.
    if any(not _attends_elsewhere(members[b]) for b in idle):
        return None
    widths = {
        tuple(t.shape) if t is not None else ()
        for m in ran
        for t in (trace.entered[m][0], trace.left[m][0])
    }
    if len(widths) != 1:
        return None
    shape = next(iter(widths))
    d_model = model.config.get_text_config().hidden_size
    if len(shape) != 3 or shape[1:] != (length, d_model):
        return None
    times = [trace.order.index(m) for m in ran]
    if times != sorted(times):
        return None
    parts = [_parts(m, trace) if m in trace.entered else (None, None) for m in members]
    return Blocks(
        model=model,
        name=name,
        blocks=members,
        attns=tuple(a for a, _ in parts),
        mlps=tuple(m for _, m in parts),
        norm=_final_norm(parent),
        d_model=d_model,
        cross=tuple(idle),
    )


def _attends_elsewhere(block: nn.Module) -> bool:
    return any("cross" in name for name, _ in block.named_children())


def _parts(block: nn.Module, trace: _Trace) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the children whose outputs the block adds: the attention's, then the MLP's."""
    entered, left = trace.entered[block][0], trace.left[block][0]
    assert entered is not None and left is not None
    outputs = []
    for child in dict.fromkeys(m for m in trace.order if m in set(block.children())):
        value = trace.left[child][0]
        if len(trace.left[child]) == 1 and value is not None and value.numel() == left.numel():
            outputs.append((child, value.reshape(left.shape).float()))
    # Rounding is of the size of the stream, not of what is added to it.
    allowed = 4 * torch.finfo(left.dtype).eps * left.float().abs().max().item() + 1e-5
    best: tuple[float, nn.Module, nn.Module] | None = None
    for n in (2, 3):
        # Of three, the third is told of the token or the picture beside the stream (Gemma 4).
        for chosen in itertools.combinations(outputs, n):
            off = _off(left.float(), entered.float(), sum(value for _, value in chosen))
            if off <= allowed and (best is None or off < best[0]):
                best = (off, chosen[0][0], chosen[1][0])
        if best:
            return best[1], best[2]
    return None, None


def _off(left: Tensor, entered: Tensor, added: Tensor) -> float:
    """By how much a stream that leaves a block is not what entered plus what was added.

    Some scale what they add (Granite) or all of it (Gemma 4); those factors are found here.
    """
    plain = (entered + added - left).abs().max().item()
    if not math.isfinite(plain):
        return math.inf
    both = torch.stack([entered.flatten(), added.flatten()], dim=1).double()
    factors = torch.linalg.lstsq(both, left.flatten().double()[:, None]).solution
    scaled = (both @ factors)[:, 0] - left.flatten().double()
    return min(plain, scaled.abs().max().item())


def _final_norm(parent: nn.Module) -> nn.Module | None:
    """Return the norm that stands beside the list of blocks."""
    beside = [
        child
        for name, child in parent.named_children()
        if "norm" in name.lower() or name in ("ln_f", "final_layer_norm")
    ]
    return beside[-1] if beside else None
