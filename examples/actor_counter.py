"""Actors: an object in a process of its own, which tasks share through its handle."""

from collections import Counter

import skate


@skate.remote
class WordCounter:
    def __init__(self) -> None:
        self.words: Counter[str] = Counter()

    def add(self, text: str) -> None:
        self.words.update(text.split())

    def most_common(self, n: int) -> list[tuple[str, int]]:
        return self.words.most_common(n)


@skate.remote
def read_line(line: str, counter: skate.actor.ActorHandle) -> None:
    skate.get(counter.add.remote(line.lower()))


skate.init()
counter = WordCounter.remote()
lines = ["The cat sat", "the dog sat", "the bird flew"]
skate.get([read_line.remote(line, counter) for line in lines])
print(skate.get(counter.most_common.remote(2)))
