"""What is read off answers and states: the gap, switch layers, probes, the lens."""
