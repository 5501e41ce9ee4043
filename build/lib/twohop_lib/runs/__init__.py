"""Asking models: batched answers and scores, whole evaluations, a store that resumes."""
