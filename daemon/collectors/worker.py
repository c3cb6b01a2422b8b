"""The capture process `gatewatch-packets`: packet rings in, PACKET columns out.

It opens its rings, hands a shared ring and an eventfd to the analyser, gives up everything and only then looks
at a frame. What reads hostile bytes here can write nothing but the eventfd's eight bytes and the shared ring,
and can open, send and start nothing. It never waits for the analyser, and ends when the analyser lets go of
the socket between them, when its parent ends, or on SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from .. import sandbox
from ..errors import GatewatchError, InputError
from . import shared
from .decode import PACKET, decode
from .ring import DEFAULT_FRAMES, DEFAULT_SNAPLEN, LINKTYPE_RAW, Frames, PacketRing
from .shared import SharedRing
from .weights import passes_by_rule

MOST_FRAMES = 4096
"""Frames decoded at once: few enough to stay in the processor's cache."""

GATHER_MS = 10
"""After frames came, others are left to gather for so long: a wake-up costs as much as decoding some hundreds
of frames, so that at a few thousand frames a second the wake-ups would be what costs. The first frame after a
pause is not kept waiting."""

BUSY = 512
"""From so many frames at once there is no leaving them to gather, nor does the ring's end halve a flood's pace."""

HEARTBEAT_MS = 1000


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the capture process is told at its start.

    interfaces  names; none for all of the network namespace
    one_in      of bulk traffic, one packet in this many is taken (`bpf.packet_filter`)
    frames      slots of each kernel ring; snaplen: most bytes of a packet
    capacity    rows of the shared ring, a power of two
    uid, gid    whom to become when started as root; None to stay who we are
    sandbox     False only where `sandbox.seccomp_supported()` is, and the operator was told
    """

    interfaces: tuple[str, ...] = ()
    one_in: int = 64
    frames: int = DEFAULT_FRAMES
    snaplen: int = DEFAULT_SNAPLEN
    capacity: int = shared.DEFAULT_CAPACITY
    promiscuous: bool = False
    fanout: int | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    sandbox: bool = True


def system_calls(notify: int) -> dict[str, tuple[sandbox.Condition, ...]]:
    """The system calls that the running worker may make. `write` is for the eventfd alone: whoever holds a
    packet socket could transmit by writing to it. No call that makes, moves or duplicates a descriptor."""
    not_executable = sandbox.Condition(2, 0, sandbox.PROT_EXEC)
    anonymous = sandbox.Condition(3, sandbox.MAP_ANONYMOUS, sandbox.MAP_ANONYMOUS)
    free = (
        "poll", "ppoll", "getsockopt", "getsockname", "close", "munmap", "mremap", "brk", "madvise", "futex",
        "clock_gettime", "getrandom", "sched_yield", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
        "sigaltstack", "restart_syscall", "exit", "exit_group",
    )  # fmt: skip
    return {
        "write": (sandbox.Condition(0, notify),),
        "mmap": (not_executable, anonymous),
        "mprotect": (not_executable,),
        **dict.fromkeys(free, ()),
    }


class Capture:
    """Rings on one side, the shared ring on the other, and what was counted between them."""

    def __init__(self, rings: list[PacketRing], ring: SharedRing, notify: int) -> None:
        self.rings = rings
        self.shared = ring
        self.notify = notify
        self.frames = self.passed = self.sampled = 0

    def sweep(self) -> int:
        """Move what waits in every ring, at most MOST_FRAMES of each, to the shared ring, in the order of
        arrival. Returns how many frames that were."""
        found = []
        for ring in self.rings:
            frames = ring.take(MOST_FRAMES)
            if count := len(frames.starts):
                found.append(self._columns(frames, ring.one_in))
                ring.release(count)
        if not found:
            return 0
        rows = found[0]
        if len(found) > 1:
            rows = np.concatenate(found)
            rows = rows[np.argsort(rows["time_ns"], kind="stable")]
        self.shared.count(frames=self.frames, passed=self.passed, sampled=self.sampled)
        if self.shared.push(rows):
            os.eventfd_write(self.notify, 1)
        return len(rows)

    def _columns(self, frames: Frames, one_in: int) -> NDArray[np.void]:
        buffer, starts, captured, wire, time_ns, vlan, link_header = frames
        rows = decode(buffer, starts, captured, wire, time_ns, 0, LINKTYPE_RAW)
        by_rule = passes_by_rule(buffer, starts, captured, wire)
        rows["weight"][~by_rule] = one_in
        rows["length"] += link_header
        np.copyto(rows["vlan"], vlan, where=rows["vlan"] == 0)
        passed = int(np.count_nonzero(by_rule))
        self.frames += len(rows)
        self.passed += passed
        self.sampled += len(rows) - passed
        return rows

    def beat(self) -> None:
        """Tell the analyser that we live, and what the kernel lost."""
        for ring in self.rings:
            ring.read_statistics()
        dropped = sum(ring.dropped for ring in self.rings)
        self.shared.count(dropped_kernel=dropped, heartbeat_ns=time.monotonic_ns())

    def run(self, handover: socket.socket) -> None:
        """Until the other end of `handover` is closed.

        Raises InputError when every interface is gone; while others are left, it is only said.
        """
        everything, control = select.poll(), select.poll()
        watched = {ring.fileno(): ring for ring in self.rings}
        for poller in (everything, control):
            poller.register(handover, 0)
        for descriptor in watched:
            everything.register(descriptor, select.POLLIN)
        next_beat = 0.0
        while True:
            if (now := time.monotonic()) >= next_beat:
                next_beat = now + HEARTBEAT_MS / 1000
                self.beat()
                for descriptor in [number for number, ring in watched.items() if ring.gone()]:
                    everything.unregister(descriptor)
                    self.shared.fail(lost := f"interface {watched.pop(descriptor).interface} is gone")
                    if not watched:
                        raise InputError(lost)
            if moved := self.sweep():
                events = control.poll(0 if moved >= BUSY else GATHER_MS)
            else:
                events = everything.poll(HEARTBEAT_MS)
            for descriptor, event in events:
                if descriptor not in watched:
                    return
                if event & select.POLLERR:
                    watched[descriptor].clear_error()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _rehearse(capture: Capture) -> None:
    """Decode frames of nothing: what is imported or made at its first use is so before the sandbox closes."""
    frame = np.zeros(256, np.uint8)
    one = np.ones(1, np.uint32)
    frames = Frames(
        frame, np.zeros(1, np.int64), one * 128, one * 128, one.astype("i8"), one.astype("u2"), one
    )
    for version, protocol_at in ((0x45, 9), (0x60, 6)):
        frame[0] = version
        for protocol in (6, 17):
            frame[protocol_at] = protocol
            capture._columns(frames, 1)
    capture.frames = capture.passed = capture.sampled = 0
    capture.shared.push(np.zeros(0, PACKET))
    capture.beat()


def give_up_privileges(options: WorkerOptions, parent: int) -> None:
    """Everything that can go before the ring is handed over. There is no way back."""
    if options.uid is not None and options.gid is not None:
        sandbox.drop_to(options.uid, options.gid, options.groups)
    sandbox.drop_capabilities()
    sandbox.no_new_privileges()
    sandbox.die_with_parent(parent)


def run_worker(options: WorkerOptions, handover: socket.socket) -> int:
    """Capture until told to end; the exit code.

    `handover` is our end of a Unix socket pair; the caller has closed the other end in this process. What keeps
    us from capturing is told there, and is the analyser's error to show.
    """
    parent = os.getppid()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the service, which ends us
    sandbox.let_go_of_descriptors((1, 2, handover.fileno()))
    rings: list[PacketRing] = []
    try:
        for interface in options.interfaces or (None,):
            ring = PacketRing(
                interface,
                frames=options.frames,
                snaplen=options.snaplen,
                one_in=options.one_in,
                fanout=options.fanout,
                promiscuous=options.promiscuous,
            )
            rings.append(ring)
        notify = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        capture = Capture(rings, SharedRing.create(options.capacity), notify)
        _rehearse(capture)
        give_up_privileges(options, parent)
        shared.send_ring(handover, capture.shared, notify)
    except GatewatchError as failure:
        print(f"gatewatch-packets: {failure}", file=sys.stderr)
        with contextlib.suppress(ConnectionError):
            shared.send_failure(handover, failure)
        return failure.exit_code
    except (SystemExit, ConnectionError):  # told to end, or the analyser let go before we began
        return 0
    try:
        if options.sandbox:
            sandbox.seccomp_allow(system_calls(notify))
        capture.run(handover)
    except SystemExit:
        return 0
    except GatewatchError as ended:
        capture.shared.fail(ended.message)
        return ended.exit_code
    except Exception as broken:  # nothing but the shared ring is left to say it with
        capture.shared.fail(f"{type(broken).__name__}: {broken}")
        return 1
    return 0
