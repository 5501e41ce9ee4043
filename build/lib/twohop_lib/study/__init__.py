"""Many models measured in one go."""
