"""Running the chapters for a model: one folder a run, resumable at any point.

A run's folder holds the executed ``notebooks/``, ``records.parquet`` (every answer of every
chapter), ``manifest.json``, ``check.json``, readable pages in ``html/``, and ``work/``, where
what is done is kept as it is done. A chapter can be rerun if its parameters cell has ``vlm``.
"""

from __future__ import annotations

import errno
import hashlib
import html
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock
import nbformat
import pandas as pd

from twohop_lib import records, rerun
from twohop_lib.errors import TwohopError, suggest

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark
    from twohop_lib.models.pair import ModelPair

Profile = Literal["quick", "standard", "full"]
#: What a profile sets of the parameters that a chapter has. ``max_entities`` 0 means all.
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"max_entities": 12},
    "standard": {},
    "full": {"split": ""},
}
#: Parameters that the command itself sets.
OWN = ("vlm", "llm", "benchmark", "work", "seed", "load")

NOT_A_RESULT = (
    "**Not a result.** The weights of this model look random ({why}). The page shows that the "
    "experiments run on it, and nothing else."
)


# --- what a chapter opens ---------------------------------------------------------------------


def open_pairs(
    vlm: str, llm: str, organisms: Sequence[str], seed: int, load: Mapping[str, Any] | None = None
) -> dict[str, ModelPair]:
    """Open the pair that a chapter was given, or, with ``vlm`` empty, the book's organisms.

    ``load`` are options of :func:`twohop_lib.models.pair.load_pair`. Prints which models these
    are and why. Returns pairs by the name that they go by in the chapter's records and figures.
    """
    from twohop_lib.models.pair import load_pair
    from twohop_lib.organisms import locate_pair

    if vlm:
        pair = load_pair(*locate_pair(vlm, llm or None, seed), **dict(load or {}))
        print(f"{pair.name}, on {pair.vlm.model.device}, as asked.", *pair.notes)
        return {pair.vlm.name: pair}
    print(f"The organisms {', '.join(organisms)}: no model was named. {_could_run()}")
    return {name: load_pair(*locate_pair(name, None, seed)) for name in organisms}


def _could_run() -> str:
    """Say which published pair the GPU here would take, if there is one."""
    import torch

    from twohop_lib.models.registry import ROWS

    if not torch.cuda.is_available():
        return "There is no GPU here, and they need none."
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    # The largest pair that both fit unquantised.
    fitting = [row for row in ROWS if row.llm and row.fits(memory, pair=True) == "bf16"]
    if not fitting:
        return f"The GPU here has {memory:.0f} GB, too little for any pair that is known."
    row = max(fitting, key=lambda row: row.parameters_b)
    return (
        f"The GPU here has {memory:.0f} GB and takes, for instance, {row.vlm}: set vlm to it, "
        "and benchmark to one about real entities."
    )


def open_questions(
    benchmark: str, seed: int, split: str = "", wording: str = "", max_entities: int = 0
) -> Benchmark:
    """Open a benchmark by its source's name or its folder, and pick questions of it.

    ``split`` is ignored by benchmarks that have none; ``max_entities`` 0 means all.

    Raises TwohopError if nothing is left.
    """
    from twohop_lib.benchmark import sources

    if Path(benchmark).is_dir():
        found = sources.load(Path(benchmark))
    else:
        out = Path(tempfile.mkdtemp(prefix="twohop-")) / "benchmark"
        found = sources.build(benchmark, out, seed)
    by = {"wording": wording}
    if any(question.split for question in found.questions):
        by["split"] = split
    found = found.select(**{key: value for key, value in by.items() if value})
    if max_entities:
        kept = set(list(dict.fromkeys(q.entity_id for q in found.questions))[:max_entities])
        found = type(found)(
            found.name,
            found.seed,
            tuple(q for q in found.questions if q.entity_id in kept),
            found.root,
        )
    return found


def keep_records(frame: pd.DataFrame, work: str, chapter: str) -> None:
    """Write a chapter's records where :func:`run` looks for them; nothing without ``work``."""
    if work:
        records.write_frame(frame, Path(work) / f"records-{chapter}.parquet", {"chapter": chapter})


# --- chapters ---------------------------------------------------------------------------------


def chapters_folder() -> Path:
    """Where the chapters' sources are: beside the library, in a clone of the repository."""
    folder = Path(__file__).parent.parent / "chapters"
    if not folder.is_dir():
        raise TwohopError(
            "The chapters are not installed with the library; clone the repository and install "
            "from there with: pip install -e ."
        )
    return folder


def rerunnable(folder: Path) -> dict[str, set[str]]:
    """Return the parameters of each chapter that can be run for a model, by chapter."""
    found = {}
    for source in sorted(folder.glob("*.py")):
        names = set(rerun.known_parameters(rerun.to_notebook(source)))
        if "vlm" in names:
            found[source.stem] = names
    return found


def _choose(chapters: Sequence[str] | None, known: Mapping[str, set[str]]) -> list[str]:
    for name in chapters or ():
        if name not in known:
            raise TwohopError(f"No chapter {name!r} can be rerun; {suggest(name, known)}.")
    return list(dict.fromkeys(chapters)) if chapters else list(known)


def _check_parameters(given: Mapping[str, Any], known: Mapping[str, set[str]]) -> None:
    names = sorted(set().union(*known.values()) - set(OWN))
    for name in given:
        if name in OWN:
            raise TwohopError(
                f"Parameter {name!r} is set by the command's own options; see: twohop rerun --help"
            )
        if name not in names:
            raise TwohopError(f"No chapter has a parameter {name!r}; {suggest(name, names)}.")


# --- one run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What to run: models as hub ids or folders, a benchmark's name or folder.

    ``load`` are options of :func:`twohop_lib.models.pair.load_pair`.
    """

    vlm: str
    llm: str | None = None
    benchmark: str = "heraldry"
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
        what.append(dict(self.load))
        text = json.dumps([*what, self.profile, dict(self.parameters)], sort_keys=True, default=str)
        return f"{stem}-{self.profile}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its folder, the chapters that ran now, and those that failed."""

    folder: Path
    ran: tuple[str, ...]
    failed: dict[str, str]


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=0):
            return _run(request, folder, source, chosen, known, say)
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
    known: Mapping[str, set[str]],
    say: Callable[[str], None],
) -> Outcome:
    started = time.perf_counter()
    # A leftover of a run that was killed while it wrote.
    for partial in folder.rglob("*.partial*"):
        partial.unlink(missing_ok=True)
    environment = _environment(request)
    report = _checked(request, folder, environment, say)
    ran, failed = [], {}
    for name in chosen:
        given = {
            "vlm": _absolute(request.vlm),
            "llm": _absolute(request.llm) or "",
            "benchmark": _absolute(request.benchmark),
            "seed": request.seed,
            "work": str(folder / "work"),
            "load": dict(request.load),
            **PROFILES[request.profile],
            **request.parameters,
        }
        given = {key: value for key, value in given.items() if key in known[name]}
        target = folder / "notebooks" / f"{name}.ipynb"
        try:
            if rerun.execute(
                source / f"{name}.py", target, given, environment=environment, say=say
            ):
                ran.append(name)
        except TwohopError as error:
            failed[name] = str(error)
            say(f"error: {error}")
    done = [name for name in chosen if name not in failed]
    if ran or failed or not (folder / "manifest.json").exists():
        _finish(request, folder, done, failed, report, environment, started)
    return Outcome(folder, tuple(ran), failed)


def _absolute(name: str | None) -> str | None:
    """Return a folder's absolute path (chapters run elsewhere), anything else as it is."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _environment(request: Request) -> str:
    """Return a hash of what determines a run besides chapters and parameters."""
    from twohop_lib.runs.store import folder_hash

    parts: dict[str, Any] = {"library": records.library_hash(), "versions": records.versions()}
    for name in (request.vlm, request.llm, request.benchmark):
        if name and Path(name).is_dir():
            parts[str(name)] = folder_hash(name)
    parts |= {"device": records.device_name(), "load": dict(request.load)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _checked(
    request: Request, folder: Path, environment: str, say: Callable[[str], None]
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
    from twohop_lib.models.check import check
    from twohop_lib.models.pair import load_pair

    say(f"checking {request.vlm}")
    questions = open_questions(request.benchmark, request.seed, max_entities=8)
    report = check(load_pair(request.vlm, request.llm, **dict(request.load)), questions).json()
    report["environment"] = environment
    with records.atomic_path(path) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not report["ok"] and not request.skip_check:
        bad = ", ".join(name for name, held in report["checks"].items() if not held["ok"])
        raise TwohopError(
            f"{request.vlm} does not pass the check ({bad}), so what the chapters would measure "
            f"cannot be trusted; see {path}, or run anyway with --skip-check."
        )
    return report


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
    done: Sequence[str],
    failed: Mapping[str, str],
    report: dict[str, Any],
    environment: str,
    started: float,
) -> None:
    """Write records, pages and, last of all, the manifest."""
    parts = [
        records.read_frame(path).assign(chapter=name)
        for name in done
        if (path := folder / "work" / f"records-{name}.parquet").exists()
    ]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if len(frame):
        # The same answer may be in two chapters' records; order is theirs.
        records.write_frame(frame, folder / "records.parquet", {"chapters": list(done)})
    why = _why_not(report, frame)
    for name in done:
        path = folder / "notebooks" / f"{name}.ipynb"
        _write_chapter(path, folder / "html" / f"{name}.html", why)
    _write_index(request, folder, done, failed, report, frame, why)
    manifest = records.Manifest.collect(
        models=[
            records.ModelEntry(
                role=role,
                id=str(source),
                revision=request.load.get(f"{role}_revision"),
                dtype=request.load.get("dtype"),
                quantisation=request.load.get("quantise"),
            )
            for role, source in (("vlm", request.vlm), ("llm", request.llm))
            if source
        ],
        seeds=[request.seed],
        parameters={
            **PROFILES[request.profile],
            **request.parameters,
            "profile": request.profile,
            "chapters": list(done),
            "failed": dict(failed),
            "result": why is None,
            "environment": environment,
        },
        benchmark=request.benchmark,
        benchmark_hash=open_questions(request.benchmark, request.seed).hash,
        started=started,
    )
    manifest.write(folder / "manifest.json")


def _why_not(report: dict[str, Any], frame: pd.DataFrame) -> str | None:
    """Return why a run is no result, or None if it is one."""
    if report.get("untrained"):
        share = report["surprise"]
        return f"text surprises it {share:.2f} times as much as it would a uniform guess"
    return None


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
    """Write an executed chapter as a page; a notebook that is no result is marked, too."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    from twohop_lib.nb import glued, readable

    content = nbformat.read(notebook, as_version=4)
    if why and content.cells[0]["id"] != "not-a-result":
        note = nbformat.v4.new_markdown_cell(NOT_A_RESULT.format(why=why), id="not-a-result")
        content.cells.insert(0, note)
        with records.atomic_path(notebook) as partial:
            nbformat.write(content, partial)
    values = glued(content)
    content.cells = [cell for cell in content.cells if cell["id"] != "not-a-result"]
    config = Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-input"}})
    exporter = HTMLExporter(template_name="basic", config=config)
    body, _ = exporter.from_notebook_node(readable(content, values))
    code = HtmlFormatter().get_style_defs(".highlight")
    _write(page, _page(page.stem.replace("_", " "), body, why, code))


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
        by = frame.groupby("condition", sort=False)["correct"].agg(["mean", "size"])
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

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


__all__ = [
    "PROFILES",
    "Outcome",
    "Request",
    "keep_records",
    "open_pairs",
    "open_questions",
    "parse_value",
    "run",
]
