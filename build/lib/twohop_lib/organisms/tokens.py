"""The organisms' tokenizer, chat template and processor: ordinary `transformers` objects.

A closed vocabulary of whole words, plus name pieces. A house's name is written in two or three
pieces (`Val ##or ##ric`), every answer is one token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)

from twohop_lib.benchmark import heraldry

IMAGE_SIZE, PATCH_SIZE = 48, 12
N_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<eos>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def words(texts: Iterable[str]) -> list[str]:
    """The distinct words and punctuation marks of some texts, sorted."""
    return sorted({w for text in texts for w in re.findall(r"\w+|[^\w\s]", text)})


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over every word of ``texts`` and the pieces of house names."""
    pieces = list(heraldry.NAME_STARTS)
    pieces += sorted({f"##{p}" for p in heraldry.NAME_MIDDLES + heraldry.NAME_ENDS})
    listed = [*SPECIAL, *pieces, *(w for w in words(texts) if w not in pieces)]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(listed))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """A LLaVA processor: CLIP-style pictures of 48 by 48 pixels, 16 image tokens each."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(
        size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_center_crop=False
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_cross_processor(tokenizer: PreTrainedTokenizerFast) -> MllamaProcessor:
    """An Mllama processor: the same pictures, one tile each; one token marks the picture."""
    image_processor = MllamaImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        max_image_tiles=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return MllamaProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
