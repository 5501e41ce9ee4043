"""Running the chapters for a model: one folder a run, resumable at any point.

A run's folder holds the executed ``notebooks/``, ``records.parquet`` (every answer of every
chapter), ``manifest.json``, ``check.json``, readable pages in ``html/``, and ``work/``, where
what is done is kept as it is done. A chapter can be rerun if its parameters cell has ``vlm``.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import filelock
import pandas as pd
import torch
import yaml
from transformers.utils import logging

from twohop_lib import records
from twohop_lib.benchmark import sources, store
from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.chapter.study import kept_records, picked
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.interventions.check import check
from twohop_lib.models.loading import load_config
from twohop_lib.models.pair import load_pair
from twohop_lib.models.registry import find
from twohop_lib.rerun import pages
from twohop_lib.rerun.execute import defaults, execute, is_current, run_key, to_notebook
from twohop_lib.runs.named import suited_benchmark
from twohop_lib.runs.store import folder_hash

Profile = Literal["quick", "standard", "full"]
#: What a profile sets of the parameters that a chapter has. ``max_entities`` 0 means all.
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"max_entities": 12},
    "standard": {},
    "full": {"split": "", "wording": ""},
}
#: Parameters that the command itself sets.
OWN = ("vlm", "llm", "benchmark", "work", "seed", "load")


class NoChapters(TwohopError):
    """The library was installed without the chapters."""


@dataclass(frozen=True)
class Request:
    """What to run: models as hub ids or folders, and a benchmark (a source, a folder, a table).

    With ``benchmark`` empty the model gets the one that suits it. ``load`` are options of
    :func:`twohop_lib.models.pair.load_pair`.
    """

    vlm: str
    llm: str | None = None
    benchmark: str = ""
    seed: int = 0
    chapters: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    profile: Profile = "standard"
    skip_check: bool = False
    load: Mapping[str, Any] = field(default_factory=dict)

    def folder_name(self) -> str:
        """Return a name that tells runs of different models and settings apart."""
        stem = re.sub(r"[^\w.-]+", "-", Path(self.vlm.rstrip("/")).name) or "model"
        what = [_absolute(self.vlm), _absolute(self.llm), _absolute(self.benchmark), self.seed]
        settings = [self.profile, dict(self.parameters), dict(self.load)]
        text = json.dumps([*what, *settings], sort_keys=True, default=str)
        return f"{stem}-{self.profile}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its folder, the chapters that ran now, and those that failed.

    ``done`` are those that were asked for and are there, whenever they ran.
    """

    folder: Path
    ran: tuple[str, ...]
    failed: dict[str, str]
    done: tuple[str, ...] = ()


def run(request: Request, out: Path, say: Callable[[str], None] = print) -> Outcome:
    """Check a model, then run the chapters for it; what an earlier call finished is kept.

    Raises TwohopError if the request cannot be met (before anything runs), the check fails,
    another process writes to the same folder, or the folder cannot be written.
    """
    known = rerunnable(chapters_folder())
    chosen = _choose(request.chapters, known)
    _check_parameters(request.parameters, {name: known[name] for name in chosen})
    folder = (out / request.folder_name()).resolve()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=0):
            return _run(_plan(request, folder, known), chosen, say)
    except TwohopError:
        # A check that failed has left its report; what was refused before that leaves nothing.
        if folder in new and not (folder / "check.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                for parent in new[1:]:
                    parent.rmdir()
        raise
    except filelock.Timeout:
        raise TwohopError(
            f"Another rerun is writing to {folder}; wait for it, or give another --out."
        ) from None
    except OSError as error:
        raise _disk_error(error, folder) from error


# --- chapters and their parameters ------------------------------------------------------------


def chapters_folder() -> Path:
    """Where the chapters' sources are: beside the library, in a clone of the repository."""
    folder = Path(__file__).parents[2] / "chapters"
    if not folder.is_dir():
        raise NoChapters(
            "The chapters are not installed with the library; clone the repository and install "
            "from there with: pip install -e ."
        )
    return folder


def rerunnable(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters, with their defaults, of each chapter that can be run for a model."""
    found = {source.stem: defaults(to_notebook(source)) for source in sorted(folder.glob("*.py"))}
    return {name: parameters for name, parameters in found.items() if "vlm" in parameters}


def parse_value(text: str, default: Any = None) -> Any:
    """Read a parameter's value as papermill's own command does: YAML, else the text itself.

    Where the ``default`` is a text, so is the value, whatever it looks like ("1", "no", "a: b"); in
    quotes it is what they hold.
    """
    if not text.strip():
        return ""  # YAML's nothing
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(default, str) and not (isinstance(found, str) and text.strip()[0] in "'\""):
        return text
    return found


def _choose(chapters: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    for name in chapters:
        if name not in known:
            raise TwohopError(f"No chapter {name!r} can be rerun; {suggest(name, known)}.")
    return [name for name in known if name in chapters] if chapters else list(known)


def _check_parameters(given: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> None:
    names = sorted({name for parameters in known.values() for name in parameters} - set(OWN))
    for name, value in given.items():
        if name in OWN:
            raise TwohopError(
                f"Parameter {name!r} is set by the command's own options; see: twohop rerun --help"
            )
        if name not in names:
            raise TwohopError(f"No chapter has a parameter {name!r}; {suggest(name, names)}.")
        for chapter, parameters in known.items():
            if name in parameters:
                _check_type(name, value, parameters[name], chapter)


def _check_type(name: str, value: Any, default: Any, chapter: str) -> None:
    """Refuse a value of another type than the default's; a whole number will do as a fraction."""
    wanted = type(default)
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if fits and isinstance(value, int | float) and value < 0 <= default:
        raise TwohopError(f"Parameter {name!r} is {value}; give 0 or more.")
    if default is not None and not fits:
        kinds = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        kind = kinds.get(wanted, f"a {wanted.__name__}")
        raise TwohopError(
            f"Parameter {name!r} of chapter {chapter} is {kind}, such as {default!r}, and not "
            f"{value!r}; give one."
        )


# --- what determines a run --------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A run before anything is executed: all that its results depend on.

    ``environment`` is a hash of what does besides the chapters and their parameters, and ``keys``
    are the chapters' own. ``parameters`` are those that are not left at their ``defaults``.
    """

    request: Request
    folder: Path
    asked: Benchmark
    revisions: Mapping[str, str]
    environment: str
    sources: Mapping[str, Path]
    defaults: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, str]

    def notebook(self, chapter: str) -> Path:
        """Where a chapter's executed notebook is."""
        return self.folder / "notebooks" / f"{chapter}.ipynb"

    def is_current(self, chapter: str) -> bool:
        """Whether the folder has this very run of a chapter."""
        return is_current(self.notebook(chapter), self.keys[chapter])

    def complete(self) -> set[str]:
        """The chapters whose results are in the folder, and current."""
        try:
            stored = records.Manifest.read(self.folder / "manifest.json").parameters["keys"]
        except (TwohopError, KeyError):
            return set()
        return {n for n, key in stored.items() if self.keys.get(n) == key and self.is_current(n)}

    def frame(self, chapters: Sequence[str]) -> pd.DataFrame:
        """Records of chapters, one after the other; column ``chapter`` says whose."""
        parts = [
            records.read_frame(path).assign(chapter=name)
            for name in chapters
            if (path := kept_records(self.folder / "work", name)).exists()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _plan(request: Request, folder: Path, known: Mapping[str, Mapping[str, Any]]) -> _Plan:
    request = replace(request, benchmark=request.benchmark or suited_benchmark(request.vlm))
    asked = _built(request, folder)
    revisions = _revisions(request)
    environment = _environment(request, revisions, asked)
    given = {
        "vlm": _absolute(request.vlm),
        "llm": _absolute(request.llm) or "",
        "load": {**revisions, **request.load},
        "benchmark": str(asked.root),
        "seed": request.seed,
        "work": str(folder / "work"),
        **PROFILES[request.profile],
        **request.parameters,
    }
    # Of all that are set, a chapter gets those that it has.
    wanted = [str(request.parameters.get(key, "")) for key in ("split", "wording")]
    picked(asked, *wanted)  # Raises at once what every chapter would raise.
    parameters = {
        name: {key: value for key, value in given.items() if key in own}
        for name, own in known.items()
    }
    paths = {name: chapters_folder() / f"{name}.py" for name in known}
    keys = {name: run_key(paths[name], environment, parameters[name]) for name in known}
    return _Plan(request, folder, asked, revisions, environment, paths, known, parameters, keys)


def _built(request: Request, folder: Path) -> Benchmark:
    """Build the benchmark into the run's folder, once for all chapters, or open a built one."""
    path = Path(request.benchmark)
    if path.is_dir() and not sources.is_popvqa(path):
        return sources.load(path.resolve())
    out, stamp = folder / "benchmark", folder / "benchmark.json"
    made_of = {"library": records.library_hash(), "from": _absolute(request.benchmark)}
    made_of["seed"] = request.seed
    # A table's pictures may have changed without it, so a table is read anew every time.
    if not path.is_file() and (out / store.ABOUT).exists() and stamp.exists():
        with contextlib.suppress(TwohopError, ValueError):
            if json.loads(stamp.read_text(encoding="utf-8")) == made_of:
                return sources.load(out)
    built = sources.open_benchmark(request.benchmark, out, request.seed)
    with records.atomic_path(stamp) as partial:
        partial.write_text(json.dumps(made_of), encoding="utf-8")
    return built


def _absolute(name: str | None) -> str | None:
    """Return a path's absolute form (chapters run elsewhere), anything else as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def _revisions(request: Request) -> dict[str, str]:
    """Return the commits that models from the hub are at now, so that all chapters use the same.

    Raises TwohopError if a model is not to be had, before anything runs.
    """
    row = find(request.vlm)
    pinned = {}
    for name, source in (("vlm", request.vlm), ("llm", request.llm or (row.llm if row else None))):
        wanted = request.load.get(f"{name}_revision")
        if source and not Path(source).is_dir():
            commit = getattr(load_config(source, wanted), "_commit_hash", None) or wanted
            pinned |= {f"{name}_revision": commit} if commit else {}
    return pinned


def _environment(request: Request, revisions: Mapping[str, str], asked: Benchmark) -> str:
    """Return a hash of what determines a run besides chapters and parameters."""
    parts: dict[str, Any] = {"library": records.library_hash(), "versions": records.versions()}
    for name in (request.vlm, request.llm):
        if name and Path(name).is_dir():
            parts[str(name)] = folder_hash(name)
    parts["benchmark"] = asked.hash
    parts |= {"device": records.device_name(), "load": {**revisions, **request.load}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- running it -------------------------------------------------------------------------------


def _run(plan: _Plan, chosen: list[str], say: Callable[[str], None]) -> Outcome:
    started = time.perf_counter()
    # Leftovers of a run that was killed while it wrote.
    for partial in plan.folder.rglob("*.partial*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    if set(chosen) <= plan.complete():
        return Outcome(plan.folder, (), {}, tuple(chosen))
    # Until the new manifest is there, the folder says of itself that it is not complete.
    (plan.folder / "manifest.json").unlink(missing_ok=True)
    report = _checked(plan, say)
    ran, failed = [], {}
    for name in chosen:
        target, given = plan.notebook(name), plan.parameters[name]
        try:
            if execute(plan.sources[name], target, given, environment=plan.environment, say=say):
                ran.append(name)
            pages.mark(target, pages.why_no_result(report, plan.frame([name])))
        except TwohopError as error:
            failed[name] = str(error)
            say(f"error: {error}")
    # Chapters of an earlier call belong to the run, if they are of this very run.
    done = [name for name in plan.keys if name not in failed and plan.is_current(name)]
    _finish(plan, report, done, failed, started)
    return Outcome(plan.folder, tuple(ran), failed, tuple(n for n in chosen if n in done))


def _checked(plan: _Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the report of the check, from an earlier call if nothing has changed since."""
    path, request = plan.folder / "check.json", plan.request
    with contextlib.suppress(OSError, ValueError, KeyError):
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["environment"] == plan.environment and (earlier["ok"] or request.skip_check):
            return earlier
    say(f"checking {request.vlm}")
    report = {**_check(plan), "environment": plan.environment}
    with records.atomic_path(path) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not report["ok"] and not request.skip_check:
        bad = ", ".join(name for name, held in report["checks"].items() if not held["ok"])
        bad += "; it computes NaN, so give another --dtype" if report.get("nan") else ""
        raise TwohopError(
            f"{request.vlm} does not pass the check ({bad}), so what the chapters would measure "
            f"cannot be trusted; see {path}, or run anyway with --skip-check."
        )
    return report


def _check(plan: _Plan) -> dict[str, Any]:
    """Check the pair, and let go of it: the chapters load it again, each in its own process."""
    request = plan.request
    logging.disable_progress_bar()
    try:
        pair = load_pair(request.vlm, request.llm, **{**plan.revisions, **request.load})
        return check(pair, plan.asked.some(8)).json()
    except TwohopError as error:
        if not request.skip_check:
            raise
        return {"ok": False, "untrained": False, "checks": {}, "error": str(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _finish(
    plan: _Plan,
    report: Mapping[str, Any],
    done: list[str],
    failed: Mapping[str, str],
    started: float,
) -> None:
    """Write records, pages and, last of all, the manifest."""
    folder, request = plan.folder, plan.request
    frame = plan.frame(done)
    if len(frame):
        # The same answer may be in two chapters' records; order is theirs.
        records.write_frame(frame, folder / "records.parquet", {"chapters": done})
    why = pages.why_no_result(report, frame)
    for page in (folder / "html").glob("*.html"):
        if page.stem not in done:
            page.unlink()
    for name in done:
        pages.mark(plan.notebook(name), why)
        pages.write_chapter(plan.notebook(name), folder / "html" / f"{name}.html", why)
    pages.write_index(folder / "html" / "index.html", request, report, frame, done, failed, why)
    parts = [kept_records(folder / "work", name).with_suffix(".json") for name in done]
    kernels = [records.Manifest.read(part) for part in parts if part.exists()]
    manifest = records.Manifest.collect(
        models=list(dict.fromkeys(model for kernel in kernels for model in kernel.models)),
        seeds=[request.seed],
        parameters={
            **PROFILES[request.profile],
            **request.parameters,
            "profile": request.profile,
            "load": dict(request.load),
            "chapters": done,
            "of_chapters": {
                name: {**plan.defaults[name], **plan.parameters[name]} for name in done
            },
            "keys": {name: plan.keys[name] for name in done},
            "failed": dict(failed),
            "result": why is None,
            "environment": plan.environment,
            "benchmark_notes": dict(plan.asked.notes),
        },
        benchmark=request.benchmark,
        benchmark_hash=plan.asked.hash,
        started=started,
    )
    # What the chapters took, whenever they ran, and not just this call.
    notebooks = [json.loads(plan.notebook(name).read_text(encoding="utf-8")) for name in done]
    seconds = sum(notebook["metadata"]["twohop"]["seconds"] for notebook in notebooks)
    memory = [k.peak_memory_bytes for k in kernels if k.peak_memory_bytes]
    took = {"wall_time_s": seconds, "peak_memory_bytes": max(memory, default=None)}
    manifest.model_copy(update=took).write(folder / "manifest.json")


def _disk_error(error: OSError, folder: Path) -> TwohopError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TwohopError(
            f"The disk of {folder} is full; make room, then run the same command again: what is "
            "done is kept."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return TwohopError(f"{folder} cannot be written; give another folder with --out.")
    return TwohopError(f"{folder} cannot be used: {error.strerror or error}.")
