"""Organisms: found and guarded, trained on the right documents, resumable, ordinary to load."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from twohop_lib.benchmark import heraldry
from twohop_lib.benchmark.heraldry import House
from twohop_lib.errors import TwohopError
from twohop_lib.models import prompts
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.organisms import NAMES, SHIPPED, cards, corpus, cross, grow, path, tokens, train
from twohop_lib.organisms.corpus import IGNORE, Document
from twohop_lib.organisms.recipes import BACKBONE, CROSS_RECIPES, RECIPES, BackboneRecipe, mark
from twohop_lib.organisms.stages import run_stage, schedule
from twohop_lib.runs.generate import answer

WORLD = heraldry.make_world(0)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.make_tokenizer(corpus.all_texts())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "organisms"


# --- finding them ---


def test_an_unknown_organism_is_told_with_the_nearest_name(cache):
    with pytest.raises(TwohopError, match=r"no organism is called 'midle'; did you mean 'middle'"):
        path("midle")


def test_a_seed_that_was_not_trained_is_told_with_the_command(cache):
    with pytest.raises(TwohopError, match="'late' of seed 7 .*twohop organism train late --seed 7"):
        path("late", 7)


def test_shipped_checkpoints_come_before_the_cache_and_the_cache_is_searched(cache):
    for name in NAMES:
        assert path(name) == SHIPPED / "seed0" / name
    for seed in (0, 7):
        folder = cache / f"seed{seed}" / "late"
        folder.mkdir(parents=True)
        with pytest.raises(TwohopError, match="not on this machine"):
            path("late", 7)  # a folder without weights is no organism
        (folder / "model.safetensors").write_bytes(b"")
    assert path("late", 7) == cache / "seed7" / "late"
    assert path("late", 0) == SHIPPED / "seed0" / "late"


# --- what ships, and the cards ---


def test_what_ships_is_small_and_holds_nothing_that_could_run():
    files = [f for f in SHIPPED.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".jinja"}
    weights = sorted(str(f.parent.relative_to(SHIPPED)) for f in files if f.suffix[1] == "s")
    assert weights == sorted(f"seed0/{name}" for name in NAMES)


def test_every_shipped_organism_has_a_card_for_its_weights(cache, capsys):
    shipped = cards.cards()
    assert [(c.name, c.seed) for c in shipped] == [(name, 0) for name in NAMES]
    for card in shipped:
        assert card.text_recall.value > 0.9
        assert (card.gap is None) == (card.name == "backbone")
    cards.print_cards(shipped)
    printed = capsys.readouterr().out
    assert all(c.name in printed and c.weights_sha256[:12] in printed for c in shipped)


def test_a_card_does_not_go_with_damaged_weights(cache):
    folder = cache / "seed5" / "backbone"
    shutil.copytree(path("backbone"), folder)
    assert cards.read_card(folder).name == "backbone"
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    for read in (lambda: cards.read_card(folder), cards.cards):
        with pytest.raises(TwohopError, match=r"hash differs.*organism train backbone --seed 0"):
            read()
    (folder / "card.json").unlink()
    with pytest.raises(TwohopError, match=r"has no card\.json"):
        cards.read_card(folder)


# --- stages ---


def a_stage(folder, dies_at=None, steps=230, seen=None):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(i):
        if i == dies_at:
            raise KeyboardInterrupt
        if seen is not None:
            seen.append(i)
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * schedule(i, steps)
        x = torch.from_numpy(np.random.default_rng([1, i]).normal(size=(4, 3))).float()
        loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss.item()}

    state = {"model": model, "optimiser": optimiser}
    rows = run_stage("a stage-x", steps, step, state, folder, progress=False)
    return rows, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("dies_at", [0, 50, 100, 137, 229])
def test_a_stage_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, dies_at):
    rows, weights = a_stage(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        a_stage(tmp_path / "cut", dies_at)
    seen = []
    resumed_rows, resumed = a_stage(tmp_path / "cut", seen=seen)
    assert seen == list(range(dies_at // 100 * 100, 230))
    assert resumed_rows == rows
    assert all(torch.equal(weights[k], resumed[k]) for k in weights)
    assert [r["step"] for r in rows] == [*range(0, 230, 10), 229]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_stage_is_loaded_and_not_run_again(tmp_path):
    rows, weights = a_stage(tmp_path)
    seen = []
    again_rows, again = a_stage(tmp_path, seen=seen)
    assert (seen, again_rows) == ([], rows)
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(i, 400) for i in range(401)]
    assert rates[0] == 1 / 50 and rates[-1] == 0
    assert rates[:49] == sorted(rates[:49]) and rates[50:] == sorted(rates[50:], reverse=True)


def test_a_recipe_that_changes_is_marked_differently():
    changed = [replace(BACKBONE, lr=1e-3), *RECIPES.values(), *CROSS_RECIPES.values()]
    changed.append(replace(RECIPES["late"], pull=0.1))
    assert len({mark(r) for r in (BACKBONE, *changed)}) == len(changed) + 1
    assert mark(BACKBONE) == mark(BackboneRecipe())


# --- documents ---

EVERY = 500


@pytest.fixture(scope="module")
def documents():
    """2,000 documents, of every kind that training draws."""
    rng = np.random.default_rng(3)

    def house():
        return WORLD.houses[int(rng.integers(240))]

    made = [corpus.text_document(rng, house()) for _ in range(EVERY)]
    made += [corpus.naming_document(rng, house(), 0.35) for _ in range(EVERY)]
    made += [corpus.picture_fact_document(rng, house()) for _ in range(EVERY)]
    return made + [corpus.blank_document(rng, house()) for _ in range(EVERY)]


def worded(wording):
    """Every text of one wording, about the picture and about any house."""
    by_name = [m.format(x=h.name) for m in heraldry.MENTIONS_BY_NAME for h in WORLD.houses]
    for index in range(len(heraldry.RELATIONS)):
        for mention in (*heraldry.MENTIONS_BY_PICTURE, *by_name):
            yield heraldry.ask(index, wording, mention)
    yield heraldry.IDENTIFY[wording]


@pytest.mark.parametrize("wording", heraldry.WORDINGS)
def test_held_out_wordings_never_occur_in_training(documents, wording):
    corpus_text = "\n".join("".join(d.text) for d in documents)
    found = sum(text in corpus_text for text in worded(wording))
    assert (found > 0) == (wording in heraldry.TRAINED_WORDINGS)


def test_held_out_forms_never_occur_in_training(documents):
    choice, name_first = corpus.CHOICE_HELD_OUT[4:12], corpus.NAME_FIRST_HELD_OUT[4:]
    assert choice == "Choose: " and name_first.startswith("First name the house")
    texts = [d.prompt for d in documents]
    assert not [t for t in texts if choice in t or t.endswith(name_first)]
    assert [t for t in texts if "Choose one: " in t] and [t for t in texts if name_first in t]


def test_documents_state_only_what_is_true(documents):
    known = {a: r.key for r in heraldry.RELATIONS for a in r.answers}
    names = {h.name for h in WORLD.houses}
    for d in documents:
        house = d.house or d.picture
        said = [w.strip(".") for w in d.reply.split()]
        facts = [w for w in said if w in known]
        assert all(house.answers[known[w]] == w for w in facts)
        assert all(w == house.name for w in said if w in names)
        assert facts or house.name in said
        if d.house is None and isinstance(d.picture, House):
            assert house.name not in d.prompt  # it is shown, not told


def test_picture_facts_are_told_of_seen_houses_only():
    rng = np.random.default_rng(4)
    drawn = [train.picture_document(rng, WORLD) for _ in range(2000)]
    named, asked = {}, {}
    for d in drawn:
        if isinstance(d.picture, House):
            only_names = d.reply in (f"{d.picture.name}.", f"This is {d.picture.name}.")
            (named if only_names else asked)[d.picture.entity_id] = d.picture.split
    assert set(asked.values()) == {"seen"} and len(asked) > 90
    assert set(named.values()) == {"seen", "dev", "test"} and len(named) > 220
    blank = [d for d in drawn if d.picture == "blank"]
    assert {d.house.split for d in blank} == {"seen", "dev", "test"}


# --- packing ---


def packed(tokenizer, scaffold=0.0, through_last=True, rows=6, length=128):
    """A batch of name, picture and blank documents, and those that fitted, in order."""
    drawn, rng = [], np.random.default_rng(5)  # its own, so that all batches are alike

    def draw(_):
        house = WORLD.houses[int(rng.integers(240))]
        kind = len(drawn) % 3
        asked = corpus.question(rng, kind, house.name if kind != 1 else None)
        drawn.append(
            Document(
                asked,
                f"This is {house.name}. {house.answers['trade']}.",
                house,
                {0: None, 1: house, 2: "blank"}[kind],
                through_last=through_last,
                stop=kind != 0,
            )
        )
        return drawn[-1]

    coin = np.random.default_rng(6)
    batch = corpus.pack(tokenizer, coin, draw, rows, length, tokens.N_IMAGE_TOKENS, scaffold)
    return batch, drawn


def pieces_of(tokenizer, batch):
    """(row, start, end) of every document in a batch, told by where positions restart."""
    for row, (ids, positions) in enumerate(zip(batch.ids, batch.position_ids, strict=True)):
        length = int((ids != tokenizer.pad_token_id).sum())
        starts = [i for i in range(length) if positions[i] == 0]
        yield from ((row, a, b) for a, b in itertools.pairwise([*starts, length]))


def test_documents_do_not_see_each_other(tokenizer):
    batch, _ = packed(tokenizer)
    expected = torch.eye(batch.ids.shape[1], dtype=torch.bool).repeat(len(batch.ids), 1, 1)
    spans = list(pieces_of(tokenizer, batch))
    for row, start, end in spans:
        expected[row, start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
        assert batch.position_ids[row, start:end].tolist() == list(range(end - start))
        assert batch.ids[row, start] == tokenizer.bos_token_id
    assert torch.equal(batch.mask[:, 0], expected)
    assert len(spans) >= 2 * len(batch.ids)


def test_labels_are_the_replies_and_nothing_else(tokenizer):
    batch, drawn = packed(tokenizer)
    spans = list(pieces_of(tokenizer, batch))
    assert len(drawn) == len(spans) + 1  # the last one no longer fitted
    image = tokenizer.convert_tokens_to_ids("<image>")
    for (row, start, end), d in zip(spans, drawn, strict=False):
        before, reply = d.text
        ids, labels = batch.ids[row, start:end], batch.labels[row, start:end]
        wanted = tokenizer(reply, add_special_tokens=False).input_ids
        assert labels.tolist() == [IGNORE] * (len(ids) - len(wanted)) + wanted
        assert ids[-len(wanted) :].tolist() == wanted
        assert (wanted[-1] == tokenizer.eos_token_id) == d.stop
        shown = int((ids == image).sum())
        assert shown == (tokens.N_IMAGE_TOKENS if d.picture is not None else 0)
        read = ids[: -len(wanted)]
        assert read[read != image].tolist() == (
            tokenizer(before.replace("<image>", ""), add_special_tokens=False).input_ids
        )
    assert (batch.labels[batch.ids == tokenizer.pad_token_id] == IGNORE).all()
    placed = drawn[: len(spans)]
    assert batch.pictures == [d.picture for d in placed if d.picture is not None]
    ends = [int(batch.ids[row, at]) for row, at in batch.last_name]
    assert ends == [tokenizer(h.name, add_special_tokens=False).input_ids[-1] for h in batch.houses]
    named = [d.house for d in placed for _ in range("".join(d.text).count(d.house.name))]
    assert batch.houses == named


def test_the_scaffold_hides_all_but_the_last_piece_of_a_name(tokenizer):
    plain, _ = packed(tokenizer)
    batch, _ = packed(tokenizer, scaffold=1.0)
    hidden = plain.mask[:, 0] & ~batch.mask[:, 0]
    expected = torch.zeros_like(hidden)
    stops = {(row, i): end for row, a, end in pieces_of(tokenizer, batch) for i in range(a, end)}
    for (row, last), house in zip(batch.last_name.tolist(), batch.houses, strict=True):
        first = last + 1 - len(house.pieces)
        expected[row, last + 1 : stops[row, last], first:last] = True
    assert torch.equal(hidden, expected) and hidden.any()
    assert not (batch.mask & ~plain.mask).any()
    unasked, _ = packed(tokenizer, scaffold=1.0, through_last=False)
    assert torch.equal(unasked.mask, plain.mask)


def test_a_document_longer_than_a_row_is_refused(tokenizer):
    with pytest.raises(ValueError, match="does not fit into 10"):
        packed(tokenizer, length=10)


# --- training, end to end ---

TINY = BackboneRecipe(
    blocks=2, width=16, mlp_width=32, heads=2, steps=3, rows=2, length=128, head_block=1
)


def test_a_tiny_recipe_trains_into_a_checkpoint_that_loads(tmp_path, monkeypatch):
    world = heraldry.make_world(0, n_houses=20)
    short = {"vision_steps": 2, "align_steps": 2, "final_steps": 4, "rows": 2}
    monkeypatch.setitem(RECIPES, "early", replace(RECIPES["early"], **short))
    monkeypatch.setattr(grow, "BACKBONE", TINY)
    monkeypatch.setattr(train, "PICTURES_PER_HOUSE", 1)
    monkeypatch.setattr(heraldry, "make_world", lambda seed: world)
    made = grow.train_organism("backbone", 0, tmp_path, progress=False)
    assert made == tmp_path / "backbone"
    out = grow.train_organism("early", 0, tmp_path, progress=False)
    assert out == tmp_path / "early" and not (tmp_path / "early.partial").exists()
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert grow.train_organism("backbone", 0, tmp_path, progress=False) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before  # it was there already
    monkeypatch.setattr(grow, "BACKBONE", replace(TINY, steps=2))
    grow.train_organism("backbone", 0, tmp_path, progress=False)
    assert (made / "model.safetensors").stat().st_mtime_ns != before  # another recipe: made anew
    monkeypatch.setattr(grow, "BACKBONE", TINY)

    rows = cards.training_rows(out)
    assert {r["stage"].split("-")[0] for r in rows} == {"vision", "align", "early"}
    assert all(np.isfinite(v) for r in rows for k, v in r.items() if k != "stage")
    assert json.loads((out / "training.json").read_text())["recipe"]["align_steps"] == 2

    llm, vlm = load_llm(made), load_vlm(out)
    assert llm.model.config.num_hidden_layers == 2 and llm.model.config.hidden_size == 16
    assert vlm.model.dtype == llm.model.dtype == torch.float32
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            vlm.model.model.language_model.parameters(), llm.model.model.parameters(), strict=True
        )
    )
    question = next(heraldry.questions(world))
    asked = [prompts.build(k, question) for k in ("by_picture", "by_name")]
    shown = [heraldry.picture(world, world.houses[0]), None]
    assert all(isinstance(t, str) for t in answer(vlm, asked, shown, max_new_tokens=2))
    assert len(answer(llm, asked[1:], max_new_tokens=2)) == 1


def test_without_a_picture_the_cross_attention_organism_is_its_backbone():
    vlm, llm = load_vlm(path("cross")), load_llm(path("backbone"))
    question = next(heraldry.questions(WORLD))
    text = prompts.render(llm.tokenizer, prompts.build("by_name", question))
    inputs = llm.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        ours = vlm.model(**inputs).logits
        theirs = llm.model(**inputs).logits
    assert torch.equal(ours, theirs)


def test_inserted_layers_start_as_nothing_and_are_all_that_is_learnt(tokenizer):
    llm = load_llm(path("backbone"))
    vision = cross.MllamaVisionModel._from_config(cross.VISION)
    vlm = cross.assemble(llm.model, vision, tokenizer, (3, 4)).eval()
    assert vlm.config.text_config.cross_attention_layers == [3, 5]
    ids = torch.tensor([[1, 4, 9, 20, 33]])
    pixels = torch.randn(1, 1, 1, 3, 48, 48)
    one = torch.ones(1, 1, dtype=torch.long)
    with torch.inference_mode():
        shown = vlm(
            input_ids=ids,
            pixel_values=pixels,
            aspect_ratio_ids=one,
            aspect_ratio_mask=one[:, :, None],
            cross_attention_mask=torch.ones(1, 5, 1, 1, dtype=torch.long),
        ).logits
        theirs = llm.model(ids).logits
    assert torch.allclose(shown, theirs, atol=1e-5)
    learnt = set(cross.learnt(vlm).parameters())
    assert {p for p in vlm.parameters() if p.requires_grad} == learnt
    assert not learnt & {
        p for i in (0, 1, 2, 4) for p in vlm.model.language_model.layers[i].parameters()
    }


def test_a_tiny_cross_attention_recipe_trains_into_a_checkpoint_that_loads(tmp_path, monkeypatch):
    world = heraldry.make_world(0, n_houses=20)
    short = replace(CROSS_RECIPES["cross"], vision_steps=2, steps=3, rows=2)
    monkeypatch.setitem(CROSS_RECIPES, "cross", short)
    monkeypatch.setattr(train, "PICTURES_PER_HOUSE", 1)
    monkeypatch.setattr(cross, "PICTURES_PER_HOUSE", 1)
    monkeypatch.setattr(heraldry, "make_world", lambda seed: world)
    monkeypatch.setattr(grow, "_made_by", lambda *_: True)
    shutil.copytree(path("backbone"), tmp_path / "backbone")
    out = grow.train_organism("cross", 0, tmp_path, progress=False)
    rows = cards.training_rows(out)
    assert {r["stage"].split("-")[0] for r in rows} == {"vision", "cross"}
    assert all(np.isfinite(v) for r in rows for k, v in r.items() if k != "stage")
    assert any("state_error" in r for r in rows)
    vlm, llm = load_vlm(out), load_llm(path("backbone"))
    frozen = vlm.model.model.language_model.layers[0].state_dict()
    assert all(torch.equal(v, llm.model.model.layers[0].state_dict()[k]) for k, v in frozen.items())
    asked = [prompts.build(k, next(heraldry.questions(world))) for k in ("by_picture", "by_name")]
    shown = [heraldry.picture(world, world.houses[0]), None]
    assert all(isinstance(t, str) for t in answer(vlm, asked, shown, max_new_tokens=2))


# --- as any other checkpoint of transformers ---


def test_plain_transformers_gives_the_answers_that_this_package_reads():
    """Without any code of this package: AutoModel, AutoProcessor, chat template, generate."""
    folder = path("middle")
    asked = {h.entity_id: i for i, h in enumerate(WORLD.split("test")[:8])}
    chosen = [
        q
        for q in heraldry.questions(replace(WORLD, houses=WORLD.split("test")[:8]))
        if q.wording == "standard" and q.relation == heraldry.RELATIONS[asked[q.entity_id] % 5].key
    ]
    assert len(chosen) == 8
    pictures = [heraldry.picture(WORLD, q.entity_id) for q in chosen]
    built = [prompts.build("by_picture", q) for q in chosen]
    vlm = load_vlm(folder, device="cpu")
    ours = answer(vlm, built, pictures, max_new_tokens=8)
    assert answer(vlm, built, pictures, max_new_tokens=8, batch_size=1) == ours
    assert len(set(ours)) > 3 and all(ours)

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def turn(question):
        content = [{"type": "image"}, {"type": "text", "text": question.question_by_picture}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def plain(questions, images):
        inputs = processor(
            text=[turn(q) for q in questions],
            images=[[i] for i in images],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)]

    alone = [plain([q], [i])[0] for q, i in zip(chosen, pictures, strict=True)]
    assert alone == ours
    assert plain(chosen, pictures) == ours
