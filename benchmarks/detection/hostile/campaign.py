"""What every hostile family is made of: an episode, its label, where it lies in the log, and how it picks
its sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import shapes
from ..chance import Chance
from ..networks import ABROAD, Network, networks
from ..shapes import ACCEPTED
from ..site import DAY, HOUR, Actor, Person, Site, Visit

Planned = list[tuple["Episode", list[Visit]]]


@dataclass(slots=True)
class Episode(Actor):
    """One attack. `attempts` are line, time, source and user (as numbers in the lists) of each, the
    compromise among them."""

    parameters: dict[str, Any] = field(default_factory=dict)
    network: str = ""
    attempts: list[tuple[int, str, int, int]] = field(default_factory=list)
    compromise: dict[str, Any] | None = None
    _of_sources: dict[str, int] = field(default_factory=dict)
    _of_users: dict[str, int] = field(default_factory=dict)

    def saw(self, visit: Visit, line: int, time: str, weight: int) -> None:
        source = self._of_sources.setdefault(visit.source, len(self._of_sources))
        user = self._of_users.setdefault(visit.user, len(self._of_users))
        self.sources[visit.source] = self.users[visit.user] = None
        self.attempts += [(line, time, source, user)] * max(weight, 1)
        if weight == ACCEPTED:
            self.logins += 1
            self.compromise = self.compromise or {
                "line": line,
                "time": time,
                "source": visit.source,
                "user": visit.user,
            }
        else:
            self.failures += weight

    def label(self) -> dict[str, Any]:
        made = Actor.label(self)
        del made["nature"], made["why"]
        made |= {"label": "episode", "network": self.network, "parameters": self.parameters}
        times = [time for _, time, _, _ in self.attempts]
        made |= {"start": min(times, default=""), "end": max(times, default="")}
        made |= {"attempts": [list(entry) for entry in self.attempts], "compromise": self.compromise}
        return made


def episode(site: Site, kind: str, **parameters: Any) -> Episode:
    made = Episode(
        f"{kind}-{sum(a.kind == kind for a in site.actors) + 1}", kind, "hostile", parameters=parameters
    )
    site.actors.append(made)
    return made


def many(site: Site, chance: Chance, least: int, most: int) -> int:
    """A size, times the factor of the site; never below two."""
    return max(2, round(chance.whole(least, most) * site.options.size))


def begin(site: Site, chance: Chance, seconds: float, slot: tuple[int, int] = (0, 1)) -> float:
    """A start such that `seconds` fit before the end, within part `slot[0]` of `slot[1]` of what there is."""
    least = site.options.from_day * DAY + 0.5 * HOUR
    most = max(site.end - seconds - HOUR, least)
    part = (most - least) / slot[1]
    return least + part * slot[0] + chance.random() * max(part - (seconds if slot[1] > 1 else 0), 0)


def span(site: Site, seconds: float) -> float:
    """How long it lasts: by the rate factor, and no longer than the log."""
    return min(seconds / site.options.rate, site.end - site.options.from_day * DAY - 3 * HOUR)


def outside(chance: Chance, six: float = 0.15) -> Network:
    """A network that attacks come from; IPv6 with the share `six`."""
    family = 6 if chance.chosen(six) else 4
    return chance.pick(networks("hosting", ABROAD, family) + networks("residential", ABROAD, family))


def residential(site: Site, chance: Chance, count: int) -> list[str]:
    """Residential proxies in many countries, some in the country and the networks of the site's own people."""
    rows = networks("residential", ABROAD) + networks("mobile", ABROAD) + networks("residential", ("berlin",))
    return [site.addresses.source(chance, chance.pick(rows)) for _ in range(count)]


def target(site: Site, chance: Chance, *methods: str) -> Person:
    """A person whom no other episode is about."""
    fit = [p for p in site.people if not methods or p.method in methods]
    person = chance.pick([p for p in fit if p.name not in site.targets] or fit)
    site.targets.add(person.name)
    return person


def known_by(person: Person, at: float) -> None:
    """Makes sure that the log has seen the person before `at`: that day, and the day before."""
    day = int(at / DAY)
    person.present |= {day, day - 1}
    person.away -= {day, day - 1}


def guess(
    site: Site,
    chance: Chance,
    actor: Actor,
    source: str,
    user: str,
    at: float,
    tries: int = 1,
    pace: float = 0.5,
) -> Visit:
    """A connection of wrong passwords."""
    known = user in site.names or user == "root"
    lines = shapes.failures(
        chance, user, source, known=known, tries=tries, pace=pace, repeated=site.options.repeated
    )
    return Visit(at, lines, actor, source, user)


def entry(
    site: Site, chance: Chance, actor: Actor, source: str, person: Person, at: float, method: str = "password"
) -> Visit:
    """The login that should not be."""
    lines = shapes.login(
        chance,
        person.name,
        source,
        uid=person.uid,
        method=method,
        key="stolen" + person.name,
        seconds=900,
        sudo=2,
    )
    return Visit(at, lines, actor, source, person.name)


def entry_of_key(site: Site, chance: Chance, actor: Actor, source: str, person: Person, at: float) -> Visit:
    """The same with what the person usually proves, the stolen key included."""
    lines = shapes.login(
        chance,
        person.name,
        source,
        uid=person.uid,
        method=person.method,
        key=person.name,
        seconds=900,
        sudo=2,
    )
    return Visit(at, lines, actor, source, person.name)
