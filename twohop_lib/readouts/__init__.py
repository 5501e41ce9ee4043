"""Reading results out of models: answers, gaps, vocabulary."""

from twohop_lib.readouts.matching import agreement, labelled_cases, matches

__all__ = ["agreement", "labelled_cases", "matches"]
