# mypy: disable-error-code="untyped-decorator,valid-type,misc"
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

ROW = 17
"""64-bit words of a row: time, first, last, source, source, destination, destination, ports and protocol,
state, packets out, packets in, bytes out, bytes in, flow, frame, tunnelled, spare."""

WAYS = cython.declare(cython.Py_ssize_t, 8)
MASK = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
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

BLIND = cython.declare(cython.ulonglong, 1 << 20)
"""How far past the beginning an acknowledgement may lie that completes a handshake: more than any first flight,
and so little that who cannot see the answer must try 4096 times."""

MOST_RESET = cython.declare(cython.longlong, 1 << 30)
"""How far a reset may move a position: the largest window of RFC 7323."""

ROW_BYTES = cython.declare(cython.longlong, 64 << 20)
ROW_NS = cython.declare(cython.longlong, 60_000_000_000)
GRACE_NS = cython.declare(cython.longlong, 60_000_000_000)
"""A flow whose handshake completed counts as that much less idle when a slot is needed: a flood of openings
pushes out openings first."""

LATE_NS = cython.declare(cython.longlong, 1_000_000_000)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def rotate(x: cython.ulonglong, bits: cython.int) -> cython.ulonglong:
    return ((x << bits) | (x >> (64 - bits))) & MASK


@cython.final
@cython.cclass
class Sip:
    """SipHash-1-3 of whole 64-bit words."""

    v0: cython.ulonglong
    v1: cython.ulonglong
    v2: cython.ulonglong
    v3: cython.ulonglong

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def begin(self, k0: cython.ulonglong, k1: cython.ulonglong) -> cython.void:
        self.v0 = k0 ^ 0x736F6D6570736575
        self.v1 = k1 ^ 0x646F72616E646F6D
        self.v2 = k0 ^ 0x6C7967656E657261
        self.v3 = k1 ^ 0x7465646279746573

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def turn(self) -> cython.void:
        self.v0 = (self.v0 + self.v1) & MASK
        self.v1 = rotate(self.v1, 13) ^ self.v0
        self.v0 = rotate(self.v0, 32)
        self.v2 = (self.v2 + self.v3) & MASK
        self.v3 = rotate(self.v3, 16) ^ self.v2
        self.v0 = (self.v0 + self.v3) & MASK
        self.v3 = rotate(self.v3, 21) ^ self.v0
        self.v2 = (self.v2 + self.v1) & MASK
        self.v1 = rotate(self.v1, 17) ^ self.v2
        self.v2 = rotate(self.v2, 32)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def word(self, m: cython.ulonglong) -> cython.void:
        self.v3 ^= m
        self.turn()
        self.v0 ^= m

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def end(self) -> cython.ulonglong:
        self.v2 ^= 0xFF
        self.turn()
        self.turn()
        self.turn()
        return self.v0 ^ self.v1 ^ self.v2 ^ self.v3


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
    slots: cython.ulonglong[:, ::1]
    rows: cython.ulonglong[:, ::1]
    count: cython.Py_ssize_t
    clock: cython.longlong
    idle_ns: cython.longlong
    k0: cython.ulonglong
    k1: cython.ulonglong
    buckets: cython.ulonglong
    hash: Sip

    def __init__(self, tags: Any, slots: Any, k0: int, k1: int, idle_ns: int, clock: int) -> None:
        """`tags` is uint64[capacity] and `slots` uint64[capacity, WORDS]; the capacity a power of two, at least 8."""
        self.tags = tags
        self.buckets = len(tags) // 8 - 1
        self.slots = slots
        self.k0 = k0
        self.k1 = k1
        self.idle_ns = idle_ns
        self.clock = clock
        self.count = 0
        self.hash = Sip()

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def bytes_of(self, slot: cython.Py_ssize_t, side: cython.int) -> cython.ulonglong:
        """By position where the beginning is known, else by what was seen."""
        if self.slots[slot, 16] & (KNOWN << side):
            return self.slots[slot, 13 + side]
        return self.slots[slot, 11 + side]

    @cython.cfunc
    @cython.exceptval(check=False)
    def give(self, slot: cython.Py_ssize_t, frame: cython.ulonglong) -> cython.void:
        """One row of what is known of a flow now."""
        bits: cython.ulonglong = self.slots[slot, 16]
        packed: cython.ulonglong = self.slots[slot, 4]
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        at: cython.Py_ssize_t = self.count
        out: cython.ulonglong = self.bytes_of(slot, opener)
        back: cython.ulonglong = self.bytes_of(slot, 1 - opener)
        self.rows[at, 0] = cython.cast(cython.ulonglong, self.clock & 0xFFFFFFFFFFFFFFFF)
        self.rows[at, 1] = self.slots[slot, 5]
        self.rows[at, 2] = self.slots[slot, 6]
        self.rows[at, 3] = self.slots[slot, 2 * opener]
        self.rows[at, 4] = self.slots[slot, 2 * opener + 1]
        self.rows[at, 5] = self.slots[slot, 2 - 2 * opener]
        self.rows[at, 6] = self.slots[slot, 3 - 2 * opener]
        if opener:  # the ports change places
            packed = (
                (packed & MASK32) | (packed >> 16 & 0xFFFF00000000) | ((packed & 0xFFFF00000000) << 16 & MASK)
            )
        self.rows[at, 7] = packed
        self.rows[at, 8] = bits & STATE
        self.rows[at, 9] = self.slots[slot, 9 + opener]
        self.rows[at, 10] = self.slots[slot, 10 - opener]
        self.rows[at, 11] = out
        self.rows[at, 12] = back
        self.rows[at, 13] = self.slots[slot, 18]
        self.rows[at, 14] = frame
        self.rows[at, 15] = packed & 1
        self.rows[at, 16] = 0
        self.slots[slot, 7] = self.rows[at, 0]
        self.slots[slot, 8] = (out + back) & MASK
        self.slots[slot, 19] = self.slots[slot, 9] + self.slots[slot, 10]
        self.count = at + 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def leave(self, slot: cython.Py_ssize_t, frame: cython.ulonglong) -> cython.void:
        """A flow goes: its last row, where that says more than the one before."""
        closed: cython.bint = self.slots[slot, 16] & STATE >= REFUSED
        if closed:
            if self.bytes_of(slot, 0) + self.bytes_of(slot, 1) != self.slots[slot, 8]:
                self.give(slot, frame)
        elif self.slots[slot, 9] + self.slots[slot, 10] != self.slots[slot, 19]:
            self.give(slot, frame)

    @cython.cfunc
    @cython.exceptval(check=False)
    def find(
        self,
        a_high: cython.ulonglong,
        a_low: cython.ulonglong,
        b_high: cython.ulonglong,
        b_low: cython.ulonglong,
        packed: cython.ulonglong,
        frame: cython.ulonglong,
    ) -> cython.Py_ssize_t:
        """The slot of a flow; where it is new, -1 less the slot that was made free for it and has its key."""
        tag: cython.ulonglong
        first: cython.Py_ssize_t
        slot: cython.Py_ssize_t
        worst: cython.Py_ssize_t
        idle: cython.longlong
        longest: cython.longlong
        sip: Sip = self.hash
        sip.begin(self.k0, self.k1)
        if a_high | b_high:
            sip.word(a_high)
            sip.word(b_high)
        sip.word(((a_low << 32) & MASK) ^ b_low)
        if a_high | b_high:
            sip.word(a_low)
        sip.word(packed)
        tag = sip.end() | 1
        first = cython.cast(cython.Py_ssize_t, (tag >> 8) & self.buckets) * WAYS
        for slot in range(first, first + WAYS):
            if (
                self.tags[slot] == tag
                and self.slots[slot, 4] == packed
                and self.slots[slot, 1] == a_low
                and self.slots[slot, 3] == b_low
                and self.slots[slot, 0] == a_high
                and self.slots[slot, 2] == b_high
            ):
                return slot
        worst = first
        longest = -0x7FFFFFFFFFFFFFFF
        for slot in range(first, first + WAYS):
            if self.tags[slot] == 0:
                worst = slot
                break
            idle = self.clock - signed(self.slots[slot, 6])
            if self.slots[slot, 16] & STATE == ESTABLISHED:
                idle -= GRACE_NS
            if idle > longest:
                longest = idle
                worst = slot
        if self.tags[worst]:
            self.leave(worst, frame)
        self.tags[worst] = tag
        self.slots[worst, 0] = a_high
        self.slots[worst, 1] = a_low
        self.slots[worst, 2] = b_high
        self.slots[worst, 3] = b_low
        self.slots[worst, 4] = packed
        return -1 - worst

    @cython.cfunc
    @cython.exceptval(check=False)
    def open(
        self,
        slot: cython.Py_ssize_t,
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
        sip: Sip = self.hash
        for word in range(5, WORDS):
            self.slots[slot, word] = 0
        self.slots[slot, 5] = time
        if protocol == 6 and tcp_flags & SYN_FLAG:
            bits = SYN | (KNOWN << side)
            bases = ((sequence + 1) & MASK32) << (32 * side)
            if tcp_flags & ACK_FLAG:
                opener = 1 - side
                bits |= ANSWERED | (KNOWN << opener)
                bases |= acknowledgement << (32 * opener)
        elif protocol == 6 or protocol == 17 or protocol == 132 or protocol == 33 or protocol == 136:
            opener = self.likely_opener(slot, side, protocol)
        self.slots[slot, 15] = bases
        self.slots[slot, 16] = bits | (HIGHER_OPENED if opener else 0)
        sip.begin(self.k0, self.k1)
        for word in range(6):
            sip.word(self.slots[slot, word])
        self.slots[slot, 18] = sip.end()

    @cython.cfunc
    @cython.exceptval(check=False)
    def likely_opener(self, slot: cython.Py_ssize_t, side: cython.int, protocol: cython.uint) -> cython.int:
        """Who opened a flow whose beginning was not seen: the end whose port is less like a service's."""
        lower: cython.uint = cython.cast(cython.uint, self.slots[slot, 4] >> 48 & 0xFFFF)
        higher: cython.uint = cython.cast(cython.uint, self.slots[slot, 4] >> 32 & 0xFFFF)
        if port_class(lower) != port_class(higher):
            return 1 if port_class(lower) < port_class(higher) else 0
        if protocol == 6 and lower != higher:
            return 1 if lower < higher else 0
        return side

    @cython.cfunc
    @cython.exceptval(check=False)
    def tcp(
        self,
        slot: cython.Py_ssize_t,
        side: cython.int,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
        acknowledgement: cython.ulonglong,
        payload: cython.ulonglong,
    ) -> cython.void:
        """What a segment changes: positions first, then the state."""
        bits: cython.ulonglong = self.slots[slot, 16]
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
                self.opening(slot, side, tcp_flags, sequence, acknowledgement, payload)
            return
        base = self.slots[slot, 15] >> (32 * side) & MASK32
        if bits & (KNOWN << side):
            moved = ahead(sequence + payload, base + self.slots[slot, 13 + side])
            behind = moved < 0
            if moved > 0 and not bits & (ENDED << side) and (not tcp_flags & RST_FLAG or moved < MOST_RESET):
                self.slots[slot, 13 + side] += cython.cast(cython.ulonglong, moved)
        base = self.slots[slot, 15] >> (32 * other) & MASK32
        if state == SYN and not tcp_flags & RST_FLAG and tcp_flags & ACK_FLAG:
            fits = bits & (KNOWN << other) != 0 and (acknowledgement - base) & MASK32 <= BLIND
            if from_opener:
                if bits & ANSWERED and fits:
                    state = ESTABLISHED
            elif payload != 0 and fits:
                # the server speaks only once the handshake is complete; its SYN and ACK may have been missed
                state = ESTABLISHED
        if tcp_flags & RST_FLAG:
            if state == SYN and not from_opener and not bits & ANSWERED:
                # the answer to a SYN acknowledges it; anything else was made up by who did not see the SYN
                if tcp_flags & ACK_FLAG and (acknowledgement - base) & MASK32 <= self.slots[slot, 13 + other]:
                    state = REFUSED
            elif state < REFUSED:
                state = CLOSED
        elif tcp_flags & FIN_FLAG and not behind:
            bits |= ENDED << side
            if bits & (ENDED << other) and state < REFUSED:
                state = CLOSED
        self.slots[slot, 16] = (bits & ~STATE & MASK) | state

    @cython.cfunc
    @cython.exceptval(check=False)
    def opening(
        self,
        slot: cython.Py_ssize_t,
        side: cython.int,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
        acknowledgement: cython.ulonglong,
        payload: cython.ulonglong,
    ) -> cython.void:
        """A SYN, or its answer, in a flow that is opening."""
        bits: cython.ulonglong = self.slots[slot, 16]
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        shift: cython.int = 32 * side
        base: cython.ulonglong = (sequence + 1) & MASK32
        others: cython.ulonglong = self.slots[slot, 15] & (MASK32 << (32 - shift))
        if tcp_flags & ACK_FLAG:
            if side == opener:
                return
            if (acknowledgement - (others >> (32 - shift))) & MASK32 > self.slots[slot, 13 + opener]:
                return
            self.slots[slot, 16] = bits | ANSWERED | (KNOWN << side)
            self.slots[slot, 15] = others | (base << shift)
            self.slots[slot, 13 + side] = 0
        elif side == opener:
            if self.slots[slot, 15] >> shift & MASK32 != base:  # another try from the same port
                self.slots[slot, 15] = others | (base << shift)
                self.slots[slot, 16] = bits & ~ANSWERED & MASK
                self.slots[slot, 13 + side] = payload
            elif self.slots[slot, 13 + side] < payload:
                self.slots[slot, 13 + side] = payload

    @cython.cfunc
    @cython.exceptval(check=False)
    def begins_anew(
        self,
        slot: cython.Py_ssize_t,
        side: cython.int,
        time: cython.longlong,
        protocol: cython.uint,
        tcp_flags: cython.uint,
        sequence: cython.ulonglong,
    ) -> cython.bint:
        """Whether a packet with a known five-tuple belongs to another flow than the one in the slot."""
        bits: cython.ulonglong = self.slots[slot, 16]
        state: cython.ulonglong = bits & STATE
        idle: cython.bint = time - signed(self.slots[slot, 6]) > self.idle_ns
        opener: cython.int = 1 if bits & HIGHER_OPENED else 0
        if protocol != 6:
            return idle
        if not tcp_flags & SYN_FLAG:
            return idle and state >= REFUSED
        if not tcp_flags & ACK_FLAG:
            return state >= REFUSED or idle
        if state == SYN or side == opener and state != OTHER:
            return False
        # the server answers a SYN that was missed, or that looked like none of a new flow
        return (
            not bits & (KNOWN << side)
            or (sequence + 1) & MASK32 != self.slots[slot, 15] >> (32 * side) & MASK32
        )

    def update(self, packets: Any, rows: Any) -> tuple[int, int]:
        """Takes in `packets` (PACKET[n]); `rows` is uint64[2 n, ROW]. Returns (rows given, packets left out)."""
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
            # malformed, or a fragment without ports, or cut before the ports or the flags
            if (
                families[i] == 0
                or flags[i] & 3
                or (protocol == 6 and (s_port | d_port == 0 or (flags[i] & 8 and said == 0)))
            ):
                skipped += 1
                continue
            time = time_ns[i]
            # a little out of order is usual in captures of several interfaces; rows come in order of time
            if time >= self.clock or self.clock - time > LATE_NS:
                self.clock = time
            unsigned = cython.cast(cython.ulonglong, time & 0xFFFFFFFFFFFFFFFF)
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
            if side:
                packed |= (d_port << 48) | (s_port << 32)
                slot = self.find(d_high, d_low, s_high, s_low, packed, frame)
            else:
                packed |= (s_port << 48) | (d_port << 32)
                slot = self.find(s_high, s_low, d_high, d_low, packed, frame)
            is_new = slot < 0
            if is_new:
                slot = -1 - slot
            elif self.begins_anew(slot, side, time, protocol, said, sequences[i]):
                is_new = True
                self.leave(slot, frame)
            if is_new:
                self.open(slot, side, unsigned, protocol, said, sequences[i], acknowledgements[i])
            before = self.slots[slot, 16] & STATE
            if is_new or time > signed(self.slots[slot, 6]):
                self.slots[slot, 6] = unsigned
            self.slots[slot, 9 + side] += 1
            self.slots[slot, 11 + side] += payload * weights[i]
            self.slots[slot, 17] = frame
            if protocol == 6:
                self.tcp(slot, side, said, sequences[i], acknowledgements[i], payload)
            total = self.bytes_of(slot, 0) + self.bytes_of(slot, 1) - self.slots[slot, 8]
            if (
                is_new
                or self.slots[slot, 16] & STATE != before
                or signed(total & MASK) >= ROW_BYTES
                or time - signed(self.slots[slot, 7]) >= ROW_NS
            ):
                self.give(slot, frame)
        return self.count, skipped

    def time(self) -> int:
        """The time of the last packet, in ns."""
        return self.clock

    def finish(self, order: cython.const[cython.longlong][::1], rows: Any) -> int:
        """The last row of each slot named in `order`, where it says more than the one before."""
        i: cython.Py_ssize_t
        self.rows = rows
        self.count = 0
        for i in range(order.shape[0]):
            self.leave(order[i], self.slots[order[i], 17])
        return self.count


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def signed(x: cython.ulonglong) -> cython.longlong:
    """Two's complement, which Python's own integers have not."""
    if cython.compiled:
        return cython.cast(cython.longlong, x)
    return x - (1 << 64) if x >= 1 << 63 else x  # type: ignore[no-any-return]
