"""A login that succeeds: after failures of the same source, or for a user under distributed attack, from a
network never seen."""

from __future__ import annotations

from ..chance import Chance
from ..site import DAY, HOUR, Site
from .campaign import (
    Planned,
    begin,
    entry,
    episode,
    guess,
    known_by,
    many,
    outside,
    residential,
    span,
    target,
)


def _afternoon(site: Site, chance: Chance) -> float:
    day = chance.whole(site.options.from_day, site.options.days - 1)
    return day * DAY + chance.between(13, 19) * HOUR


def guessed(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Thirty to eighty failures, then the right password, from one source that goes on to use it."""
    person = target(site, chance, "password")
    source = site.addresses.source(chance, outside(chance))
    attempts = many(site, chance, 30, 80)
    seconds = span(site, attempts * chance.pick((2.0, 20.0, 120.0)))
    start = begin(site, chance, seconds, slot)
    known_by(person, start)
    made = episode(site, "compromise_guessed", attempts=attempts, seconds=round(seconds))
    visits = [
        guess(site, chance, made, source, person.name, at) for at in chance.arrivals(start, seconds, attempts)
    ]
    visits.append(entry(site, chance, made, source, person, visits[-1].start + chance.between(5, 60)))
    return [(made, visits)]


def distributed(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Seventy sources guess one account within an hour; then it is used, from one of them or from an
    address that never tried."""
    person = target(site, chance, "password")
    start = _afternoon(site, chance)
    known_by(person, start)
    sources = residential(site, chance, many(site, chance, 70, 70))
    made = episode(site, "distributed_hour", sources=len(sources), seconds=3600)
    times = chance.arrivals(start, HOUR, len(sources))
    visits = [guess(site, chance, made, s, person.name, at) for s, at in zip(sources, times, strict=True)]
    won = episode(site, "compromise_distributed", of=made.id)
    source = chance.pick(sources) if chance.chosen(0.4) else site.addresses.source(chance, outside(chance, 0))
    return [
        (made, visits),
        (won, [entry(site, chance, won, source, person, start + chance.between(0.7, 1.2) * HOUR)]),
    ]
