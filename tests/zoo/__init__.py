"""Tiny random checkpoints of published families: real classes, real processors, no real weights."""

from tests.zoo.families import BUILDERS, Checkpoint, build, register
from tests.zoo.further import FURTHER

register(FURTHER)
#: Families that every part of the library is held on, and those that the check alone is.
FAMILIES = tuple(name for name in BUILDERS if name not in FURTHER)
CHECKED = tuple(BUILDERS)
__all__ = ["CHECKED", "FAMILIES", "Checkpoint", "build"]
