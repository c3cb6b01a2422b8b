"""Denied second factors, from the lines that sshd, Duo and google-authenticator write to who is accused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.daemon.events import NS_PER_S, AuthBatch, rfc3339
from gatewatch.daemon.incidents import priority_of
from gatewatch.daemon.joining import join_keys
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.login.attempts import Attempts, AttemptStage
from gatewatch.detectors.registry import LoginDetection, login_detectors
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = b"a site's own key"
START = 1_770_000_000
HOME, AWAY, FAR = "198.51.100.9", "192.0.2.44", "203.0.113.7"
DENIED = "Login request denied."


class Line(NamedTuple):
    at: float
    tag: str
    message: str


def duo(
    at: float, source: str = FAR, user: str = "ann", pid: int = 1, child: int = 0, why: str = DENIED
) -> list[Line]:
    """One denied push; `child`: the process in which sshd asks PAM, where it is not its own."""
    return [
        Line(at, f"pam_duo[{child or pid}]", f"Failed Duo login for '{user}' from {source}: {why}"),
        Line(at + 0.1, f"sshd[{pid}]", f"error: PAM: Authentication failure for {user} from {source}"),
    ]


def code(at: float, source: str = FAR, user: str = "ann", pid: int = 1, child: int = 0) -> list[Line]:
    """One wrong code."""
    return [
        Line(
            at,
            f"sshd(pam_google_authenticator)[{child or pid}]",
            f"Invalid verification code for {user}",
        ),
        Line(at + 2, f"sshd[{pid}]", f"error: PAM: Authentication failure for {user} from {source}"),
    ]


def let_in(
    at: float, source: str = FAR, user: str = "ann", pid: int = 1, method: str = "keyboard-interactive/pam"
) -> list[Line]:
    said = f"Accepted {method} for {user} from {source} port 40022 ssh2"
    return [Line(at, f"sshd[{pid}]", said)]


def refused(at: float, source: str = FAR, user: str = "ann", pid: int = 1) -> list[Line]:
    return [Line(at, f"sshd[{pid}]", f"Failed password for {user} from {source} port 40022 ssh2")]


def flat(*parts: Iterable[Line]) -> list[Line]:
    return sorted((line for part in parts for line in part), key=lambda line: line.at)


def batch_of(lines: list[Line], first: int = 1) -> AuthBatch:
    text = "".join(
        f"{rfc3339(int((START + line.at) * NS_PER_S))} gateway1 {line.tag}: {line.message}\n"
        for line in lines
    )
    parsed = make_parser("sshd", ParserOptions()).parse(text.encode(), first)
    assert not len(parsed.unparsed)
    return parsed.events


def batches(lines: list[Line], size: int) -> Iterator[AuthBatch]:
    for start in range(0, len(lines), size):
        yield batch_of(lines[start : start + size], start + 1)


def run(lines: list[Line], size: int = 10**9, detection: LoginDetection | None = None) -> dict[str, Finding]:
    """The last version of every finding of kind mfa_fatigue, by id."""
    detection = detection or login_detectors({}, KEY)
    found: dict[str, Finding] = {}
    for batch in batches(lines, size):
        found.update({f.id: f for f in detection.update(batch) if f.kind == "mfa_fatigue"})
    return found


def attempts_of(lines: list[Line], size: int = 10**9) -> list[tuple[int, int, int, bool]]:
    """(line, failed attempts, denied second factors among them, success)"""
    stage = AttemptStage(KEY)
    return [row for batch in batches(lines, size) for row in listed(stage.update(batch))]


def listed(made: Attempts) -> list[tuple[int, int, int, bool]]:
    columns = (made.line, made.failures, made.denied, made.success)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def totals(lines: list[Line]) -> tuple[int, int]:
    rows = attempts_of(lines)
    return sum(row[1] for row in rows), sum(row[2] for row in rows)


def priority(finding: Finding) -> str:
    return priority_of(finding.severity, finding.confidence)


def bombing(count: int, every: float = 60, kind: str = "duo", **more: object) -> list[Line]:
    make = duo if kind == "duo" else code
    return flat(*(make(n * every, pid=100 + n // 3, **more) for n in range(count)))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [duo, code])
@pytest.mark.parametrize("child", [0, 7])
def test_a_denied_prompt_is_one_attempt_however_many_lines_and_processes_tell_of_it(
    make: object, child: int
) -> None:
    assert callable(make)
    lines = make(0, child=child)
    lines.append(Line(3, "sshd[1]", f"Failed keyboard-interactive/pam for ann from {FAR} port 40022 ssh2"))
    lines.append(
        Line(4, "sshd[1]", f"Connection closed by authenticating user ann {FAR} port 40022 [preauth]")
    )
    assert totals(lines) == (1, 1)


@pytest.mark.parametrize("child", [0, 7])
def test_three_denied_pushes_of_one_conversation_are_three(child: int) -> None:
    lines = flat(*(duo(n, child=child)[:1] for n in range(3)))
    ended = f"error: PAM: Have exhausted maximum number of retries for service for ann from {FAR}"
    lines.append(Line(4, "sshd[1]", ended))
    assert totals(lines) == (3, 3)


def test_a_denied_prompt_after_wrong_passwords_of_the_same_connection_is_counted_too() -> None:
    lines = flat(refused(0), refused(1), code(2))
    assert totals(lines) == (3, 1)


def test_a_wrong_code_without_an_address_goes_to_the_line_that_has_one() -> None:
    assert attempts_of(code(0, child=7)) == [(2, 1, 1, False)]
    assert attempts_of(code(0)[:1]) == []
    other = Line(1, "sshd[9]", f"error: PAM: Authentication failure for bob from {HOME}")
    assert attempts_of([code(0, child=7)[0], other, code(0, child=7)[1]]) == [
        (2, 1, 0, False),
        (3, 1, 1, False),
    ]


def test_a_wrong_code_waits_half_a_minute_for_its_address() -> None:
    late = code(0, child=7)[1]._replace(at=40)
    assert attempts_of([code(0, child=7)[0], late]) == [(2, 1, 0, False)]


def test_a_wrong_password_is_no_denied_prompt() -> None:
    assert totals(flat(*(refused(n, pid=n) for n in range(5)))) == (5, 0)
    assert run(flat(*(refused(n, pid=n) for n in range(40)))) == {}


def test_duo_that_cannot_be_reached_or_is_left_says_nothing_of_a_denial() -> None:
    said = [
        f"Aborted Duo login for 'ann' from {FAR}: Error gathering user response",
        f"Failsecure Duo login for 'ann' from {FAR}: Couldn't connect to api.example.com",
        f"Error in Duo login for 'ann' from {FAR}: HTTP 500",
        f"Skipped Duo login for 'ann' from {FAR}: Allowed by policy",
    ]
    assert totals([Line(n, "pam_duo[1]", message) for n, message in enumerate(said)]) == (0, 0)


@pytest.mark.parametrize("kind", ["duo", "code"])
@pytest.mark.parametrize("child", [0, 7])
def test_the_sixth_denied_prompt_of_an_hour_raises_its_user(kind: str, child: int) -> None:
    assert run(bombing(5, kind=kind, child=child)) == {}
    (finding,) = run(bombing(6, kind=kind, child=child)).values()
    assert finding.entity_type == "user"
    assert finding.entity == "ann"
    assert finding.sources == (FAR,)
    assert finding.figures["denied_prompts"] == 6
    assert finding.time_ns // NS_PER_S in (START + 300, START + 302)
    assert finding.targets == ("sshd@gateway1",)
    assert finding.techniques == ("T1621",)
    assert (
        finding.threshold == "6 denied prompts of one user in 3600 s, from where the user had never logged in"
    )
    assert priority(finding) == "medium"


def test_a_bombing_that_goes_on_is_the_same_finding_with_a_higher_priority() -> None:
    (finding,) = run(bombing(20), 7).values()
    assert finding.figures["denied_prompts"] == 20
    assert priority(finding) == "high"


def test_prompts_from_many_sources_are_counted_together() -> None:
    lines = flat(*(duo(60 * n, f"203.0.113.{n}", pid=n + 1) for n in range(6)))
    (finding,) = run(lines).values()
    assert finding.entity == "ann"
    assert finding.figures["denied_prompts"] == 6


def test_ten_prompts_over_a_day_are_enough_and_nine_are_not() -> None:
    assert run(bombing(9, every=7200)) == {}
    (finding,) = run(bombing(10, every=7200)).values()
    assert finding.figures["window_s"] == 86400


def test_pushes_that_ran_out_count_like_denied_ones() -> None:
    assert len(run(bombing(6, why="Login timed out."))) == 1


def test_the_accepted_prompt_is_raised_on_the_very_event() -> None:
    detection = login_detectors({}, KEY)
    run(bombing(12), detection=detection)
    last = batch_of(let_in(800), 25)
    (finding,) = [f for f in detection.update(last) if f.kind == "mfa_fatigue"]
    assert finding.severity == 95
    assert finding.entity == "ann"
    assert finding.time_ns == last.time_ns[0]
    assert finding.lines == (25,)
    assert finding.figures == {"successes": 1, "denied_before": 12, "failures_from_there": 12}
    assert finding.techniques == ("T1621", "T1078")
    assert priority(finding) == "critical"


def test_what_the_source_of_a_bombing_does_besides_is_of_the_same_incident() -> None:
    found = run(flat(bombing(12), let_in(800)))
    assert len(found) == 2
    for finding in found.values():
        assert {f"source {FAR}", "prompts ann"} <= {*join_keys(finding).left} & {*join_keys(finding).sought}


def test_a_prompt_accepted_from_another_new_source_is_raised_while_the_bombing_goes_on() -> None:
    assert len(run(flat(bombing(8), let_in(500, AWAY)))) == 2
    assert len(run(flat(bombing(8), let_in(8000, AWAY)))) == 1
    assert len(run(flat(bombing(8), let_in(500, AWAY, method="publickey")))) == 1


def test_the_users_own_login_from_home_is_not_accused() -> None:
    for at in (500, 3000, 40_000):
        (finding,) = run(flat(let_in(-90_000, HOME, pid=5), bombing(12), let_in(at, HOME, pid=6))).values()
        assert finding.severity < 95
        assert finding.sources == (FAR,)


def test_a_slip_at_a_new_network_the_day_after_is_not_part_of_the_bombing() -> None:
    slip = flat(duo(60_000, AWAY, pid=900), let_in(60_020, AWAY, pid=900))
    (finding,) = run(flat(bombing(12), slip)).values()
    assert finding.severity < 95
    assert finding.sources == (FAR,)


def test_a_clumsy_person_is_nobody() -> None:
    visits = [
        flat(duo(3000 * n, HOME, pid=n), duo(3000 * n + 9, HOME, pid=n), let_in(3000 * n + 20, HOME, pid=n))
        for n in range(1, 20)
    ]
    assert run(flat(*visits)) == {}


def test_a_clumsy_traveller_is_nobody() -> None:
    visits = [
        flat(
            duo(1200 * n, f"192.0.2.{n}", pid=n),
            duo(1200 * n + 9, f"192.0.2.{n}", pid=n),
            let_in(1200 * n + 20, f"192.0.2.{n}", pid=n),
        )
        for n in range(1, 20)
    ]
    assert run(flat(*visits)) == {}


def test_a_telephone_with_a_wrong_clock_is_nobody() -> None:
    wrong = bombing(5, every=30, kind="code", source=HOME)
    assert run(wrong) == {}
    assert run(flat(let_in(-90_000, HOME, pid=5), bombing(15, every=30, kind="code", source=HOME))) == {}


def test_bombing_from_where_the_user_logs_in_takes_twenty() -> None:
    before = let_in(-90_000, HOME, pid=5)
    assert run(flat(before, bombing(19, source=HOME))) == {}
    (finding,) = run(flat(before, bombing(20, source=HOME))).values()
    assert priority(finding) == "medium"
    assert finding.sources == () == finding.blockable
    assert not any(FAR in key or HOME in key for key in join_keys(finding).left)


def test_login_duo_asks_after_sshd_has_let_the_user_in() -> None:
    visits = [
        flat(
            let_in(60 * n, pid=n, method="password"),
            [Line(60 * n + 9, "login_duo", f"Failed Duo login for 'ann' from {FAR}: {DENIED}")],
        )
        for n in range(1, 9)
    ]
    (finding,) = run(flat(*visits)).values()
    assert finding.entity == "ann"
    assert finding.severity < 95


def test_a_source_where_others_log_in_is_not_offered_for_a_block() -> None:
    others = flat(*(let_in(-90_000 + n, FAR, user=f"u{n}", pid=5 + n) for n in range(3)))
    (finding,) = run(flat(others, bombing(8))).values()
    assert finding.blockable == ()
    (finding,) = run(bombing(8)).values()
    assert finding.blockable == (FAR,)


def test_a_user_is_raised_by_a_line_that_names_them() -> None:
    ends = [
        flat(
            code(60 * n, pid=n)[:1],
            [Line(60 * n + 1, f"sshd[{n}]", f"Connection closed by {FAR} port 40022 [preauth]")],
        )
        for n in range(1, 8)
    ]
    assert run(flat(*ends)) == {}
    (finding,) = run(flat(*ends, code(600, pid=9))).values()
    assert (finding.entity, finding.figures["denied_prompts"]) == ("ann", 8)


def test_options_move_the_threshold() -> None:
    options = {"mfa_fatigue": {"prompts": 4, "slow_prompts": 4}}
    assert len(run(bombing(4), detection=login_detectors(options, KEY))) == 1


def test_a_flood_of_denied_prompts_for_made_up_users_takes_no_memory() -> None:
    detection = login_detectors({}, KEY)
    detection.update(batch_of(bombing(4)))
    flood = batch_of(duo(300, pid=9)[:1]).take(np.zeros(20_000, np.int64))
    rng = np.random.default_rng(3)
    flood.user[:] = rng.integers(1, 1 << 60, len(flood)).astype(np.uint64)
    detection.update(flood)
    lines = [line._replace(at=line.at + 400) for line in bombing(4)]
    found = [f for f in detection.update(batch_of(lines)) if f.kind == "mfa_fatigue"]
    assert [f.entity for f in found] == ["ann"]


steps = st.tuples(
    st.integers(0, 900),
    st.sampled_from([duo, duo, code, let_in, refused]),
    st.sampled_from([HOME, FAR, FAR, AWAY]),
    st.sampled_from(["ann", "ann", "bob"]),
    st.integers(1, 4),
)


def lines_of(drawn: list[tuple[int, object, str, str, int]], forks: bool) -> list[Line]:
    """`forks`: sshd asks PAM in a process of its own each time."""
    parts, at = [], 0
    for number, (gap, make, source, user, pid) in enumerate(drawn):
        at += gap
        assert callable(make)
        more = {"child": 1000 + number} if forks and make in (duo, code) else {}
        parts.append(make(at, source, user, pid, **more))
    return flat(*parts)


many_steps = st.lists(steps, min_size=10, max_size=60)


@settings(max_examples=60, deadline=None)
@given(many_steps, st.booleans(), st.integers(1, 9))
def test_batch_boundaries_do_not_matter(
    drawn: list[tuple[int, object, str, str, int]], forks: bool, size: int
) -> None:
    lines = lines_of(drawn, forks)
    assert attempts_of(lines, size) == attempts_of(lines)
    assert run(lines, size) == run(lines)


@settings(max_examples=40, deadline=None)
@given(many_steps, st.booleans(), st.integers(0, 60))
def test_a_saved_state_goes_on_as_if_nothing_had_happened(
    drawn: list[tuple[int, object, str, str, int]], forks: bool, middle: int
) -> None:
    lines = lines_of(drawn, forks)
    middle = min(middle, len(lines) - 1)
    straight, resumed = login_detectors({}, KEY), login_detectors({}, KEY)
    straight.update(batch_of(lines[:middle]))
    resumed.load(straight.save())
    rest = batch_of(lines[middle:], middle + 1)
    assert resumed.update(rest) == straight.update(rest)


@given(many_steps, st.booleans())
@settings(max_examples=40, deadline=None)
def test_never_more_denials_than_attempts_and_none_of_a_success(
    drawn: list[tuple[int, object, str, str, int]], forks: bool
) -> None:
    lines = lines_of(drawn, forks)
    rows = attempts_of(lines)
    assert all(0 <= denied <= failed and not (success and denied) for _, failed, denied, success in rows)
    prompts = sum("Duo login" in line.message or "verification code" in line.message for line in lines)
    assert sum(row[2] for row in rows) <= prompts
