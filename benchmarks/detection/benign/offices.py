"""Many people behind one address: the office's morning, a class, and a carrier's NAT."""

from __future__ import annotations

from collections.abc import Iterator

from .. import shapes
from ..site import DAY, HOUR, Site, Visit, sorted_visits
from .people import log_in, mistakes


def streams(site: Site) -> list[Iterator[Visit]]:
    return [_morning(site), _class(site), _carrier(site)]


def _morning(site: Site) -> Iterator[Visit]:
    """Each working day a quarter of the office logs in within ten minutes, every sixth with an error first."""
    chance = site.chance("morning")
    inside = [p for p in site.people if p.office == site.office]
    actor = site.actor("office_nat", "benign", "an office behind one address, logging in within ten minutes")
    for day in range(site.options.days):
        visits: list[Visit] = []
        for person in chance.sample(inside, len(inside) // 4):
            if site.weekend(day) or day in person.away:
                continue
            at = day * DAY + 8.9 * HOUR + chance.between(0, 600)
            if person.method == "password" and chance.chosen(1 / 3):
                some, at = mistakes(site, chance, person, site.office, at, chance.whole(1, 2), actor)
                visits += some
            visits.append(log_in(site, chance, person, site.office, at, actor))
        yield from sorted_visits(visits)


def _class(site: Site) -> Iterator[Visit]:
    """Once a week a course at the branch: twelve accounts that nobody has used before, typed from a sheet
    of paper."""
    chance = site.chance("class")
    for day in range(1, site.options.days, 7):
        actor = site.actor(
            "course", "benign", "twelve course accounts used for the first time, behind the branch's address"
        )
        visits: list[Visit] = []
        for seat in range(1, 13):
            user = f"course{day:02d}-{seat:02d}"
            at = day * DAY + 14 * HOUR + chance.between(0, 900)
            for _ in range(chance.pick((0, 0, 1, 2))):
                lines = shapes.failures(chance, user, site.branch, known=True)
                visits.append(Visit(at, lines, actor, site.branch, user))
                at += chance.between(15, 60)
            lines = shapes.login(chance, user, site.branch, uid=5000 + seat, seconds=5000)
            visits.append(Visit(at, lines, actor, site.branch, user))
        yield from sorted_visits(visits)


def _carrier(site: Site) -> Iterator[Visit]:
    """Phones and tablets of people who are elsewhere at home as well: logins through the carrier's one
    address."""
    chance = site.chance("carrier")
    some = chance.sample(site.people, 30)
    for day in range(site.options.days):
        visits: list[Visit] = []
        for person in some:
            if not chance.chosen(0.4) or day in person.away:
                continue
            source = chance.pick(site.carriers)
            at = day * DAY + chance.between(7, 22) * HOUR
            if person.method == "password" and chance.chosen(0.25):  # thumbs
                errors, at = mistakes(site, chance, person, source, at, chance.whole(1, 3), person.actor)
                visits += errors
            visits.append(log_in(site, chance, person, source, at))
        yield from sorted_visits(visits)
