"""The network detectors over flows written out by hand: what is off the list, what is a scan, and what is neither."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.events import NS_PER_S, Direction, FlowBatch, FlowState, Provenance, address_columns
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.network.allowlist import AllowRule, AllowTable
from gatewatch.detectors.registry import NetworkDetection, network_detectors
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = b"a site's own key"
START = 1_700_000_000
OURS = "198.51.100.5"
Flow = dict[str, Any]


def batch_of(flows: Sequence[Flow]) -> FlowBatch:
    """One row a flow record. `at` is in seconds from START; `flow` names the flow (by default the row)."""
    batch = FlowBatch.blank(len(flows))
    for row, flow in enumerate(flows):
        family, *source = address_columns(flow["source"])
        _, *destination = address_columns(flow["destination"])
        batch.family[row], batch.source[row], batch.destination[row] = family, source, destination
        batch.time_ns[row] = int((START + flow["at"]) * NS_PER_S)
        batch.destination_port[row] = flow["port"]
        batch.protocol[row] = flow.get("protocol", 6)
        batch.state[row] = flow.get("state", FlowState.ESTABLISHED)
        batch.direction[row] = flow.get("direction", Direction.INGRESS)
        batch.bytes_out[row], batch.bytes_in[row] = flow.get("out", 0), flow.get("in", 0)
        name = str(flow.get("flow", f"flow of frame {flow['frame']}"))
        batch.flow[row] = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        batch.frame[row] = flow["frame"]
    return batch


def numbered(flows: Iterable[Flow]) -> list[Flow]:
    return [{"frame": n, **f} for n, f in enumerate(sorted(flows, key=lambda f: f["at"]), 1)]


def came(
    at: float, source: str = "203.0.113.7", port: int = 443, destination: str = OURS, **more: Any
) -> Flow:
    return {"at": at, "source": source, "destination": destination, "port": port, **more}


def went(
    at: float, destination: str = "203.0.113.7", port: int = 443, source: str = OURS, **more: Any
) -> Flow:
    return came(at, source, port, destination, direction=Direction.EGRESS, **more)


def detection(
    ingress: Sequence[AllowRule] | None = None, egress: Sequence[AllowRule] | None = None
) -> NetworkDetection:
    return network_detectors({}, ingress, egress, KEY)


def run(made: NetworkDetection, flows: Iterable[Flow], size: int = 10**9) -> dict[str, Finding]:
    rows = numbered(flows)
    found: dict[str, Finding] = {}
    for start in range(0, len(rows), size):
        for finding in made.update(batch_of(rows[start : start + size])):
            found[finding.id] = finding
    return found


def only(found: dict[str, Finding]) -> Finding:
    (finding,) = found.values()
    return finding


OFFICE = AllowRule(
    networks=("192.0.2.0/24", "2001:db8:1::/48"), ports=(443, (8000, 8010)), protocols=("tcp",)
)


@pytest.mark.parametrize(
    ("address", "port", "protocol", "allowed"),
    [
        ("192.0.2.1", 443, 6, True),
        ("192.0.2.255", 8000, 6, True),
        ("192.0.2.1", 8010, 6, True),
        ("192.0.2.1", 8011, 6, False),
        ("192.0.2.1", 443, 17, False),
        ("192.0.3.1", 443, 6, False),
        ("2001:db8:1:ffff::1", 443, 6, True),
        ("2001:db8:2::1", 443, 6, False),
        ("::c000:201", 443, 6, False),
    ],
)
def test_a_rule_says_networks_ports_and_protocols(
    address: str, port: int, protocol: int, allowed: bool
) -> None:
    family, *halves = address_columns(address)
    said = AllowTable([OFFICE]).allows(
        np.array([halves], np.uint64),
        np.array([family], np.uint8),
        np.array([port], np.uint16),
        np.array([protocol], np.uint8),
    )
    assert said.tolist() == [allowed]


def test_an_empty_tuple_allows_any_port_and_protocol() -> None:
    found = run(detection(ingress=[AllowRule(("203.0.113.0/24",))]), [came(0, port=9), came(1, protocol=17)])
    assert found == {}


def test_nonsense_in_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"300\.1\.1\.1"):
        AllowTable([AllowRule(("300.1.1.1",))])
    with pytest.raises(ValueError, match="70000"):
        AllowTable([AllowRule((), (70000,))])
    with pytest.raises(ValueError, match="tpc"):
        AllowTable([AllowRule((), (), ("tpc",))])


def test_an_allow_list_that_is_none_is_off_and_one_without_rules_allows_nothing() -> None:
    flows = [came(n, source=f"203.0.113.{n}") for n in range(9)]
    assert run(detection(), flows) == {}
    assert len(run(detection(ingress=[]), flows)) == 9


def test_a_source_off_the_list_that_gets_in_is_found_and_may_be_blocked() -> None:
    finding = only(run(detection([OFFICE]), [came(0, port=22), came(1, port=22), came(1, "192.0.2.9")]))
    assert (finding.kind, finding.entity_type, finding.entity) == (
        "off_allowlist_ingress",
        "source",
        "203.0.113.7",
    )
    assert finding.targets == (f"{OURS}:22/tcp",)
    assert finding.figures["connections"] == 2
    assert finding.lines == (1, 2)
    assert finding.blockable == ("203.0.113.7",)


def test_handshakes_never_completed_are_gathered_by_endpoint_and_block_nobody() -> None:
    flows = [came(n, source=f"203.0.113.{n}", port=22, state=FlowState.SYN) for n in range(50)]
    finding = only({k: f for k, f in run(detection([OFFICE]), flows).items() if f.kind != "port_scan"})
    assert (finding.entity_type, finding.entity) == ("endpoint", f"{OURS}:22/tcp")
    assert finding.figures["connections"] == 50
    assert len(finding.sources) == 32
    assert finding.blockable == ()


def test_bytes_of_a_flow_that_appears_again_count_once() -> None:
    flows = [
        went(0, state=FlowState.SYN, flow="a"),
        went(1, out=1000, **{"in": 50}, flow="a"),
        went(9, out=5_000_000, **{"in": 700}, flow="a", state=FlowState.CLOSED),
        went(10, out=100, flow="b"),
    ]
    made = detection(egress=[AllowRule(("192.0.2.0/24",))])
    finding = only(run(made, flows, size=1))
    assert (finding.kind, finding.entity_type, finding.entity) == (
        "off_allowlist_egress",
        "destination",
        "203.0.113.7:443/tcp",
    )
    assert finding.sources == (OURS,)
    assert finding.figures["connections"] == 2
    assert finding.figures["bytes_out"] == 5_000_100
    assert finding.figures["bytes_in"] == 700
    assert finding.lines == (1, 2, 3, 4)
    assert "T1048" in finding.techniques
    assert finding.blockable == ()


def test_what_stays_on_the_link_is_no_matter_of_an_allow_list() -> None:
    made = detection(ingress=[], egress=[])
    near4, near6 = ["224.0.0.22", "255.255.255.255", "169.254.1.1"], ["ff02::1", "ff02::16", "fe80::1"]
    flows = [went(0, address) for address in near4] + [
        went(1, address, source="fe80::9") for address in near6
    ]
    assert run(made, flows) == {}
    assert len(run(made, [went(9, "224.0.1.1"), went(9, "ff05::2", source="fe80::9")])) == 2


def test_both_families_are_judged_by_the_destination_of_what_goes_out() -> None:
    made = detection(egress=[AllowRule(("192.0.2.0/24", "2001:db8:1::/48"), (443,))])
    flows = [
        went(0, "192.0.2.1"),
        went(1, "2001:db8:1::1", source="2001:db8:f::1"),
        went(2, "2001:db8:2::1", source="2001:db8:f::1"),
        went(3, "192.0.2.1", port=25),
    ]
    assert {f.entity for f in run(made, flows).values()} == {"[2001:db8:2::1]:443/tcp", "192.0.2.1:25/tcp"}


def test_a_scan_of_ports_is_found_at_the_twentieth() -> None:
    flows = [came(n / 10, port=n + 1, state=FlowState.SYN) for n in range(40)]
    assert run(detection(), flows[:19]) == {}
    finding = only(run(detection(), flows))
    assert (finding.kind, finding.entity, finding.techniques) == ("port_scan", "203.0.113.7", ("T1046",))
    assert finding.time_ns == int((START + 1.9) * NS_PER_S)
    assert finding.lines[:2] == (2, 3)
    assert 30 < int(finding.figures["distinct_targets"]) < 50
    assert finding.blockable == ()


REFUSALS = [came(n / 10 + 9, port=n + 1000, state=FlowState.REFUSED) for n in range(40)]


def test_a_connected_client_in_whose_name_ports_are_tried_is_not_blockable() -> None:
    """Its own connections are genuine; that the rest is its own nobody can tell."""
    own = [came(n / 10, port=port) for n, port in enumerate((22, 80, 443, 8000, 8001, 8081))]
    assert only(run(detection(), [*own, *REFUSALS])).blockable == ()


def test_a_scanner_whose_handshake_many_targets_took_may_be_blocked() -> None:
    taken = [came(n / 10, port=n + 1) for n in range(20)]
    assert only(run(detection(), [*taken, *REFUSALS])).blockable == ("203.0.113.7",)


def test_what_came_through_a_tunnel_makes_nobody_blockable() -> None:
    taken = [came(n / 10, port=n + 1) for n in range(20)]
    batch = batch_of(numbered([*taken, *REFUSALS]))
    batch.provenance[:] = Provenance.NETWORK
    found = detection([OFFICE]).update(batch)
    assert {f.kind for f in found} == {"port_scan", "off_allowlist_ingress"}
    assert all(f.blockable == () for f in found)


def test_an_opening_that_whoever_was_named_in_it_resets_proves_nothing_off_the_allow_list() -> None:
    reset = [came(0, flow="a", state=FlowState.SYN), came(1, flow="a", state=FlowState.CLOSED)]
    found = run(detection([OFFICE]), reset)
    assert [(f.entity_type, f.blockable) for f in found.values()] == [("endpoint", ())]
    taken = [came(0, flow="a"), came(1, flow="a", state=FlowState.CLOSED)]
    for size in (1, 2):
        assert only(run(detection([OFFICE]), taken, size=size)).blockable == ("203.0.113.7",)


def test_a_sweep_of_hosts_is_one_finding() -> None:
    flows = [came(n / 10, destination=f"198.51.100.{n}", port=22, state=FlowState.SYN) for n in range(40)]
    finding = only(run(detection(), flows))
    assert (finding.kind, finding.figures["port"]) == ("host_sweep", 22)


def test_a_client_of_many_services_is_no_scanner() -> None:
    flows = []
    for n in range(200):
        flows += [
            came(n, port=n + 1, state=FlowState.SYN, flow=n),
            came(n + 0.1, port=n + 1, flow=n),
            came(n + 0.2, port=n + 1, flow=n, state=FlowState.CLOSED),
        ]
    assert run(detection(), flows) == {}


def test_a_client_with_some_dead_services_is_no_scanner() -> None:
    flows = [came(n, port=n + 1, state=FlowState.ESTABLISHED) for n in range(30)]
    flows += [came(n + 30, port=n + 100, state=FlowState.REFUSED) for n in range(25)]
    assert run(detection(), flows) == {}


def test_a_burst_of_connections_out_that_are_answered_is_no_scan() -> None:
    flows = [went(n / 1000, f"203.0.113.{n}", port=n + 1, state=FlowState.SYN, flow=n) for n in range(50)]
    flows += [went(n / 1000 + 1, f"203.0.113.{n}", port=n + 1, flow=n) for n in range(50)]
    assert run(detection(), flows) == {}


def test_a_slow_knocker_is_no_scanner() -> None:
    assert run(detection(), [came(n * 60, port=n + 1, state=FlowState.SYN) for n in range(100)]) == {}


rows = st.tuples(
    st.integers(0, 60),
    st.sampled_from(["203.0.113.7", "203.0.113.8", "2001:db8::1"]),
    st.integers(1, 40),
    st.sampled_from([*FlowState, FlowState.SYN, FlowState.SYN, FlowState.SYN, FlowState.REFUSED]),
    st.sampled_from([Direction.INGRESS, Direction.EGRESS]),
    st.integers(0, 9),
    st.integers(0, 10**7),
)


def flows_of(drawn: list[Any]) -> list[Flow]:
    flows, at = [], 0
    for gap, source, port, state, direction, flow, sent in drawn:
        at += gap // 20
        other = "2001:db8:9::9" if ":" in source else OURS
        make = (
            came(at, source, port, other) if direction == Direction.INGRESS else went(at, source, port, other)
        )
        flows.append({**make, "state": state, "flow": flow, "out": sent, "in": sent // 3})
    return flows


def listed() -> NetworkDetection:
    return detection([OFFICE], [OFFICE])


@settings(max_examples=50, deadline=None)
@given(st.lists(rows, min_size=30, max_size=150), st.integers(1, 40))
def test_batch_boundaries_do_not_matter(drawn: list[Any], size: int) -> None:
    flows = flows_of(drawn)
    whole = run(listed(), flows)
    assert run(listed(), flows, size) == whole
    assert run(listed(), flows, 1) == whole


@settings(max_examples=30, deadline=None)
@given(st.lists(rows, min_size=30, max_size=150), st.integers(0, 150))
def test_a_saved_state_goes_on_as_if_nothing_had_happened(drawn: list[Any], middle: int) -> None:
    flows = numbered(flows_of(drawn))
    straight, resumed = listed(), listed()
    straight.update(batch_of(flows[:middle]))
    resumed.load(straight.save())
    rest = batch_of(flows[middle:])
    assert resumed.update(rest) == straight.update(rest)


def test_a_live_flow_is_cited_by_no_frame() -> None:
    flows = [came(n / 10, port=n + 1, state=FlowState.SYN, frame=0, flow=f"live {n}") for n in range(40)]
    assert only(run(detection(), flows)).lines == ()
    off = [went(0, frame=0), went(1, frame=0, flow="again")]
    assert only(run(detection(egress=[]), off)).lines == ()
