"""Draws from a seed that are the same with every version of Python.

The standard library promises that of `Random.random()` alone, so every draw here is made from it.
"""

from __future__ import annotations

import math
import random
from collections.abc import MutableSequence, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Chance:
    """Draws of one actor. Actors have a `Chance` each, so that one more draw of one does not move the
    others."""

    def __init__(self, *name: object) -> None:
        self.random = random.Random("/".join(map(str, name))).random

    def below(self, most: int) -> int:
        """From 0 to `most` - 1."""
        return int(self.random() * most)

    def whole(self, least: int, most: int) -> int:
        """From `least` to `most`, both included."""
        return least + int(self.random() * (most - least + 1))

    def between(self, least: float, most: float) -> float:
        return least + self.random() * (most - least)

    def exponential(self, mean: float) -> float:
        return -math.log(1.0 - self.random()) * mean

    def bell(self, middle: float, spread: float) -> float:
        """About normal, within two spreads of the middle; four draws added up."""
        return middle + spread * 0.5 * 1.7320508 * (sum(self.random() for _ in range(4)) * 2 - 4)

    def chosen(self, share: float) -> bool:
        return self.random() < share

    def pick(self, of: Sequence[T]) -> T:
        return of[int(self.random() * len(of))]

    def shuffle(self, items: MutableSequence[Any]) -> None:
        for at in range(len(items) - 1, 0, -1):
            other = int(self.random() * (at + 1))
            items[at], items[other] = items[other], items[at]

    def sample(self, of: Sequence[T], many: int) -> list[T]:
        """Without repetition; all of them where there are fewer."""
        taken = list(of)
        self.shuffle(taken)
        return taken[:many]

    def arrivals(self, start: float, seconds: float, many: int, jitter: float = 1.0) -> list[float]:
        """`many` times from `start` on within `seconds`, evenly but for `jitter` (0 to 1) of the distance."""
        step = seconds / max(many, 1)
        return [start + step * (at + jitter * self.random() * 0.98) for at in range(many)]
