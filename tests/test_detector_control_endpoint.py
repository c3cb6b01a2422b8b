"""Control endpoints of model servers: who called them, how the path was written, and what the server answered."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.events import Outcome, Provenance
from gatewatch.daemon.incidents import Correlator
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.gateway import paths
from gatewatch.detectors.gateway.control_endpoint import CRITICAL, HIGH, REFUSED, TRIED, grade_of
from gatewatch.detectors.gateway.control_endpoints import CONTROL_ENDPOINTS, EFFECTS, SOURCES
from gatewatch.detectors.registry import LoginDetection, login_detectors
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detectors_login import KEY, Event, batch_of, login, numbered, run

DAY = 86_400
KEY_ID = "k-0123456789abcdef"
MAIN = "from gatewatch.daemon.cli import main; raise SystemExit(main())"
few = settings(max_examples=15, deadline=None)


def call(at: float, path: str = "/sleep", status: int = 200, key: str = KEY_ID, **more: Any) -> Event:
    outcome = (
        Outcome.FAILURE
        if status in (401, 403)
        else Outcome.SUCCESS
        if status < 400 and key
        else Outcome.OTHER
    )
    about = {"source": "203.0.113.7", "service": "nginx", "host": "", "method": "POST"}
    return {"at": at, "path": path, "status": status, "key": key, "outcome": outcome} | about | more


def detecting(**options: Any) -> LoginDetection:
    return login_detectors({"control_endpoint": options}, KEY)


def of(found: dict[str, Finding]) -> list[Finding]:
    return sorted(
        (f for f in found.values() if f.kind == "control_endpoint_access"), key=lambda f: -f.severity
    )


def the(events: list[Event], **options: Any) -> Finding:
    (finding,) = of(run(events, detection=detecting(**options)))
    return finding


def none(events: list[Event], **options: Any) -> bool:
    return not of(run(events, detection=detecting(**options)))


def test_a_key_whose_call_the_server_obeyed_is_accused() -> None:
    finding = the([call(0, "/v1/chat/completions"), call(5)])
    assert (finding.entity_type, finding.entity, finding.users) == ("user", KEY_ID, (KEY_ID,))
    assert finding.blockable_users == (f"key:{KEY_ID}",)
    assert (finding.blockable, finding.refusable) == ((), ())  # others may share the address
    assert finding.sources == ("203.0.113.7",)
    assert finding.lines == (2,)
    assert (finding.severity, finding.figures["endpoints"], finding.figures["servers"]) == (
        80,
        "POST /sleep",
        "vLLM",
    )


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 429])
def test_what_was_refused_is_low_and_accuses_nobody(status: int) -> None:
    for key in (KEY_ID, ""):
        finding = the([call(n, "/collective_rpc", status, key) for n in range(50)])
        assert finding.severity * finding.confidence < 36
        assert (finding.blockable, finding.refusable, finding.blockable_users) == ((), (), ())


@pytest.mark.parametrize("status", [400, 422, 499, 502, 504])
def test_what_the_server_may_have_done_is_told_and_accuses_nobody(status: int) -> None:
    finding = the([call(0, "/collective_rpc", status)])
    assert finding.severity * finding.confidence >= 36
    assert finding.blockable_users == ()


def test_an_error_within_the_server_says_that_it_was_reached() -> None:
    assert the([call(0, "/collective_rpc", 500)]).blockable_users == (f"key:{KEY_ID}",)


def test_what_only_tells_or_is_an_administrators_accuses_nobody() -> None:
    for path, method in (("/server_info", "GET"), ("/key/generate", "POST"), ("/invocations", "POST")):
        finding = the([call(0, path, method=method)])
        assert finding.severity * finding.confidence < 60
        assert finding.blockable_users == ()


@pytest.mark.parametrize(
    "path",
    [
        "/sleep", "//sleep", "/sleep/", "/SLEEP", "/%73leep", "/%2573leep", "/./sleep", "/v1/../sleep", "/v1/..;/sleep",
        "/sleep;x=1", "/sleep;", "/.//sleep", "/x/%2e%2e/sleep", "/v1%2f..%2fsleep", "/v1\\..\\sleep", "/sleep%20",
        "/sleep%3Flevel=2", "/sleep%00.html", "http://gateway.example/sleep", "/" * 300 + "sleep",
        "/a/.." * 80 + "/sleep", "\\x2Fsleep", "/sleep/.",
    ],
)  # fmt: skip
def test_the_same_endpoint_written_otherwise_is_found(path: str) -> None:
    assert the([call(0, path)]).figures["endpoints"] == "POST /sleep"


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/chat/completions", "POST"), ("/sleepy", "POST"), ("/docs/sleep", "POST"), ("/sleep", "GET"),
        ("/sleep", "OPTIONS"), ("/v1/sleep", "POST"), ("/api/generate", "POST"), ("/api/tags", "GET"),
        ("/v2/models/m/infer", "POST"),
        ("/search%2Fsleep", "POST"), ("/", "POST"), ("", "POST"), ("/%", "POST"), ("/..", "POST"), ("/models", "GET"),
        ("/v1/models/load", "GET"), ("/health", "GET"), ("/is_sleeping", "GET"),
    ],
)  # fmt: skip
def test_what_clients_do_is_nothing(path: str, method: str) -> None:
    assert none([call(0, path, method=method)])


def test_a_base_path_of_the_gateway_counts_only_where_it_is_configured() -> None:
    assert none([call(0, "/llm/a/sleep")])
    assert the([call(0, "/LLM//a/sleep")], prefixes=["/llm/a/"]).figures["endpoints"] == "POST /sleep"
    assert the([call(0, "/sleep")], prefixes=["/llm/a/"]).figures["endpoints"] == "POST /sleep"


def test_every_endpoint_is_found_and_each_server_says_where_it_was_seen() -> None:
    for endpoint in CONTROL_ENDPOINTS:
        for method in endpoint.methods:
            finding = the([call(0, endpoint.path.replace("*", "x-1"), method=method)])
            assert endpoint.path in str(finding.figures["endpoints"])
            assert finding.figures["does"] == EFFECTS[endpoint.effect]
        assert set(endpoint.servers) <= SOURCES.keys()
    assert len({(e.path, m) for e in CONTROL_ENDPOINTS for m in e.methods}) == sum(
        len(e.methods) for e in CONTROL_ENDPOINTS
    )


def test_only_the_servers_that_there_are_are_looked_for() -> None:
    assert none([call(0)], servers=["ollama"])
    assert the([call(0, "/api/pull")], servers=["Ollama"])
    with pytest.raises(ValueError, match=r"servers: 'vlm' is not known; known are .*vLLM"):
        detecting(servers=["vlm"])


def test_who_may_is_kept_out() -> None:
    assert none([call(0)], allowed_keys=[KEY_ID])
    assert none([call(0)], allowed_networks=["203.0.113.0/24"])
    assert none([call(0, source="2001:db8::9")], allowed_networks=["2001:db8::/32"])
    assert the([call(0)], allowed_keys=["k-other"], allowed_networks=["198.51.100.0/24", "2001:db8::/32"])


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_networks": ["nowhere"]},
        {"allowed_keys": "k-1"},
        {"allowed_keys": [1]},
        {"callers": 0},
        {"hash_key": 1},
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"control_endpoint.{next(iter(options))}"):
        detecting(**options)


def test_without_a_key_the_source_is_accused_as_others_are() -> None:
    finding = the([call(0, key="")])
    assert (finding.entity_type, finding.entity, finding.blockable) == (
        "source",
        "203.0.113.7",
        ("203.0.113.7",),
    )
    finding = the([call(0, key="", peer="10.0.0.1")])
    assert (finding.blockable, finding.refusable) == ((), ("203.0.113.7",))
    finding = the([call(0, key="", provenance=Provenance.NETWORK)])
    assert (finding.blockable, finding.refusable) == ((), ())
    assert none([call(0, key="", source="")])  # behind a proxy that names nobody


def test_a_source_from_which_several_users_log_in_is_left_to_a_person() -> None:
    history = [login(-3 * DAY + 60 * n, user=f"u{n % 4}") for n in range(40)]
    finding = the([*history, call(0, key="")])
    assert (finding.blockable, finding.figures["credit_users"]) == ((), 4)


def test_a_user_that_a_request_only_claims_is_not_the_caller() -> None:
    assert the([call(0, key="", user="ann")]).entity == "203.0.113.7"
    finding = the([call(0, key="", user="ann", verified=True)])
    assert (finding.entity, finding.blockable_users) == ("ann", ("subject:ann",))


def test_a_key_that_only_a_datagram_names_is_not_accused() -> None:
    assert the([call(0, provenance=Provenance.NETWORK)]).blockable_users == ()


def test_calls_of_one_key_from_many_places_are_one_finding_that_grows() -> None:
    events = [call(60 * n, ("/sleep", "/pause")[n % 2], source=f"198.51.100.{n}") for n in range(40)]
    finding = the(events)
    assert (finding.figures["requests"], finding.figures["distinct_endpoints"]) == (40, 2)
    assert len(finding.sources) == 32
    assert len(of(run([*events, call(3 * DAY)]))) == 2


def test_what_was_refused_and_what_was_done_are_one_incident_as_grave_as_the_gravest() -> None:
    events = [
        call(0, status=403),
        call(5, "/server_info", method="GET"),
        call(9),
        call(12, "/collective_rpc"),
    ]
    correlator = Correlator()
    for finding in sorted(of(run(events)), key=lambda f: f.time_ns):
        correlator.apply([finding])
    (incident,) = correlator.open_incidents
    document = incident.document()
    assert (document["priority"], len(document["findings"])) == ("critical", 4)
    assert document["blockable_users"] == [f"key:{KEY_ID}"]
    assert document["title"].startswith(f"Control endpoint of a model server requested by {KEY_ID}")


def test_calls_join_the_compromise_of_that_key() -> None:
    tried = [call(n, "/v1/models", 401, f"k-{n:016x}") for n in range(12)]
    found = run(
        [*tried, call(20, "/v1/models", key="k-00000000000000aa"), call(30, key="k-00000000000000aa")]
    )
    correlator = Correlator()
    correlator.apply(sorted(found.values(), key=lambda f: (f.time_ns, f.kind)))
    incidents = [
        i
        for i in correlator.open_incidents
        if "control_endpoint_access" in {f.kind for f in i.findings.values()}
    ]
    assert {"account_compromise", "control_endpoint_access"} <= {
        f.kind for f in incidents[0].findings.values()
    }


@few
@given(
    st.lists(
        st.builds(
            call,
            st.integers(0, 3 * DAY),
            st.sampled_from(("/sleep", "/%73leep", "/api/pull", "/v1/chat/completions", "/server_info")),
            st.sampled_from((200, 403, 499, 500)),
            st.sampled_from((KEY_ID, "k-2", "")),
            source=st.sampled_from(("203.0.113.7", "198.51.100.9", "2001:db8::1", "")),
            method=st.sampled_from(("POST", "GET")),
            provenance=st.sampled_from((Provenance.NETWORK, Provenance.FILE)),
        ),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_findings_depend_neither_on_batches_nor_on_a_restart(events: list[Event], size: int) -> None:
    logins = [login(n * 3600, user=f"u{n % 3}") for n in range(60)]
    rows = batch_of(numbered([*events, *logins]))
    whole = {f.id: f for f in detecting().update(rows)}
    found: dict[str, Finding] = {}
    detection = detecting()
    for begin in range(0, len(rows), size):
        found |= {f.id: f for f in detection.update(rows.take(slice(begin, begin + size)))}
        if begin == 4 * size:
            other = detecting()
            other.load(detection.save())
            detection = other
    assert found == whole
    for finding in of(whole):
        accused = finding.blockable or finding.refusable or finding.blockable_users
        assert not accused or finding.severity >= 80


@given(st.binary(max_size=400))
def test_any_path_comes_to_segments(path: bytes) -> None:
    segments = paths.canonical(path)
    assert all(segment and "/" not in segment and segment not in (".", "..") for segment in segments)
    assert paths.canonical(b"/x/.." + (b"/" + path)) == paths.canonical(b"/" + path)


@few
@given(st.binary(max_size=200), st.sampled_from([e.path for e in CONTROL_ENDPOINTS]))
def test_a_control_endpoint_within_any_bytes_neither_raises_nor_lies(junk: bytes, path: str) -> None:
    batch = batch_of(numbered([call(0, path.replace("*", "m")), call(1, "/v1/models")]))
    start, end = batch.spans[0, 6].tolist()
    text = batch.text[:start] + junk[: end - start].ljust(end - start, b"/") + batch.text[end:]
    for finding in detecting().update(dataclasses.replace(batch, text=text)):
        assert finding.kind == "control_endpoint_access"


def test_grades_follow_what_the_endpoint_does_and_what_was_answered() -> None:
    by_path = {endpoint.path: endpoint for endpoint in CONTROL_ENDPOINTS}
    rpc, sleep, info = by_path["/collective_rpc"], by_path["/sleep"], by_path["/server_info"]
    assert [grade_of(rpc, s) for s in (200, 204, 500, 499, 302, 403, 404)] == [
        CRITICAL, CRITICAL, CRITICAL, TRIED, REFUSED, REFUSED, REFUSED,
    ]  # fmt: skip
    assert (grade_of(sleep, 200), grade_of(info, 200), grade_of(info, 499)) == (HIGH, TRIED, REFUSED)


def test_replay_of_an_access_log_names_the_key_to_block(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    lines = [
        f'203.0.113.7 - - [24/Nov/2026:10:00:{n:02d} +0000] "POST {path} HTTP/1.1" {status} 5 "-" "curl/8" '
        f"rt=0.1 key={KEY_ID} model=- in=- out=- rid=-\n"
        for n, (path, status) in enumerate(
            [("/v1/chat/completions", 200), ("/v1/../collective_rpc?x=1", 200), ("/v1/models", 200)]
        )
    ]
    log.write_text("".join(lines))
    command = [sys.executable, "-c", MAIN, "replay", str(log), "--format", "nginx", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (incident,) = [json.loads(line) for line in said.splitlines()]
    assert (incident["kind"], incident["priority"]) == ("control_endpoint_access", "critical")
    assert incident["blockable_users"] == [f"key:{KEY_ID}"]
    assert incident["users"] == [KEY_ID]
    assert incident["findings"][0]["lines"] == [2]
