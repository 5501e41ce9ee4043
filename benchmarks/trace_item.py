"""How much of the library one item crosses, from the benchmark to its row of a figure.

    python benchmarks/trace_item.py [chapter] [folder of another version of the repository]

Runs a chapter's code (Cross-patching by default) up to its first figure, on two entities and one
organism, and prints which files of ``twohop_lib`` it went through and how many of their functions,
methods and properties; once with and once without what opens models and questions. The benchmark
is built, and every module imported, beforehand; module and class bodies, comprehensions and
lambdas are not counted.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import linecache
import pkgutil
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

#: What makes the chapter small: of these, the parameters that it has.
SMALL = {"organisms": ["late"], "max_entities": 2, "donors": 1}
#: What opens models and questions, in any version.
OPENING = {"open_study", "open_pairs", "open_questions"}
UNNAMED = ("<module>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")


def code_until_figure(chapter: Path, given: dict[str, Any]) -> list[str]:
    """The chapter's code cells up to the one that shows its first figure."""
    found = []
    for cell in re.split(r"(?m)^# %%", chapter.read_text(encoding="utf-8")):
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            continue
        if "parameters" in head:
            kept = {k: v for k, v in given.items() if re.search(rf"(?m)^{k} = ", body)}
            body += "".join(f"{name} = {value!r}\n" for name, value in kept.items())
        found.append(body)
        if re.search(r"(?m)^show(_picture)?\(", body):
            return found
    return found


def crossed(cells: list[str], root: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Run the cells; returns the functions called, by file: all, and those besides opening."""
    called: dict[str, set[str]] = defaultdict(set)
    besides: dict[str, set[str]] = defaultdict(set)
    library = str(root / "twohop_lib")
    opening: list[FrameType] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "return" and opening and frame is opening[-1]:
            opening.pop()
        if event != "call" or not code.co_filename.startswith(library):
            return
        if code.co_name in OPENING:
            opening.append(frame)
        is_body = "__qualname__" in code.co_names and code.co_name[0].isupper()
        if code.co_name not in UNNAMED and not is_body:
            file = str(Path(code.co_filename).relative_to(root))
            called[file].add(code.co_qualname)
            if not opening:
                besides[file].add(code.co_qualname)

    names: dict[str, Any] = {"__name__": "__main__"}
    for number, body in enumerate(cells):
        # nnsight reads the source of what it traces.
        file = f"<cell {number}>"
        linecache.cache[file] = (len(body), None, body.splitlines(True), file)
        code = compile(body, file, "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            sys.setprofile(watch)
            try:
                exec(code, names)
            finally:
                sys.setprofile(None)
    return called, besides


def main(chapter: str = "cross_patching", folder: str = "") -> None:
    root = Path(folder).resolve() if folder else Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    library = importlib.import_module("twohop_lib")
    assert Path(library.__file__ or "").is_relative_to(root), f"{library.__file__} is another one"
    for module in pkgutil.walk_packages(library.__path__, "twohop_lib."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    sources = importlib.import_module("twohop_lib.benchmark.sources")
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary) / "heraldry"
        sources.build("heraldry", built, 0)
        cells = code_until_figure(
            root / "chapters" / f"{chapter}.py", SMALL | {"benchmark": str(built)}
        )
        called, besides = crossed(cells, root)
    print(" all  once opened")
    for file, functions in sorted(called.items()):
        print(f"{len(functions):4} {len(besides.get(file, ())):4}  {file}")
    for words, found in (("all", called), ("once opened", besides)):
        print(f"{words}: {sum(map(len, found.values()))} functions in {len(found)} files")


if __name__ == "__main__":
    main(*sys.argv[1:])
