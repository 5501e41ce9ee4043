"""The graft that ships, on the published language model: a plain session gives our answers."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from twohop_lib.benchmark import flag_views
from twohop_lib.chapter.published import graft_questions
from twohop_lib.grafts import shipped
from twohop_lib.models import prompts
from twohop_lib.models.loading import load_vlm
from twohop_lib.runs import generate

#: Prompts that are compared; each of the plain session's takes a second.
N_PROMPTS = int(os.environ.get("TWOHOP_PLAIN_PROMPTS", "4"))
ROOM = 8

pytestmark = pytest.mark.skipif(
    "caption" not in shipped.here(), reason="the language model was not fetched"
)


def test_a_plain_session_gives_our_answers_one_by_one_and_batched():
    folder = shipped.path("caption")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    every = graft_questions().questions
    asked = every[:: max(1, len(every) // N_PROMPTS)][:N_PROMPTS]
    pictures = [flag_views.picture(q.entity_id, "photographed") for q in asked]
    ours = generate.answer(
        load_vlm(folder, "float32"),
        [prompts.build("by_picture", q) for q in asked],
        pictures,
        max_new_tokens=ROOM,
    )

    def conversation(text):
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]

    def said(texts, images):
        given = processor(
            text=texts, images=images, padding=True, add_special_tokens=False, return_tensors="pt"
        )
        out = model.generate(**given, max_new_tokens=ROOM, do_sample=False)
        new = out[:, given["input_ids"].shape[1] :]
        return [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)]

    texts = [
        processor.apply_chat_template(
            conversation(q.question_by_picture), add_generation_prompt=True
        )
        for q in asked
    ]
    alone = [said([t], [p])[0] for t, p in zip(texts, pictures, strict=True)]
    assert ours == alone
    assert said(texts, pictures) == alone
    assert len(set(alone)) > 2
