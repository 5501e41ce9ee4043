"""twohop: the two-hop problem in vision-language models, as executable papers."""

__version__ = "0.1.0"
