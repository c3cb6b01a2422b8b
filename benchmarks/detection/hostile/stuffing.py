"""Credential stuffing of the whole site: six hundred sources, one try each; two thousand at one a day; with
some pairs that are right."""

from __future__ import annotations

from ..benign.noise import forged
from ..chance import Chance
from ..site import DAY, HOUR, Site, Visit
from .campaign import (
    Episode,
    Planned,
    begin,
    entry,
    episode,
    guess,
    known_by,
    many,
    residential,
    span,
    target,
)

LEAKED = (
    "john",
    "maria88",
    "peter.parker",
    "sunny",
    "j.doe",
    "kate",
    "mike1979",
    "office",
    "sales",
    "info",
    "hr",
    "anna.k",
)


def _user(site: Site, chance: Chance, known: float) -> str:
    if chance.chosen(0.005):
        return forged(chance, chance.pick((site.office, site.branch)))
    if chance.chosen(known):
        return chance.pick(site.people).name
    return f"{chance.pick(LEAKED)}{chance.below(500) or ''}"


def _stuffing(
    site: Site, chance: Chance, kind: str, sources: list[str], seconds: float, slot: tuple[int, int]
) -> tuple[Episode, list[Visit], float, float]:
    seconds = span(site, seconds)
    made = episode(site, kind, sources=len(sources), seconds=round(seconds), known=0.5)
    start = begin(site, chance, seconds, slot)
    times = chance.arrivals(start, seconds, len(sources))
    visits = [
        guess(site, chance, made, s, _user(site, chance, 0.5), at)
        for s, at in zip(sources, times, strict=True)
    ]
    return made, visits, start, seconds


def once(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Six hundred sources, one try each, within one to four hours."""
    sources = residential(site, chance, many(site, chance, 600, 600))
    made, visits, _, _ = _stuffing(site, chance, "stuffing", sources, chance.between(1, 4) * HOUR, slot)
    return [(made, visits)]


def daily(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """A botnet of two thousand, each at one try a day, for as many days as there are, four at most."""
    sources = residential(site, chance, many(site, chance, 2000, 2000))
    days = max(1, min(site.options.days - site.options.from_day, 4))
    made = episode(site, "botnet_daily", sources=len(sources), days=days, known=0.5)
    first = site.options.from_day * DAY
    visits = []
    for day in range(days):
        chance.shuffle(sources)
        for source in sources:
            at = first + day * DAY + (0.02 + 0.9 * chance.random()) * DAY
            visits.append(guess(site, chance, made, source, _user(site, chance, 0.5), at))
    return [(made, visits)]


def valid(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """The same as `once`, and two of the pairs are right: each is a compromise of its own."""
    sources = residential(site, chance, many(site, chance, 600, 600))
    made, visits, start, seconds = _stuffing(site, chance, "stuffing", sources, 2 * HOUR, slot)
    planned: Planned = [(made, visits)]
    for _ in range(2):
        person = target(site, chance, "password")
        at = start + seconds * chance.between(0.5, 1.0)
        known_by(person, at)
        won = episode(site, "compromise_stuffing", of=made.id)
        planned.append((won, [entry(site, chance, won, chance.pick(sources), person, at)]))
    return planned


def spray_pool(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Forty accounts that exist, four tries an hour at each for a day, nearly every one from another
    address of a pool of a thousand."""
    pool = residential(site, chance, many(site, chance, 1000, 1000))
    accounts = chance.sample([p.name for p in site.people], many(site, chance, 40, 40))
    seconds = span(site, DAY)
    made = episode(site, "spray_pool", accounts=len(accounts), sources=len(pool), seconds=round(seconds))
    times = chance.arrivals(
        begin(site, chance, seconds, slot), seconds, round(4 * len(accounts) * seconds / HOUR)
    )
    return [(made, [guess(site, chance, made, chance.pick(pool), chance.pick(accounts), at) for at in times])]


def spray_proxies(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Twelve accounts, ten tries at each over four days, each try from another residential proxy; the last
    one is right."""
    accounts = [target(site, chance, "password") for _ in range(many(site, chance, 12, 12))]
    count = 10 * len(accounts)
    seconds = span(site, 4 * DAY)
    made = episode(site, "spray_proxies", accounts=len(accounts), sources=count, seconds=round(seconds))
    start = begin(site, chance, seconds, slot)
    sources = residential(site, chance, count + 1)
    times = chance.arrivals(start, seconds, count)
    visits = [
        guess(site, chance, made, source, chance.pick(accounts).name, at)
        for source, at in zip(sources[:-1], times, strict=True)
    ]
    won = episode(site, "compromise_stuffing", of=made.id)
    person = chance.pick(accounts)
    at = times[-1] + 600
    known_by(person, at)
    return [(made, visits), (won, [entry(site, chance, won, sources[-1], person, at)])]
