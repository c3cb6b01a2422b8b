"""Giving up identity, capabilities and system calls; each in a child of its own, for there is no way back."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bpf_machine import run
from gatewatch.daemon import sandbox
from gatewatch.daemon.collectors.bpf import assemble
from gatewatch.daemon.collectors.worker import system_calls
from gatewatch.daemon.errors import PrivilegeError
from gatewatch.daemon.sandbox import Condition, filter_text

libc = ctypes.CDLL(None, use_errno=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534
PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS = 3, 0x22


def in_child(work: Callable[[mmap.mmap], None]) -> bytes:
    """What `work` wrote into the shared page, in a child that ends well."""
    page = mmap.mmap(-1, 4096)
    child = os.fork()
    if child == 0:
        try:
            work(page)
        except BaseException as error:
            page.seek(0)
            page.write(f"{type(error).__name__}: {error}".encode()[:4000])
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    said = page[:].rstrip(b"\0")
    assert os.waitstatus_to_exitcode(status) == 0, said
    return said


def status_of(names: tuple[str, ...]) -> bytes:
    lines = Path("/proc/self/status").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(names)).encode()


@needs_root
def test_a_dropped_process_has_no_identity_groups_nor_capability_left() -> None:
    def work(page: mmap.mmap) -> None:
        sandbox.drop_to(NOBODY, NOBODY, (NOBODY,))
        sandbox.drop_capabilities()
        sandbox.no_new_privileges()
        page.write(status_of(("Uid", "Gid", "Groups", "Cap", "NoNewPrivs")))

    said = dict(line.split(":", 1) for line in in_child(work).decode().splitlines())
    assert said["Uid"].split() == said["Gid"].split() == [str(NOBODY)] * 4
    assert said["Groups"].split() == [str(NOBODY)]
    assert {int(said[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert said["NoNewPrivs"].strip() == "1"


@needs_root
def test_capabilities_of_root_itself_can_be_dropped() -> None:
    def work(page: mmap.mmap) -> None:
        sandbox.drop_capabilities()
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except PermissionError:
            page.write(status_of(("CapPrm", "CapEff", "CapBnd")))

    said = in_child(work).decode().splitlines()
    assert len(said) == 3 and {int(line.split()[1], 16) for line in said} == {0}


def test_inherited_descriptors_lead_nowhere_and_their_numbers_stay_taken() -> None:
    read, write = os.pipe()
    kept = os.eventfd(0)

    def work(page: mmap.mmap) -> None:
        sandbox.let_go_of_descriptors((kept,))
        os.eventfd_write(kept, 1)
        assert os.write(write, b"x") == 1
        assert {str(Path(f"/proc/self/fd/{number}").readlink()) for number in (0, read, write)} == {
            os.devnull
        }

    in_child(work)
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    os.close(kept)


def test_dropping_to_root_is_refused() -> None:
    with pytest.raises(PrivilegeError, match="root"):
        sandbox.drop_to(0, NOBODY)


@needs_root
def test_who_is_not_root_cannot_become_another() -> None:
    def work(page: mmap.mmap) -> None:
        sandbox.drop_to(NOBODY, NOBODY)
        with pytest.raises(PrivilegeError, match="may not become user 1"):
            sandbox.drop_to(1, 1)

    in_child(work)


def test_a_child_dies_with_its_parent() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        ready_read, ready_write = os.pipe()
        me = os.getpid()
        if os.fork() == 0:
            sandbox.die_with_parent(me)
            os.write(ready_write, b".")
            signal.pause()
        os.read(ready_read, 1)
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(write)
    ended, _, _ = select.select([read], [], [], 20)  # the grandchild held the other end
    assert ended and os.read(read, 1) == b""
    os.close(read)


def test_a_parent_that_ended_before_is_noticed() -> None:
    def work(page: mmap.mmap) -> None:
        with pytest.raises(PrivilegeError, match="parent"):
            sandbox.die_with_parent(os.getppid() + 1)

    in_child(work)


# What whoever has taken over the worker would try, by the C library's own functions.
def attempts(packets: int, other: int) -> dict[str, Callable[[], int]]:
    page = ctypes.create_string_buffer(4096)
    io = (ctypes.c_char_p * 2)(b"x", None)
    null = ctypes.c_void_p(0)
    address = ctypes.create_string_buffer(64)
    pointer = ctypes.c_void_p
    libc.mmap.restype = ctypes.c_ssize_t
    libc.mmap.argtypes = [pointer, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [pointer, ctypes.c_size_t, ctypes.c_int]
    whole_page = libc.mmap(None, 4096, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
    return {
        "write to the packet socket": lambda: libc.write(packets, b"x", 1),
        "write to standard error": lambda: libc.write(2, b"x", 0),
        "writev": lambda: libc.writev(packets, io, 1),
        "pwrite": lambda: libc.pwrite(packets, b"x", 1, 0),
        "send": lambda: libc.send(packets, b"x", 1, 0),
        "sendto": lambda: libc.sendto(packets, b"x", 1, 0, address, 20),
        "sendmsg": lambda: libc.sendmsg(packets, page, 0),
        "sendmmsg": lambda: libc.sendmmsg(packets, page, 1, 0),
        "sendfile": lambda: libc.sendfile(packets, other, null, 1),
        "splice": lambda: libc.splice(other, null, packets, null, 1, 0),
        "vmsplice": lambda: libc.vmsplice(packets, io, 1, 0),
        "read": lambda: libc.read(other, page, 1),
        "recv": lambda: libc.recv(packets, page, 1, 0),
        "recvmsg": lambda: libc.recvmsg(packets, page, 0),
        "dup": lambda: libc.dup(packets),
        "dup2": lambda: libc.dup2(packets, 100),
        "dup3": lambda: libc.dup3(packets, 100, os.O_CLOEXEC),
        "fcntl F_DUPFD": lambda: libc.fcntl(packets, 0, 100),
        "socket": lambda: libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0),
        "socketpair": lambda: libc.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0, page),
        "connect": lambda: libc.connect(packets, address, 20),
        "bind": lambda: libc.bind(packets, address, 20),
        "setsockopt": lambda: libc.setsockopt(packets, 263, 1, page, 16),
        "open": lambda: libc.open(b"/dev/null", os.O_RDWR),
        "memfd_create": lambda: libc.memfd_create(b"x", 0),
        "pipe": lambda: libc.pipe(page),
        "fork": lambda: libc.fork(),
        "execve": lambda: libc.execve(b"/bin/true", null, null),
        "ptrace": lambda: libc.ptrace(0, 0, null, null),
        "process_vm_writev": lambda: libc.process_vm_writev(os.getppid(), io, 1, io, 1, 0),
        "prctl": lambda: libc.prctl(4, 1, 0, 0, 0),
        "kill": lambda: libc.kill(os.getppid(), 0),
        "ioctl": lambda: libc.ioctl(packets, 0x8927, page),
        "setns": lambda: libc.setns(other, 0),
        "unshare": lambda: libc.unshare(0x1000_0000),
        "io_uring_setup": lambda: libc.syscall(425, 8, page),
        "pidfd_getfd": lambda: libc.syscall(438, other, 0, 0),
        "mmap executable": lambda: libc.mmap(None, 4096, 7, MAP_PRIVATE_ANONYMOUS, -1, 0),
        "mmap of the packet socket": lambda: libc.mmap(None, 4096, 3, 1, packets, 0),
        "mprotect executable": lambda: libc.mprotect(whole_page, 4096, 7),
    }


@needs_root
@pytest.mark.skipif(not sandbox.seccomp_supported(), reason="needs x86_64 or aarch64")
def test_nothing_that_transmits_opens_or_starts_is_left_to_the_worker() -> None:
    names = list(attempts(0, 0))

    def work(page: mmap.mmap) -> None:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).fileno()
        other = os.open("/dev/zero", os.O_RDWR)
        notify = os.eventfd(0)
        tries = attempts(packets, other)
        results = (ctypes.c_int * len(tries)).from_buffer(page)
        sandbox.no_new_privileges()
        sandbox.seccomp_allow(system_calls(notify))
        os.eventfd_write(notify, 1)
        for at, attempt in enumerate(tries.values()):
            ctypes.set_errno(0)
            results[at] = ctypes.get_errno() if attempt() < 0 else -1
        for at in range(1 << 16):
            bytearray(at)  # memory can still be had

    said = in_child(work).ljust(4 * len(names), b"\0")
    results = dict(zip(names, struct.unpack_from(f"={len(names)}i", said), strict=True))
    assert results == dict.fromkeys(names, errno.EPERM)


def seccomp_data(number: int, arguments: tuple[int, ...], arch: int = 0xC000_003E) -> bytes:
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    return struct.pack("<IIQ6Q", number, arch, 0, *padded)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_filter_allows_exactly_its_rules(machine: str) -> None:
    arch = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}[machine]
    numbers = sandbox.SYSTEM_CALLS[machine]
    program = assemble(
        filter_text({"write": (Condition(0, 5),), "close": (), "mmap": (Condition(2, 0, 4),)}, machine)
    )

    def verdict(name: str, *arguments: int) -> int:
        return run(program, seccomp_data(numbers[name], arguments, arch), {}, "little") & 0xFFFF_0000

    allow, refuse = 0x7FFF_0000, 0x0005_0000
    assert verdict("write", 5) == verdict("close", 9) == verdict("mmap", 0, 0, 3) == allow
    assert verdict("write", 6) == verdict("mmap", 0, 0, 5) == verdict("getrandom") == refuse
    foreign = run(program, seccomp_data(1, (5,), 0x4000_0003), {}, "little")
    assert foreign == 0x8000_0000, "a call by another architecture's numbers"
    x32 = run(program, seccomp_data(0x4000_0000 | numbers["write"], (5,), arch), {}, "little")
    assert x32 & 0xFFFF_0000 == refuse


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_worker_s_rules_assemble_for_either_architecture(machine: str) -> None:
    assert len(assemble(filter_text(system_calls(7), machine))) < 256


def test_a_call_that_the_table_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="frobnicate"):
        filter_text({"frobnicate": ()}, "x86_64")


def test_another_architecture_is_refused_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not sandbox.seccomp_supported()
    with pytest.raises(PrivilegeError, match="riscv64"):
        sandbox.seccomp_allow({"close": ()})
