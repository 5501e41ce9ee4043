"""Write the output-free notebook beside every chapter (``make notebooks``)."""

from __future__ import annotations

from pathlib import Path

from twohop_lib.rerun.execute import twin

if __name__ == "__main__":
    for source in sorted((Path(__file__).resolve().parents[1] / "chapters").glob("*.py")):
        source.with_suffix(".ipynb").write_text(twin(source), encoding="utf-8")
        print(source.with_suffix(".ipynb").name)
