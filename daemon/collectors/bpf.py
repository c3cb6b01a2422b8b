"""The kernel's packet filter of the live capture, and a small assembler of classic BPF to write it in.

The filter decides in the kernel what is worth copying, so that cost grows with connections and not with
bytes. It is written as text with named labels and assembled here; `gatewatch.daemon.sandbox` writes its
system-call filters with the same assembler. This module must stay free of heavy imports, and the filter must
stay the twin of `weights.passes_by_rule`, which tells afterwards which frames it passed by rule.

Instruction set: linux/bpf_common.h, linux/filter.h and Documentation/networking/filter.rst of the kernel.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

LONGEST_PROGRAM = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""

SESSION_STARTS = (
    b"SSH-", b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ",
)  # fmt: skip
"""The first four bytes of a payload that opens a session: the SSH banner (RFC 4253, 4.2), the methods of
HTTP (RFC 9110, 9.3; RFC 5789) and the preface of HTTP/2 (RFC 9113, 3.4). TLS is told by `TLS_START`."""

TLS_START = 0x1603
"""A TLS record of type handshake, major version 3 (RFC 8446, 5.1): ClientHello, ServerHello."""

IPV6_EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)
"""Next-header values that are extension headers (RFC 7045, 4), without ESP, whose inside nobody sees."""


class Instruction(NamedTuple):
    """One `struct sock_filter`."""

    code: int
    true: int
    false: int
    k: int


_LOAD = {"ld": 0x00, "ldh": 0x08, "ldb": 0x10}  # BPF_LD | BPF_W, BPF_H, BPF_B
_ARITHMETIC = {"add": 0x00, "sub": 0x10, "or": 0x40, "and": 0x50, "lsh": 0x60, "rsh": 0x70}
_JUMP = {"jeq": 0x10, "jgt": 0x20, "jge": 0x30, "jset": 0x40}
_ANCILLARY = {"proto": 0, "pkttype": 4, "hatype": 28, "random": 56}  # SKF_AD_PROTOCOL and its like
_SKF_AD_OFF = 0x1_0000_0000 - 0x1000


def _number(text: str) -> int:
    return int(text, 0)


def _load(word: str, operand: str) -> Instruction:
    size = _LOAD[word]
    if operand == "len":
        return Instruction(0x80 | size, 0, 0, 0)
    if operand in _ANCILLARY:
        return Instruction(0x20 | size, 0, 0, _SKF_AD_OFF + _ANCILLARY[operand])
    if found := re.fullmatch(r"\[x\+(\w+)\]", operand):
        return Instruction(0x40 | size, 0, 0, _number(found[1]))
    if found := re.fullmatch(r"\[(\w+)\]", operand):
        return Instruction(0x20 | size, 0, 0, _number(found[1]))
    if found := re.fullmatch(r"M\[(\w+)\]", operand):
        return Instruction(0x60 | size, 0, 0, _number(found[1]))
    return Instruction(0x00 | size, 0, 0, _number(operand))


def _plain(word: str, operand: str) -> Instruction:
    """Every instruction that does not jump."""
    if word in _LOAD:
        return _load(word, operand)
    if word in _ARITHMETIC:
        if operand == "x":
            return Instruction(0x0C | _ARITHMETIC[word], 0, 0, 0)
        return Instruction(0x04 | _ARITHMETIC[word], 0, 0, _number(operand))
    if word == "ldx":
        if found := re.fullmatch(r"4\*\(\[(\w+)\]&0xf\)", operand):
            return Instruction(0xB1, 0, 0, _number(found[1]))
        if found := re.fullmatch(r"M\[(\w+)\]", operand):
            return Instruction(0x61, 0, 0, _number(found[1]))
        return Instruction(0x01, 0, 0, _number(operand))
    if word in ("st", "stx") and (found := re.fullmatch(r"M\[(\w+)\]", operand)):
        return Instruction(0x02 if word == "st" else 0x03, 0, 0, _number(found[1]))
    if word in ("tax", "txa"):
        return Instruction(0x07 if word == "tax" else 0x87, 0, 0, 0)
    if word == "ret":
        return Instruction(0x06, 0, 0, _number(operand))
    raise ValueError(f"unknown instruction {word!r} {operand!r}")


def assemble(text: str) -> list[Instruction]:
    """Machine code of a program in the notation of `tcpdump -d`.

    One instruction a line; `name:` labels the next; `;` begins a comment. A conditional jump names where to go
    if true and, after a comma, if false (left out: the next line). All jumps go forward, as the kernel asks.

    Raises ValueError naming the line for what it does not know, a label that is missing or behind, a jump of
    more than 255 instructions, or a program of more than LONGEST_PROGRAM.
    """
    labels: dict[str, int] = {}
    lines: list[tuple[int, str]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition(";")[0].strip()
        if line.endswith(":"):
            labels[line[:-1]] = len(lines)
        elif line:
            lines.append((number, line))
    if not 0 < len(lines) <= LONGEST_PROGRAM:
        raise ValueError(f"a program has 1 to {LONGEST_PROGRAM} instructions, this one {len(lines)}")

    def distance(label: str, at: int, most: int) -> int:
        if not label:
            return 0
        if label not in labels:
            raise ValueError(f"no label {label!r}")
        away = labels[label] - at - 1
        if not 0 <= away <= most:
            raise ValueError(f"label {label!r} is {away} instructions away")
        return away

    program: list[Instruction] = []
    for at, (number, line) in enumerate(lines):
        word, _, rest = line.partition(" ")
        operands = [part.strip() for part in rest.split(",")]
        try:
            if word == "jmp":
                made = Instruction(0x05, 0, 0, distance(operands[0], at, LONGEST_PROGRAM))
            elif word in _JUMP:
                value, true, false = (*operands, "")[:3]
                with_x = value == "x"
                made = Instruction(
                    0x05 | _JUMP[word] | (0x08 if with_x else 0),
                    distance(true, at, 255),
                    distance(false, at, 255),
                    0 if with_x else _number(value),
                )
            else:
                made = _plain(word, operands[0])
        except ValueError as wrong:
            raise ValueError(f"line {number}: {line!r}: {wrong}") from None
        program.append(made)
    return program


def machine_code(program: list[Instruction]) -> bytes:
    """The array of `struct sock_filter` (linux/filter.h): u16 code, u8 jt, u8 jf, u32 k, native order."""
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def packet_filter(snaplen: int, one_in: int) -> list[Instruction]:
    """The filter of a cooked packet socket (SOCK_DGRAM: data begins at the network header).

    Passes, by rule: TCP segments with SYN, FIN or RST, and those whose payload begins a session
    (SESSION_STARTS, TLS_START); UDP, but for QUIC's 1-RTT packets on port 443; ICMP and ICMPv6; IPv4 fragments
    but the first; IPv6 with extension headers. Of all other IP, one in `one_in` at random. No ARP and nothing
    else that is not IP. A frame that ends inside the headers that the filter has to read is not passed.
    On loopback, where each packet comes by twice, only the copy that is received.

    A VLAN tag that the driver stripped is not in the data; one inside it (the inner of two) is skipped.

    `snaplen`: the most bytes of a packet to copy. `one_in`: from 1 (everything passes) up.
    """
    if not 64 <= snaplen <= 0xFFFF or not 1 <= one_in < 1 << 32:
        raise ValueError(f"snaplen {snaplen} or one_in {one_in} is out of range")
    threshold = (1 << 32) // one_in - 1
    return assemble(f"""
            ld   hatype
            jeq  772, loopback, protocol            ; ARPHRD_LOOPBACK
        loopback:
            ld   pkttype
            jeq  4, nothing                         ; PACKET_OUTGOING
        protocol:
            ld   proto
            jeq  0x0800, ip0_v4
            jeq  0x86dd, ip0_v6
            jeq  0x8100, tag
            jeq  0x88a8, tag, nothing
        tag:
            ld   len
            tax
            ldh  [2]                                ; no tag, but an IPv4 packet that is 0x0800 long?
            jeq  x, version
            jeq  0x0800, ip4_v4
            jeq  0x86dd, ip4_v6
        version:
            ldb  [0]
            and  0xf0
            jeq  0x40, ip0_v4
            jeq  0x60, ip0_v6
        nothing:
            ret  0
        {_ip_rules(0, snaplen, threshold)}
        {_ip_rules(4, snaplen, threshold)}
        """)


def _ip_rules(base: int, snaplen: int, threshold: int) -> str:
    """The rules for IP whose header is at `base`; labels begin with `ip<base>_`."""
    name = f"ip{base}"
    starts = "\n".join(
        f"jeq {int.from_bytes(start, 'big'):#x}, {name}_pass   ; {start.decode()}" for start in SESSION_STARTS
    )
    extensions = "\n".join(f"jeq {number}, {name}_pass" for number in IPV6_EXTENSIONS)
    return f"""
        {name}_v6:
            ldx  40
            ldb  [{base + 6}]
            jeq  58, {name}_pass
            {extensions}
            jmp  {name}_transport
        {name}_v4:
            ldh  [{base + 6}]
            jset 0x1fff, {name}_pass                ; a fragment, not the first: no ports to judge by
            ldx  4*([{base}]&0xf)
            ldb  [{base + 9}]
            jeq  1, {name}_pass
        {name}_transport:
            jeq  6, {name}_tcp
            jeq  17, {name}_udp, {name}_rest
        {name}_udp:
            ldh  [x+{base}]
            jeq  53, {name}_pass
            jeq  443, {name}_quic
            ldh  [x+{base + 2}]
            jeq  443, {name}_quic, {name}_pass
        {name}_quic:
            ldh  [x+{base + 2}]
            jeq  53, {name}_pass
            stx  M[0]
            txa
            add  {base + 9}
            tax
            ld   len
            jge  x, {name}_quic_byte, {name}_pass   ; no payload
        {name}_quic_byte:
            ldx  M[0]
            ldb  [x+{base + 8}]
            jset 0x80, {name}_pass, {name}_rest     ; the long header (RFC 9000, 17.2) opens a session
        {name}_tcp:
            ldb  [x+{base + 13}]
            jset 0x07, {name}_pass                  ; RST, SYN, FIN
            ldb  [x+{base + 12}]
            rsh  2
            and  0x3c
            add  x
            add  {base}
            st   M[0]
            add  4
            tax
            ld   len
            jge  x, {name}_payload, {name}_rest
        {name}_payload:
            ldx  M[0]
            ld   [x+0]
            {starts}
            rsh  16
            jeq  {TLS_START:#x}, {name}_pass
        {name}_rest:
            ld   random
            jgt  {threshold}, {name}_nothing
        {name}_pass:
            ret  {snaplen}
        {name}_nothing:
            ret  0
        """
