"""How a process gives up what it no longer needs: identity, capabilities, new privileges, system calls.

Every step is one-way and is verified after it was taken; what could not be given up is an error, never a
warning that scrolls by. Order: `let_go_of_descriptors`, `drop_to`, `drop_capabilities`, `no_new_privileges`,
`die_with_parent` (a change of user clears it), and `seccomp_allow` at last, after everything was imported.

Constants: linux/prctl.h, linux/capability.h, linux/seccomp.h, linux/audit.h, asm-generic/unistd.h and
asm/unistd_64.h of the kernel; man pages prctl(2), capset(2), seccomp(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .collectors.bpf import assemble, machine_code
from .errors import PrivilegeError

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_KILL_PROCESS, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000

PROT_EXEC, MAP_ANONYMOUS = 4, 0x20

SYSTEM_CALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "poll": 7, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25,
        "madvise": 28, "getsockname": 51, "getsockopt": 55, "exit": 60, "sigaltstack": 131, "futex": 202,
        "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231, "ppoll": 271, "seccomp": 317,
        "getrandom": 318,
    },
    "aarch64": {
        "close": 57, "read": 63, "write": 64, "ppoll": 73, "exit": 93, "exit_group": 94, "futex": 98,
        "clock_gettime": 113, "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getsockname": 204,
        "getsockopt": 209, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226,
        "madvise": 233, "seccomp": 277, "getrandom": 278,
    },
}  # fmt: skip
_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_ABSENT = {"aarch64": frozenset({"poll"})}
"""Calls that an architecture does not have (its C library uses another of the list instead)."""

_libc = ctypes.CDLL(None, use_errno=True)


class Condition(NamedTuple):
    """Of a system call's argument (0 to 5): its low 32 bits, masked, equal this."""

    argument: int
    equals: int
    mask: int = 0xFFFF_FFFF


Rules = Mapping[str, Iterable[Condition]]


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    if _libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def let_go_of_descriptors(keep: Iterable[int]) -> None:
    """Put /dev/null in the place of every descriptor that is not in `keep`: what a forked process inherited and
    has no business with. The numbers stay taken, so that an inherited object which is closed late closes nothing
    that was opened since."""
    kept = set(keep)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor != nothing and descriptor not in kept:
            with contextlib.suppress(OSError):  # the one by which the folder was read is gone already
                os.fstat(descriptor)
                os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def drop_to(uid: int, gid: int, groups: Iterable[int] = ()) -> None:
    """Become this user and group for good, with just these supplementary groups and an empty bounding set.

    Raises PrivilegeError where the kernel refuses, where `uid` is 0, or where a way back is left.
    """
    if uid == 0 or gid == 0:
        raise PrivilegeError("a process cannot drop its privileges by becoming root")
    _empty_bounding_set()  # while there is CAP_SETPCAP
    try:
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except PermissionError:
        raise PrivilegeError(
            f"this process may not become user {uid}", remedy="start it as root, or as that user"
        ) from None
    with contextlib.suppress(PermissionError):
        os.setresuid(-1, 0, -1)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PrivilegeError(f"user {uid} still has a way back to privileges")


def no_new_privileges() -> None:
    """From now on no program that this process or its children start can gain privileges."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _empty_bounding_set() -> None:
    """So that no program that is started can gain a capability from its file. Needs CAP_SETPCAP; without it
    `no_new_privileges` says the same."""
    with contextlib.suppress(OSError):  # EINVAL past the last capability that the kernel knows
        for capability in range(64):
            _prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Give up every capability, in all sets.

    Raises PrivilegeError where another thread of this process would keep some: capabilities are a thread's.
    """
    _empty_bounding_set()
    with contextlib.suppress(OSError):  # kernels older than 4.3 know no ambient set
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)) != 0:
        raise PrivilegeError(f"capabilities could not be dropped: {os.strerror(ctypes.get_errno())}")
    for status in Path("/proc/self/task").glob("*/status"):
        held = [line for line in status.read_text().splitlines() if line.startswith(("CapPrm", "CapEff"))]
        if any(int(line.split()[1], 16) for line in held):
            raise PrivilegeError(
                "a thread of this process keeps its capabilities",
                remedy="start with OPENBLAS_NUM_THREADS=1, so that no library begins threads at import",
            )


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends, whose process id the caller noted at its start.

    Raises PrivilegeError where it ended already. A parent's thread counts as the parent: it must be a thread
    that lives on that forked this process.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise PrivilegeError("the parent process ended before this one was ready")


def seccomp_supported() -> bool:
    """Whether `seccomp_allow` knows the system calls of this process: 64 bits, of a machine in SYSTEM_CALLS."""
    return platform.machine() in SYSTEM_CALLS and struct.calcsize("P") == 8


def seccomp_allow(rules: Rules) -> None:
    """Allow the system calls named in `rules`, each under all of its conditions, and no others, for all threads.

    Any other call fails with EPERM: a C library that tries a newer call and falls back goes on, and there is
    nothing to be won by a call that did not happen. A call of another architecture's numbering kills the process.

    Raises PrivilegeError on an architecture without a table, or where the kernel refuses; ValueError for a name
    that the table lacks. Needs `no_new_privileges` before.
    """
    machine = platform.machine()
    if not seccomp_supported():
        raise PrivilegeError(
            f"no table of system calls for {machine}",
            remedy="run on x86_64 or aarch64, or switch the sandbox off",
        )
    program = assemble(filter_text(rules, machine))
    code = ctypes.create_string_buffer(machine_code(program))
    prog = struct.pack("@HP", len(program), ctypes.addressof(code))
    done = _libc.syscall(
        ctypes.c_long(SYSTEM_CALLS[machine]["seccomp"]),
        ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC),
        prog,
    )
    if done != 0:
        reason = os.strerror(ctypes.get_errno()) if done < 0 else f"thread {done} could not follow"
        raise PrivilegeError(f"the kernel refused the system-call filter: {reason}")


def filter_text(rules: Rules, machine: str) -> str:
    """The filter as a program over `struct seccomp_data` (nr at 0, arch at 4, the low word of argument i at
    16 + 8 i: both architectures are little-endian)."""
    numbers = SYSTEM_CALLS[machine]
    names = [name for name in rules if name not in _ABSENT.get(machine, ())]
    if unknown := [name for name in names if name not in numbers]:
        raise ValueError(f"no number known for system call {unknown[0]!r} on {machine}")
    lines = ["ld [4]", f"jeq {_AUDIT_ARCH[machine]:#x}, known", f"ret {_KILL_PROCESS:#x}", "known:", "ld [0]"]
    lines += [f"jeq {numbers[name]}, {name}" for name in names]
    lines += [f"ret {_ERRNO | errno.EPERM:#x}"]
    for name in names:
        lines.append(f"{name}:")
        for at, condition in enumerate(rules[name]):
            lines += [
                f"ld [{16 + 8 * condition.argument}]",
                f"and {condition.mask:#x}",
                f"jeq {condition.equals:#x}, {name}_{at}",
                f"ret {_ERRNO | errno.EPERM:#x}",
                f"{name}_{at}:",
            ]
        lines.append(f"ret {_ALLOW:#x}")
    return "\n".join(lines)
