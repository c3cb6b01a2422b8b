"""How near an entity is to what a detector raises: the answer to why somebody was left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Standing(NamedTuple):
    """One figure against its threshold, or, where figure or threshold is None, what else keeps an entity free."""

    detector: str
    text: str  # the whole in words, for people
    scale: str = ""  # the window: 5m, 1h, 1d
    figure: int | None = None
    threshold: int | None = None
    unit: str = ""


def counted(
    detector: str, unit: str, figures: Iterable[tuple[int, int, int]], more: str = ""
) -> list[Standing]:
    """One for each (window in seconds, figure, threshold); `more` is added to the words."""
    made = []
    for window_s, figure, threshold in figures:
        scale = short(window_s)
        text = f"{figure} {unit} in {scale}, {threshold} are needed{more}"
        made.append(Standing(detector, text, scale, figure, threshold, unit))
    return made


def short(seconds: int) -> str:
    """`90s`, `5m`, `1h`, `1d`: a whole number of the largest unit that divides."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
