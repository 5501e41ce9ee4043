"""Make torchvision importable beside a torch that it was not built for.

Some image processors import torchvision for its transforms alone. Its wheel on PyPI is built for
another torch than the CPU's, so its compiled operators do not load, and `import torchvision` fails
on the first operator that it describes. Declaring those operators is enough: no processor calls
them. `make env` runs this file, which writes a start-up file into the environment only where the
plain import fails. The start-up file waits for the first import of torchvision and costs nothing
before.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

STARTUP = '''
"""Declares torchvision's operators before its import; see tests/torchvision_shim.py of twohop."""

import sys

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)


class Finder:
    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.library is None:
            import torch

            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                cls.library.define(operator)
        return None


sys.meta_path.insert(0, Finder)
'''
NAME = "_torchvision_operators"


def main() -> None:
    """Write the start-up file if torchvision is here and does not import without it."""
    site = Path(sysconfig.get_paths()["purelib"])
    for stale in (site / f"{NAME}.py", site / f"{NAME}.pth"):
        stale.unlink(missing_ok=True)
    plain = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    if plain.returncode == 0 or b"torchvision::" not in plain.stderr:
        return
    (site / f"{NAME}.py").write_text(STARTUP, encoding="utf-8")
    (site / f"{NAME}.pth").write_text(f"import {NAME}\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)


if __name__ == "__main__":
    main()
