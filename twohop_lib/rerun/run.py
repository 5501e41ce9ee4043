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
import html
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock
import nbformat
import pandas as pd

from twohop_lib import records
from twohop_lib.chapter.study import kept_records
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.rerun import execute as rerun

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark

Profile = Literal["quick", "standard", "full"]
#: What a profile sets of the parameters that a chapter has. ``max_entities`` 0 means all.
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"max_entities": 12},
    "standard": {},
    "full": {"split": "", "wording": ""},
}
#: Parameters that the command itself sets.
OWN = ("vlm", "llm", "benchmark", "work", "seed", "load")

NOT_A_RESULT = (
    "**Not a result.** {why} The page shows that the experiments run on it, and nothing else."
)


# --- chapters ---------------------------------------------------------------------------------


def chapters_folder() -> Path:
    """Where the chapters' sources are: beside the library, in a clone of the repository."""
    folder = Path(__file__).parents[2] / "chapters"
    if not folder.is_dir():
        raise TwohopError(
            "The chapters are not installed with the library; clone the repository and install "
            "from there with: pip install -e ."
        )
    return folder


def rerunnable(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters, with their defaults, of each chapter that can be run for a model."""
    found = {}
    for source in sorted(folder.glob("*.py")):
        parameters = rerun.defaults(rerun.to_notebook(source))
        if "vlm" in parameters:
            found[source.stem] = parameters
    return found


def _choose(chapters: Sequence[str] | None, known: Mapping[str, Any]) -> list[str]:
    for name in chapters or ():
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


# --- one run ----------------------------------------------------------------------------------


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
    source = chapters_folder()
    known = rerunnable(source)
    chosen = _choose(request.chapters, known)
    _check_parameters(request.parameters, {name: known[name] for name in chosen})
    folder = (out / request.folder_name()).resolve()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=0):
            return _run(request, folder, source, chosen, known, say)
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


def _run(
    request: Request,
    folder: Path,
    source: Path,
    chosen: list[str],
    known: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], None],
) -> Outcome:
    started = time.perf_counter()
    # A leftover of a run that was killed while it wrote.
    for partial in folder.rglob("*.partial*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    from twohop_lib.organisms import suited_benchmark

    request = replace(request, benchmark=request.benchmark or suited_benchmark(request.vlm))
    asked = _built(request, folder)
    revisions = _revisions(request)
    environment = _environment(request, revisions, asked)
    plan = {
        name: (source / f"{name}.py", _given(request, folder, revisions, asked, known[name]))
        for name in known
    }
    keys = {name: rerun.run_key(at, environment, given) for name, (at, given) in plan.items()}
    if set(chosen) <= _complete(folder, keys):
        return Outcome(folder, (), {}, tuple(chosen))
    # Until the new manifest is there, the folder says of itself that it is not complete.
    (folder / "manifest.json").unlink(missing_ok=True)
    report = _checked(request, folder, environment, revisions, asked, say)
    ran, failed = [], {}
    for name in chosen:
        at, given = plan[name]
        target = _notebook(folder, name)
        try:
            if rerun.execute(at, target, given, environment=environment, say=say):
                ran.append(name)
            _mark(target, _why_not(report, _frame(folder, [name])))
        except TwohopError as error:
            failed[name] = str(error)
            say(f"error: {error}")
    # Chapters of an earlier call belong to the run, if they are of this very run.
    done = [n for n in known if n not in failed and rerun.is_current(_notebook(folder, n), keys[n])]
    parameters = {name: {**known[name], **plan[name][1]} for name in done}
    _finish(request, folder, asked, parameters, failed, report, environment, keys, started)
    return Outcome(folder, tuple(ran), failed, tuple(name for name in chosen if name in done))


def _built(request: Request, folder: Path) -> Benchmark:
    """Build the benchmark into the run's folder, once for all chapters, or open a built one."""
    from twohop_lib.benchmark import sources, store

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


def _given(
    request: Request,
    folder: Path,
    revisions: Mapping[str, str],
    asked: Benchmark,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a chapter's parameters: of all that are set, those that it has."""
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
    return {name: value for name, value in given.items() if name in known}


def _notebook(folder: Path, chapter: str) -> Path:
    return folder / "notebooks" / f"{chapter}.ipynb"


def _complete(folder: Path, keys: Mapping[str, str]) -> set[str]:
    """Return the chapters whose results are in the folder, and current."""
    try:
        stored = records.Manifest.read(folder / "manifest.json").parameters["keys"]
    except (TwohopError, KeyError):
        return set()
    return {
        name
        for name, key in stored.items()
        if keys.get(name) == key and rerun.is_current(_notebook(folder, name), key)
    }


def _absolute(name: str | None) -> str | None:
    """Return a path's absolute form (chapters run elsewhere), anything else as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def _revisions(request: Request) -> dict[str, str]:
    """Return the commits that models from the hub are at now, so that all chapters use the same.

    Raises TwohopError if a model is not to be had, before anything runs.
    """
    from twohop_lib.models.registry import find

    row = find(request.vlm)
    pinned = {}
    for name, source in (("vlm", request.vlm), ("llm", request.llm or (row.llm if row else None))):
        wanted = request.load.get(f"{name}_revision")
        if source and not Path(source).is_dir():
            from twohop_lib.models.loading import load_config

            commit = getattr(load_config(source, wanted), "_commit_hash", None) or wanted
            pinned |= {f"{name}_revision": commit} if commit else {}
    return pinned


def _environment(request: Request, revisions: Mapping[str, str], asked: Benchmark) -> str:
    """Return a hash of what determines a run besides chapters and parameters."""
    from twohop_lib.runs.store import folder_hash

    parts: dict[str, Any] = {"library": records.library_hash(), "versions": records.versions()}
    for name in (request.vlm, request.llm):
        if name and Path(name).is_dir():
            parts[str(name)] = folder_hash(name)
    parts["benchmark"] = asked.hash
    parts |= {"device": records.device_name(), "load": {**revisions, **request.load}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _checked(
    request: Request,
    folder: Path,
    environment: str,
    revisions: Mapping[str, str],
    asked: Benchmark,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the report of the check, from an earlier call if nothing has changed since."""
    path = folder / "check.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {}
        if earlier.get("environment") == environment and (earlier["ok"] or request.skip_check):
            return earlier
    say(f"checking {request.vlm}")
    report = _check(request, revisions, asked)
    report["environment"] = environment
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


def _check(request: Request, revisions: Mapping[str, str], asked: Benchmark) -> dict[str, Any]:
    """Check the pair, and let go of it: the chapters load it again, each in its own process."""
    import torch
    from transformers.utils import logging

    from twohop_lib.interventions.check import check
    from twohop_lib.models.pair import load_pair

    logging.disable_progress_bar()
    try:
        load = {**revisions, **request.load}
        return check(load_pair(request.vlm, request.llm, **load), asked.some(8)).json()
    except TwohopError as error:
        if not request.skip_check:
            raise
        return {"ok": False, "untrained": False, "checks": {}, "error": str(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _disk_error(error: OSError, folder: Path) -> TwohopError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TwohopError(
            f"The disk of {folder} is full; make room, then run the same command again: what is "
            "done is kept."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return TwohopError(f"{folder} cannot be written; give another folder with --out.")
    return TwohopError(f"{folder} cannot be used: {error.strerror or error}.")


# --- what a run leaves ------------------------------------------------------------------------


def _finish(
    request: Request,
    folder: Path,
    asked: Benchmark,
    done: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
    report: dict[str, Any],
    environment: str,
    keys: Mapping[str, str],
    started: float,
) -> None:
    """Write records, pages and, last of all, the manifest.

    ``done`` are the chapters that are there, each with all its parameters.
    """
    frame = _frame(folder, list(done))
    if len(frame):
        # The same answer may be in two chapters' records; order is theirs.
        records.write_frame(frame, folder / "records.parquet", {"chapters": list(done)})
    why = _why_not(report, frame)
    for page in (folder / "html").glob("*.html"):
        if page.stem not in done:
            page.unlink()
    for name in done:
        _mark(_notebook(folder, name), why)
        _write_chapter(_notebook(folder, name), folder / "html" / f"{name}.html", why)
    _write_index(request, folder, list(done), failed, report, frame, why)
    parts = [kept_records(folder / "work", name).with_suffix(".json") for name in done]
    kernels = [records.Manifest.read(part) for part in parts if part.exists()]
    seconds = sum(
        json.loads(_notebook(folder, name).read_text(encoding="utf-8"))["metadata"]["twohop"][
            "seconds"
        ]
        for name in done
    )
    manifest = records.Manifest.collect(
        models=list(dict.fromkeys(model for kernel in kernels for model in kernel.models)),
        seeds=[request.seed],
        parameters={
            **PROFILES[request.profile],
            **request.parameters,
            "profile": request.profile,
            "load": dict(request.load),
            "chapters": list(done),
            "of_chapters": done,
            "keys": {name: keys[name] for name in done},
            "failed": dict(failed),
            "result": why is None,
            "environment": environment,
            "benchmark_notes": dict(asked.notes),
        },
        benchmark=request.benchmark,
        benchmark_hash=asked.hash,
        started=started,
    )
    # What the chapters took, whenever they ran, and not just this call.
    memory = [k.peak_memory_bytes for k in kernels if k.peak_memory_bytes]
    took = {"wall_time_s": seconds, "peak_memory_bytes": max(memory, default=None)}
    manifest.model_copy(update=took).write(folder / "manifest.json")


def _frame(folder: Path, chapters: Sequence[str]) -> pd.DataFrame:
    """Return the records of chapters, one after the other; column ``chapter`` says whose."""
    parts = [
        records.read_frame(path).assign(chapter=name)
        for name in chapters
        if (path := kept_records(folder / "work", name)).exists()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _clean(frame: pd.DataFrame) -> pd.DataFrame:
    """Answers of the model left alone, each once however many chapters hold it."""
    if not len(frame):
        return frame
    return records.untouched(frame).drop_duplicates(list(records.ANSWER_KEY))


def _why_not(report: dict[str, Any], frame: pd.DataFrame) -> str | None:
    """Return why a run is no result, or None if it is one."""
    if report.get("untrained"):
        share = report["surprise"]
        return (
            "The weights of this model look random (text surprises it "
            f"{share:.2f} times as much as it would a uniform guess)."
        )
    clean = _clean(frame)
    named = clean[clean["condition"] == "identify"] if len(clean) else clean
    if len(named) and not named["correct"].any():
        count = named["entity_id"].nunique()
        return f"This model named none of the {count} entities that it was shown."
    return None


def _mark(notebook: Path, why: str | None) -> None:
    """Let a notebook begin with why it is no result, and with nothing of the kind if it is one."""
    content = nbformat.read(notebook, as_version=4)
    first = {"id": "not-a-result", "source": NOT_A_RESULT.format(why=why)} if why else None
    marks = [cell for cell in content.cells if cell["id"] == "not-a-result"]
    if [cell["source"] for cell in marks] == ([first["source"]] if first else []):
        return
    content.cells = [cell for cell in content.cells if cell["id"] != "not-a-result"]
    if first:
        content.cells.insert(0, nbformat.v4.new_markdown_cell(**first))
    with records.atomic_path(notebook) as partial:
        nbformat.write(content, partial)


#: What all pages of a run look like; they need no network and no scripts.
STYLE = """
body{font:16px/1.55 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#222}
pre{overflow-x:auto;font-size:.85rem}
.jp-InputArea-editor,.highlight{background:#f6f6f6;padding:0 .6rem;border-radius:4px}
.jp-InputPrompt,.jp-OutputPrompt,.anchor-link{display:none}
table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.2rem 1rem .2rem 0;text-align:left;border-bottom:1px solid #ddd}
img{max-width:100%}
blockquote{border-left:4px solid #0072B2;margin-left:0;padding-left:1rem}
.mark{border:3px solid #D55E00;padding:.6rem 1rem;font-weight:bold}
"""


def _page(title: str, body: str, why: str | None, style: str = "") -> str:
    """Return a whole HTML page, marked at its top if the run is no result."""
    mark = ""
    if why:
        text = NOT_A_RESULT.format(why=why).replace("**", "")
        mark = f'<p class="mark" role="alert">{html.escape(text)}</p>'
        title = f"Not a result: {title}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body>{mark}{body}</body></html>\n"
    )


def _write(page: Path, text: str) -> None:
    with records.atomic_path(page) as partial:
        partial.write_text(text, encoding="utf-8")


def _write_chapter(notebook: Path, page: Path, why: str | None) -> None:
    """Write an executed chapter as a page."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    from twohop_lib.chapter.show import glued, readable

    content = nbformat.read(notebook, as_version=4)
    _number_figures(content)
    values = glued(content)
    content.cells = [cell for cell in content.cells if cell["id"] != "not-a-result"]
    config = Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-input"}})
    exporter = HTMLExporter(template_name="basic", config=config)
    body, _ = exporter.from_notebook_node(readable(content, values))
    code = HtmlFormatter().get_style_defs(".highlight")
    _write(page, _page(page.stem.replace("_", " "), body, why, code))


def _number_figures(notebook: nbformat.NotebookNode) -> None:
    """Number figures in their captions and where prose refers to them, as the book does."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    ours = [o.get("metadata", {}).get("twohop", {}) for o in outputs]
    names = [about["figure"]["name"] for about in ours if "figure" in about]
    numbers = {name: f"Figure {n}" for n, name in enumerate(names, start=1)}
    for output, about in zip(outputs, ours, strict=True):
        if "caption" in about:
            text = f"{numbers[about['caption']]}. {output['data']['text/plain']}"
            output["data"] = {"text/html": f"<p><em>{html.escape(text)}</em></p>"}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell["source"] = re.sub(
                r"\{numref\}`([^`]*)`",
                lambda match: numbers.get(match[1], match[1]),
                cell["source"],
            )


def _write_index(
    request: Request,
    folder: Path,
    done: Sequence[str],
    failed: Mapping[str, str],
    report: dict[str, Any],
    frame: pd.DataFrame,
    why: str | None,
) -> None:
    """Write the run's first page: what was run, how accurate the model was, links to chapters."""
    e = html.escape
    table = ""
    if len(frame):
        by = _clean(frame).groupby("condition", sort=False)["correct"].agg(["mean", "size"])
        rows = "".join(
            f"<tr><td>{e(name)}</td><td>{row['mean']:.1%}</td><td>{row['size']:.0f}</td></tr>"
            for name, row in by.iterrows()
        )
        table = f"<table><tr><th>condition<th>right<th>n</tr>{rows}</table>"
    links = "".join(f'<li><a href="{e(n)}.html">{e(n.replace("_", " "))}</a></li>' for n in done)
    links += "".join(f"<li>{e(n)}: failed. {e(text)}</li>" for n, text in failed.items())
    models = f"{e(request.vlm)}{' with ' + e(request.llm) if request.llm else ''}"
    body = (
        f"<h1>{e(Path(request.vlm).name)}</h1><p>{models}: "
        f"{e(str(report.get('architecture_class')))}, {report.get('n_blocks')} blocks, "
        f"{report.get('image_tokens')} image tokens. Benchmark {e(request.benchmark)}, profile "
        f"{e(request.profile)}.</p><h2>Chapters</h2><ul>{links}</ul>"
        f"<h2>Answers</h2>{table}"
    )
    _write(folder / "html" / "index.html", _page(folder.name, body, why))


def parse_value(text: str) -> Any:
    """Read a parameter's value as papermill's own command does: YAML, else the text itself."""
    import yaml

    if not text.strip():
        return ""  # YAML's nothing
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
