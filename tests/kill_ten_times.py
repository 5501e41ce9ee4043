"""Kill a rerun ten times, at moments spread over its length, and hold its records against a whole.

By hand, as it takes minutes: ``python tests/kill_ten_times.py [folder]``. Every other kill leaves
the chapter's own process alive, as a crash of the command would.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twohop_lib import records

#: Two chapters: answers, and a sweep.
CHAPTERS = ["--chapters", "the_gap", "--chapters", "cross_patching"]
COMMAND = [sys.executable, "-c", "from twohop_lib.cli import main; main()", "rerun"]
ASKED = ["--vlm", "late", "--profile", "quick", *CHAPTERS]


def start(out: Path) -> subprocess.Popen[str]:
    """Start the run whose results go to ``out``, in a process group of its own."""
    command = [*COMMAND, *ASKED, "--out", str(out)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)


def main(folder: Path) -> None:
    """Run once whole and once in eleven pieces; raises AssertionError if the records differ."""
    began = time.monotonic()
    assert start(folder / "whole").wait() == 0
    whole = time.monotonic() - began
    print(f"a whole run takes {whole:.0f} s", flush=True)
    for n in range(1, 11):
        process = start(folder / "killed")
        time.sleep(whole * n / 11)
        if process.poll() is None:
            if n % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        left = sorted((folder / "killed").glob("*/work/*.parquet"))
        complete = list((folder / "killed").glob("*/manifest.json"))
        print(f"killed after {whole * n / 11:.0f} s: {len(left)} pieces kept", flush=True)
        assert not complete or process.returncode == 0
    assert start(folder / "killed").wait() == 0
    (a,), (b,) = (list((folder / name).glob("*/records.parquet")) for name in ("whole", "killed"))
    assert a.read_bytes() == b.read_bytes(), "the records differ"
    partial = [p for p in b.parent.rglob("*") if "partial" in p.name]
    assert not partial, partial
    again = start(folder / "killed")
    said, _ = again.communicate()
    assert said.startswith("nothing to do"), said
    print(f"{len(records.read_frame(b))} records, equal byte by byte")


if __name__ == "__main__":
    given = sys.argv[1:] or [tempfile.mkdtemp()]
    main(Path(given[0]))
