"""Right or wrong: normalisation, leaks of a name into a text, the matching rules."""
