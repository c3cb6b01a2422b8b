"""Classic BPF, interpreted: what the kernel does with a filter, for the tests to see into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gatewatch.daemon.collectors.bpf import Instruction

ANCILLARY = {0: "proto", 4: "pkttype", 28: "hatype", 56: "random"}  # SKF_AD_* of linux/filter.h
WORD = 0xFFFF_FFFF


def run(program: Sequence[Instruction], data: bytes, ancillary: Mapping[str, int], order: str = "big") -> int:
    """What the program returns; 0 where it reads past the end, as in the kernel. `order`: "little" for seccomp,
    whose data are the machine's own words."""
    a = x = 0
    memory = [0] * 16
    at = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        kind, operand = code & 7, x if code & 0x08 else k
        if kind in (0, 1):
            size = {0x00: 4, 0x08: 2, 0x10: 1}[code & 0x18]
            mode = code & 0xE0
            if mode == 0x00:
                value = k
            elif mode == 0x80:
                value = len(data)
            elif mode == 0x60:
                value = memory[k]
            elif mode == 0xA0:
                if k >= len(data):
                    return 0
                value = 4 * (data[k] & 0x0F)
            elif mode == 0x20 and k >= 0xFFFF_F000:
                value = ancillary[ANCILLARY[k - 0xFFFF_F000]]
            else:
                start = k + x if mode == 0x40 else k
                if start + size > len(data):
                    return 0
                value = int.from_bytes(data[start : start + size], "little" if order == "little" else "big")
            if kind == 0:
                a = value
            else:
                x = value
        elif kind in (2, 3):
            memory[k] = a if kind == 2 else x
        elif kind == 4:
            a = {
                0x00: a + operand, 0x10: a - operand, 0x40: a | operand, 0x50: a & operand,
                0x60: a << operand, 0x70: a >> operand,
            }[code & 0xF0] & WORD  # fmt: skip
        elif kind == 5:
            if code & 0xF0 == 0:
                at += k
                continue
            holds = {0x10: a == operand, 0x20: a > operand, 0x30: a >= operand, 0x40: bool(a & operand)}
            at += true if holds[code & 0xF0] else false
        elif kind == 6:
            return k
        elif code == 0x07:
            x = a
        elif code == 0x87:
            a = x
        else:
            raise AssertionError(f"no such instruction: {code:#x}")
