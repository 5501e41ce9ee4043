"""The chapters, executed with papermill for one model."""
