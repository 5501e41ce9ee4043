"""What a chapter shows of a published language model: the grafts, live or as they were recorded.

A chapter calls :func:`open_grafts` once, beside :func:`~twohop_lib.chapter.study.open_study`, and
hands every experiment on the grafts to :meth:`Published.frame`. Where the language model can be
had it is run; where it cannot, what ``twohop graft record`` left is read, and the captions say so.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from twohop_lib import records
from twohop_lib.benchmark import sources
from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.chapter.show import glue_all
from twohop_lib.chapter.study import Study
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import RECORDED, check_name, shipped
from twohop_lib.grafts.documents import half
from twohop_lib.models.loading import load_vlm
from twohop_lib.models.pair import ModelPair, compatibility, load_pair, text_stack
from twohop_lib.readouts.cut import cut_sentence
from twohop_lib.runs.evaluate import NULLABLE, evaluate
from twohop_lib.runs.named import locate_pair

#: What figures, captions and titles call them.
GRAFTS = "grafts of Gemma 3 270M"
#: Tokens of an answer: it ends with its line, and a batch waits for its longest.
MAX_NEW_TOKENS = 12
#: The running example: entities are taken evenly, from this one on.
EXAMPLE = "JP"
WORDING = "standard"
COMMAND = "twohop graft record"
#: Set by that command: the folder that frames are written to as they are computed.
RECORD_TO = "TWOHOP_RECORD"
#: Of every page: what the models answered, and what the language model did by name.
ANSWERS, BY_NAME = "answers", "by-name"
#: What stands in a sentence where there are no grafts.
UNMEASURED = "nothing was measured here"


@dataclass(frozen=True, eq=False)
class Published:
    """The grafts of one chapter; false where there is nothing of them to show.

    ``study`` is asked and swept like any other. ``words`` say for captions where its figures come
    from: "measured on this page", or recorded when, by which command and why. Recorded, the study
    holds the answers and no models, and all else comes from :meth:`frame`. ``by_name`` are the
    language model's answers by name to all questions about the study's entities; the study itself
    asks those that it answers right.
    """

    study: Study | None
    words: str
    by_name: pd.DataFrame = field(default_factory=pd.DataFrame)
    recorded: Path | None = None

    def __bool__(self) -> bool:
        return self.study is not None

    def frame(self, name: str, compute: Callable[[Study], pd.DataFrame]) -> pd.DataFrame:
        """``compute(study)`` where the models are here, else the frame of that name as recorded.

        Raises:
            TwohopError: there are no grafts, the chapter's recording has no such frame, or the name
                is that of a frame which every recording has.
        """
        if name in (ANSWERS, BY_NAME):
            raise TwohopError(f"Every page records its own {name!r}; give this frame another name.")
        if self.study is None:
            raise TwohopError(f"There are no grafts to show: {self.words}.")
        if self.recorded is not None:
            return _of(self.study.models, _read(self.study.chapter, name, self.recorded))
        found = compute(self.study)
        self._record({name: found})
        return found

    @property
    def too(self) -> str:
        """What follows "All figures are measured on this page, on organisms", up to the stop."""
        if self.study is None:
            return f"(there are no {GRAFTS}: {self.words})"
        if self.recorded is None:
            return f"and on {GRAFTS}"
        return f"(those on {GRAFTS} were {self.words})"

    @property
    def answers_cut(self) -> str:
        """For a takeaway: which of their answers the budget of new tokens cut off."""
        if self.study is None:
            return f"There are no answers of {GRAFTS}."
        return cut_sentence(self.study.answers, "answers of the grafts")

    def glue(self, **told: Callable[[], str]) -> None:
        """Glue what a page says of the grafts: ``grafts_words``, ``_too``, ``_answers_cut``.

        And each of ``told`` as ``grafts_…``, made only where there are grafts to tell of.
        """
        values = {"words": self.words, "too": self.too, "answers_cut": self.answers_cut}
        values |= {name: make() if self else UNMEASURED for name, make in told.items()}
        glue_all({f"grafts_{name}": value for name, value in values.items()})

    def title(self, finding: str) -> str:
        """A figure's title: whose finding it is, and the finding."""
        return f"G{GRAFTS[1:]}: {finding[:1].lower()}{finding[1:]}"

    def caption(self, text: str) -> str:
        """A figure's caption, with whose figure it is and where it comes from."""
        return f"{text} G{GRAFTS[1:]}, {self.words}."

    def _record(self, frames: Mapping[str, pd.DataFrame]) -> None:
        """Where pages are recorded, write frames, and those that every recording has."""
        to = os.environ.get(RECORD_TO)
        if not to:
            return
        meta = {
            "command": COMMAND,
            "date": datetime.now(UTC).date().isoformat(),
            "seed": self.study.seed,
            "entities": len(self.study.questions.entities()),
            "versions": records.versions(),
        }
        every = {**frames, ANSWERS: self.study.answers, BY_NAME: self.by_name}
        for name, frame in every.items():
            records.write_frame(frame, _file(self.study.chapter, name, Path(to)), meta)


def open_grafts(
    chapter: str,
    grafts: Sequence[str],
    given: bool = False,
    entities: int = 12,
    seed: int = 0,
    batch_size: int = 64,
    work: str = "",
) -> Published:
    """Open the grafts that a chapter shows beside the organisms, and print which these are.

    They are asked about flags without a look-alike, of countries that no recipe was asked facts
    about in training: ``entities`` of them, taken evenly (0: all), and facts of theirs that the
    language model gives by name. ``given`` says that the page is about a model that the reader
    named: there are no grafts on it.

    Raises:
        TwohopError: a name is no graft's.
    """
    for name in grafts:
        check_name(name)
    if given or not grafts:
        return Published(None, "none were asked for")
    everyone = graft_questions(seed)
    asked = everyone.some(entities)
    about = {"chapter": chapter, "seed": seed, "given": False, "batch_size": batch_size}
    about |= {"max_new_tokens": MAX_NEW_TOKENS}
    about |= {"everyone": everyone, "work": work}
    pairs, reasons = _live(grafts, seed)
    for reason in reasons:
        print(f"{reason}.")
    opened = _run(pairs, asked, about) if pairs else _recorded(chapter, grafts, asked, about)
    print(_told(opened))
    return opened


def graft_questions(seed: int = 0) -> Benchmark:
    """Questions about flags that tell the grafts apart fairly; see :func:`open_grafts`."""
    folder = tempfile.TemporaryDirectory(prefix="twohop-")
    _BUILT.append(folder)
    flags = sources.build("flags", Path(folder.name) / "flags", distinct=True)
    order = flags.entities()
    kept = [e for e in order if e not in half(order, seed)]
    start = kept.index(EXAMPLE) if EXAMPLE in kept else 0
    place = {e: i for i, e in enumerate(kept[start:] + kept[:start])}
    asked = [q for q in flags.select(wording=WORDING).questions if q.entity_id in place]
    asked.sort(key=lambda q: place[q.entity_id])
    return replace(flags, questions=tuple(asked))


#: Benchmarks built for this process; their folders go when it does.
_BUILT: list[tempfile.TemporaryDirectory[str]] = []


# --- live -------------------------------------------------------------------------------------


def _run(pairs: Mapping[str, ModelPair], asked: Benchmark, about: dict[str, Any]) -> Published:
    """Grafts that are here, asked what their language model knows by name."""
    first = next(iter(pairs.values())).backbone
    by_name = evaluate(
        None,
        first,
        asked,
        conditions=["llm_by_name"],
        model_name="backbone",
        seed=about["seed"],
        batch_size=about["batch_size"],
        max_new_tokens=about["max_new_tokens"],
        folder=shipped.grafts_folder() / "by_name",
    )
    study = Study(pairs=pairs, questions=_known(asked, by_name), **about)
    known = {q.question_id for q in study.questions.questions}
    right = by_name[by_name["question_id"].isin(known)]
    for model, pair in pairs.items():
        if pair.backbone is first:
            study.recall(right.assign(model=model))
    opened = Published(study, "measured on this page", by_name)
    opened._record({})
    return opened


def _known(asked: Benchmark, by_name: pd.DataFrame) -> Benchmark:
    """The questions that were answered right; all, should there be none."""
    right = set(by_name.loc[by_name["correct"].astype(bool), "question_id"])
    known = tuple(q for q in asked.questions if q.question_id in right)
    return replace(asked, questions=known or asked.questions)


def _live(grafts: Sequence[str], seed: int) -> tuple[dict[str, ModelPair], list[str]]:
    """The pairs of those grafts that are here, and a sentence on each that is not."""
    pairs: dict[str, ModelPair] = {}
    reasons: list[str] = []
    for name in grafts:
        try:
            vlm, llm = locate_pair(str(shipped.path(name, seed)))
        except TwohopError as error:
            reasons.append(str(error).rstrip("."))
            continue
        pairs[name] = _sharing(vlm, llm, next(iter(pairs.values()), None))
    return pairs, list(dict.fromkeys(reasons))


def _sharing(vlm: str, llm: str | None, other: ModelPair | None) -> ModelPair:
    """A pair that holds what it has in common with another one in the same memory.

    Grafts have one frozen language model: it is held once, however many there are.
    """
    if other is None or other.llm is None:
        pair = load_pair(vlm, llm)
    else:
        loaded = load_vlm(vlm, other.vlm.model.dtype)
        pair = ModelPair(loaded, other.llm, None, compatibility(loaded, other.llm))
    if pair.llm is not None:
        _share(text_stack(pair.vlm.model), text_stack(pair.llm.model))
    return pair


def _share(own: Any, common: Any) -> None:
    """Let a text stack use another's weights wherever its own are equal to them."""
    theirs = dict(common.named_parameters())
    for name, weight in own.named_parameters():
        if name in theirs and torch.equal(weight, theirs[name]):
            weight.data = theirs[name].data


# --- recorded ---------------------------------------------------------------------------------


def _recorded(
    chapter: str, grafts: Sequence[str], asked: Benchmark, about: dict[str, Any]
) -> Published:
    """The grafts as they were recorded for a chapter; false if they were not."""
    file = _file(chapter, ANSWERS, RECORDED)
    if not file.is_file():
        return Published(None, "neither are they here, nor were they recorded for this page")
    answers, meta = _read(chapter, ANSWERS, RECORDED), records.read_meta(file)
    models = [name for name in grafts if name in set(answers["model"])]
    by_name = _read(chapter, BY_NAME, RECORDED)
    study = Study(pairs=dict.fromkeys(models), questions=_known(asked, by_name), **about)
    study.recall(_of(models, answers))
    date = datetime.fromisoformat(meta["date"])
    words = (
        f"recorded on {date.day} {date:%B %Y} by {meta['command']}, since the language model "
        "could not be had here"
    )
    return Published(study, words, by_name, RECORDED)


def _of(models: Sequence[str], frame: pd.DataFrame) -> pd.DataFrame:
    if "model" not in frame:
        return frame
    return frame[frame["model"].isin([*models, "backbone"])].reset_index(drop=True)


def _file(chapter: str, name: str, folder: Path) -> Path:
    return folder / f"{chapter}-{name}.parquet"


def _read(chapter: str, name: str, folder: Path) -> pd.DataFrame:
    file = _file(chapter, name, folder)
    if not file.is_file():
        raise TwohopError(
            f"The frame {name!r} of chapter {chapter} was not recorded; where the language model "
            f"can be had, run: {COMMAND} {chapter}"
        )
    return _typed(records.read_frame(file))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the types of columns that a file does not keep where all is missing."""
    return frame.astype({column: kind for column, kind in NULLABLE.items() if column in frame})


def _told(opened: Published) -> str:
    """What a page says of the grafts that it shows."""
    if opened.study is None:
        return f"No {GRAFTS}: {opened.words}."
    study, asked = opened.study, opened.by_name
    return (
        f"The {GRAFTS} {', '.join(study.models)}, {opened.words}.\n"
        f"{study.noun}: {asked['entity_id'].nunique()}, {len(asked)} questions, of which their "
        f"language model answers {asked['correct'].sum()} by name"
    )
