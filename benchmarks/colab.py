"""Ask pip what the install cell would do on Colab, and record what it answers.

    python benchmarks/colab.py

The library's wheel is resolved for Colab's Python with the versions that its image has
(``tests/colab.txt``) held as constraints; nothing is installed. Needs a package index.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "benchmarks" / "results" / "colab.json"
IMAGE = ROOT / "tests" / "colab.txt"


def pip(*arguments: str) -> None:
    """Run pip; raises CalledProcessError with what it said."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, cwd=ROOT)


def resolved(folder: Path) -> dict[str, str]:
    """The version that pip would leave on Colab of each package, by its name."""
    python = re.search(r"# python (\S+)", IMAGE.read_text())[1]
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("twohop-*.whl")
    report = folder / "report.json"
    where = ["--target", str(folder / "none"), "--python-version", python]
    where += ["--only-binary", ":all:", "--constraint", str(IMAGE)]
    pip("install", "--dry-run", "--report", str(report), *where, str(wheel))
    told = json.loads(report.read_text())["install"]
    return {part["metadata"]["name"].lower(): part["metadata"]["version"] for part in told}


def image() -> dict[str, str]:
    """What Colab's image has of the packages that were looked up: ``{"torch": "2.11.*"}``."""
    lines = [line for line in IMAGE.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def measure() -> dict[str, Any]:
    """What the image has, what pip would leave there, and which of the two differ."""
    with tempfile.TemporaryDirectory() as folder:
        left = resolved(Path(folder))
    held = {name: {"image": has, "left": left.get(name, "")} for name, has in image().items()}
    replaced = [
        name
        for name, of in held.items()
        if not f"{of['left']}.".startswith(of["image"].removesuffix("*"))
    ]
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "packages": len(left), "held": held, "replaced": replaced}


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(measure(), indent=1) + "\n")
    print(RECORDED.read_text())
