"""The gateway's own world: who works there, from where and how, and what becomes a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from . import VERSION
from .chance import Chance
from .networks import HOME_PLACES, Addresses, Network, networks, within64
from .shapes import ACCEPTED, Line

START = datetime(2026, 3, 2, tzinfo=UTC)
"""A Monday. Times of a site are seconds after it."""
DAY = 86_400.0
HOUR = 3_600.0

GIVEN = (
    "adam", "anna", "bela", "carla", "david", "elif", "emil", "fatima", "georg", "hanna", "igor",
    "ines", "jan", "julia", "kofi", "lena", "liam", "maria", "max", "mina", "nils", "nora", "omar",
    "paula", "pia", "quentin", "rosa", "sami", "tara", "ugo", "vera", "wim", "yara", "zoe",
)  # fmt: skip
FAMILY = (
    "abel", "bauer", "costa", "dietz", "eberle", "frank", "goran", "haas", "ilic", "jung", "kaya",
    "lang", "meyer", "novak", "ortiz", "peters", "quast", "roth", "sauer", "tanaka", "ude", "vogel",
    "weber", "xu", "yilmaz", "zander",
)  # fmt: skip
MACHINES = (
    "deploy",
    "backup",
    "ansible",
    "gitlab-runner",
    "jenkins",
    "prometheus",
    "rsync",
    "modelsync",
    "tfrunner",
    "airflow",
)


class Visit(NamedTuple):
    """One connection: when it begins, what is logged of it, whose it is, and whom it came from and for."""

    start: float
    lines: list[Line]
    actor: Actor | None
    source: str = ""
    user: str = ""


@dataclass(slots=True)
class Actor:
    """Whoever writes lines for a reason. `nature`: benign, noise (nobody's friend, and no episode),
    hostile."""

    id: str
    kind: str
    nature: str
    why: str = ""
    users: dict[str, None] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)
    failures: int = 0
    logins: int = 0

    def saw(self, visit: Visit, line: int, time: str, weight: int) -> None:
        """Told of each line of its own that stands for an attempt or a login, once it has a number."""
        self.users[visit.user] = None
        self.sources[visit.source] = None
        if weight == ACCEPTED:
            self.logins += 1
        else:
            self.failures += weight

    def label(self) -> dict[str, Any]:
        return {
            "label": "actor",
            "id": self.id,
            "kind": self.kind,
            "nature": self.nature,
            "why": self.why,
            "users": list(self.users),
            "sources": list(self.sources),
            "failures": self.failures,
            "logins": self.logins,
        }


@dataclass(slots=True)
class Person:
    """An account that a person has. `away` are the days on which another family writes this person's
    logins."""

    name: str
    uid: int
    method: str
    place: str
    office: str  # the address of the office, or none
    home: Network
    address: str  # at home: an IPv4 address, or the /64 whose addresses change daily
    begins: float  # of the working day, seconds
    ends: float
    clumsy: float  # share of logins with a password typed wrong
    actor: Actor
    away: set[int] = field(default_factory=set)
    present: set[int] = field(default_factory=set)  # days on which the log must know this person by noon

    def at_home(self, day: int) -> str:
        if self.home.family == 4:
            return self.address
        return within64(Chance("privacy", self.name, self.address, day), self.address)


@dataclass(slots=True)
class Options:
    """What can be chosen; see generate.py for what each does."""

    seed: int = 1
    days: int = 1
    people: int = 125
    jobs: int = 110
    noise: float = 1.0
    size: float = 1.0
    rate: float = 1.0
    from_day: int = 0
    iso: bool = True
    verbose: bool = False
    repeated: bool = False
    benign: tuple[str, ...] = ()  # families; none = all
    attacks: tuple[tuple[str, int], ...] = ()  # kind, how many


class Site:
    """Everybody and every address, drawn once; families add what they do."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.addresses = Addresses()
        self.actors: list[Actor] = []
        self.targets: set[str] = set()  # people of whom an episode is; one each
        self.crash: list[tuple[float, float, float]] = []  # from, to, by how much the clock was wrong
        chance = self.chance("site")
        business = networks("business", HOME_PLACES)
        self.office = self.addresses.v4(chance, business[0])
        self.branch = self.addresses.v4(chance, business[1])
        self.carriers = [self.addresses.v4(chance, n) for n in networks("mobile", HOME_PLACES)]
        self.jump_host = "10.0.5.10"
        self.people = self._people(chance)
        self.names = {p.name for p in self.people} | set(MACHINES) | {"ci-runner"}

    def chance(self, *name: object) -> Chance:
        return Chance(VERSION, self.options.seed, *name)

    def actor(self, kind: str, nature: str, why: str, name: str = "") -> Actor:
        made = Actor(f"{kind}-{name or sum(a.kind == kind for a in self.actors) + 1}", kind, nature, why)
        self.actors.append(made)
        return made

    @property
    def end(self) -> float:
        return self.options.days * DAY

    def weekend(self, day: int) -> bool:
        return day % 7 > 4

    def _people(self, chance: Chance) -> list[Person]:
        names = [f"{given[:2]}{family}" for given in GIVEN for family in FAMILY]
        people: list[Person] = []
        for at, name in enumerate(dict.fromkeys(chance.sample(names, self.options.people + 40))):
            if len(people) == self.options.people:
                break
            method = (
                "publickey"
                if chance.chosen(0.45)
                else "password"
                if chance.chosen(0.7)
                else "keyboard-interactive/pam"
            )
            draw = chance.random()
            office = self.office if draw < 0.45 else self.branch if draw < 0.6 else ""
            at_branch = office == self.branch or (not office and chance.chosen(0.4))
            place = HOME_PLACES[1] if at_branch else HOME_PLACES[0]
            family = 6 if chance.chosen(0.3) else 4
            home = chance.pick(networks("residential", (place,), family))
            carried = not office and family == 4 and chance.chosen(0.4)
            if carried:
                home = networks("mobile", (place,))[0]
                address = self.carriers[HOME_PLACES.index(place)]
            elif family == 6:
                address = self.addresses.slice64(chance, home)
            else:
                address = self.addresses.v4(chance, home)
            begins = chance.bell(8.5, 1.0) * HOUR
            clumsy = chance.pick((0.02, 0.08, 0.15, 0.3))
            why = "works; " + (
                "behind the carrier's NAT"
                if carried
                else "at the office and at home"
                if office
                else "at home"
            )
            actor = self.actor("person", "benign", why, name)
            people.append(
                Person(
                    name,
                    1001 + at,
                    method,
                    place,
                    office,
                    home,
                    address,
                    begins,
                    begins + chance.between(7, 9.5) * HOUR,
                    clumsy,
                    actor,
                )
            )
        return people

    def label(self) -> dict[str, Any]:
        made = self.options
        return {
            "label": "site",
            "version": VERSION,
            "seed": made.seed,
            "days": made.days,
            "start": moment(0.0, True),
            "end": moment(self.end, True),
            "size": made.size,
            "rate": made.rate,
            "nats": [self.office, self.branch, *self.carriers],
        }


def moment(seconds: float, iso: bool) -> str:
    """A time of the site as the labels have it: to the microsecond, or to the second where the log has no
    more."""
    at = START + timedelta(microseconds=round(seconds * 1e6))
    return at.isoformat(timespec="microseconds" if iso else "seconds").replace("+00:00", "Z")


def sorted_visits(visits: list[Visit]) -> Iterator[Visit]:
    visits.sort(key=lambda visit: visit.start)
    return iter(visits)
