# cython: initializedcheck=False
# mypy: disable-error-code="untyped-decorator,valid-type,misc,no-any-return"
"""The compiled loop behind `FlowTable`: one packet after the other into a set-associative table of flows.

The table never grows: a flow that finds its bucket full takes the place of the one idle longest. What the loop
concludes depends on the order of packets alone, never on where one batch ends. The same file runs uncompiled.

Sources: RFC 9293 (TCP), J.-P. Aumasson and D. J. Bernstein, SipHash (one compression and three finalisation
rounds, as in the Linux kernel's hash tables).
"""

from __future__ import annotations

from typing import Any

import cython

COMPILED: bool = cython.compiled

WORDS = 20
"""64-bit words of a slot: 0-3 the two addresses, the lower end first; 4 ports, protocol, family and whether
tunnelled; 5 first, 6 last time; 7 time, 8 bytes and 19 packets of the last row given; then for the lower end's
and the higher end's packets: 9, 10 packets seen, 11, 12 payload times weight, 13, 14 furthest position in the
sequence space; 15 what position 0 is; 16 state and bits; 17 last frame; 18 the flow's name."""

ROW_WORDS = 15
"""64-bit words of a row: time, first, last, source, source, destination, destination, ports and protocol,
state, packets out, packets in, bytes out, bytes in, flow, frame."""

ROW = cython.declare(cython.Py_ssize_t, 15)

WAYS = cython.declare(cython.Py_ssize_t, 8)
MASK = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
SIP0 = cython.declare(cython.ulonglong, 0x736F6D6570736575)
SIP1 = cython.declare(cython.ulonglong, 0x646F72616E646F6D)
SIP2 = cython.declare(cython.ulonglong, 0x6C7967656E657261)
SIP3 = cython.declare(cython.ulonglong, 0x7465646279746573)
LOWER_PORT = cython.declare(cython.ulonglong, 0x0000FFFF00000000)
MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

OTHER = cython.declare(cython.ulonglong, 0)
SYN = cython.declare(cython.ulonglong, 1)
ESTABLISHED = cython.declare(cython.ulonglong, 2)
REFUSED = cython.declare(cython.ulonglong, 3)
CLOSED = cython.declare(cython.ulonglong, 4)

STATE = cython.declare(cython.ulonglong, 15)
HIGHER_OPENED = cython.declare(cython.ulonglong, 16)  # the higher end is the source
ANSWERED = cython.declare(cython.ulonglong, 32)  # a SYN and ACK that fits was seen
KNOWN = cython.declare(
    cython.ulonglong, 64
)  # the beginning of the lower end's sequence; twice that, the higher's
ENDED = cython.declare(cython.ulonglong, 256)  # the lower end's FIN was seen; twice that, the higher's

FIN_FLAG = cython.declare(cython.uint, 1)
SYN_FLAG = cython.declare(cython.uint, 2)
RST_FLAG = cython.declare(cython.uint, 4)
ACK_FLAG = cython.declare(cython.uint, 16)

AT_ONCE = cython.declare(
    cython.ulonglong, 1024
)  # the segment that completed the handshake closed the flow as well

BLIND = cython.declare(cython.ulonglong, 1 << 20)
"""How far past the beginning a server may acknowledge the client's data in the segment that shows that it took the
handshake as completed: more than any first flight. A client must acknowledge what was seen of the server, and nothing
beyond: who cannot see the answer must guess one number of 2**32."""

MOST_RESET = cython.declare(cython.longlong, 1 << 30)
"""How far a reset may move a position: the largest window of RFC 7323."""

ROW_BYTES = cython.declare(cython.longlong, 64 << 20)
ROW_NS = cython.declare(cython.longlong, 60_000_000_000)
GRACE_NS = cython.declare(cython.longlong, 60_000_000_000)
"""A flow whose handshake completed counts as that much less idle when a slot is needed: a flood of openings
pushes out openings first."""

LATE_NS = cython.declare(cython.longlong, 1_000_000_000)


@cython.cfunc
@cython.exceptval(check=False)
def siphash(
    k0: cython.ulonglong,
    k1: cython.ulonglong,
    words: cython.p_ulonglong,
    first: cython.int,
    last: cython.int,
) -> cython.ulonglong:
    """SipHash-1-3 of the words from `first` up to `last`."""
    v0: cython.ulonglong = k0 ^ SIP0
    v1: cython.ulonglong = k1 ^ SIP1
    v2: cython.ulonglong = k0 ^ SIP2
    v3: cython.ulonglong = k1 ^ SIP3
    m: cython.ulonglong = 0
    n: cython.int
    for n in range(first, last + 3):
        if n < last:
            m = words[n]
            v3 ^= m
        elif n == last:
            v2 ^= 0xFF
            m = 0
        v0 = (v0 + v1) & MASK
        v1 = (((v1 << 13) | (v1 >> 51)) & MASK) ^ v0
        v0 = ((v0 << 32) | (v0 >> 32)) & MASK
        v2 = (v2 + v3) & MASK
        v3 = (((v3 << 16) | (v3 >> 48)) & MASK) ^ v2
        v0 = (v0 + v3) & MASK
        v3 = (((v3 << 21) | (v3 >> 43)) & MASK) ^ v0
        v2 = (v2 + v1) & MASK
        v1 = (((v1 << 17) | (v1 >> 47)) & MASK) ^ v2
        v2 = ((v2 << 32) | (v2 >> 32)) & MASK
        v0 ^= m
    return v0 ^ v1 ^ v2 ^ v3


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def ahead(sequence: cython.ulonglong, expected: cython.ulonglong) -> cython.longlong:
    """How far a 32-bit sequence number lies past another, negative where it lies behind (RFC 9293, 3.4)."""
    distance: cython.ulonglong = (sequence - expected) & MASK32
    return cython.cast(cython.longlong, distance) - (
        cython.cast(cython.longlong, 0x100000000) if distance >= 0x80000000 else 0
    )


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def port_class(port: cython.uint) -> cython.int:
    """0 for a port that only services have, 1 for a registered one, 2 for what systems hand out to clients."""
    return 0 if port < 1024 else 1 if port < 32768 else 2


@cython.final
@cython.cclass
class Table:
    """The slots, and the rows that the present batch gives."""

    tags: cython.ulonglong[::1]
    slots: cython.ulonglong[::1]
    first_slot: cython.p_ulonglong
    scratch: cython.ulonglong[::1]
    key: cython.p_ulonglong
    rows: cython.ulonglong[::1]
    count: cython.Py_ssize_t
    clock: cython.longlong
    idle_ns: cython.longlong
    k0: cython.ulonglong
    k1: cython.ulonglong
    buckets: cython.ulonglong

    def __init__(
        self, tags: Any, slots: Any, scratch: Any, k0: int, k1: int, idle_ns: int, clock: int
    ) -> None:
        """`tags` is uint64[capacity], `slots` uint64[capacity * WORDS] and `scratch` uint64[8].

        The capacity is a power of two, at least 8.
        """
        self.tags = tags
        self.slots = slots
        self.scratch = scratch
        if cython.compiled:
            self.first_slot = cython.address(self.slots[0])
            self.key = cython.address(self.scratch[0])
        else:
            self.key = scratch
        self.buckets = len(tags) // 8 - 1
        self.k0 = k0
        self.k1 = k1
        self.idle_ns = idle_ns
        self.clock = clock
        self.count = 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def at(self, slot: cython.Py_ssize_t) -> cython.p_ulonglong:
        """The words of a slot: a pointer to them or, uncompiled, a view of them."""
        if cython.compiled:
            return self.first_slot + slot * 20
        else:  # noqa: RET505 - what is not compiled must not be checked by the compiler either
            return self.slots[slot * 20 : slot * 20 + 20]

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def bytes_of(self, flow: cython.p_ulonglong, side: cython.int) -> cython.ulonglong:
        """By position where the beginning is known, else by what was seen."""
        if flow[16] & (KNOWN << side):
            return flow[13 + side]
        return flow[11 + side]

    @cython.cfunc
    @cython.exceptval(check=False)
    def give(self, flow: cython.p_ulonglong, frame: cython.ulonglong) -> cython.void:
        """One row of what is known of a flow now."""
        bits: cython.ulonglong = flow[16]
        packed: cython.ulonglong = flow[4]
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        at: cython.Py_ssize_t = self.count * ROW
        out: cython.ulonglong = self.bytes_of(flow, opener)
        back: cython.ulonglong = self.bytes_of(flow, 1 - opener)
        if opener:  # the ports change places
            packed = (packed & MASK32) | (packed >> 16 & LOWER_PORT) | ((packed & LOWER_PORT) << 16)
        flow[7] = cython.cast(cython.ulonglong, self.clock) & MASK
        self.rows[at] = flow[7]
        self.rows[at + 1] = flow[5]
        self.rows[at + 2] = flow[6]
        self.rows[at + 3] = flow[2 * opener]
        self.rows[at + 4] = flow[2 * opener + 1]
        self.rows[at + 5] = flow[2 - 2 * opener]
        self.rows[at + 6] = flow[3 - 2 * opener]
        self.rows[at + 7] = packed
        self.rows[at + 8] = bits & STATE
        self.rows[at + 9] = flow[9 + opener]
        self.rows[at + 10] = flow[10 - opener]
        self.rows[at + 11] = out
        self.rows[at + 12] = back
        self.rows[at + 13] = flow[18]
        self.rows[at + 14] = frame
        flow[8] = (out + back) & MASK
        flow[19] = flow[9] + flow[10]
        self.count += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def leave(self, flow: cython.p_ulonglong, frame: cython.ulonglong) -> cython.void:
        """A flow goes: its last row, where that says more than the one before."""
        closed: cython.bint = flow[16] & STATE >= REFUSED
        if closed:
            if (self.bytes_of(flow, 0) + self.bytes_of(flow, 1)) & MASK != flow[8]:
                self.give(flow, frame)
        elif flow[9] + flow[10] != flow[19]:
            self.give(flow, frame)

    @cython.cfunc
    @cython.exceptval(check=False)
    def find(self, frame: cython.ulonglong) -> cython.Py_ssize_t:
        """The slot of the flow in `key`; where it is new, -1 less the slot that was made free and has its key."""
        tag: cython.ulonglong
        first: cython.Py_ssize_t
        slot: cython.Py_ssize_t
        worst: cython.Py_ssize_t
        idle: cython.longlong
        longest: cython.longlong
        key: cython.p_ulonglong = self.key
        flow: cython.p_ulonglong
        if key[0] | key[2]:
            tag = siphash(self.k0, self.k1, key, 0, 5) | 1
        else:
            key[5] = key[4]
            key[6] = ((key[1] << 32) & MASK) | key[3]
            tag = siphash(self.k0, self.k1, key, 5, 7) | 1
        first = cython.cast(cython.Py_ssize_t, (tag >> 8) & self.buckets) * WAYS
        for slot in range(first, first + WAYS):
            if self.tags[slot] == tag:
                flow = self.at(slot)
                if (
                    flow[4] == key[4]
                    and flow[1] == key[1]
                    and flow[3] == key[3]
                    and flow[0] == key[0]
                    and flow[2] == key[2]
                ):
                    return slot
        worst = first
        longest = -0x7FFFFFFFFFFFFFFF
        for slot in range(first, first + WAYS):
            if self.tags[slot] == 0:
                worst = slot
                break
            flow = self.at(slot)
            idle = self.clock - signed(flow[6])
            if flow[16] & STATE == ESTABLISHED:
                idle -= GRACE_NS
            if idle > longest:
                longest = idle
                worst = slot
        flow = self.at(worst)
        if self.tags[worst]:
            self.leave(flow, frame)
        self.tags[worst] = tag
        flow[0] = key[0]
        flow[1] = key[1]
        flow[2] = key[2]
        flow[3] = key[3]
        flow[4] = key[4]
        return -1 - worst

    @cython.cfunc
    @cython.exceptval(check=False)
    def open(
        self,
        flow: cython.p_ulonglong,
        side: cython.int,
        time: cython.ulonglong,
        protocol: cython.uint,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
        acknowledgement: cython.ulonglong,
    ) -> cython.void:
        """A flow begins in a slot whose key is set: who opened it, and what its first packet says of it."""
        word: cython.int
        bits: cython.ulonglong = OTHER
        opener: cython.int = side
        bases: cython.ulonglong = 0
        for word in range(5, 20):
            flow[word] = 0
        flow[5] = time
        if protocol == 6 and tcp_flags & SYN_FLAG:
            bits = SYN | (KNOWN << side)
            bases = ((sequence + 1) & MASK32) << (32 * side)
            if tcp_flags & ACK_FLAG:
                opener = 1 - side
                bits |= ANSWERED | (KNOWN << opener)
                bases |= acknowledgement << (32 * opener)
        elif protocol == 6 or protocol == 17 or protocol == 132 or protocol == 33 or protocol == 136:
            opener = self.likely_opener(flow, side, protocol)
        flow[15] = bases
        flow[16] = bits | (HIGHER_OPENED if opener else 0)
        flow[18] = siphash(self.k0, self.k1, flow, 0, 6)

    @cython.cfunc
    @cython.exceptval(check=False)
    def likely_opener(self, flow: cython.p_ulonglong, side: cython.int, protocol: cython.uint) -> cython.int:
        """Who opened a flow whose beginning was not seen: the end whose port is less like a service's."""
        lower: cython.uint = cython.cast(cython.uint, flow[4] >> 48 & 0xFFFF)
        higher: cython.uint = cython.cast(cython.uint, flow[4] >> 32 & 0xFFFF)
        if port_class(lower) != port_class(higher):
            return 1 if port_class(lower) < port_class(higher) else 0
        if protocol == 6 and lower != higher:
            return 1 if lower < higher else 0
        return side

    @cython.cfunc
    @cython.exceptval(check=False)
    def tcp(
        self,
        flow: cython.p_ulonglong,
        side: cython.int,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
        acknowledgement: cython.ulonglong,
        payload: cython.ulonglong,
    ) -> cython.void:
        """What a segment changes: positions first, then the state."""
        bits: cython.ulonglong = flow[16]
        state: cython.ulonglong = bits & STATE
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        other: cython.int = 1 - side
        from_opener: cython.bint = side == opener
        base: cython.ulonglong
        moved: cython.longlong = 0
        behind: cython.bint = False
        fits: cython.bint
        if tcp_flags & SYN_FLAG:
            if state == SYN:
                self.opening(flow, side, tcp_flags, sequence, acknowledgement, payload)
            return
        base = flow[15] >> (32 * side) & MASK32
        if bits & (KNOWN << side):
            moved = ahead(sequence + payload, base + flow[13 + side])
            behind = moved < 0
            if moved > 0 and not bits & (ENDED << side) and (not tcp_flags & RST_FLAG or moved < MOST_RESET):
                flow[13 + side] += cython.cast(cython.ulonglong, moved)
        base = flow[15] >> (32 * other) & MASK32
        if state == SYN and not tcp_flags & RST_FLAG and tcp_flags & ACK_FLAG:
            fits = bits & (KNOWN << other) != 0
            if from_opener:
                if bits & ANSWERED and fits and (acknowledgement - base) & MASK32 <= flow[13 + other]:
                    state = ESTABLISHED
            elif (
                (payload != 0 or tcp_flags & FIN_FLAG) and fits and (acknowledgement - base) & MASK32 <= BLIND
            ):
                # the server speaks, and ends, only once the handshake is complete; its SYN and ACK may have been missed
                state = ESTABLISHED
        if tcp_flags & RST_FLAG:
            if state == SYN and not from_opener and not bits & ANSWERED:
                # the answer to a SYN acknowledges it; anything else was made up by who did not see the SYN
                if tcp_flags & ACK_FLAG and (acknowledgement - base) & MASK32 <= flow[13 + other]:
                    state = REFUSED
            elif state < REFUSED:
                state = CLOSED
        elif tcp_flags & FIN_FLAG and not behind:
            bits |= ENDED << side
            if bits & (ENDED << other) and state < REFUSED:
                if state == ESTABLISHED and flow[16] & STATE == SYN:
                    bits |= AT_ONCE
                state = CLOSED
        flow[16] = (bits & ~STATE & MASK) | state

    @cython.cfunc
    @cython.exceptval(check=False)
    def opening(
        self,
        flow: cython.p_ulonglong,
        side: cython.int,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
        acknowledgement: cython.ulonglong,
        payload: cython.ulonglong,
    ) -> cython.void:
        """A SYN, or its answer, in a flow that is opening."""
        bits: cython.ulonglong = flow[16]
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        shift: cython.int = 32 * side
        base: cython.ulonglong = (sequence + 1) & MASK32
        others: cython.ulonglong = flow[15] & (MASK32 << (32 - shift))
        if tcp_flags & ACK_FLAG:
            if side == opener:
                return
            if (acknowledgement - (others >> (32 - shift))) & MASK32 > flow[13 + opener]:
                return
            flow[16] = bits | ANSWERED | (KNOWN << side)
            flow[15] = others | (base << shift)
            flow[13 + side] = 0
        elif side == opener:
            if flow[15] >> shift & MASK32 != base:  # another try from the same port
                flow[15] = others | (base << shift)
                flow[16] = bits & ~ANSWERED & MASK
                flow[13 + side] = payload
            elif flow[13 + side] < payload:
                flow[13 + side] = payload

    @cython.cfunc
    @cython.exceptval(check=False)
    def begins_anew(
        self,
        flow: cython.p_ulonglong,
        side: cython.int,
        time: cython.longlong,
        protocol: cython.uint,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
    ) -> cython.bint:
        """Whether a packet with a known five-tuple belongs to another flow than the one in the slot."""
        bits: cython.ulonglong = flow[16]
        state: cython.ulonglong = bits & STATE
        idle: cython.bint = time - signed(flow[6]) > self.idle_ns
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        if protocol != 6:
            return idle
        if not tcp_flags & SYN_FLAG:
            return idle and state >= REFUSED
        if not tcp_flags & ACK_FLAG:
            return state >= REFUSED or idle
        if state == SYN or (side == opener and state != OTHER):
            return False
        # the server answers a SYN that was missed, or that looked like none of a new flow
        return not bits & (KNOWN << side) or (sequence + 1) & MASK32 != flow[15] >> (32 * side) & MASK32

    def update(self, packets: Any, rows: Any) -> tuple[int, int]:
        """Takes in `packets` (PACKET[n]); `rows` is uint64[2 n * ROW_WORDS]. Returns (rows given, packets left out)."""
        time_ns: cython.const[cython.longlong][:] = packets["time_ns"]
        frames: cython.const[cython.longlong][:] = packets["frame"]
        source: cython.const[cython.ulonglong][:, :] = packets["source"]
        destination: cython.const[cython.ulonglong][:, :] = packets["destination"]
        sequences: cython.const[cython.uint][:] = packets["sequence"]
        acknowledgements: cython.const[cython.uint][:] = packets["acknowledgement"]
        payloads: cython.const[cython.uint][:] = packets["payload"]
        weights: cython.const[cython.uint][:] = packets["weight"]
        source_port: cython.const[cython.ushort][:] = packets["source_port"]
        destination_port: cython.const[cython.ushort][:] = packets["destination_port"]
        families: cython.const[cython.uchar][:] = packets["family"]
        protocols: cython.const[cython.uchar][:] = packets["protocol"]
        tcp_flags: cython.const[cython.uchar][:] = packets["tcp_flags"]
        flags: cython.const[cython.uchar][:] = packets["flags"]
        i: cython.Py_ssize_t
        slot: cython.Py_ssize_t
        flow: cython.p_ulonglong
        key: cython.p_ulonglong = self.key
        skipped: cython.Py_ssize_t = 0
        side: cython.int
        is_new: cython.bint
        protocol: cython.uint
        said: cython.uint
        s_high: cython.ulonglong
        s_low: cython.ulonglong
        d_high: cython.ulonglong
        d_low: cython.ulonglong
        s_port: cython.ulonglong
        d_port: cython.ulonglong
        packed: cython.ulonglong
        frame: cython.ulonglong
        payload: cython.ulonglong
        time: cython.longlong
        unsigned: cython.ulonglong
        before: cython.ulonglong
        total: cython.ulonglong
        self.rows = rows
        self.count = 0
        for i in range(time_ns.shape[0]):
            protocol = protocols[i]
            said = tcp_flags[i]
            s_port = source_port[i]
            d_port = destination_port[i]
            # nothing of use above an internet header; a broken or cut frame is of use where its ports and flags
            # could be read, as some receiver might take it
            if (
                families[i] == 0
                or flags[i] & 2
                or (protocol == 6 and s_port | d_port == 0)
                or (flags[i] & 9 and (s_port | d_port == 0 or (protocol == 6 and said == 0)))
            ):
                skipped += 1
                continue
            time = time_ns[i]
            # a little out of order is usual in captures of several interfaces; rows come in order of time
            if time >= self.clock or self.clock - time > LATE_NS:
                self.clock = time
            unsigned = cython.cast(cython.ulonglong, time) & MASK
            frame = frames[i]
            payload = payloads[i]
            s_high = source[i, 0]
            s_low = source[i, 1]
            d_high = destination[i, 0]
            d_low = destination[i, 1]
            packed = (
                (cython.cast(cython.ulonglong, protocol) << 16)
                | (cython.cast(cython.ulonglong, families[i]) << 8)
                | (flags[i] >> 2 & 1)
            )
            side = 0
            if s_high > d_high or (
                s_high == d_high and (s_low > d_low or (s_low == d_low and s_port > d_port))
            ):
                side = 1
            key[2 * side] = s_high
            key[2 * side + 1] = s_low
            key[2 - 2 * side] = d_high
            key[3 - 2 * side] = d_low
            key[4] = packed | (s_port << (48 - 16 * side)) | (d_port << (32 + 16 * side))
            slot = self.find(frame)
            is_new = slot < 0
            flow = self.at(-1 - slot if is_new else slot)
            if not is_new and self.begins_anew(flow, side, time, protocol, said, sequences[i]):
                is_new = True
                self.leave(flow, frame)
            if is_new:
                self.open(flow, side, unsigned, protocol, said, sequences[i], acknowledgements[i])
            before = flow[16] & STATE
            if is_new or time > signed(flow[6]):
                flow[6] = unsigned
            flow[9 + side] += 1
            flow[11 + side] = (flow[11 + side] + payload * weights[i]) & MASK
            flow[17] = frame
            if protocol == 6:
                self.tcp(flow, side, said, sequences[i], acknowledgements[i], payload)
                if flow[16] & AT_ONCE:
                    flow[16] = (flow[16] & ~(AT_ONCE | STATE) & MASK) | ESTABLISHED
                    self.give(flow, frame)
                    flow[16] = (flow[16] & ~STATE & MASK) | CLOSED
            total = self.bytes_of(flow, 0) + self.bytes_of(flow, 1) - flow[8]
            if (
                is_new
                or flow[16] & STATE != before
                or signed(total & MASK) >= ROW_BYTES
                or time - signed(flow[7]) >= ROW_NS
            ):
                self.give(flow, frame)
        return self.count, skipped

    def time(self) -> int:
        """The time of the last packet, in ns."""
        return self.clock

    def finish(self, order: cython.const[cython.longlong][::1], rows: Any) -> int:
        """The last row of each slot named in `order`, where it says more than the one before."""
        i: cython.Py_ssize_t
        flow: cython.p_ulonglong
        self.rows = rows
        self.count = 0
        for i in range(order.shape[0]):
            flow = self.at(order[i])
            self.leave(flow, flow[17])
        return self.count


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def signed(x: cython.ulonglong) -> cython.longlong:
    """Two's complement, which Python's own integers have not."""
    if cython.compiled:
        return cython.cast(cython.longlong, x)
    else:  # noqa: RET505
        return x - (1 << 64) if x >= 1 << 63 else x
