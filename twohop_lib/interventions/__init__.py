"""Interventions on a forward pass: cross-patch, freeze and knockout, each as a sweep over sites.

:mod:`~twohop_lib.interventions.reference` has each in a dozen lines of nnsight, which is what they
mean. :mod:`~twohop_lib.interventions.engine` gives the same results without running again what
causality leaves unchanged, and falls back to plain hooks where that would not be exact.
"""
