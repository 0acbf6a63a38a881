"""Tasks: estimates pi from random points, counted by one task per batch."""

import random

import skate

TASKS = 20
POINTS_PER_TASK = 100_000


@skate.remote
def count_inside(seed: int, points: int) -> int:
    random_point = random.Random(seed).random
    return sum(random_point() ** 2 + random_point() ** 2 < 1 for _ in range(points))


skate.init()
counts = skate.get([count_inside.remote(seed, POINTS_PER_TASK) for seed in range(TASKS)])
print(f"pi is about {4 * sum(counts) / (TASKS * POINTS_PER_TASK):.3f}")
