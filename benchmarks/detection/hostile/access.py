"""Valid credentials in wrong hands: no failure comes first. What tells them from a traveller is the hour,
the method, or the distance."""

from __future__ import annotations

from ..chance import Chance
from ..networks import ABROAD, networks
from ..site import DAY, HOUR, Person, Site
from .campaign import Planned, entry, entry_of_key, episode, known_by, target

FAR = tuple(
    place for place in ABROAD if place not in ("paris", "london", "madrid", "warsaw", "newyork", "amsterdam")
)


def _day(site: Site, chance: Chance) -> int:
    """Not the first: there has to be something that is usual."""
    return chance.whole(min(max(1, site.options.from_day), site.options.days - 1), site.options.days - 1)


def _new_source(site: Site, chance: Chance, use: str) -> str:
    return site.addresses.v4(chance, chance.pick(networks(use, FAR)))  # type: ignore[arg-type]


def _known(site: Site, chance: Chance, *methods: str) -> tuple[Person, int]:
    person, day = target(site, chance, *methods), _day(site, chance)
    person.present |= set(range(day))
    person.away -= set(range(day))
    return person, day


def odd_hour(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Between one and four at night, from a hosting network of a country that nobody of the site works
    from."""
    person, day = _known(site, chance, "password")
    made = episode(site, "new_access", hour="night", network="hosting")
    at = day * DAY + chance.between(1, 4) * HOUR
    return [(made, [entry(site, chance, made, _new_source(site, chance, "hosting"), person, at)])]


def quiet(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """By day, from a residential network abroad, by the usual method: nothing but the network is new, as
    with a traveller."""
    person, day = _known(site, chance, "password", "publickey")
    made = episode(site, "new_access_quiet", hour="day", network="residential")
    at = day * DAY + chance.between(10, 16) * HOUR
    return [(made, [entry_of_key(site, chance, made, _new_source(site, chance, "residential"), person, at)])]


def password_for_key(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """A password, from a network never seen, for a user who always uses a key."""
    person, day = _known(site, chance, "publickey")
    made = episode(site, "weak_method", usual="publickey", used="password")
    at = day * DAY + chance.between(8, 20) * HOUR
    return [(made, [entry(site, chance, made, _new_source(site, chance, "residential"), person, at)])]


def impossible_travel(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """While the person works at home, a login from another continent within three hours of the morning's."""
    person, day = _known(site, chance, "password", "publickey")
    known_by(person, day * DAY)
    made = episode(site, "impossible_travel")
    at = day * DAY + person.begins + chance.between(0.5, 3) * HOUR
    return [(made, [entry_of_key(site, chance, made, _new_source(site, chance, "residential"), person, at)])]
