"""The parts of ray.experimental that work on Skate."""
