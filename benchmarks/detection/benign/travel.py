"""New networks of good people: travellers who get in at once, and phones that change network through the
day."""

from __future__ import annotations

from collections.abc import Iterator

from ..chance import Chance
from ..networks import networks
from ..site import DAY, HOUR, Person, Site, Visit, sorted_visits
from .people import log_in, mistakes


def streams(site: Site) -> list[Iterator[Visit]]:
    return [_travellers(site), _roaming(site)]


def _travellers(site: Site) -> Iterator[Visit]:
    """Two at a time, for two to five days: a hotel in another country, the usual method, within the working
    day there."""
    chance = site.chance("travellers")
    trips: list[tuple[int, int, Person]] = []
    for start in range(0, site.options.days, 2):
        person = chance.pick(site.people)
        days = chance.whole(2, 5)
        if person.name in site.targets or person.away & set(range(start, start + days)):
            continue
        # The day of the journey is half a day at home, which makes no impossible speed.
        person.away |= set(range(start, start + days))
        trips.append((start, days, person))
    visits: list[Visit] = []
    for start, days, person in trips:
        place = chance.pick(("paris", "london", "madrid", "warsaw", "newyork", "amsterdam"))
        family = 6 if chance.chosen(0.2) else 4
        hotel = site.addresses.source(chance, chance.pick(networks("residential", (place,), family)))
        why = f"travels: from {place} for {days} days, with success at once"
        visits += _trip(site, chance, person, hotel, start, days, why, 5.5 if place == "newyork" else 0.0)
    return sorted_visits(visits)


def _trip(
    site: Site, chance: Chance, person: Person, hotel: str, start: int, days: int, why: str, later: float
) -> list[Visit]:
    actor = site.actor("traveller", "benign", why)
    visits: list[Visit] = []
    for day in range(start, min(start + days, site.options.days)):
        for n in range(chance.whole(2, 6)):
            begins = max(person.begins, 9 * HOUR) if day > start else 13 * HOUR
            at = day * DAY + later * HOUR + chance.between(begins, person.ends)
            if n == 1 and person.method == "password" and chance.chosen(0.2):
                some, at = mistakes(site, chance, person, hotel, at, 1, actor)
                visits += some
            visits.append(log_in(site, chance, person, hotel, at, actor))
    return visits


def _roaming(site: Site) -> Iterator[Visit]:
    """Six people on the move: every login from another address of the mobile networks at home."""
    chance = site.chance("roaming")
    some = chance.sample(site.people, 6)
    mobile = networks("mobile", None, 6)[:1] + networks("mobile", ("berlin", "munich"))
    for day in range(site.options.days):
        visits: list[Visit] = []
        for person in some:
            if day in person.away or not chance.chosen(0.5):
                continue
            for _ in range(chance.whole(1, 3)):
                source = site.addresses.source(chance, chance.pick(mobile))
                at = day * DAY + chance.between(person.begins, person.ends)
                visits.append(log_in(site, chance, person, source, at))
        yield from sorted_visits(visits)
