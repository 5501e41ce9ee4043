"""The grafts' study: grow every recipe of every seed, measure all, keep the records.

Measured on pictures that nothing was trained on (:mod:`twohop_lib.benchmark.flag_views`), in two
prompt formats, since levels depend on them. The text stack runs in bfloat16, tower and projector in
float32.
"""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from twohop_lib import records
from twohop_lib.benchmark import Benchmark, flag_looks, flag_views
from twohop_lib.benchmark.schema import Question
from twohop_lib.grafts import ask, assemble, fewshot
from twohop_lib.grafts.ask import Reader
from twohop_lib.grafts.cards import Card, adapter_hash, write_card
from twohop_lib.grafts.fewshot import FORMATS, NAMING, Asked, FewShot, Format
from twohop_lib.grafts.grow import grow, training_benchmark
from twohop_lib.grafts.language import GEMMA, language_model
from twohop_lib.grafts.recipes import RECIPES
from twohop_lib.grafts.shipped import grafts_folder
from twohop_lib.grafts.train import TRAINING, fingerprint
from twohop_lib.models.inputs import blank_like
from twohop_lib.models.loading import Vlm, load_vlm
from twohop_lib.organisms.cards import Measured
from twohop_lib.readouts.graft_gap import COLOURS, controlled
from twohop_lib.runs import store
from twohop_lib.runs.conditions import judge
from twohop_lib.scoring.matching import matches
from twohop_lib.stats import entity_bootstrap

COMMAND = "twohop graft study"
#: Views that entities are named on, and those that facts are asked on.
NAMED_ON = flag_views.VIEWS
ASKED_ON = ("drawn", "photographed")
WORDING = "standard"
#: Facts that are asked by picture, in each format.
FACTS = 120
#: Conditions of facts that are known by name.
BY_PICTURE = ("by_picture", "blank_by_picture", "full_information", "name_first")
#: The code that decides what is answered.
DECIDES = (__file__, ask.__file__, fewshot.__file__)
COLOUR_ANSWERS = {
    "Spain": "red and yellow",
    "Brazil": "green, yellow, blue and white",
    "Egypt": "red, white and black",
    "Cambodia": "blue, red and white",
}


#: What is kept of one graft: its records, and a log or further ones.
Frames = tuple[pd.DataFrame, pd.DataFrame]


class Graft:
    """A loaded graft that answers many prompts: image tokens once a picture, prefixes once."""

    def __init__(self, folder: Path, benchmark: Benchmark) -> None:
        self.folder = folder
        self.vlm: Vlm = load_vlm(folder, "float32")
        inner = self.vlm.model.model
        inner.language_model.to(torch.bfloat16)
        self.vlm.model.lm_head.to(torch.bfloat16)
        self.reader = Reader(self.vlm)
        self.few: FewShot = fewshot.few_shot(benchmark)
        self._seen: dict[tuple[str, str], Tensor] = {}

    @torch.inference_mode()
    def see(self, pictures: dict[tuple[str, str], Callable[[], Image.Image]]) -> None:
        """Keep the image tokens of some pictures, by (entity, view)."""
        new = [key for key in pictures if key not in self._seen]
        for start in range(0, len(new), 64):
            keys = new[start : start + 64]
            images = [pictures[key]() for key in keys]
            pixels = self.vlm.processor.image_processor(images, return_tensors="pt").pixel_values
            made = self.vlm.model.get_image_features(
                pixel_values=pixels.to(self.reader.device)
            ).pooler_output
            self._seen.update(zip(keys, made, strict=True))

    def tokens(self, entity: str, view: str) -> Tensor:
        return self._seen[entity, view]

    def say(
        self, asked: Sequence[Asked], shown: Sequence[Tensor | str | None], room: int = 12
    ) -> list[str]:
        return ask.answers(self.reader, asked, shown, max_new_tokens=room)


def measured(
    folder: Path, benchmark: Benchmark, labels: dict[str, Any], kept: Path | None = None
) -> pd.DataFrame:
    """Answer records of one graft, with ``format``, ``view`` and whether its name is said.

    By name all facts are asked. Pictures are shown of the entities that no recipe of the seed was
    asked facts about in training (``trained`` says whether one is), and of their facts
    :data:`FACTS` at most in each format, which the text stack gives by name. ``says_name``: the
    answer holds the shown entity's own name. Each condition is stored in ``kept`` as it is done.
    """
    standard = [q for q in benchmark.questions if q.wording == WORDING]
    trained = set(json.loads((folder / TRAINING).read_text())["asked_about"])
    held_out = [q for q in standard if q.entity_id not in trained]
    once = list({q.entity_id: q for q in held_out}.values())
    opened = _Opened(folder, benchmark, once)
    parts = []
    for form in FORMATS:
        by_name = opened.rows(standard, form, "by_name", kept)
        known = set(by_name.loc[by_name["correct"], "question_id"])
        asked = sample([q for q in held_out if q.question_id in known], FACTS, labels["seed"])
        parts += [by_name, opened.rows(once, form, "identify", kept)]
        for condition in BY_PICTURE:
            parts.append(opened.rows(asked, form, condition, kept))
        parts.append(opened.rows(once, form, COLOURS, kept))
    frame = pd.concat(parts, ignore_index=True)
    frame["trained"] = frame["entity_id"].isin(trained)
    return pd.DataFrame(labels, index=frame.index).join(frame)


def sample(questions: Sequence[Question], size: int, seed: int) -> list[Question]:
    """``size`` questions, drawn relation by relation in turn, in the order given."""
    rng = np.random.default_rng([seed, *b"facts"])
    groups: dict[str, list[int]] = {}
    for i in rng.permutation(len(questions)):
        groups.setdefault(questions[i].relation, []).append(int(i))
    turns = sorted(
        (place, relation, i)
        for relation, members in groups.items()
        for place, i in enumerate(members)
    )
    return [questions[i] for i in sorted(i for *_, i in turns[:size])]


class _Opened:
    """A graft that is loaded when something has not been measured yet."""

    def __init__(self, folder: Path, benchmark: Benchmark, once: Sequence[Question]) -> None:
        self.folder, self.benchmark, self.once = folder, benchmark, once
        self.names = tuple(dict.fromkeys(n for q in once for n in (q.entity, *q.aliases)))

    @cached_property
    def graft(self) -> Graft:
        graft = Graft(self.folder, self.benchmark)
        graft.see(_pictures(self.once))
        return graft

    def rows(
        self, questions: Sequence[Question], form: Format, condition: str, kept: Path | None
    ) -> pd.DataFrame:
        """Records of one condition in one format, measured now or before."""
        # By name no picture is looked at, so grafts with equal text stacks answer alike.
        weights = assemble.text_weights(self.folder) if condition == "by_name" else self.folder
        key = {
            "weights": fingerprint(weights),
            "benchmark": self.benchmark.hash,
            "questions": store.digest({"asked": [q.question_id for q in questions]}),
            "condition": condition,
            "format": form,
            "code": records.content_hash(map(Path, DECIDES)),
        }

        def compute() -> pd.DataFrame:
            if condition == COLOURS:
                made = _colours(questions, self.graft, form)
            else:
                made = _rows(questions, self.graft, form, condition, self.names)
            frame = pd.DataFrame(made).assign(format=form)
            return frame.astype({"named": "string", "named_right": "boolean"})

        return store.cached(kept, key, compute).astype(
            {"named": "string", "named_right": "boolean"}
        )


def _pictures(once: Sequence[Question]) -> dict[tuple[str, str], Callable[[], Image.Image]]:
    def drawn(code: str, view: Any) -> Callable[[], Image.Image]:
        return lambda: flag_views.picture(code, view)

    made = {(q.entity_id, view): drawn(q.entity_id, view) for q in once for view in NAMED_ON}
    made["", "blank"] = lambda: blank_like(flag_views.picture(once[0].entity_id))
    return made


def _rows(
    questions: Sequence[Question],
    graft: Graft,
    form: Format,
    condition: str,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Records of one condition; one row a question and view."""
    views: Sequence[str] = ("",)
    if condition == "identify":
        views = NAMED_ON
    elif condition == "by_picture":
        views = ASKED_ON
    elif condition in ("full_information", "name_first"):
        views = ASKED_ON[:1]
    elif condition == "blank_by_picture":
        views = ("blank",)
    items = [(q, v) for q in questions for v in views]
    answers = ANSWERED[form](graft, condition, items)
    made = []
    for (q, view), answer in zip(items, answers, strict=True):
        row = {"named": None, "named_right": None} | judge(q, condition, answer, names=names)
        said = answer.removeprefix(row["named"] or "")
        own = (q.entity, *q.aliases)
        made.append(row | {"view": view, "says_name": bool(matches(said, own, "twohop"))})
    return made


def _shown(graft: Graft, condition: str, q: Question, view: str) -> Tensor | None:
    if condition == "by_name":
        return None
    return graft.tokens("" if condition == "blank_by_picture" else q.entity_id, view)


def _by_card(graft: Graft, condition: str, items: list[tuple[Question, str]]) -> list[str]:
    """Answers on cards. Full information writes the name behind the picture."""
    few = graft.few
    if condition == "name_first":
        return _card_by_card(graft, items)
    asked, shown = [], []
    for q, view in items:
        prompt = fewshot.card(few, NAMING if condition == "identify" else q.relation)
        if condition == "full_information":
            prompt = Asked(prompt.before, f" {q.entity}{prompt.after}")
        asked.append(prompt)
        tokens = _shown(graft, condition, q, view)
        shown.append(q.entity if tokens is None else tokens)
    return graft.say(asked, shown)


def _card_by_card(graft: Graft, items: list[tuple[Question, str]]) -> list[str]:
    """The name on a line of its own, then the answer: ``This is Japan. Tokyo``."""
    few = graft.few
    first = [fewshot.card(few, q.relation, naming=True) for q, _ in items]
    shown = [graft.tokens(q.entity_id, view) for q, view in items]
    named = graft.say(first, shown)
    then = [
        Asked(p.before, f"{p.after} {name}\n{few.label(q.relation)}:")
        for p, name, (q, _) in zip(first, named, items, strict=True)
    ]
    said = graft.say(then, shown)
    return [f"This is {name}. {answer}" for name, answer in zip(named, said, strict=True)]


def _by_chat(graft: Graft, condition: str, items: list[tuple[Question, str]]) -> list[str]:
    """Answers through the chat template's wording."""
    few, asked, shown = graft.few, [], []
    for q, view in items:
        relation, text = q.relation, q.question_by_picture
        if condition == "identify":
            relation, text = NAMING, q.identify_prompt
        elif condition in ("by_name", "full_information"):
            text = q.question_by_name
        elif condition == "name_first":
            text = fewshot.first_name(few.noun) + text
        asked.append(fewshot.chat(few, relation, text, condition != "by_name"))
        shown.append(_shown(graft, condition, q, view))
    return graft.say(asked, shown, 24 if condition == "name_first" else 12)


ANSWERED = {"card": _by_card, "chat": _by_chat}


def _colours(once: Sequence[Question], graft: Graft, form: Format) -> list[dict[str, Any]]:
    """Which colours the flag has: right if all of them are said and no other."""
    label, question = flag_looks.QUESTIONS[0]
    if form == "card":
        solved = "".join(
            f"{graft.few.subject}: {e}\n{label}: {a}\n\n" for e, a in COLOUR_ANSWERS.items()
        )
        prompt = Asked(f"{solved}{graft.few.subject}:", f"\n{label}:")
    else:
        solved = "".join(
            f"Picture: {e}\nQuestion: {question}\nAnswer: {a}\n\n"
            for e, a in COLOUR_ANSWERS.items()
        )
        prompt = Asked(f"{solved}Picture:", f"\nQuestion: {question}\nAnswer:")
    said = graft.say([prompt] * len(once), [graft.tokens(q.entity_id, "drawn") for q in once])
    made = []
    for q, answer in zip(once, said, strict=True):
        right = flag_looks.looks(q.entity_id)[0][2]
        own = (q.entity, *q.aliases)
        made.append(
            {
                "entity_id": q.entity_id,
                "entity": q.entity,
                "relation": COLOURS,
                "question_id": f"{q.entity_id}-{COLOURS}",
                "wording": WORDING,
                "condition": "by_picture",
                "answer": answer,
                "accepted": [right],
                "correct": _colour_words(answer) == _colour_words(right),
                "named": None,
                "named_right": None,
                "view": "drawn",
                "says_name": bool(matches(answer, own, "twohop")),
            }
        )
    return made


def _colour_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) & set(flag_looks.COLOURS.values())


def run_study(
    out: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    llm: str | Path = GEMMA,
    jobs: int = 1,
) -> None:
    """Grow (where needed) and measure each recipe of each seed; write records and cards.

    ``jobs`` grafts at a time, each in a process of its own. After each, the records of all that
    are done are written, so that they can be read while the rest is being measured.

    Raises what stopped a graft, when all others are done.
    """
    language_model(llm)
    training_benchmark("flags")
    answers, training = [], []
    for made, rows in each(_grown, recipes, seeds, llm, jobs, "study"):
        answers.append(made)
        training.append(rows)
        meta = {"command": COMMAND, "versions": records.versions()}
        records.write(in_order(answers), out / "answers.parquet", meta)
        records.write_frame(in_order(training), out / "training.parquet", meta)


def _grown(name: str, seed: int, llm: str | Path) -> Frames:
    """Answer records of one graft, grown if need be, and the log of its training."""
    folder = grow(name, seed, llm, progress=alone())
    kept = grafts_folder() / "measured"
    made = measured(folder, training_benchmark("flags"), {"model": name, "seed": seed}, kept)
    write_card(folder, make_card(folder, made))
    rows = json.loads((folder / TRAINING).read_text())["rows"]
    return made, pd.DataFrame(rows).assign(model=name, seed=seed)


def alone() -> bool:
    """Whether no other graft is worked on beside this one: then its progress can be shown."""
    return multiprocessing.parent_process() is None


def each(
    work: Callable[[str, int, str | Path], Frames],
    recipes: Sequence[str],
    seeds: Sequence[int],
    llm: str | Path,
    jobs: int,
    title: str,
) -> Iterator[Frames]:
    """``work(recipe, seed, llm)`` of every recipe and seed, as each is done.

    Recipe by recipe, since those of one seed share what they begin with. In processes of their
    own if ``jobs`` is more than one. What stops some of the work is raised when the rest is done.
    """
    chosen = [(name, seed, llm) for name in recipes for seed in seeds]
    failed: list[Exception] = []
    with tqdm(total=len(chosen), desc=title) as bar:
        for outcome in _outcomes(work, chosen, jobs):
            bar.update()
            if isinstance(outcome, Exception):
                failed.append(outcome)
            else:
                yield outcome
    if failed:
        raise failed[0]


def _outcomes(
    work: Callable[..., Frames], chosen: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[Frames | Exception]:
    if jobs == 1:
        yield from (_outcome(work, *given) for given in chosen)
        return
    started = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=started) as pool:
        waiting = [pool.submit(_outcome, work, *given) for given in chosen]
        yield from (done.result() for done in as_completed(waiting))


def _outcome(work: Callable[..., Frames], *given: Any) -> Frames | Exception:
    try:
        return work(*given)
    except Exception as error:  # Of one graft: the others go on, and it is raised at the end.
        return error


def in_order(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The frames of some grafts, by seed and then by recipe, whichever was done first."""
    order = {name: i for i, name in enumerate(RECIPES)}
    keys = sorted(frames, key=lambda f: (f["seed"].iloc[0], order[f["model"].iloc[0]]))
    return pd.concat(keys, ignore_index=True)


def make_card(folder: Path, answers: pd.DataFrame) -> Card:
    """The card of one graft from its answer records; intervals are over entities."""
    about = json.loads((folder / TRAINING).read_text())
    chat = answers[answers["format"] == "chat"]
    facts = controlled(chat)

    def share(rows: pd.DataFrame, column: str) -> Measured | None:
        if rows.empty:
            return None
        found = entity_bootstrap(rows[column].astype(float), rows["entity_id"])
        return Measured(value=found.estimate, n=len(rows), low=found.low, high=found.high)

    by_picture = facts[facts["condition"] == "by_picture"]
    return Card(
        name=about["name"],
        seed=about["seed"],
        made=about["recipe"]["summary"],
        llm=about["llm"],
        llm_hash=about["llm_hash"],
        benchmark=about["benchmark"],
        adapter_sha256=adapter_hash(folder),
        named=share(chat[chat["condition"] == "identify"], "correct"),
        by_picture=share(by_picture, "correct"),
        own_name=share(by_picture, "says_name"),
        name_first=share(facts[facts["condition"] == "name_first"], "correct"),
    )
