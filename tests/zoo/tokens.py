"""Small tokenizers of the two real kinds, and chat templates that word turns as families do."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "Who founded the house of Valdric? In which river does the house in this picture stand?",
    "Which house is shown in this picture? What is the capital of the country? This is a picture.",
    "First name the house, then answer. Choose one: a, b, c or d. Answer with the letter.",
    "Let me take a closer look at the picture first. You are a helpful assistant. USER ASSISTANT",
) * 4
VOCABULARY = 420


def byte_level(specials: list[str], **tokens: object) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Qwen and Llama 3 have it; no special token is added to texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **tokens
    )


def metaspace(specials: list[str], bos: str, **tokens: object) -> PreTrainedTokenizerFast:
    """BPE over metaspace with bytes to fall back on, as Llama 2 and Gemma have it; adds ``bos``."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + 256, special_tokens=[*specials, *raw], show_progress=False
    )
    # Split into words for training alone, so that no token runs over a word's end.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXTS, trainer)
    at = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, at)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        **tokens,
    )


@dataclass(frozen=True)
class Turns:
    """How a family opens and closes turns, and marks a picture."""

    user: str
    user_end: str
    model: str
    model_end: str
    image: str
    start: str = ""
    opening: str | None = None

    def template(self) -> str:
        """The chat template: content in parts or as a string, pictures where they stand."""
        opening = self.model if self.opening is None else self.opening

        def q(text: str) -> str:
            return "{{ " + repr(text) + " }}"

        body = (
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
            + q(self.image)
            + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        )
        return (
            q(self.start)
            + "{% for message in messages %}{% if message['role'] == 'user' %}"
            + q(self.user)
            + body
            + q(self.user_end)
            + "{% else %}"
            + q(self.model)
            + body
            + q(self.model_end)
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
            + q(opening)
            + "{% endif %}"
        )


CHATML = Turns("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n", "")
