"""The capture process in a network namespace, with real traffic."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import packet_wire
import pytest
from gatewatch.daemon.collectors.ring import PacketRing
from gatewatch.daemon.collectors.shared import PacketSource
from gatewatch.daemon.collectors.worker import WorkerOptions, run_worker
from gatewatch.daemon.errors import InputError, PrivilegeError
from gatewatch.daemon.events import NS_PER_S, address_columns
from packet_wire import (
    LIMIT_S,
    NOBODY,
    Wire,
    ipv4_packet,
    ipv6_packet,
    send_frame,
    tcp_segment,
    transfer,
    wait_for,
    within,
    worker,
)  # fmt: skip

pytestmark = pytest.mark.lab
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000  # linux/if_tun.h
SYN, FIN, RST, ACK = 0x02, 0x01, 0x04, 0x10
ON_NEAR = WorkerOptions(interfaces=("near0",), uid=NOBODY, gid=NOBODY)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with packet_wire.wire() as made:
        yield made


def columns(text: str) -> list[int]:
    return list(address_columns(text)[1:])


def test_a_connection_is_seen_with_its_addresses_and_sequence_numbers(wire: Wire) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\n\r\n"
    with worker(wire.near, ON_NEAR) as running:
        port = transfer(wire, request)
        rows = running.rows_until(lambda rows: int((rows["tcp_flags"] & FIN != 0).sum()) >= 2)
    rows = rows[rows["protocol"] == 6]
    out = rows[rows["source_port"] == port]
    back = rows[rows["destination_port"] == port]
    assert out["tcp_flags"][0] == SYN and back["tcp_flags"][0] == SYN | ACK
    assert out["source"].tolist() == [columns(wire.far_v4)] * len(out)
    assert out["destination"].tolist() == [columns(wire.near_v4)] * len(out)
    assert set(out["destination_port"].tolist()) == {8080}
    assert (out["family"] == 4).all() and (rows["weight"] == 1).sum() >= 5
    first = int(out["sequence"][0])
    assert back["acknowledgement"][0] == (first + 1) % (1 << 32)
    (data,) = out[out["payload"] > 0]
    assert (data["sequence"], data["payload"], data["weight"]) == ((first + 1) % (1 << 32), len(request), 1)
    (end,) = out[out["tcp_flags"] & FIN != 0]
    assert end["sequence"] == (first + 1 + len(request)) % (1 << 32)
    assert (np.diff(rows["time_ns"]) >= 0).all()
    assert abs(int(rows["time_ns"][0]) - time.time_ns()) < 60 * NS_PER_S


def test_bulk_is_sampled_and_the_weights_add_up_to_roughly_the_truth(wire: Wire) -> None:
    one_in, megabytes = 16, 256
    options = WorkerOptions(interfaces=("near0",), uid=NOBODY, gid=NOBODY, one_in=one_in)
    with worker(wire.near, options) as running:
        port = transfer(wire, bytes(1 << 20), megabytes)
        rows = running.rows_until(lambda rows: int((rows["tcp_flags"] & FIN != 0).sum()) >= 2)
        counted = running.source.counters()
    data = rows[(rows["source_port"] == port) & (rows["payload"] > 0)]
    drawn = data[data["weight"] == one_in]
    assert len(drawn) > 100 and set(rows["weight"].tolist()) == {1, one_in}
    told = int((data["payload"].astype(np.int64) * data["weight"]).sum())
    # Segments of at most 64 KiB, drawn independently: the standard error is at most truth / sqrt(len(drawn)).
    assert abs(told / (megabytes << 20) - 1) < 6 / np.sqrt(len(drawn))
    assert counted["sampled"] >= len(drawn)
    assert counted["frames"] == counted["passed"] + counted["sampled"]
    assert counted["dropped_ring"] == 0


def test_ipv6_and_datagrams_are_seen(wire: Wire) -> None:
    def ask() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as out:
            out.sendto(b"question", (wire.near_v6, 53))

    with worker(wire.near, ON_NEAR) as running:
        within(wire.far, ask).result(LIMIT_S)
        rows = running.rows_until(lambda rows: 53 in rows["destination_port"].tolist())
    (row,) = rows[rows["destination_port"] == 53]
    assert (row["family"], row["protocol"], row["payload"], row["weight"]) == (6, 17, 8, 1)
    assert row["source"].tolist() == columns(wire.far_v6)


@pytest.mark.parametrize("outer", [[], [(0x88A8, 200)]])
def test_vlan_tags_that_the_kernel_takes_off_are_put_back(wire: Wire, outer: list[tuple[int, int]]) -> None:
    packet = ipv4_packet(6, tcp_segment(SYN), source=wire.far_v4, destination=wire.near_v4)
    tags = b"".join(struct.pack("!HH", kind, number) for kind, number in [*outer, (0x8100, 0x4000 | 100)])
    with worker(wire.near, ON_NEAR) as running:
        send_frame(wire.far, "far0", b"\xff" * 6 + bytes(6) + tags + b"\x08\x00" + packet)
        rows = running.rows_until(lambda rows: (rows["tcp_flags"] == SYN).any())
    (row,) = rows[rows["tcp_flags"] == SYN]
    assert (row["vlan"], row["sequence"], row["destination_port"]) == (100, 7, 80)
    assert row["length"] == 14 + len(tags) + len(packet)
    assert row["source"].tolist() == columns(wire.far_v4)


@pytest.mark.parametrize("flow_label", [0x0800, 0x86DD])
def test_a_flow_label_is_not_taken_for_a_tag(wire: Wire, flow_label: int) -> None:
    packet = bytearray(ipv6_packet(6, tcp_segment(SYN), source=wire.far_v6, destination=wire.near_v6))
    packet[2:4] = struct.pack("!H", flow_label)
    with worker(wire.near, ON_NEAR) as running:
        send_frame(wire.far, "far0", b"\xff" * 6 + bytes(6) + b"\x81\x00\x00\x09\x86\xdd" + packet)
        rows = running.rows_until(lambda rows: (rows["tcp_flags"] == SYN).any())
    (row,) = rows[rows["tcp_flags"] == SYN]
    assert (row["vlan"], row["family"], row["sequence"]) == (9, 6, 7)
    assert row["destination"].tolist() == columns(wire.near_v6)


def test_rings_of_a_fanout_group_share_the_flows(wire: Wire) -> None:
    group = os.getpid() & 0xFFFF

    def knock() -> None:
        for _ in range(64):
            with socket.socket() as out:
                out.connect_ex((wire.near_v4, 9))

    def two() -> list[PacketRing]:
        return [PacketRing("near0", fanout=group) for _ in range(2)]

    rings = within(wire.near, two).result(LIMIT_S)
    within(wire.far, knock).result(LIMIT_S)
    counts = [len(ring.take(1000).starts) for ring in rings]
    assert min(counts) > 0 and sum(counts) >= 128
    for ring in rings:
        ring.close()


def test_on_loopback_each_packet_counts_once(wire: Wire) -> None:
    def knock() -> None:
        with socket.socket() as out:
            out.connect_ex(("127.0.0.1", 9))

    with worker(wire.near, WorkerOptions(uid=NOBODY, gid=NOBODY)) as running:
        within(wire.near, knock).result(LIMIT_S)
        rows = running.rows_until(lambda rows: (rows["tcp_flags"] & RST != 0).any())
    assert rows[rows["protocol"] == 6]["tcp_flags"].tolist() == [SYN, RST | ACK]


def test_packets_of_several_interfaces_are_joined_and_each_keeps_its_order(wire: Wire) -> None:
    options = WorkerOptions(interfaces=("lo", "near0"), uid=NOBODY, gid=NOBODY)

    def knock() -> None:
        for turn in range(200):
            with socket.socket() as out:
                out.connect_ex((("127.0.0.1", wire.far_v4)[turn % 2], 9))

    with worker(wire.near, options) as running:
        within(wire.near, knock).result(LIMIT_S)
        rows = running.rows_until(lambda rows: int((rows["tcp_flags"] & RST != 0).sum()) >= 200)
    opened = rows[rows["tcp_flags"] == SYN]
    for address in ("127.0.0.1", wire.far_v4):
        times = opened["time_ns"][opened["destination"][:, 1] == columns(address)[1]]
        assert len(times) == 100 and (np.diff(times) > 0).all()


def test_garbage_is_survived_and_counted(wire: Wire) -> None:
    generator = np.random.default_rng(1)
    frames = [
        b"\xff" * 6 + bytes(6) + kind + generator.bytes(int(generator.integers(1, 200)))
        for kind in (b"\x08\x00", b"\x86\xdd", b"\x81\x00")
        for _ in range(100)
    ]
    good = ipv4_packet(6, tcp_segment(SYN), source=wire.far_v4, destination=wire.near_v4)
    frames.append(b"\xff" * 6 + bytes(6) + b"\x08\x00" + good)

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("far0", 0))
            for frame in frames:
                raw.send(frame)

    with worker(wire.near, WorkerOptions(("near0",), one_in=1, uid=NOBODY, gid=NOBODY)) as running:
        within(wire.far, send).result(LIMIT_S)
        rows = running.rows_until(lambda rows: 7 in rows["sequence"][rows["tcp_flags"] == SYN].tolist())
        assert running.source.alive() and running.source.counters()["frames"] >= len(rows)


def test_what_the_shared_ring_cannot_hold_is_counted(wire: Wire) -> None:
    options = WorkerOptions(("near0",), capacity=64, one_in=1, uid=NOBODY, gid=NOBODY)
    with worker(wire.near, options) as running:
        transfer(wire, bytes(1 << 16), 100)

        def all_counted() -> bool:
            counted = running.source.counters()
            return counted["dropped_ring"] > 0 and counted["frames"] == 64 + counted["dropped_ring"]

        wait_for(all_counted)
        assert len(running.source.pull()) == 64


def test_what_the_kernel_s_ring_cannot_hold_is_counted(wire: Wire) -> None:
    ring = within(wire.near, lambda: PacketRing("near0", frames=128, one_in=1)).result(LIMIT_S)
    transfer(wire, bytes(1 << 16), 400)
    taken = len(ring.take(1000).starts)
    ring.read_statistics()
    assert taken == 128 and ring.dropped > 0 and ring.packets == taken + ring.dropped
    ring.release(taken)
    transfer(wire, b"again")
    assert len(ring.take(1000).starts) > 0
    ring.close()


def test_a_ring_goes_round_and_keeps_the_order(wire: Wire) -> None:
    ring = within(wire.near, lambda: PacketRing("near0", frames=128, one_in=1)).result(LIMIT_S)
    times: list[int] = []
    for _ in range(40):
        transfer(wire, b"GET / HTTP/1.1\r\n\r\n")
        while len(frames := ring.take(50)[4]):
            times += frames.tolist()
            ring.release(len(frames))
    ring.read_statistics()
    assert ring.packets == len(times) > 2 * 128 and ring.dropped == 0
    assert times == sorted(times)
    ring.close()


def test_an_interface_that_goes_down_and_up_is_watched_again(wire: Wire) -> None:
    with worker(wire.near, ON_NEAR) as running:
        packet_wire.ip("-n", wire.near, "link", "set", "near0", "down")
        packet_wire.ip("-n", wire.near, "link", "set", "near0", "up")
        transfer(wire, b"SSH-2.0-x\r\n")
        running.rows_until(lambda rows: (rows["tcp_flags"] == SYN).any())


def test_the_worker_ends_when_its_only_interface_is_gone(wire: Wire) -> None:
    with worker(wire.near, ON_NEAR) as running:
        packet_wire.ip("-n", wire.near, "link", "del", "near0")
        assert running.wait() == 1
        assert running.source.failure() == "interface near0 is gone"
        assert not running.source.alive()


def test_the_worker_goes_on_while_another_interface_is_left(wire: Wire) -> None:
    with worker(wire.near, WorkerOptions(("lo", "near0"), uid=NOBODY, gid=NOBODY)) as running:
        packet_wire.ip("-n", wire.near, "link", "del", "near0")
        wait_for(lambda: running.source.failure() == "interface near0 is gone")
        within(wire.near, lambda: socket.socket().connect_ex(("127.0.0.1", 9))).result(LIMIT_S)
        running.rows_until(lambda rows: (rows["tcp_flags"] == SYN).any())


def test_the_worker_ends_when_the_analyser_lets_go(wire: Wire) -> None:
    with worker(wire.near, ON_NEAR) as running:
        running.close()
        assert running.wait() == 0


def test_an_analyser_that_left_before_is_no_error(wire: Wire) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        ours.close()
        packet_wire.enter(wire.near)
        os._exit(run_worker(ON_NEAR, theirs))
    theirs.close()
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_link_without_header_is_read(wire: Wire) -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun")

    def tunnel() -> tuple[int, PacketRing]:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        packet_wire.ip("-n", wire.near, "link", "set", "tun0", "up")
        return device, PacketRing("tun0")

    device, ring = within(wire.near, tunnel).result(LIMIT_S)
    packet = ipv4_packet(6, tcp_segment(SYN), source="192.0.2.9", destination="192.0.2.1")
    os.write(device, packet)
    frames = ring.take(100)
    taken = [ring.buffer.reshape(-1)[at : at + len(packet)].tobytes() for at in frames.starts.tolist()]
    assert frames.link_header[taken.index(packet)] == 0
    ring.close()
    os.close(device)


def test_the_worker_ends_when_its_parent_is_gone(wire: Wire) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    waiting, go = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            ours.close()
            packet_wire.enter(wire.near)
            os._exit(run_worker(ON_NEAR, theirs))
        os.read(waiting, 1)
        os._exit(0)
    theirs.close()
    source = PacketSource(ours)
    wait_for(lambda: source.counters()["heartbeat_ns"] > 0)
    assert source.alive()
    os.write(go, b".")
    os.waitpid(parent, 0)
    wait_for(lambda: not source.alive())
    source.close()
    os.close(waiting)
    os.close(go)


def test_an_event_loop_is_woken_by_the_source(wire: Wire) -> None:
    async def first(running: packet_wire.Worker) -> int:
        loop = asyncio.get_running_loop()
        came: asyncio.Future[int] = loop.create_future()

        def look() -> None:
            if len(rows := running.source.pull()) and not came.done():
                came.set_result(len(rows))

        loop.add_reader(running.source.fileno(), look)
        knock = loop.run_in_executor(None, transfer, wire, b"SSH-2.0-x\r\n")
        count = await asyncio.wait_for(came, LIMIT_S)
        await knock
        loop.remove_reader(running.source.fileno())
        return count

    with worker(wire.near, ON_NEAR) as running:
        assert asyncio.run(first(running)) > 0


def test_the_worker_ends_on_sigterm(wire: Wire) -> None:
    with worker(wire.near, ON_NEAR) as running:
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait() == 0


def test_the_running_worker_has_given_up_everything(wire: Wire) -> None:
    with worker(wire.near, ON_NEAR) as running:
        running.rows_until(lambda rows: running.source.counters()["heartbeat_ns"] > 0)
        wait_for(lambda: "Seccomp:\t2" in status(running.pid))
        said = dict(line.split(":\t", 1) for line in status(running.pid).splitlines())
        assert said["NoNewPrivs"] == "1" and said["Threads"] == "1"
        assert said["Uid"].split() == [str(NOBODY)] * 4 and said["Groups"].split() == []
        assert {int(said[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


def test_an_unknown_interface_is_named_with_those_that_exist(wire: Wire) -> None:
    with pytest.raises(InputError, match=r"no interface 'nope'; name one of: .*near0"):
        packet_wire.Worker(wire.near, WorkerOptions(("nope",), uid=NOBODY, gid=NOBODY))


def test_without_the_capability_the_remedy_is_said(wire: Wire) -> None:
    child = os.fork()
    if child == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            PacketRing(None)
        except PrivilegeError as error:
            os._exit(0 if "CAP_NET_RAW" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()
