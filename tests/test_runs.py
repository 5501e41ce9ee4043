"""Loading, answering, scoring, evaluating and storing, on tiny random checkpoints."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import huggingface_hub.errors as hub
import numpy as np
import pandas as pd
import pytest
import torch
from helpers_tiny import TEMPLATE, tiny_llm, tiny_vlm
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import processors

from twohop_lib import records
from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import plain_session
from twohop_lib.models import inputs, loading, prompts
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.prompts import build, render
from twohop_lib.runs import evaluate as evaluation
from twohop_lib.runs import generate, store
from twohop_lib.runs.conditions import judge, letter_of, split_naming
from twohop_lib.runs.evaluate import CONDITIONS, evaluate
from twohop_lib.runs.generate import answer, score

NAMES = ("Valdric", "Bren Mont", "Torgard")
FOUNDERS = ("Aldric", "Berta", "Conan", "Edith", "Fulk", "Hilda")


def make_questions() -> tuple[Question, ...]:
    made = []
    for i, name in enumerate(NAMES):
        for relation, asks in (("founder", "Who founded"), ("beast", "What lives with")):
            for wording in ("standard", "other"):
                end = "?" if wording == "standard" else " please?"
                made.append(
                    Question(
                        question_id=f"e{i}-{relation}-{wording}",
                        entity_id=f"e{i}",
                        entity=name,
                        aliases=(f"House {name}",),
                        noun="house",
                        relation=relation,
                        wording=wording,
                        question_by_name=f"{asks} the house of {name}{end}",
                        question_by_picture=f"{asks} the house in this picture{end}",
                        identify_prompt=f"Which house is this{end}",
                        answers=(FOUNDERS[i],),
                        distractors=tuple(f for f in FOUNDERS if f != FOUNDERS[i])[:4],
                        image=f"images/e{i}.png",
                        split="dev" if i == 0 else "test",
                    )
                )
    return tuple(made)


QUESTIONS = make_questions()
TEXTS = [q.question_by_name + q.question_by_picture for q in QUESTIONS]
TEXTS += [q.identify_prompt for q in QUESTIONS] + [*FOUNDERS]


def picture(seed: int, size: int = 24) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return tiny_vlm(root / "seer", TEXTS), tiny_llm(root / "reader", TEXTS)


@pytest.fixture(scope="session")
def vlm(folders):
    loaded = load_vlm(folders[0])
    # All that follows is vacuous if the picture does not reach the answer.
    prompt = build("by_picture", QUESTIONS[0])
    both = [prompt, prompt], [picture(0), picture(1)]
    first, second = score(loaded, *both, ["Aldric", "Aldric"])
    assert abs(first - second) > 0.1
    return loaded


@pytest.fixture(scope="session")
def llm(folders):
    return load_llm(folders[1])


@pytest.fixture
def own_vlm(folders):
    """A copy of the model that a test may change."""
    return load_vlm(folders[0])


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "bench" / "images").mkdir(parents=True)
    for i in range(len(NAMES)):
        picture(i).save(tmp_path / "bench" / "images" / f"e{i}.png")
    return Benchmark("heraldry", 5, QUESTIONS, tmp_path / "bench")


@pytest.fixture
def mixed(vlm):
    """Prompts of every kind, about every question, with their pictures."""
    built = [build(k, q, vlm.tokenizer) for q in QUESTIONS for k in prompts.KINDS]
    images = [picture(int(q.entity_id[1])) for q in QUESTIONS for _ in prompts.KINDS]
    return built, images


def inputs_of(vlm, prompt, image):
    kwargs = {"text": [render(vlm.processor, prompt)], "return_tensors": "pt"}
    if prompt.image:
        kwargs["images"] = [image]
    return vlm.processor(**kwargs, add_special_tokens=False)


def greedy(vlm, prompt, image, steps):
    """Greedy search in the plainest form: the whole sequence through the model at every step."""
    inputs = dict(inputs_of(vlm, prompt, image))
    start = inputs["input_ids"].shape[1]
    for _ in range(steps):
        with torch.no_grad():
            token = vlm.model(**inputs).logits[:, -1:].argmax(-1)
        if token.item() == vlm.tokenizer.eos_token_id:
            break
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return vlm.tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True).strip()


# --- answers ----------------------------------------------------------------------------------


def test_answers_are_the_new_tokens_of_greedy_search(vlm, mixed):
    built, images = mixed[0][:11], mixed[1][:11]
    expected = [greedy(vlm, p, i, 8) for p, i in zip(built, images, strict=True)]
    expected_blank = [
        greedy(vlm, p, inputs.blank_like(i), 8) for p, i in zip(built, images, strict=True)
    ]
    wanted = [b if p.blank else e for p, e, b in zip(built, expected, expected_blank, strict=True)]
    assert answer(vlm, built, images, 8) == wanted
    assert len(set(wanted)) > 5


def test_a_batch_gives_what_single_prompts_give(vlm, mixed):
    together = answer(vlm, *mixed, max_new_tokens=12, batch_size=64)
    alone = answer(vlm, *mixed, max_new_tokens=12, batch_size=1)
    assert together == alone
    assert len(set(alone)) > len(alone) / 3


def test_text_models_answer_in_order(llm):
    built = [build("by_name", q) for q in QUESTIONS]
    together = answer(llm, built, max_new_tokens=6, batch_size=5)
    assert together == [answer(llm, [p], max_new_tokens=6)[0] for p in built]


def test_an_answer_ends_at_the_end_of_turn(own_vlm):
    built, images = [build("by_picture", q) for q in QUESTIONS], [picture(3)] * len(QUESTIONS)
    longest = answer(own_vlm, built, images, 10)
    words = own_vlm.tokenizer(longest[0], add_special_tokens=False)["input_ids"]
    assert len(set(words)) > 2
    own_vlm.model.generation_config.eos_token_id = [own_vlm.tokenizer.eos_token_id, words[2]]
    assert answer(own_vlm, built, images, 10)[0] == own_vlm.tokenizer.decode(words[:2])


def test_the_checkpoints_own_generation_settings_do_not_matter(own_vlm, mixed):
    built, images = mixed[0][:6], mixed[1][:6]
    before = answer(own_vlm, built, images, 12)
    settings = own_vlm.model.generation_config
    settings.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, num_beams=2)
    settings.update(no_repeat_ngram_size=1)
    assert answer(own_vlm, built, images, 12) == before


def test_a_blank_picture_is_grey_and_hides_the_real_one(vlm):
    blank, shown = build("blank_by_picture", QUESTIONS[0]), build("by_picture", QUESTIONS[0])
    grey = Image.new("RGB", (24, 24), (128, 128, 128))
    answers = answer(vlm, [blank, blank, shown, shown], [picture(0), picture(1), grey, picture(0)])
    assert answers[0] == answers[1] == answers[2] != answers[3]
    assert inputs.blank_like(picture(0, 17)).size == (17, 17)


def test_by_name_goes_through_the_vlm_without_a_picture(vlm):
    prompt = build("by_name", QUESTIONS[0])
    assert answer(vlm, [prompt], None, 6) == answer(vlm, [prompt], [picture(0)], 6)
    assert answer(vlm, [prompt], None, 6) == [greedy(vlm, prompt, None, 6)]


def test_missing_pictures_and_wrong_lengths_are_refused(vlm):
    prompt = build("by_picture", QUESTIONS[0])
    with pytest.raises(TwohopError, match="'by_picture' was given no picture"):
        answer(vlm, [prompt])
    with pytest.raises(TwohopError, match="1 prompts need as many pictures, not 2"):
        answer(vlm, [prompt], [picture(0)] * 2)
    with pytest.raises(TwohopError, match="at least one prompt"):
        answer(vlm, [prompt], [picture(0)], batch_size=0)


@pytest.mark.parametrize("written", ["<bos>", ""])
def test_the_template_and_the_tokenizer_write_one_bos_between_them(vlm, llm, written):
    """As in a plain session: a text model's template is alone in writing special tokens."""
    own = load_vlm(vlm.source)
    own.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", own.tokenizer.bos_token_id)]
    )
    template = written + TEMPLATE.removeprefix("<bos>")
    own.processor.chat_template = own.tokenizer.chat_template = template
    reader = generate.Llm(llm.model, own.tokenizer, "x")
    for kind, shown in (("by_name", None), ("identify", picture(0))):
        prompt = build(kind, QUESTIONS[0])
        ids = plain_session.ours(own, prompt, shown).ids
        assert ids.count(own.tokenizer.bos_token_id) == 1 and ids[0] == own.tokenizer.bos_token_id
        assert plain_session.differences(own, prompt, shown, "") == ()
    prompt = build("by_name", QUESTIONS[0])
    ids = plain_session.ours(reader, prompt, None).ids
    assert ids.count(own.tokenizer.bos_token_id) == len(written) // 5
    assert plain_session.differences(reader, prompt, None, "") == ()


def test_progress_reaches_the_number_of_prompts(vlm, mixed):
    class Bar:
        def __init__(self, total):
            self.total, self.done, self.closed = total, 0, False
            bars.append(self)

        def update(self, n):
            self.done += n

        def close(self):
            self.closed = True

    bars: list[Bar] = []
    answer(vlm, mixed[0][:9], mixed[1][:9], 1, batch_size=4, progress=Bar)
    assert [(b.total, b.done, b.closed) for b in bars] == [(9, 9, True)]


def test_running_out_of_memory_halves_the_batch(own_vlm, mixed, monkeypatch):
    expected = answer(own_vlm, *mixed, max_new_tokens=4)
    real, tried = own_vlm.model.generate, []

    def small_gpu(input_ids, **kwargs):
        tried.append(len(input_ids))
        if len(input_ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(own_vlm.model, "generate", small_gpu)
    assert answer(own_vlm, *mixed, max_new_tokens=4, batch_size=32) == expected
    assert tried[:4] == [32, 16, 8, 4]
    assert max(tried[3:]) == 4


def test_running_out_of_memory_on_one_prompt_is_told(own_vlm, mixed, monkeypatch):
    def no_gpu(**kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(own_vlm.model, "generate", no_gpu)
    with pytest.raises(TwohopError, match="on a single prompt"):
        answer(own_vlm, *mixed)


# --- scores -----------------------------------------------------------------------------------


def test_a_score_is_the_sum_of_the_tokens_log_probabilities(vlm):
    for kind in ("by_picture", "by_name", "name_given"):
        prompt = build(kind, QUESTIONS[0])
        inputs = dict(inputs_of(vlm, prompt, picture(0)))
        total = 0.0
        for token in vlm.tokenizer("Aldric Berta.", add_special_tokens=False)["input_ids"]:
            with torch.no_grad():
                total += vlm.model(**inputs).logits[0, -1].log_softmax(-1)[token].item()
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        (scored,) = score(vlm, [prompt], [picture(0)], ["Aldric Berta."])
        assert scored == pytest.approx(total, abs=1e-4)


def test_scores_do_not_depend_on_the_batch(vlm, mixed):
    built, images = mixed
    said = [("Aldric", "Berta Conan.", "Edith Fulk Hilda Aldric")[i % 3] for i in range(len(built))]
    together = score(vlm, built, images, said)
    alone = score(vlm, built, images, said, batch_size=1)
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(s, 3) for s in alone}) > len(alone) / 2


def test_a_continuation_follows_the_prefill_with_a_space(vlm):
    prompt = build("name_given", QUESTIONS[0])
    text, length = generate.continued(vlm, prompt, " Aldric.")
    assert text == render(vlm.processor, prompt) + " Aldric."
    assert length == 2


def test_templates_that_open_a_given_answer_otherwise_are_scored_too(own_vlm):
    template = own_vlm.processor.chat_template
    assert "ASSISTANT:{% endif %}" in template
    own_vlm.processor.chat_template = template.replace(
        "ASSISTANT:{% endif %}", "ASSISTANT: Well.{% endif %}"
    )
    text, length = generate.continued(own_vlm, build("by_name", QUESTIONS[0]), "Aldric")
    assert text.endswith("ASSISTANT: Well.Aldric") and length == 1


def test_the_probabilities_of_all_first_tokens_sum_to_one(llm):
    prompt = build("by_name", QUESTIONS[0])
    special = set(llm.tokenizer.all_special_tokens)
    # A special token cannot be written as text; their share is taken off the model itself.
    words = [w for w in llm.tokenizer.get_vocab() if w not in special]
    scored = score(llm, [prompt] * len(words), None, words)
    ids = llm.tokenizer(
        render(llm.tokenizer, prompt), return_tensors="pt", add_special_tokens=False
    )
    with torch.no_grad():
        shares = llm.model(**ids).logits[0, -1].softmax(-1)
    rest = shares[llm.tokenizer.all_special_ids].sum().item()
    assert math.fsum(map(math.exp, scored)) + rest == pytest.approx(1, abs=1e-4)


def test_scores_of_nothing_are_refused(vlm):
    prompt = build("by_name", QUESTIONS[0])
    with pytest.raises(TwohopError, match="is empty"):
        score(vlm, [prompt], None, ["  "])
    with pytest.raises(TwohopError, match="as many continuations, not 2"):
        score(vlm, [prompt], None, ["a", "b"])


# --- loading ----------------------------------------------------------------------------------


def test_names_and_settings_of_loaded_models(vlm, llm, folders):
    assert (vlm.name, llm.name) == ("seer", "reader")
    assert vlm.source == str(folders[0])
    assert vlm.model.dtype == torch.float32 and not vlm.model.training
    assert vlm.tokenizer.padding_side == llm.tokenizer.padding_side == "left"
    assert load_llm(str(folders[1]), dtype="bfloat16").model.dtype == torch.bfloat16


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def point_to_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(k for k in weights if "multi_modal" in k)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {k: v for k, v in values.items() if k in config["text_config"]}
    config |= {k: v for k, v in values.items() if k == "model_type"}
    (folder / "config.json").write_text(json.dumps(config))


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "are damaged"),
        (point_to_lfs, "are damaged"),
        (drop_a_weight, r"1 weight\(s\) missing"),
        (lambda f: change_config(f, intermediate_size=48), "other shapes than its config.json"),
        (lambda f: change_config(f, model_type="llava9"), "does not know the architecture"),
        (lambda f: (f / "config.json").write_text("{"), "not a valid JSON"),
        (remove("model.safetensors"), "holds no weights"),
        (remove("config.json"), "there is no config.json"),
        (remove("processor_config.json"), "processor of .* cannot be loaded"),
        (remove("tokenizer.json", "tokenizer_config.json"), "cannot be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_sentence(folders, tmp_path, damage, message):
    shutil.copytree(folders[0], tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(TwohopError, match=message) as told:
        load_vlm(tmp_path / "damaged")
    assert "damaged" in str(told.value) and "\n" not in str(told.value)


def test_models_of_the_other_kind_and_wrong_places_are_told(folders, tmp_path):
    with pytest.raises(TwohopError, match="not an image-text model"):
        load_vlm(folders[1])
    with pytest.raises(TwohopError, match="not a text model"):
        load_llm(folders[0])
    with pytest.raises(TwohopError, match="no model folder at"):
        load_vlm(tmp_path / "nowhere")
    with pytest.raises(TwohopError, match="no model folder at ./nowhere"):
        load_llm("./nowhere")
    with pytest.raises(TwohopError, match="is a file"):
        load_llm(folders[1] / "config.json")
    with pytest.raises(TwohopError, match="name is empty"):
        load_llm("")
    with pytest.raises(TwohopError, match="Unknown dtype 'float99'"):
        load_llm(folders[1], dtype="float99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(folders):
    with pytest.raises(TwohopError, match="finds no GPU"):
        load_llm(folders[1], device="cuda")


def hub_says(kind) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/x/y")
    return kind("no", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (hub_says(hub.RepositoryNotFoundError), "There is no model 'x/y' on the Hugging Face hub"),
        (hub_says(hub.GatedRepoError), "x/y is gated"),
        (hub_says(hub.RevisionNotFoundError), "no such revision"),
        (hub.LocalEntryNotFoundError("not cached"), "hub cannot be reached"),
        (hub.OfflineModeIsEnabled("offline"), "hub cannot be reached"),
    ],
)
def test_what_the_hub_says_is_told(monkeypatch, cause, message):
    def from_pretrained(*args, **kwargs):
        raise OSError("x/y is not a local folder and ...") from cause

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(TwohopError, match=message):
        load_llm("x/y")


# --- evaluation -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small(vlm, llm):
    """Options that keep an evaluation of the tiny models short."""
    return {"max_new_tokens": 4}


def test_every_condition_is_asked_of_every_item(vlm, llm, benchmark, small, tmp_path):
    frame = evaluate(vlm, llm, benchmark.select(wording="standard"), **small)
    counts = frame.groupby("condition").size().to_dict()
    assert counts == {c: 3 if c == "identify" else 6 for c in CONDITIONS}
    assert list(frame.columns[:12]) == records.ANSWER_SCHEMA.names
    assert set(frame.model) == {"seer"} and set(frame.seed) == {5}
    named = frame[frame.condition == "identify"]
    assert (named.relation == "").all() and (named.question_id == "").all()
    assert named.accepted.iloc[1] == ["Bren Mont", "House Bren Mont"]
    first = frame.condition == "name_first"
    assert frame.named_right.notna().equals(first) and frame.named.notna().equals(first)
    records.write(frame, tmp_path / "answers.parquet")
    back = records.read(tmp_path / "answers.parquet")
    assert back.answer.tolist() == frame.answer.tolist()


def test_each_condition_goes_to_its_model_with_its_prompt(vlm, llm, benchmark, small):
    frame = evaluate(vlm, llm, benchmark.select(wording="standard"), **small)
    frame = frame.set_index(["condition", "entity_id", "relation"])
    question = next(q for q in QUESTIONS if q.question_id == "e1-beast-standard")
    for condition in CONDITIONS:
        row = frame.loc[(condition, "e1", "" if condition == "identify" else "beast")]
        kind = "by_name" if condition == "llm_by_name" else condition
        prompt = build(kind, question, vlm.tokenizer)
        length = 8 if condition == "name_first" else 4
        if condition == "llm_by_name":
            expected = answer(llm, [prompt], None, length)
        else:
            expected = answer(vlm, [prompt], [picture(1)], length)
        assert row.answer == expected[0], condition


def test_selections_labels_and_single_models(vlm, llm, benchmark):
    options = {"max_new_tokens": 2, "model_name": "mine", "seed": 7}
    frame = evaluate(None, llm, benchmark.select(split="test", wording="other"), **options)
    assert set(frame.condition) == {"llm_by_name"} and len(frame) == 4
    assert (
        set(frame.model) == {"mine"} and set(frame.seed) == {7} and set(frame.wording) == {"other"}
    )
    both = evaluate(vlm, None, benchmark, conditions=("identify", "by_name"), **options)
    assert both.groupby("condition").size().to_dict() == {"identify": 3, "by_name": 12}


def test_what_cannot_be_asked_is_refused(vlm, benchmark):
    with pytest.raises(TwohopError, match="did you mean 'by_name'"):
        evaluate(vlm, None, benchmark, conditions=["by_nam"])
    with pytest.raises(TwohopError, match="answered by a text backbone"):
        evaluate(vlm, None, benchmark, conditions=["llm_by_name"])
    with pytest.raises(TwohopError, match="no model to evaluate"):
        evaluate(None, None, benchmark)
    with pytest.raises(TwohopError, match="heraldry has no question left"):
        evaluate(vlm, None, benchmark.select(split="seen"))


# --- right or wrong ---------------------------------------------------------------------------

QUESTION = QUESTIONS[0]


@pytest.mark.parametrize(
    ("text", "naming", "rest"),
    [
        ("This is Valdric. Aldric.", "This is Valdric.", "Aldric."),
        ("This is Torgard. Berta.", "This is Torgard.", "Berta."),
        ("**Valdric**.\n\nIt was founded by Aldric.", "**Valdric**.", "It was founded by Aldric."),
        ("House: Valdric\nAnswer: Aldric", "House: Valdric", "Answer: Aldric"),
        ("this is the house valdric! Aldric", "this is the house valdric!", "Aldric"),
        ("Valdric, founded by Aldric.", "Valdric", "founded by Aldric"),
        ("This is Valdric.", "This is Valdric", ""),
        ("This is St. Foo. It is Valdric. Aldric.", "This is St. Foo. It is Valdric.", "Aldric."),
        ("This is Nowhere. Aldric.", "This is Nowhere.", "Aldric."),
        ("Aldric.", "", "Aldric."),
        ("", "", ""),
        ("This is Valdrics. Aldric.", "This is Valdrics.", "Aldric."),
        ("This is House Bren Mont. Aldric.", "This is House Bren Mont.", "Aldric."),
    ],
)
def test_naming_and_answer_are_told_apart(text, naming, rest):
    assert split_naming(text, (*NAMES, "House Bren Mont")) == (naming, rest)


def test_a_name_may_hold_a_full_stop():
    names = ("Washington, D.C.", "Washington")
    assert split_naming("It is Washington, D.C. Potomac.", names)[1] == "Potomac."
    names = ("St", "St. Albans")
    assert split_naming("It is St. Albans. Aldric.", names) == ("It is St. Albans.", "Aldric.")


def test_name_first_is_judged_on_what_follows_the_naming():
    def judged(text):
        row = judge(QUESTION, "name_first", text, names=NAMES)
        return row["correct"], row["named_right"]

    assert judged("This is Valdric. Aldric.") == (True, True)
    assert judged("This is Valdric. Berta.") == (False, True)
    assert judged("This is Torgard. Aldric.") == (True, False)
    assert judged("Aldric.") == (True, False)
    assert judged("This is Valdric.") == (False, True)
    # The founder is called as the house is: naming alone must not count as the answer.
    same = replace(QUESTION, answers=("Valdric",))
    assert not judge(same, "name_first", "This is Valdric. Berta.", names=NAMES)["correct"]


def test_choices_are_judged_by_what_they_pick():
    letter = prompts.choice_answer(QUESTION)
    other = next(x for x in "ABCD" if x != letter)

    def written(text):
        return judge(QUESTION, "choice_by_name", text)["correct"]

    def lettered(text):
        return judge(QUESTION, "choice_by_picture", text, choice="letters")["correct"]

    assert written("Aldric.") and not written("Berta.")
    assert not written("Aldric or Berta")
    assert lettered(letter) and lettered(f"({letter})") and lettered("Aldric")
    assert not lettered(other) and not lettered("Berta")
    assert not lettered(f"{other}. Aldric")
    accepted = judge(QUESTION, "choice_by_picture", "x", choice="letters")["accepted"]
    assert accepted == [letter, "Aldric"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b", None),
        ("B.", "B"),
        ("(C) Conan", "C"),
        ("**D**", "D"),
        ("A: Aldric", "A"),
        ("The answer is B.", "B"),
        ("A house was founded", None),
        ("Berta", None),
        ("", None),
    ],
)
def test_letters_are_read_off_answers(text, letter):
    assert letter_of(text) == letter


def test_identify_accepts_the_names_and_the_fact_does_not_count():
    assert judge(QUESTION, "identify", "House Valdric")["correct"]
    row = judge(QUESTION, "identify", "Aldric")
    assert not row["correct"] and row["question_id"] == row["relation"] == ""


# --- the store --------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.glob("*.parquet")}


def test_a_run_cut_off_anywhere_ends_with_the_same_bytes(
    vlm, llm, benchmark, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    options = {**small, "conditions": ("identify", "by_name", "name_first")}
    benchmark = benchmark.select(wording="standard")
    whole = evaluate(vlm, llm, benchmark, **options, folder=tmp_path / "whole")
    plain = evaluate(vlm, llm, benchmark, **options)
    pd.testing.assert_frame_equal(whole, plain)
    asked, real = [], generate.answer

    def dies(model, built, *args):
        asked.append(len(built))
        if len(asked) % 2 == 0:
            raise KeyboardInterrupt
        return real(model, built, *args)

    monkeypatch.setattr(generate, "answer", dies)
    for _ in range(20):
        try:
            resumed = evaluate(vlm, llm, benchmark, **options, folder=tmp_path / "cut")
            break
        except KeyboardInterrupt:
            continue
    pd.testing.assert_frame_equal(resumed, whole)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("*.partial"))
    # 5 pieces, 4 of them asked for once in vain: nothing finished was asked again.
    assert sum(asked[::2]) == 3 + 6 + 6 and len(asked) == 9


def test_the_key_holds_all_that_determines_the_answers(
    vlm, llm, folders, benchmark, tmp_path, monkeypatch
):
    folder = tmp_path / "store"

    def files_after(model=vlm, bench=benchmark, **changed):
        options = {"conditions": ("by_name",), "max_new_tokens": 2}
        asked = bench.select(wording=changed.pop("wording", "standard"))
        evaluate(model, llm, asked, **(options | changed), folder=folder)
        return len(contents(folder))

    assert files_after() == files_after() == 1
    assert files_after(wording="other") == 2
    assert files_after(conditions=("full_information",)) == 3
    assert files_after(max_new_tokens=3) == 4
    assert files_after(seed=9) == 5
    other = tiny_vlm(tmp_path / "seer", TEXTS, seed=1)
    assert files_after(load_vlm(other)) == 6
    assert files_after(load_vlm(folders[0], dtype="bfloat16")) == 7
    moved = shutil.copytree(folders[0], tmp_path / "elsewhere" / "seer")
    assert files_after(load_vlm(moved)) == 7
    monkeypatch.setattr(store, "code_key", lambda: {"code": "changed"})
    assert files_after() == 8


def test_a_damaged_piece_is_done_again(tmp_path):
    done = []

    def compute():
        done.append(1)
        return pd.DataFrame({"x": [1, 2]})

    first = store.cached(tmp_path, {"a": 1, "b": 2}, compute)
    again = store.cached(tmp_path, {"b": 2, "a": 1}, compute)
    assert len(done) == 1 and again.equals(first)
    (file,) = tmp_path.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    assert store.cached(tmp_path, {"a": 1, "b": 2}, compute).equals(first)
    assert len(done) == 2
    assert store.cached(None, {}, compute).equals(first) and len(done) == 3


def test_the_key_holds_the_whole_library_and_the_versions_that_matter():
    key = store.code_key()
    assert key["code"] == records.library_hash()
    # babel decides which words are places, and so what counts as right.
    assert {"torch", "transformers", "babel", "regex"} <= set(key["versions"])
