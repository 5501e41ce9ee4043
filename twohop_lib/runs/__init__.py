"""Running a model: loading, batched answers and scores, whole evaluations, a store to resume."""
