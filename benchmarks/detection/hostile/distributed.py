"""Seventy sources that try one account once each, over an hour or over a day."""

from __future__ import annotations

from ..chance import Chance
from ..site import DAY, HOUR, Site
from .campaign import Planned, begin, episode, guess, many, residential, span, target


def _guessing(site: Site, chance: Chance, kind: str, seconds: float, slot: tuple[int, int]) -> Planned:
    person = target(site, chance, "password")
    seconds = span(site, seconds)
    sources = residential(site, chance, many(site, chance, 70, 70))
    made = episode(site, kind, sources=len(sources), seconds=round(seconds))
    times = chance.arrivals(begin(site, chance, seconds, slot), seconds, len(sources))
    return [
        (made, [guess(site, chance, made, s, person.name, at) for s, at in zip(sources, times, strict=True)])
    ]


def hour(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    return _guessing(site, chance, "distributed_hour", HOUR, slot)


def day(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    return _guessing(site, chance, "distributed_day", DAY, slot)
