"""Decoding against tshark on captures that others made: the same addresses, ports, protocols, VLANs and names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.collectors.capture import Capture, parse_rows

ROOT = Path(__file__).resolve().parents[1]
CAPTURES = Path(os.environ.get("GATEWATCH_DATA", ROOT / "../shared/data")) / "pcap"
FILES = sorted(p for p in CAPTURES.glob("*.pcap*") if p.suffix != ".json") if CAPTURES.is_dir() else []
FIELDS = (
    "frame.number", "frame.protocols", "frame.len", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "tcp.srcport",
    "tcp.dstport", "udp.srcport", "udp.dstport", "vlan.id", "tls.handshake.extensions_server_name",
    "dns.qry.name", "_ws.malformed", "frame.time_epoch",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not FILES, reason="needs the captures in $GATEWATCH_DATA/pcap")
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")


@lru_cache(64)
def reference(path: Path) -> list[dict[str, list[str]]]:
    """What tshark says of each frame, each field as the list of its occurrences."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=/t", "-E", "aggregator=|"]
    command += ["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]
    for field in FIELDS:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [
        {
            name: value.split("|") if value else []
            for name, value in zip(FIELDS, line.split("\t"), strict=True)
        }
        for line in done.stdout.splitlines()
    ]


def expected(frame: dict[str, list[str]]) -> dict[str, Any]:
    """The innermost of what tshark dissected, without the packet that an ICMP error quotes."""
    layers = frame["frame.protocols"][0].split(":")
    for error in ("icmp", "icmpv6"):
        if error in layers:
            layers = layers[: layers.index(error) + 1]
    said: dict[str, Any] = {"length": int(frame["frame.len"][0])}
    internet = [layer for layer in layers if layer in ("ip", "ipv6")]
    if internet:
        kind = internet[-1]
        at = internet.count(kind) - 1
        said["source"] = frame[f"{kind}.src"][at]
        said["destination"] = frame[f"{kind}.dst"][at]
        after = layers[len(layers) - layers[::-1].index(kind) :]
        for transport in ("tcp", "udp", "icmp", "icmpv6"):
            if transport in after:
                said["protocol"] = transport
        for transport in ("tcp", "udp"):
            if transport in after:
                at = [layer for layer in layers if layer == transport].count(transport) - 1
                said["source_port"] = int(frame[f"{transport}.srcport"][at])
                said["destination_port"] = int(frame[f"{transport}.dstport"][at])
    if "arp" in layers and not internet:
        said["protocol"] = "arp"
    if frame["vlan.id"]:
        said["vlan"] = int(frame["vlan.id"][-1])
    if frame["tls.handshake.extensions_server_name"] and "quic" not in layers:
        said["server_name"] = frame["tls.handshake.extensions_server_name"][0]
    if frame["dns.qry.name"] and "icmp" not in layers:
        said["query"] = frame["dns.qry.name"][0]
    return said


EXCEPTIONS = {
    ("firewall__tcp-session-decode-malformed-ipv4__input.pcap", 8): (
        "an IPv4 option of a length that RFC 1108 forbids: tshark stops there; Linux delivers the segment, so its "
        "ports are read, and the frame is flagged"
    ),
}
"""Frames where both are right in their way, and why."""

QUOTED = {("ipv6-evasion__ipv6-dos-with-ext-headers-5__denial6-5.pcap", 12293)}
"""Frames in which tshark finds malformed what an ICMP error quotes, and cuts off, of another packet."""


def differences(row: dict[str, Any], frame: dict[str, list[str]]) -> dict[str, tuple[Any, Any]]:
    """(ours, tshark's) of every name that differs."""
    want = expected(frame)
    names = want.keys() | (row.keys() & {"source", "source_port", "vlan", "server_name", "query"})
    return {name: (row.get(name), want.get(name)) for name in names if row.get(name) != want.get(name)}


@needs_tshark
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_frame_says_what_tshark_says(path: Path) -> None:
    ours = list(parse_rows(path))
    theirs = reference(path)
    assert [row["frame"] for row in ours] == [int(frame["frame.number"][0]) for frame in theirs]
    wrong = {
        row["frame"]: found
        for row, frame in zip(ours, theirs, strict=True)
        if (found := differences(row, frame)) and (path.name, row["frame"]) not in EXCEPTIONS
    }
    assert not wrong


@needs_tshark
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_frames_that_tshark_calls_malformed_are_flagged_and_no_others(path: Path) -> None:
    ours = {row["frame"] for row in parse_rows(path) if row.get("malformed")}
    theirs = {int(frame["frame.number"][0]) for frame in reference(path) if frame["_ws.malformed"]}
    assert ours == {n for n in theirs if (path.name, n) not in QUOTED}


@needs_tshark
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_time_of_every_frame_is_tsharks_to_the_nanosecond(path: Path) -> None:
    parts = (frame["frame.time_epoch"][0].split(".") for frame in reference(path))
    theirs = [int(whole) * 10**9 + int(rest) for whole, rest in parts]
    with Capture(path) as capture:
        ours = [t for batch in capture.batches(100) for t in batch.packets["time_ns"].tolist()]
    assert ours == theirs


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.with_name(p.name + ".json").exists()], ids=lambda p: p.name
)
def test_ja4_and_server_names_are_those_that_its_authors_publish(path: Path) -> None:
    want: dict[tuple[str, ...], list[str]] = {}
    for stream in json.loads(path.with_name(path.name + ".json").read_text()):
        found = [stream[k] for k in sorted(stream) if re.fullmatch(r"JA4\.\d+", k)]
        if found and found[0].startswith("t"):
            key = (
                stream["src"],
                stream["srcport"],
                stream["dst"],
                stream["dstport"],
                stream.get("domain", ""),
            )
            want[key] = found
    got: dict[tuple[str, ...], list[str]] = {}
    for row in parse_rows(path):
        if "ja4" in row:
            ports = (str(row["source_port"]), str(row["destination_port"]))
            key = (row["source"], ports[0], row["destination"], ports[1], row.get("server_name", ""))
            got.setdefault(key, []).append(row["ja4"])
    assert got == want


def test_the_outer_addresses_of_a_tunnel_stand_under_tunnel(capture: Callable[[str], Path]) -> None:
    (row,) = parse_rows(capture("bug-4571-04__ipv6_over_ipv4.pcap"))
    assert row["source"] == "2001:db8:85a3::8a2e:370:7334"
    assert row["tunnel"] == [{"kind": "ip", "source": "10.1.0.1", "destination": "10.1.0.2"}]
    rows = list(parse_rows(capture("ja4__gre-erspan-vxlan.pcap")))
    assert {tuple(header["kind"] for header in row["tunnel"]) for row in rows} == {("erspan", "vxlan")}


@pytest.fixture
def capture() -> Callable[[str], Path]:
    """The path of one of the captures, or a skip by name."""

    def find(name: str) -> Path:
        if not (CAPTURES / name).exists():
            pytest.skip(f"needs {name} in $GATEWATCH_DATA/pcap")
        return CAPTURES / name

    return find
