"""Models and their text backbones: known pairs, loading, and where things sit in them."""
