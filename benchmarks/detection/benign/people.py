"""People: typists, forgotten passwords, password managers, new employees, returns from holiday."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .. import shapes
from ..chance import Chance
from ..networks import networks
from ..site import DAY, HOUR, Actor, Person, Site, Visit, sorted_visits


def streams(site: Site) -> list[Iterator[Visit]]:
    special = [_forgotten(site), _managers(site), _starters(site), _returns(site)]
    return [*(_working(site, person) for person in site.people), *special]


def log_in(
    site: Site,
    chance: Chance,
    person: Person,
    source: str,
    at: float,
    actor: Actor | None = None,
    wrong: int = 0,
) -> Visit:
    """One login of a person by the usual method."""
    if person.method.startswith("keyboard"):
        denied = chance.whole(1, 2) if chance.chosen(person.clumsy) else 0
        lines = shapes.pushes(
            chance, person.name, source, uid=person.uid, denied=denied, accepted=True, verbose=site.options.verbose,
            duo=person.uid % 3 > 0, pace=8,
        )  # fmt: skip
        return Visit(at, lines, actor or person.actor, source, person.name)
    method = person.method
    if method == "publickey" and source in (person.office, person.address) and chance.chosen(0.01):
        method = "password"  # the agent is not at hand
    second = person.uid % 5 == 0 and chance.chosen(0.3)
    lines = shapes.login(
        chance,
        person.name,
        source,
        uid=person.uid,
        method=method,
        key=person.name + "'s laptop" if second else "",
        typed_wrong=wrong,
        seconds=30 + chance.exponential(1500),
        sudo=chance.whole(1, 2) if chance.chosen(0.3) else 0,
        repeated=site.options.repeated,
    )
    return Visit(at, lines, actor or person.actor, source, person.name)


def mistakes(
    site: Site, chance: Chance, person: Person, source: str, at: float, many: int, actor: Actor
) -> tuple[list[Visit], float]:
    """`many` wrong passwords at a person's pace, up to three a connection; and when they are over."""
    visits = []
    while many > 0:
        tries = min(many, chance.whole(1, 3))
        lines = shapes.failures(
            chance, person.name, source, known=True, tries=tries, pace=6, repeated=site.options.repeated
        )
        visits.append(Visit(at, lines, actor, source, person.name))
        at = at + lines[-1][0] + 5 + chance.exponential(30)
        many -= tries
    return visits, at


def place_of(chance: Chance, person: Person, day: int) -> str:
    return person.office if person.office and chance.chosen(0.75) else person.at_home(day)


def _working(site: Site, person: Person) -> Iterator[Visit]:
    chance = site.chance("working", person.name)
    for day in range(site.options.days):
        busy = chance.chosen(0.06 if site.weekend(day) else 0.93)
        source = place_of(chance, person, day)
        many = chance.whole(3, 12)
        visits: list[Visit] = []
        if chance.chosen(0.02) and day not in person.away:  # called out of bed, from where they live
            at = day * DAY + chance.between(0.5, 4.5) * HOUR
            visits.append(log_in(site, chance, person, person.at_home(day), at))
        if day in person.present:
            visits.append(log_in(site, chance, person, source, day * DAY + person.begins))
        elif day in person.away or not busy:
            yield from visits
            continue
        for _ in range(many):
            at = day * DAY + chance.between(person.begins, person.ends)
            if chance.chosen(0.04):  # an evening at home
                at, source = day * DAY + chance.between(19.5, 23) * HOUR, person.at_home(day)
            clumsy = person.method == "password" and chance.chosen(person.clumsy)
            if clumsy and chance.chosen(0.3):
                some, then = mistakes(site, chance, person, source, at, chance.whole(1, 3), person.actor)
                visits += [*some, log_in(site, chance, person, source, then)]
            else:
                visits.append(
                    log_in(site, chance, person, source, at, wrong=chance.whole(1, 2) if clumsy else 0)
                )
            if person.method == "publickey" and chance.chosen(0.03):  # a key that the agent no longer has
                lines = shapes.dead_key(chance, person.name, source, verbose=site.options.verbose)
                visits.append(Visit(at - 20, lines, person.actor, source, person.name))
            if chance.chosen(0.02):  # a user name typed wrong, and the password tried again and again
                wrong = person.name[:-1] if len(person.name) > 3 else person.name + "e"
                tries = chance.pick((1, 1, 2, 3))
                lines = shapes.failures(chance, wrong, source, known=wrong in site.names, tries=tries, pace=5)
                visits.append(Visit(at - 60, lines, person.actor, source, wrong))
        yield from sorted_visits(visits)


def _password_people(site: Site, but: Collection[str] = ()) -> list[Person]:
    return [p for p in site.people if p.method == "password" and p.name not in but]


def _forgotten(site: Site) -> Iterator[Visit]:
    """Ten a day: eight wrong passwords, then the right one, or giving up (and coming back the next day,
    after a call)."""
    chance = site.chance("forgotten")
    people = _password_people(site, but=site.targets)
    plan: dict[int, list[tuple[Person, bool]]] = {}
    for day in range(site.options.days):
        for remembers in (True, False) * 5:
            person = chance.pick(people)
            if day not in person.away and not site.weekend(day):
                person.away.add(day)
                plan.setdefault(day, []).append((person, remembers))
    return _forgetting(site, chance, plan)


def _forgetting(site: Site, chance: Chance, plan: dict[int, list[tuple[Person, bool]]]) -> Iterator[Visit]:
    for day, people in plan.items():
        visits: list[Visit] = []
        for person, remembers in people:
            why = "forgot the password: eight failures, then " + ("success" if remembers else "gave up")
            actor = site.actor("forgotten_password", "benign", why)
            source = place_of(chance, person, day)
            at = day * DAY + chance.between(person.begins, person.ends - HOUR)
            some, then = mistakes(site, chance, person, source, at, 8, actor)
            visits += some
            if remembers:
                visits.append(log_in(site, chance, person, source, then, actor))
        yield from sorted_visits(visits)


def _managers(site: Site) -> Iterator[Visit]:
    """A client that holds a stale password and tries it two or three times whenever its person opens it."""
    chance = site.chance("managers")
    people = _password_people(site)
    for day in range(site.options.days):
        visits: list[Visit] = []
        for person in chance.sample(people, 5):
            if day in person.away or site.weekend(day):
                continue
            why = "a stored password that is no longer right, retried, then corrected"
            actor = site.actor("password_manager", "benign", why)
            source = person.at_home(day)
            at = day * DAY + chance.between(person.begins, person.ends - 2 * HOUR)
            for _ in range(chance.whole(2, 3)):
                tries = chance.whole(2, 3)
                lines = shapes.failures(
                    chance,
                    person.name,
                    source,
                    known=True,
                    tries=tries,
                    pace=0.3,
                    repeated=site.options.repeated,
                )
                visits.append(Visit(at, lines, actor, source, person.name))
                at += chance.between(200, 900)
            visits.append(log_in(site, chance, person, source, at, actor))
        yield from sorted_visits(visits)


def _starters(site: Site) -> Iterator[Visit]:
    """New accounts: a first login by password with a typing error or two, from the office or from home."""
    chance = site.chance("starters")
    for day in range(site.options.days):
        if site.weekend(day) or not chance.chosen(0.4):
            continue
        model = chance.pick(site.people)
        name = f"{model.name}{day + 2}"
        why = "first days of a new employee"
        actor = site.actor("new_employee", "benign", why)
        network = chance.pick(networks("residential", (model.place,), 4))
        source = chance.pick((site.office, site.branch, site.addresses.source(chance, network)))
        visits = []
        at = day * DAY + chance.between(9, 10) * HOUR
        person = Person(name, 2001 + day, "password", model.place, "", network, source, 0, 0, 0, actor)
        for n in range(chance.whole(2, 5)):
            some, then = mistakes(
                site, chance, person, source, at, chance.whole(1, 3) if n == 0 else 0, actor
            )
            visits += [*some, log_in(site, chance, person, source, then)]
            at = then + chance.between(0.4, 1.2) * HOUR
        yield from sorted_visits(visits)


def _returns(site: Site) -> Iterator[Visit]:
    """Back after ten days or more, the password half forgotten; needs a log of that many days."""
    chance = site.chance("returns")
    people = _password_people(site, but=site.targets)
    plan: list[tuple[int, Person]] = []
    for start in range(0, site.options.days - 11, 6):
        person = chance.pick(people)
        back = start + chance.whole(10, 11)
        if site.weekend(back) or back >= site.options.days:
            continue
        person.away |= set(range(start, back + 1))
        plan.append((back, person))
    return _returning(site, chance, plan)


def _returning(site: Site, chance: Chance, plan: list[tuple[int, Person]]) -> Iterator[Visit]:
    visits = []
    for back, person in plan:
        actor = site.actor("holiday_return", "benign", "back from holiday: five failures, then success")
        source = place_of(chance, person, back)
        some, then = mistakes(site, chance, person, source, back * DAY + person.begins, 5, actor)
        visits += [*some, log_in(site, chance, person, source, then, actor)]
    yield from sorted_visits(visits)
