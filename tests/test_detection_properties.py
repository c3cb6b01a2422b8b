"""What holds of every login detector in the registry: findings do not depend on how rows were divided, on a restart
in their middle, on whether they were read live or replayed, nor on what users and addresses are called; and nothing
that a row can hold makes a detector raise or lie.

A new detector is under all of it by its line in the registry. Campaigns come from `detection_campaigns`: a detector
whose findings none of them gives is named by the last test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_campaigns import PIECES, World, sites
from gatewatch.daemon.collectors.lines import LineCutter, count_lines
from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.daemon.detection import Detection, DetectionSettings
from gatewatch.daemon.events import AUTH_TEXTS, NS_PER_S, AuthBatch, Outcome, address_columns, address_text
from gatewatch.daemon.recovery import remember
from gatewatch.daemon.store import Store, pack, unpack
from gatewatch.daemon.successes import Successes
from gatewatch.detectors import sketches
from gatewatch.detectors.finding import MOST_LISTED, Finding
from gatewatch.detectors.login.guessed_names import GUESSED_NAMES
from gatewatch.detectors.registry import AUTH_DETECTORS, LoginDetection, login_detectors
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from test_detectors_login import KEY, START, Event, batch_of, fail, login, numbered

NOT_MADE: frozenset[str] = frozenset()
"""Detectors for which `detection_campaigns` has nothing that they find."""
COMPILED = not str(sketches.__file__).endswith(".py")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
few = settings(
    max_examples=20 if COMPILED else 3,
    deadline=None,
    suppress_health_check=SLOW,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # making a site smaller takes minutes
)

divisions = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def fresh() -> LoginDetection:
    return login_detectors({}, KEY, World())


def detect(detection: LoginDetection, batches: Iterable[AuthBatch]) -> dict[str, Finding]:
    """The last version of every finding, by id."""
    found: dict[str, Finding] = {}
    for batch in batches:
        found |= {finding.id: finding for finding in detection.update(batch)}
    return found


def divided(rows: AuthBatch, sizes: Iterable[int]) -> Iterable[AuthBatch]:
    begin = 0
    for size in cycle(sizes):
        if begin >= len(rows):
            return
        yield rows.take(np.arange(begin, min(begin + size, len(rows))))
        begin += size


def restarted(detection: LoginDetection) -> LoginDetection:
    """Another one with the state of this one, as a snapshot keeps it."""
    other = fresh()
    other.load(unpack(pack(detection.save())))
    return other


@few
@given(sites(), divisions)
def test_findings_do_not_depend_on_batches(events: list[Event], sizes: list[int]) -> None:
    rows = batch_of(numbered(events))
    whole = detect(fresh(), [rows])
    for name in {finding.detector for finding in whole.values()} or {"nobody"}:
        event(f"found by {name}")
    assert detect(fresh(), divided(rows, sizes)) == whole


@few
@given(sites())
def test_findings_of_rows_one_by_one_are_those_of_all_at_once(events: list[Event]) -> None:
    rows = batch_of(numbered(events[-60:]))
    assert detect(fresh(), divided(rows, [1])) == detect(fresh(), [rows])


@few
@given(sites(), st.lists(st.floats(0, 1), min_size=1, max_size=2))
def test_a_restart_anywhere_changes_no_finding(events: list[Event], moments: list[float]) -> None:
    rows = batch_of(numbered(events))
    whole = detect(fresh(), [rows])
    stops = [0, *sorted(int(moment * len(rows)) for moment in moments), len(rows)]
    detection = fresh()
    found: dict[str, Finding] = {}
    for begin, end in pairwise(stops):
        found |= detect(detection, [rows.take(np.arange(begin, end))])
        detection = restarted(detection)
    assert found == whole


def test_a_campaign_goes_on_through_the_store_as_the_analyser_keeps_it(tmp_path: Path) -> None:
    events = [
        login(-9000, user="ann"),
        *(fail(30 * n, user=f"u{n}") for n in range(30)),
        login(950, user="u7"),
    ]
    events += [fail(40 * n, source=f"2001:db8:1:{n:x}::1") for n in range(30)]
    rows = batch_of(numbered(events))
    straight, before = Detection(DetectionSettings(), KEY), Detection(DetectionSettings(), KEY)
    whole = {f.id: f for f in straight.auth(rows)}
    found = {f.id: f for f in before.auth(rows.take(np.arange(25)))}
    store = Store.open(tmp_path / "state.db")
    with store.transaction():
        store.save_snapshot({"detection": before.save(), "feeds": {}}, {}, 1)
    after = Detection(DetectionSettings(), KEY)
    said: list[str] = []
    assert remember(store, after, {}, Successes(), said.append)
    assert said == []
    found |= {f.id: f for f in after.auth(rows.take(np.arange(25, len(rows))))}
    store.close()
    assert found == whole
    assert len({f.detector for f in whole.values()}) >= 3


def log_of(events: list[Event]) -> bytes:
    """What sshd writes of them."""
    written = []
    for number, told in enumerate(events):
        at = datetime.fromtimestamp(START + told["at"], UTC).isoformat(timespec="microseconds")
        source, user = told["source"] or "192.0.2.200", told["user"] or "nobody"
        end = f"from {source} port {1024 + number} ssh2"
        match told["outcome"]:
            case Outcome.SUCCESS:
                said = f"Accepted {told.get('method') or 'password'} for {user} {end}"
            case Outcome.INVALID_USER:
                said = f"Invalid user {user} from {source} port {1024 + number}"
            case Outcome.PAM_FAILURE:
                pam = "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= "
                said = f"{pam}rhost={source}  user={user}"
            case Outcome.DISCONNECT:
                said = (
                    f"Connection closed by authenticating user {user} {source} port {1024 + number} [preauth]"
                )
            case _:
                said = f"Failed {told.get('method') or 'password'} for {user} {end}"
        session = told.get("session") or number
        pid = 1000 + (session if isinstance(session, int) else sum(session.encode())) % 60_000
        written.append(f"{at} gateway1 sshd[{pid}]: {said}\n")
    return "".join(written).encode()


@few
@given(sites(), st.lists(st.integers(1, 9000), min_size=1, max_size=8), st.integers(0, 12))
def test_a_log_read_live_gives_the_findings_of_its_replay(
    events: list[Event], pieces: list[int], restart: int
) -> None:
    """Live: bytes as they come, cut in the middle of lines, with a restart of parser and detectors among them."""
    data = log_of(events)
    options = ParserOptions(now_ns=(START + 10**7) * NS_PER_S, timezone="UTC", hash_key=KEY)
    parsed = make_parser("sshd", options).parse(data)
    whole = detect(fresh(), [parsed.events])
    assert len(parsed.unparsed) == 0
    cutter, parser, detection = LineCutter(), make_parser("sshd", options), fresh()
    found: dict[str, Finding] = {}
    begin, line = 0, 1
    for turn, size in enumerate(cycle(pieces)):
        if begin >= len(data):
            break
        lines = cutter.feed(data[begin : begin + size])
        begin += size
        found |= detect(detection, [parser.parse(lines, line).events] if lines else [])
        line += count_lines(lines)
        if turn == restart:
            state = unpack(pack(parser.save()))
            parser, detection = make_parser("sshd", options), restarted(detection)
            parser.load(state)
    assert found == whole


EXTREMES = [0, 1, -1, 9, 255, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1, START * NS_PER_S]
SCALARS = [
    column.name for column in fields(AuthBatch) if column.name not in ("text", "spans", "client", "peer")
]


@st.composite
def hostile_batches(draw: Any) -> AuthBatch:
    """Rows of the right types that hold anything: each value is likely, extreme, or any at all."""
    rows = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    text = b"root\xff\x00\x1b[2Jann" + "é".encode() * 50
    batch = AuthBatch.blank(rows, text)
    batch.outcome[:], batch.client_family[:], batch.peer_family[:] = Outcome.FAILURE, 4, 4
    batch.time_ns[:] = START * NS_PER_S + np.arange(rows) * NS_PER_S
    batch.client[:, 1] = batch.peer[:, 1] = 3405803783
    batch.user[:] = 7
    for name in (*SCALARS, "client", "peer"):
        column = getattr(batch, name)
        bits = column.dtype.itemsize * 8
        extreme = [value % (1 << bits) for value in EXTREMES]
        if name.endswith("family"):
            extreme = [0, 4, 6]
        elif name == "outcome":
            extreme = [*map(int, Outcome), Outcome.FAILURE, Outcome.SUCCESS, 200]
        wild = draw(st.sampled_from((0.0, 0.1, 1.0)))
        drawn = np.array(extreme, np.uint64)[rng.integers(0, len(extreme), column.shape)]
        if name not in ("client_family", "peer_family", "outcome"):
            anything = rng.integers(0, 2**63, column.shape).astype(np.uint64)
            drawn = np.where(rng.random(column.shape) < 0.2, anything, drawn)
        unsigned = column.view(f"u{column.dtype.itemsize}")
        unsigned[...] = np.where(rng.random(column.shape) < wild, drawn.astype(unsigned.dtype), unsigned)
    starts = rng.integers(0, len(text), (rows, len(AUTH_TEXTS)))
    ends = np.minimum(starts + rng.integers(0, 90, starts.shape), len(text))
    absent = rng.random(starts.shape) < draw(st.sampled_from((0.0, 0.5, 1.0)))
    batch.spans[:, :, 0], batch.spans[:, :, 1] = np.where(absent, -1, starts), np.where(absent, -1, ends)
    return batch


def check(finding: Finding) -> None:
    """What whoever reads a finding relies on."""
    assert finding.kind in AUTH_DETECTORS[finding.detector].kinds
    assert finding.entity or finding.entity_type == "user"  # of whom no line tells the name
    assert 0 <= finding.severity <= 100
    assert 0 <= finding.confidence <= 1
    assert 0 < finding.start_ns <= finding.end_ns
    assert finding.time_ns > 0
    for listed in (finding.sources, finding.users, finding.targets, finding.lines, finding.blockable):
        assert len(listed) <= MOST_LISTED
    assert set(finding.blockable) <= {*finding.sources, finding.entity}
    assert all(value >= 0 for value in finding.figures.values() if not isinstance(value, str))
    assert all(line >= 0 for line in finding.lines)
    assert all(isinstance(said, str) for said in (*finding.users, *finding.samples, finding.baseline))
    pack([finding.figures, finding.users, finding.samples, finding.targets])


@few
@given(st.lists(hostile_batches(), min_size=1, max_size=4), divisions)
def test_nothing_that_rows_can_hold_makes_a_detector_raise_or_lie(
    batches: list[AuthBatch], sizes: list[int]
) -> None:
    detection, again = fresh(), fresh()
    found = detect(detection, batches)
    for finding in found.values():
        check(finding)
    event(f"findings: {min(len(found), 3)}")
    assert detect(again, (part for batch in batches for part in divided(batch, sizes))) == found
    restarted(detection)


@few
@given(sites())
def test_findings_of_ordinary_campaigns_are_well_formed(events: list[Event]) -> None:
    for finding in detect(fresh(), [batch_of(numbered(events))]).values():
        check(finding)


def renamed(told: Event) -> Event:
    """The same of other people at other addresses: prefixes that were shared still are, names that the whole
    internet guesses stay."""
    family, high, low = address_columns(told["source"])
    if family == 4:
        low ^= 0x00_3C_5A_A5
    elif family == 6:
        high, low = high ^ 0x5A5A_3C3C, low ^ 0x0F0F_5A5A_1234_5678
    user = told["user"]
    if user and user not in GUESSED_NAMES:
        user = f"someone-{user[::-1]}"
    return {**told, "source": address_text(family, high, low) if family else "", "user": user}


def shape(found: Mapping[str, Finding]) -> list[tuple[Any, ...]]:
    """What of findings does not depend on names. Above 32 distinct counts are estimates, by hash."""
    return sorted(
        (
            f.detector, f.kind, f.entity_type, f.time_ns, f.start_ns, f.end_ns, f.lines, len(f.sources), len(f.users),
            len(f.blockable), f.techniques, f.confidence,
            sorted((name, str(value)) for name, value in f.figures.items() if not name.startswith("distinct")),
        )
        for f in found.values()
    )  # fmt: skip


@few
@given(sites())
def test_findings_do_not_depend_on_what_users_and_addresses_are_called(events: list[Event]) -> None:
    rows = numbered(events)
    found = detect(fresh(), [batch_of(rows)])
    others = detect(fresh(), [batch_of([renamed(told) for told in rows])])
    assert shape(others) == shape(found)


@pytest.mark.skipif(not COMPILED, reason="too few examples can be tried with the loops that are not compiled")
def test_the_campaigns_are_found_by_every_detector_that_they_are_made_for() -> None:
    seen: Counter[str] = Counter()

    for piece in PIECES:

        @settings(few, max_examples=8, derandomize=True, database=None)
        @given(sites(sure=(piece,)))
        def look(events: list[Event]) -> None:
            found = detect(fresh(), [batch_of(numbered(events))])
            seen.update({finding.detector for finding in found.values()})

        look()
    made_for = AUTH_DETECTORS.keys() - NOT_MADE
    assert {name for name in made_for if seen[name] < 2} == set(), seen
