"""What a chapter opens: its models, its questions, engines, and where its records go.

A chapter calls :func:`open_study` once. What it then asks of the :class:`Study` is cached, so that
cells can be read, and run again, in any order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from twohop_lib import records
from twohop_lib.benchmark import sources
from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.figures.theme import ARM_OF_CONDITION
from twohop_lib.interventions.pairs import NothingLeft, Pair, Task, one_per_entity, pairs_for
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import ControlFailed
from twohop_lib.models.agreement import farthest
from twohop_lib.models.pair import ModelPair, load_pair
from twohop_lib.models.registry import ENTRIES
from twohop_lib.organisms import FURTHER, NAMES, STUDY
from twohop_lib.readouts.cut import cut_by_arm, cut_sentence
from twohop_lib.readouts.tables import counted_table
from twohop_lib.runs.conditions import CONDITIONS
from twohop_lib.runs.evaluate import evaluate
from twohop_lib.runs.generate import MAX_NEW_TOKENS
from twohop_lib.runs.named import locate_pair, suited_benchmark
from twohop_lib.runs.rank import answers_of, rank
from twohop_lib.scoring.matching import matches
from twohop_lib.scoring.ranking import likeliest

#: What tells ranked items apart.
RANKED_BY = ("model", "seed", "entity_id", "relation", "question_id", "wording", "condition")
#: Benchmarks built for this process; their folders go when it does.
_BUILT: list[tempfile.TemporaryDirectory[str]] = []


def open_study(
    chapter: str,
    vlm: str = "",
    llm: str = "",
    load: Mapping[str, Any] | None = None,
    benchmark: str = "",
    organisms: Sequence[str] = ("late", "middle", "early", "cross"),
    seed: int = 0,
    split: str = "test",
    wording: str = "standard",
    max_entities: int = 0,
    batch_size: int = 64,
    work: str = "",
    max_new_tokens: int = MAX_NEW_TOKENS,
    instruction: str = "",
) -> Study:
    """Open a chapter's models and questions, and print which these are and why.

    ``vlm`` and ``llm`` are hub ids or folders; with ``vlm`` empty the book's own ``organisms`` of
    world ``seed`` are opened. ``load`` are options of :func:`twohop_lib.models.pair.load_pair`.
    ``benchmark`` is a source's name, the folder of a built one, a copy of PopVQA, or a table; empty
    takes what suits the model. ``split`` is ignored by benchmarks that have none; ``max_entities``
    of them are taken evenly from first to last, 0 means all. ``batch_size`` prompts, or changed
    runs, are computed at once. ``work`` is a folder that keeps finished work; empty keeps none.
    ``max_new_tokens`` is the budget of an answer, and ``instruction`` follows every question
    ("Answer with the name only.").

    papermill reads what looks like a number as one: such a value of a text is taken as it was
    written.

    Raises TwohopError if a value cannot be what it is to be, a model cannot be loaded, or no
    question is left.
    """
    vlm, llm, work = _text("vlm", vlm), _text("llm", llm), _text("work", work)
    benchmark, split = _text("benchmark", benchmark), _text("split", split)
    wording, instruction = _text("wording", wording), _text("instruction", instruction)
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise TwohopError(f"max_new_tokens is {max_new_tokens!r}; give a whole number, 1 or more.")
    asked = benchmark or suited_benchmark(vlm)
    source = _opened(asked, seed)
    source = source.instructed(instruction)
    questions = picked(source, split, wording, max_entities)
    study = Study(
        chapter=chapter,
        pairs=open_pairs(vlm, llm, organisms, seed, load),
        questions=questions,
        seed=seed,
        given=bool(vlm),
        everyone=picked(source, "", wording, 0),
        batch_size=batch_size,
        work=work,
        max_new_tokens=max_new_tokens,
    )
    print(f"{study.noun}: {len(questions.entities())}, {len(questions.questions)} questions")
    return study


def _text(name: str, value: object) -> str:
    """The value of a parameter that is a text."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TwohopError(f"{name} is {value!r}; give a text.")
    return str(value)


@dataclass(frozen=True, eq=False)
class Study:
    """The models of one chapter's run, by name, and the questions that they are asked.

    ``given`` says that the page is about a model that the reader named, not the book's own.
    ``everyone`` are all entities of the benchmark, of every split, in the same wording: for what is
    fitted on other entities than those asked about.
    """

    chapter: str
    pairs: Mapping[str, ModelPair]
    questions: Benchmark
    seed: int
    given: bool
    everyone: Benchmark
    batch_size: int = 64
    work: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    _engines: dict[int, Engine] = field(default_factory=dict, repr=False)
    _answers: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict, repr=False)
    _ranked: dict[tuple[int, str], pd.DataFrame] = field(default_factory=dict, repr=False)
    _kept: list[pd.DataFrame] = field(default_factory=list, repr=False)

    # --- models and questions ---

    @property
    def models(self) -> list[str]:
        """The names of the models, in the order in which figures show them."""
        return list(self.pairs)

    @property
    def noun(self) -> str:
        """What the entities are ("house", "country")."""
        return self.questions.questions[0].noun

    @property
    def subject(self) -> str:
        """What a page about one model is about: "late, with 48 entities of the benchmark …"."""
        return (
            f"{self.models[0]}, with {len(self.questions.entities())} entities of the benchmark "
            f"{self.questions.name}"
        )

    def example(self, *preferred: str) -> str:
        """The model that an example is about: the first of ``preferred`` that is here."""
        return next((name for name in preferred if name in self.pairs), self.models[0])

    def engine(self, model: str) -> Engine:
        """The engine of a VLM; one a model, however often it is asked for."""
        return self._engine(self.pairs[model].vlm)

    def backbone(self, model: str | None = None) -> Engine:
        """The engine of a VLM's backbone (by default the first one's)."""
        return self._engine(self.pairs[model or self.models[0]].backbone)

    def _engine(self, model: Any) -> Engine:
        key = id(model.model)
        if key not in self._engines:
            self._engines[key] = Engine(model, self.batch_size)
        return self._engines[key]

    def n_blocks(self) -> dict[str, int]:
        """How many blocks each model has, the text backbone among them if there is one."""
        found = {name: self.engine(name).n_blocks for name in self.models}
        if self.pairs[self.models[0]].llm is not None:
            found["backbone"] = self.backbone().n_blocks
        return found

    # --- answers ---

    def ask(self, *conditions: str) -> pd.DataFrame:
        """Answer records of every model in these conditions, asked once each."""
        for name, pair in self.pairs.items():
            missing = [c for c in conditions if (name, c) not in self._answers]
            for condition in missing:
                twin = self._twin(name, condition)
                if twin is not None:
                    self._answers[name, condition] = twin.assign(model=name)
            missing = [c for c in missing if (name, c) not in self._answers]
            if missing:
                self.recall(
                    evaluate(
                        pair.vlm,
                        pair.backbone,
                        self.questions,
                        conditions=missing,
                        batch_size=self.batch_size,
                        max_new_tokens=self.max_new_tokens,
                        model_name=name,
                        seed=self.seed,
                        folder=self.work or None,
                    )
                )
        parts = [self._answers[name, c] for name in self.models for c in conditions]
        return pd.concat(parts, ignore_index=True)

    def ranked(self, *conditions: str) -> pd.DataFrame:
        """Whether an accepted answer is likelier than every other answer of its relation.

        Of facts about each model's :meth:`entities` that have another answer; one row an item and
        condition, with the columns of :func:`~twohop_lib.scoring.ranking.likeliest`. The other
        answers are those of all the benchmark's entities. A model that cannot be ranked is left
        out, and the reason printed.
        """
        offered = answers_of(self.everyone)
        rows = []
        for name in self.models:
            ids = self.entities(name)
            for condition in conditions:
                try:
                    found = self._ranking(name, condition, offered)
                except TwohopError as error:
                    print(f"{name} is not ranked {condition}: {error}")
                    continue
                rows.append(found[found["entity_id"].isin(ids)].assign(model=name))
        empty = pd.DataFrame(columns=[*RANKED_BY, "candidate", "by_length", "by_first"])
        return pd.concat(rows, ignore_index=True) if rows else empty

    def _ranking(
        self, model: str, condition: str, offered: Mapping[str, Sequence[str]]
    ) -> pd.DataFrame:
        """One model's ranking; what a backbone ranks is ranked once for all that share it."""
        pair, ids = self.pairs[model], self.entities(model)
        key = (id(pair.vlm.model), condition)
        if CONDITIONS[condition].answered_by == "backbone":
            key = (id(pair.backbone.model), condition)
            ids = set().union(*map(self.entities, self.models))
        if key not in self._ranked:
            asked = tuple(q for q in self.questions.questions if q.entity_id in ids)
            scores = rank(
                pair.vlm,
                pair.backbone,
                replace(self.questions, questions=asked),
                [condition],
                offered,
                model_name=model,
                seed=self.seed,
                batch_size=self.batch_size,
                folder=self.work or None,
            )
            rivals = scores.groupby(list(RANKED_BY))["accepted"].transform("nunique") == 2
            self._ranked[key] = likeliest(scores[rivals], RANKED_BY)
        return self._ranked[key]

    def _twin(self, model: str, condition: str) -> pd.DataFrame | None:
        """What another model's backbone answered, if both have one and the same in memory."""
        if CONDITIONS[condition].answered_by != "backbone":
            return None
        own = self.pairs[model].backbone
        same = (name for name, pair in self.pairs.items() if pair.backbone is own)
        return next(
            (self._answers[n, condition] for n in same if (n, condition) in self._answers), None
        )

    @property
    def answers(self) -> pd.DataFrame:
        """All answer records so far, of whatever was asked."""
        return pd.concat(self._answers.values(), ignore_index=True)

    def recall(self, answers: pd.DataFrame) -> None:
        """Take answers that were recorded before for asked: :meth:`ask` returns them."""
        for (model, condition), part in answers.groupby(["model", "condition"], sort=False):
            self._answers[str(model), str(condition)] = part

    def able(self, *conditions: str) -> pd.DataFrame:
        """How often each model is right in these conditions, as texts; one row a model.

        The last column says how many of these answers the budget of new tokens cut off.
        """
        labels = ARM_OF_CONDITION | {"identify": f"names the {self.noun}"}
        asked = self.ask(*conditions)
        table = counted_table(asked, "model", "condition", labels=labels)
        cut = cut_by_arm(asked).groupby("model", sort=False)[["cut", "n"]].sum()
        return table.assign(**{"cut off": [f"{r.cut} of {r.n}" for r in cut.itertuples()]})

    @property
    def answers_cut(self) -> str:
        """For a takeaway: which answers the budget cut off, of all that was asked and kept."""
        return cut_sentence(pd.concat([*self._answers.values(), *self._kept], ignore_index=True))

    def all_missed(self, model: str, known_in: str = "by_name") -> list[Question]:
        """The questions that a model answers in ``known_in`` and misses by picture.

        Among those about :meth:`entities`; the first question of all if there is none, so that a
        page always has an example.
        """
        answers = self.ask(known_in, "by_picture")
        own = answers[answers["model"] == model]
        right = own.pivot(index="question_id", columns="condition", values="correct").astype(bool)
        wanted = right.index[right[known_in] & ~right["by_picture"]]
        ids, every = self.entities(model), self.questions.questions
        found = [q for q in every if q.question_id in wanted and q.entity_id in ids]
        return found or list(every[:1])

    def missed(self, model: str, known_in: str = "by_name") -> Question:
        """A question for an example: the first of :meth:`all_missed`."""
        return self.all_missed(model, known_in)[0]

    def brought_back(
        self, model: str, answers: Callable[[Question], tuple[Any, list[str]]]
    ) -> Question:
        """A question for an example: the first missed one that an edit brings back.

        Known to the backbone; ``answers(question)`` are the edited run's logits and what it says.
        The first missed one, if none comes back.
        """
        missed = self.all_missed(model, "llm_by_name")
        back = (q for q in missed if matches(answers(q)[1][0], q.answers))
        return next(back, missed[0])

    def recognised(self, model: str) -> set[str]:
        """Ids of the entities that a model names from their pictures; it may be none."""
        named = self.ask("identify")
        return set(named.loc[(named["model"] == model) & named["correct"], "entity_id"])

    def entities(self, model: str) -> set[str]:
        """Ids of the entities that experiments on a model are run on.

        Those that it recognises; all, if it recognises none (:meth:`among` says so).
        """
        return self.recognised(model) or set(self.questions.entities())

    def asked(self, model: str) -> list[Question]:
        """One question about each of :meth:`entities`; relations go round."""
        ids = self.entities(model)
        return [q for q in one_per_entity(self.questions.questions) if q.entity_id in ids]

    def among(self, models: Sequence[str] | None = None) -> str:
        """For captions: which entities those are that experiments were run on."""
        blind = [name for name in models or self.models if not self.recognised(name)]
        if not blind:
            return "entities that the model names from their pictures"
        if len(blind) == len(models or self.models):
            return "all entities, since the model names none from its picture"
        return f"entities that the model names (all, for {', '.join(blind)}, which names none)"

    def pairs_of(
        self, model: str, task: Task, per_target: int = 1, alike_names: bool = False
    ) -> list[Pair]:
        """Targets and donors among a model's entities (of "backbone": among all of them)."""
        if model == "backbone":
            asked, ids = self.backbone().owner, set(self.questions.entities())
        else:
            asked, ids = self.pairs[model].vlm, self.entities(model)
        return pairs_for(asked, self.questions, task, ids, per_target, alike_names=alike_names)

    def with_names(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Add the donor's name to records of pairs: column ``donor``."""
        names = {q.entity_id: q.entity for q in self.questions.questions}
        return frame.assign(donor=frame["donor_id"].map(names))

    # --- sweeps ---

    def kept(self, model: str) -> dict[str, Any]:
        """What an experiment takes beside its own parameters.

        What its records of a model are labelled with, where they are kept, and the budget of an
        answer, which changed runs share with those left alone.
        """
        return {
            "labels": {"model": model, "seed": self.seed},
            "folder": self.work or None,
            "max_new_tokens": self.max_new_tokens,
        }

    def sweep(self, experiment: Callable[[str, Engine, dict[str, Any]], Any]) -> pd.DataFrame:
        """Run an experiment on every model and join what comes back.

        ``experiment(model, engine, labels)`` returns a frame, or None where the model does not
        allow it. ``labels`` go to the experiment's own function (``**labels``); a frame that is not
        labelled gets the columns ``model`` and ``seed``. With no frame at all the result is empty.
        """
        frames = []
        for name in self.models:
            labels = self.kept(name)
            frame = experiment(name, self.engine(name), labels)
            if frame is not None and len(frame):
                own = {k: v for k, v in labels["labels"].items() if k not in frame}
                frames.append(frame.assign(**own))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def sweep_backbone(self, experiment: Callable[[Engine, dict[str, Any]], Any]) -> pd.DataFrame:
        """Run an experiment on the text backbone; its records are labelled "backbone".

        ``experiment(engine, labels)`` as in :meth:`sweep`. Empty where the VLM is its own backbone,
        or where nothing is left to run (no two names of as many tokens, say).
        """
        if self.pairs[self.models[0]].llm is None:
            return pd.DataFrame()
        try:
            return experiment(self.backbone(), self.kept("backbone"))
        except NothingLeft:
            return pd.DataFrame()

    @staticmethod
    def assert_same(fast: Tensor, slow: Tensor, engine: Engine, *ends: Recording) -> None:
        """Hold the library's logits against those of a page's own slow run of the same edit.

        ``ends`` are the undisturbed runs that the edit lies between. Raises ControlFailed.
        """
        away = farthest(slow, [end.logits for end in ends])
        held, dtype = engine.agreement(fast, slow, away), engine.model.dtype
        # An edit that changes nothing leaves no run to be told from.
        nothing = _but_for_rounding(slow, away, dtype)
        if not (_but_for_rounding(fast, slow, dtype) if nothing else held.ok):
            raise ControlFailed(f"The page's run and the library's do not agree: {held.words()}.")

    # --- records ---

    def everywhere(
        self, file: str, models: Sequence[str] | None = None, **wanted: Any
    ) -> pd.DataFrame:
        """The study's records in all worlds (seeds), this page's included.

        As of :func:`study_records`; ``models`` are by default this page's and the backbone. Empty,
        with the columns in place, on a page about a given model.
        """
        found = study_records(file, models or [*self.models, "backbone"], **wanted)
        return found.iloc[:0] if self.given else found

    def recorded(self, file: str, **wanted: Any) -> pd.DataFrame:
        """:meth:`everywhere`, without the world that this page computes itself."""
        found = self.everywhere(file, **wanted)
        return found[found["seed"] != self.seed].reset_index(drop=True)

    def elsewhere(self, file: str, **wanted: Any) -> pd.DataFrame:
        """:meth:`everywhere` for all of the study's models, without what this page computes."""
        found = self.everywhere(file, models=(*NAMES, *FURTHER), **wanted)
        here = found["model"].isin(self.models) & (found["seed"] == self.seed)
        return found[~here].reset_index(drop=True)

    def worlds(self, frame: pd.DataFrame) -> str:
        """For captions: how many worlds (seeds) a frame is of, and which are computed here.

        Begins with a space; empty if this page's world is the only one.
        """
        seeds = set(frame["seed"])
        if seeds <= {self.seed}:
            return ""
        which = (
            "All" if self.seed not in seeds else f"Seed {self.seed} is computed here, the others"
        )
        return f" in {len(seeds)} worlds. {which} are read from the study's records"

    def keep(self, *frames: pd.DataFrame) -> None:
        """Write the chapter's records, and how its models were loaded, where a run looks.

        Nothing is written without a ``work`` folder.
        """
        kept = [frame for frame in frames if len(frame)]
        keep_records(pd.concat(kept, ignore_index=True), self.work, self.chapter, self.pairs)
        changed = (f[f["intervention"].notna()] for f in kept if "intervention" in f)
        self._kept[:] = changed


def study_records(file: str, models: Sequence[str], **wanted: Any) -> pd.DataFrame:
    """The shipped records of some of the study's models, in all worlds; model by model.

    ``file`` is "answers", "sweeps", "recall" or "training"; ``wanted`` are values of columns.
    """
    found = records.read_frame(STUDY / f"{file}.parquet")
    for column, value in wanted.items():
        found = found[found[column] == value]
    return pd.concat([found[found["model"] == model] for model in models], ignore_index=True)


def keep_records(
    frame: pd.DataFrame, work: str, chapter: str, pairs: Mapping[str, ModelPair] | None = None
) -> None:
    """Write a chapter's answer records, and how its models were loaded.

    Nothing is written if ``work`` is empty. Raises TwohopError as :func:`records.validate` does.
    """
    if not work:
        return
    file = kept_records(work, chapter)
    records.write(frame, file, {"chapter": chapter})
    models = []
    for pair in (pairs or {}).values():
        models.append(records.ModelEntry.of("vlm", pair.vlm.model, pair.vlm.processor))
        if pair.llm is not None:
            models.append(records.ModelEntry.of("llm", pair.llm.model, pair.llm.tokenizer))
    # Of this process, which is the one that holds the models.
    records.Manifest.collect(models=models, command="").write(file.with_suffix(".json"))


def kept_records(work: str | Path, chapter: str) -> Path:
    """Where a chapter's records lie in the ``work`` folder of a run."""
    return Path(work) / f"records-{chapter}.parquet"


# --- opening ----------------------------------------------------------------------------------


def open_pairs(
    vlm: str, llm: str, organisms: Sequence[str], seed: int, load: Mapping[str, Any] | None = None
) -> dict[str, ModelPair]:
    """Open the pair that a chapter was given, or, with ``vlm`` empty, the book's organisms.

    Prints which models these are and why. Returns pairs by the name that they go by in the
    chapter's records and figures.
    """
    if vlm:
        pair = load_pair(*locate_pair(vlm, llm or None, seed), **dict(load or {}))
        print(f"{pair.name}, on {pair.vlm.model.device}, as asked.", *pair.notes)
        return {pair.vlm.name: pair}
    print(f"The organisms {', '.join(organisms)}: no model was named.", _could_run(), sep="\n")
    return {name: load_pair(*locate_pair(name, None, seed)) for name in organisms}


def _could_run() -> str:
    """Say which published pair the GPU here would take, if there is one."""
    if not torch.cuda.is_available():
        return "There is no GPU here, and they need none."
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    # The largest pair that both fit unquantised.
    fitting = [entry for entry in ENTRIES if entry.llm and entry.fits(memory, pair=True) == "bf16"]
    if not fitting:
        return f"The GPU here has {memory:.0f} GB, too little for any pair that is known."
    entry = max(fitting, key=lambda entry: entry.parameters_b)
    return (
        f"The GPU here has {memory:.0f} GB and takes, for instance, {entry.vlm}: set vlm to it. "
        "It is asked about flags then, unless benchmark says otherwise."
    )


def open_questions(
    benchmark: str, seed: int, split: str = "", wording: str = "", max_entities: int = 0
) -> Benchmark:
    """Open a benchmark and pick questions of it (see :func:`open_study`).

    Raises TwohopError if nothing is left.
    """
    return picked(_opened(benchmark, seed), split, wording, max_entities)


def _opened(benchmark: str, seed: int) -> Benchmark:
    _BUILT.append(tempfile.TemporaryDirectory(prefix="twohop-"))
    return sources.open_benchmark(benchmark, Path(_BUILT[-1].name) / "benchmark", seed)


def picked(source: Benchmark, split: str, wording: str, max_entities: int = 0) -> Benchmark:
    """Questions of a benchmark, as :func:`open_study` picks them; raises TwohopError if none."""
    by = {"wording": wording}
    if any(question.split for question in source.questions):
        by["split"] = split
    found = source.select(**{key: value for key, value in by.items() if value})
    found = found.some(max_entities)
    if not found.questions:
        raise TwohopError(
            f"Benchmark {source.name} has no question of split {split!r} in wording {wording!r}; "
            "pick others."
        )
    return found


def _but_for_rounding(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits computed in ``dtype`` are equal but for rounding."""
    share = {torch.float32: 1e-4, torch.float16: 2e-2}.get(dtype, 1e-1)
    return bool((a.to(b.device) - b).abs().max() <= share * max(1.0, b.abs().max().item()))
