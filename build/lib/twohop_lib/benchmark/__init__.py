"""What is asked: entities, facts and questions, by name and by picture."""

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.benchmark.store import load

__all__ = ["Benchmark", "Question", "load"]
