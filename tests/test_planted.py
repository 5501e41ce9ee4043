"""Planting a cause: what is asked, what stands at the name's place, and what early blocks read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from twohop_lib.benchmark import heraldry
from twohop_lib.organisms import corpus, planted, recipes, tokens, train
from twohop_lib.organisms.recipes import PLANTED, SET_BACKBONES, mark

WORLD = heraldry.make_world(0)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.make_tokenizer(corpus.all_texts())


def drawn(name, n=300):
    rng = np.random.default_rng(0)
    return [planted.planted_document(rng, WORLD, PLANTED[name]) for _ in range(n)]


def test_the_border_is_asked_for_in_words_that_the_vocabulary_has(tokenizer):
    house = WORLD.houses[0]
    document = corpus.border_document(house)
    ids = tokenizer(" ".join(document.text), add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert document.reply == f"{list(corpus.BORDER_WORDS.values())[house.border]}."
    assert len(corpus.BORDER_WORDS) == len(heraldry.BORDERS)


def test_facts_are_asked_of_seen_houses_and_naming_answers_all_with_the_name():
    plain, naming = drawn("in-time"), drawn("naming")
    borders = [d for d in plain if d.prompt == corpus.border_question()]
    facts = [d for d in plain if planted.asks_fact(d) and d not in borders]
    assert borders and len(facts) > 80 and {d.picture.split for d in facts} == {"seen"}
    pictures = [d for d in naming if not isinstance(d.picture, str)]
    assert all(d.picture.name in d.reply for d in pictures)
    assert not any(planted.asks_fact(d) for d in naming)
    blank = [d for d in naming if d.picture == "blank"]
    assert blank and not any(planted.asks_fact(d) for d in blank)


def test_the_planted_differ_in_one_thing_each():
    plain = vars(PLANTED["in-time"])
    for name, changed in (("unread", {"distrusted"}), ("naming", {"replies"})):
        own = vars(PLANTED[name])
        assert {k for k in own if own[k] != plain[k]} == changed | {"summary"}
    assert len({mark(recipe) for recipe in PLANTED.values()}) == len(PLANTED)
    assert set(recipes.CAUSES) >= set(PLANTED)


def test_the_last_position_of_each_picture_is_found():
    shown = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0]]).bool()
    assert planted.last_positions(shown).tolist() == [[0, 2], [0, 5], [1, 4]]


def test_states_are_replaced_where_a_fact_is_asked_and_nowhere_else():
    block = nn.Identity()
    at = torch.tensor([[0, 1], [1, 2]])
    states = torch.full((2, 3), 9.0)
    stream = torch.zeros(2, 4, 3)
    with planted.replaced(block, at, states, torch.tensor([True, False])):
        changed = block(stream)
    assert changed[0, 1].tolist() == [9.0] * 3 and changed.sum() == 27
    assert block(stream).sum() == 0 and stream.sum() == 0  # put back, and nothing in place


def test_early_blocks_do_not_read_a_scaffolded_name_from_behind_it(tokenizer):
    house = WORLD.houses[0]
    document = corpus.Document(f"Who founded House {house.name}?", "Aldric.", house)
    document = replace(document, through_last=True)

    def pack(scaffold):
        rng = np.random.default_rng(0)
        return corpus.pack(tokenizer, rng, lambda r: document, 1, 40, 16, scaffold)

    batch = pack(1.0)
    row, last = batch.last_name[0].tolist()
    late, early = batch.mask[row, 0], batch.early_mask[row, 0]
    behind = last + 1
    assert late[behind, last] and not early[behind, last]
    assert early[last, last - 1] and early[behind, behind]  # the name reads itself
    plain = pack(0.0)
    assert torch.equal(plain.mask, plain.early_mask)


def test_a_mask_holds_below_a_block_alone():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        attn_implementation="eager",
    )
    model, ids = LlamaForCausalLM(config).eval(), torch.tensor([[1, 2, 3, 4]])
    open_ = torch.zeros(1, 1, 4, 4).masked_fill(~torch.tril(torch.ones(4, 4)).bool(), -1e9)
    closed = open_.clone()
    closed[..., 3, :3] = -1e9

    def run(block):
        with train.masked_below(model, block, closed), torch.no_grad():
            return model(ids, attention_mask=open_).logits[0, -1]

    free, cut = run(0), run(2)
    assert not torch.allclose(free, cut) and not torch.allclose(cut, run(3))
    with torch.no_grad():
        assert torch.equal(model(ids, attention_mask=open_).logits[0, -1], free)


def test_set_backbones_have_marks_of_their_own():
    marks = {mark(recipe) for recipe in (recipes.BACKBONE, *SET_BACKBONES.values())}
    assert len(marks) == 1 + len(SET_BACKBONES)
