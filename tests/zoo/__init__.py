"""Tiny random checkpoints of published families: real classes, real processors, no real weights."""

from tests.zoo.families import BUILDERS, Checkpoint, build

FAMILIES = tuple(BUILDERS)
__all__ = ["FAMILIES", "Checkpoint", "build"]
