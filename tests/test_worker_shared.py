"""The shared ring between the capture process and the analyser."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections import deque

import numpy as np
import pytest
from gatewatch.daemon.collectors.decode import PACKET
from gatewatch.daemon.collectors.shared import (
    MAGIC,
    VERSION,
    PacketSource,
    SharedRing,
    send_failure,
    send_ring,
)
from gatewatch.daemon.errors import GatewatchError, InputError, PrivilegeError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

HEAD_AT, TAIL_AT = 64, 128


def rows(first: int, count: int) -> NDArray[np.void]:
    made = np.zeros(count, PACKET)
    made["time_ns"] = np.arange(first, first + count)
    made["family"], made["weight"] = 4, 1
    return made


@given(
    st.sampled_from([1, 8, 64]),
    st.lists(st.tuples(st.sampled_from(["push", "pull"]), st.integers(0, 100)), max_size=60),
)
def test_whatever_the_turns_rows_keep_their_order_and_only_counted_ones_are_lost(
    capacity: int, turns: list[tuple[str, int]]
) -> None:
    pusher = SharedRing.create(capacity)
    puller = SharedRing.attach(os.dup(pusher.descriptor))
    inside: deque[int] = deque()
    made = lost = 0
    for turn, amount in turns:
        if turn == "push":
            room = capacity - len(inside)
            assert pusher.push(rows(made, amount)) == min(amount, room)
            inside.extend(range(made, made + min(amount, room)))
            lost += max(0, amount - room)
            made += amount
        else:
            taken = puller.pull(amount)["time_ns"].tolist()
            assert taken == [inside.popleft() for _ in range(min(amount, len(inside)))]
        assert puller.counters()["dropped_ring"] == lost
    assert puller.pull()["time_ns"].tolist() == list(inside)
    pusher.close()
    puller.close()


def test_two_processes_at_full_speed_lose_only_what_is_counted() -> None:
    total, step = 200_000, 500
    ring = SharedRing.create(1 << 10)
    child = os.fork()
    if child == 0:
        for first in range(0, total, step):
            ring.push(rows(first, step))
        os._exit(0)
    puller = SharedRing.attach(os.dup(ring.descriptor))
    ended = os.pidfd_open(child)
    seen = []
    alive = True
    while alive:
        alive = not select.select([ended], [], [], 0)[0]
        seen.append(puller.pull(300)["time_ns"])
    while len(last := puller.pull(300)):
        seen.append(last["time_ns"])
    assert os.waitpid(child, 0)[1] == 0
    os.close(ended)
    taken = np.concatenate(seen)
    assert (np.diff(taken) > 0).all()
    assert len(taken) + puller.counters()["dropped_ring"] == total
    puller.close()
    ring.close()


def test_what_is_pulled_is_a_copy() -> None:
    ring = SharedRing.create(4)
    ring.push(rows(1, 2))
    puller = SharedRing.attach(os.dup(ring.descriptor))
    taken = puller.pull()
    ring._rows[:] = 99
    assert taken["time_ns"].tolist() == [1, 2]


@pytest.mark.parametrize("head", [1 << 63, 0xFFFF_FFFF_FFFF_FFFF, 65])
def test_an_impossible_position_of_the_pusher_is_refused(head: int) -> None:
    ring = SharedRing.create(64)
    puller = SharedRing.attach(os.dup(ring.descriptor))
    os.pwrite(ring.descriptor, struct.pack("<Q", head), HEAD_AT)
    with pytest.raises(InputError, match="corrupted"):
        puller.pull()


@given(st.integers(0, (1 << 64) - 1))
def test_an_impossible_position_of_the_puller_never_makes_the_pusher_overwrite(tail: int) -> None:
    ring = SharedRing.create(8)
    ring.push(rows(1, 6))
    os.pwrite(ring.descriptor, struct.pack("<Q", tail), TAIL_AT)
    went_in = ring.push(rows(7, 8))
    assert went_in <= 8
    if not 0 <= 6 - tail <= 8:
        assert went_in == 0
    ring.close()


def memory(size: int, seals: int, header: bytes) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, header, 0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


ALL = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
ROW = PACKET.itemsize


@pytest.mark.parametrize(
    ("size", "seals", "header", "complaint"),
    [
        (4096 + 8 * ROW, 0, (MAGIC, VERSION, ROW, 8), "not sealed"),
        (4096 + 8 * ROW, ALL & ~fcntl.F_SEAL_SHRINK, (MAGIC, VERSION, ROW, 8), "not sealed"),
        (100, ALL, (MAGIC, VERSION, ROW, 8), "not sealed"),
        (4096 + 8 * ROW, ALL, (MAGIC + 1, VERSION, ROW, 8), "version"),
        (4096 + 8 * ROW, ALL, (MAGIC, VERSION + 1, ROW, 8), "version"),
        (4096 + 8 * ROW, ALL, (MAGIC, VERSION, ROW + 1, 8), "version"),
        (4096 + 8 * ROW, ALL, (MAGIC, VERSION, ROW, 16), "do not fit"),
        (4096 + 8 * ROW, ALL, (MAGIC, VERSION, ROW, 0), "do not fit"),
        (4096 + 7 * ROW, ALL, (MAGIC, VERSION, ROW, 7), "do not fit"),
    ],
)
def test_memory_that_is_no_ring_is_refused(
    size: int, seals: int, header: tuple[int, int, int, int], complaint: str
) -> None:
    descriptor = memory(size, seals, struct.pack("<QIIQ", *header))
    with pytest.raises(InputError, match=complaint):
        SharedRing.attach(descriptor)
    os.close(descriptor)


def test_a_file_is_no_ring() -> None:
    with pytest.raises(InputError, match="not sealed"):
        SharedRing.attach(os.open("/dev/null", os.O_RDWR))


def test_words_left_behind_are_harmless() -> None:
    ring = SharedRing.create(1)
    ring.fail("ValueError: \x1b[2J" + "x" * 400)
    assert ring.failure().startswith("ValueError: ?[2Jx")


def handed_over(ring: SharedRing) -> tuple[PacketSource, int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notify = os.eventfd(0)
    send_ring(theirs, ring, notify)
    return PacketSource(ours), notify, theirs


def test_a_source_stays_readable_while_rows_wait() -> None:
    ring = SharedRing.create(64)
    source, notify, _worker = handed_over(ring)
    assert len(source.pull()) == 0
    ring.push(rows(0, 10))
    os.eventfd_write(notify, 1)
    taken = []
    while select.select([source], [], [], 0)[0]:
        taken += source.pull(4)["time_ns"].tolist()
    assert taken == list(range(10))
    source.close()


def test_rows_that_no_decoder_makes_are_left_out() -> None:
    ring = SharedRing.create(64)
    source, _notify, _worker = handed_over(ring)
    forged = rows(0, 5)
    forged["family"][1], forged["weight"][3] = 7, 0
    ring.push(forged)
    assert source.pull()["time_ns"].tolist() == [0, 2, 4]
    source.close()


def test_a_source_knows_whether_the_worker_lives() -> None:
    source, _notify, worker = handed_over(SharedRing.create(1))
    assert source.alive()
    worker.close()
    assert not source.alive()
    source.close()


@pytest.mark.parametrize(
    "failure", [InputError("no interface 'x'", remedy="name one"), PrivilegeError("not root")]
)
def test_what_keeps_the_worker_from_capturing_is_raised_by_the_source(failure: GatewatchError) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_failure(theirs, failure)
    with pytest.raises(type(failure)) as raised:
        PacketSource(ours)
    assert str(raised.value) == str(failure)


def test_an_error_of_another_kind_arrives_as_the_common_one() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_failure(theirs, UsageError("x" * 5000))
    with pytest.raises(GatewatchError, match="xxx"):
        PacketSource(ours)


@pytest.mark.parametrize(
    "greeting", [b"", b"GWPACKET", b"other...\1\0\0\0\0\0\0\0", b"GWPACKET\2\0\0\0\0\0\0\0"]
)
def test_a_greeting_that_is_none_is_refused(greeting: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if greeting:
        theirs.send(greeting)
    theirs.close()
    with pytest.raises(InputError, match="capture process"):
        PacketSource(ours)


def test_a_worker_that_says_nothing_is_not_waited_for() -> None:
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pytest.raises(InputError, match="did not begin"):
        PacketSource(ours, timeout_s=0.01)
