"""Interventions on a forward pass: edits, two ways to carry them out, and one file an experiment.

:mod:`~twohop_lib.interventions.reference` has each in a dozen lines of nnsight, which is what they
mean. :mod:`~twohop_lib.interventions.splice` gives the same results without running again what
causality leaves unchanged, and falls back to plain hooks where that would not be exact.
"""
