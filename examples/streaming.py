"""Streams: a task yields results one by one, and the caller reads each while the task goes on."""

from collections.abc import Iterator

import skate


@skate.remote(num_returns="streaming")
def primes(below: int) -> Iterator[int]:
    for number in range(2, below):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            yield number


skate.init()
for ref in primes.remote(30):
    print(skate.get(ref), end=" ", flush=True)
print()
