# cython: initializedcheck=False
# mypy: disable-error-code="untyped-decorator,valid-type,misc"
"""The compiled loop behind `decode`: follows the headers of one frame after the other and writes columns.

It reads nothing past a frame's captured bytes, follows at most MOST_LAYERS internet headers and MOST_LABELS
labels or extension headers between two of them, and never raises because of what a frame holds. The same file
runs uncompiled.

Sources: IEEE 802.1Q, RFC 791, 8200, 4302, 9293, 768, 2784 and 2890 (GRE), 7348 (VXLAN), 8926 (Geneve), 4380
(Teredo), 2516 (PPPoE), 3032 (MPLS), draft-foschiano-erspan, and the LINKTYPE_ list of tcpdump.org.
"""

from __future__ import annotations

from typing import Any

import cython

COMPILED: bool = cython.compiled

MALFORMED = cython.declare(cython.uint, 1)
FRAGMENT = cython.declare(cython.uint, 2)
TUNNELLED = cython.declare(cython.uint, 4)
CUT_SHORT = cython.declare(cython.uint, 8)
FIRST_FRAGMENT = cython.declare(cython.uint, 16)

MOST_LAYERS = cython.declare(cython.int, 8)
MOST_LABELS = cython.declare(cython.int, 64)
ARP = cython.declare(cython.uint, 255)

# What carries the layer that is being read; the same numbers as decode.TUNNEL_KINDS.
DIRECT = cython.declare(cython.uint, 0)
IP_IN_IP = cython.declare(cython.uint, 1)
GRE = cython.declare(cython.uint, 2)
ERSPAN = cython.declare(cython.uint, 3)
VXLAN = cython.declare(cython.uint, 4)
GENEVE = cython.declare(cython.uint, 5)
TEREDO = cython.declare(cython.uint, 6)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def be16(data: cython.p_const_uchar, at: cython.Py_ssize_t) -> cython.uint:
    high: cython.uint = data[at]
    return (high << 8) | data[at + 1]


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def be32(data: cython.p_const_uchar, at: cython.Py_ssize_t) -> cython.uint:
    high: cython.uint = be16(data, at)
    return (high << 16) | be16(data, at + 2)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def be64(data: cython.p_const_uchar, at: cython.Py_ssize_t) -> cython.ulonglong:
    high: cython.ulonglong = be32(data, at)
    return (high << 32) | be32(data, at + 4)


@cython.final
@cython.cclass
class Frame:
    """One frame at a time: where reading stands, and what has been read of the innermost internet header.

    `at` is the next byte, `have` the end of what was captured, `end` the end of the present layer by the
    headers; `end` may lie beyond `have` where the capture cut the frame short.
    """

    at: cython.Py_ssize_t
    have: cython.Py_ssize_t
    end: cython.Py_ssize_t
    layers: cython.int
    labels: cython.int
    outer: cython.int
    carrier: cython.uint
    source_high: cython.ulonglong
    source_low: cython.ulonglong
    destination_high: cython.ulonglong
    destination_low: cython.ulonglong
    sequence: cython.uint
    acknowledgement: cython.uint
    payload: cython.uint
    payload_at: cython.Py_ssize_t
    source_port: cython.uint
    destination_port: cython.uint
    vlan: cython.uint
    family: cython.uint
    protocol: cython.uint
    tcp_flags: cython.uint
    flags: cython.uint
    keep: cython.bint
    tunnel_kind: cython.uchar[:]
    tunnel_family: cython.uchar[:]
    tunnel_source: cython.ulonglong[:, :]
    tunnel_destination: cython.ulonglong[:, :]
    tunnel_row: cython.Py_ssize_t
    most_tunnels: cython.Py_ssize_t

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def begin(
        self, at: cython.Py_ssize_t, captured: cython.Py_ssize_t, wire: cython.Py_ssize_t
    ) -> cython.void:
        self.at = at
        self.have = at + captured
        # a capture may say less for the wire than it holds: what it holds was on the wire
        self.end = at + (wire if wire > captured else captured)
        self.layers = 0
        self.labels = 0
        self.outer = 0
        self.carrier = DIRECT
        self.source_high = 0
        self.source_low = 0
        self.destination_high = 0
        self.destination_low = 0
        self.vlan = 0
        self.family = 0
        self.protocol = 0
        self.flags = CUT_SHORT if wire > captured else 0
        self.forget()

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def forget(self) -> cython.void:
        """Nothing is known above the internet layer yet."""
        self.sequence = 0
        self.acknowledgement = 0
        self.payload = 0
        self.payload_at = 0
        self.source_port = 0
        self.destination_port = 0
        self.tcp_flags = 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def lacks(self, count: cython.Py_ssize_t) -> cython.bint:
        """Whether the next `count` bytes are not there.

        That is malformed unless the capture cut them off, or they may follow in the next fragment.
        """
        if self.at + count > self.end:
            if not self.flags & FIRST_FRAGMENT:
                self.flags |= MALFORMED
            return True
        return self.at + count > self.have

    @cython.cfunc
    @cython.exceptval(check=False)
    def link(self, data: cython.p_const_uchar, kind: cython.uint) -> cython.void:
        word: cython.uint
        if kind == 1:
            self.ethernet(data)
        elif kind == 113:  # LINKTYPE_LINUX_SLL
            if not self.lacks(16):
                word = be16(data, self.at + 14)
                self.at += 16
                self.network(data, word)
        elif kind == 276:  # LINKTYPE_LINUX_SLL2
            if not self.lacks(20):
                word = be16(data, self.at)
                self.at += 20
                self.network(data, word)
        elif kind == 12 or kind == 14 or kind == 101 or kind == 228 or kind == 229:  # raw IP
            self.version(data)
        elif kind == 0 or kind == 108:  # the family of BSD loopback is in the byte order of who wrote it
            if not self.lacks(4):
                self.at += 4
                self.version(data)
        elif kind == 9 or kind == 50:  # PPP
            self.ppp(data)
        elif kind == 51:  # PPPoE
            self.network(data, 0x8864)

    @cython.cfunc
    @cython.exceptval(check=False)
    def version(self, data: cython.p_const_uchar) -> cython.void:
        """IP without anything that says which: the first four bits do."""
        if self.lacks(1):
            return
        if data[self.at] >> 4 == 4:
            self.ipv4(data)
        elif data[self.at] >> 4 == 6:
            self.ipv6(data)
        else:
            self.flags |= MALFORMED

    @cython.cfunc
    @cython.exceptval(check=False)
    def ppp(self, data: cython.p_const_uchar) -> cython.void:
        word: cython.uint
        if self.lacks(2):
            return
        if be16(data, self.at) == 0xFF03:
            self.at += 2
            if self.lacks(2):
                return
        if data[self.at] & 1:  # the protocol field is compressed to one byte
            word = data[self.at]
            self.at += 1
        else:
            word = be16(data, self.at)
            self.at += 2
        if word == 0x21:
            self.ipv4(data)
        elif word == 0x57:
            self.ipv6(data)

    @cython.cfunc
    @cython.exceptval(check=False)
    def ethernet(self, data: cython.p_const_uchar) -> cython.void:
        word: cython.uint
        if self.lacks(14):
            return
        word = be16(data, self.at + 12)
        self.at += 14
        if word > 1500:
            self.network(data, word)
        else:
            self.snap(data)

    @cython.cfunc
    @cython.exceptval(check=False)
    def snap(self, data: cython.p_const_uchar) -> cython.void:
        """IEEE 802.2 with an EtherType (RFC 1042); no other is followed."""
        kind: cython.uint
        if self.at + 8 > self.have:
            return
        if be32(data, self.at) == 0xAAAA0300 and be16(data, self.at + 4) == 0:
            kind = be16(data, self.at + 6)
            self.at += 8
            if kind > 1500:
                self.network(data, kind)

    @cython.cfunc
    @cython.exceptval(check=False)
    def network(self, data: cython.p_const_uchar, kind: cython.uint) -> cython.void:
        """What an EtherType announces, past VLAN tags."""
        while kind == 0x8100 or kind == 0x88A8 or kind == 0x9100 or kind == 0x9200:
            self.labels += 1
            if self.labels > MOST_LABELS:
                self.flags |= MALFORMED
                return
            if self.lacks(4):
                return
            self.vlan = be16(data, self.at) & 0xFFF
            kind = be16(data, self.at + 2)
            self.at += 4
        if kind == 0x0800:
            self.ipv4(data)
        elif kind == 0x86DD:
            self.ipv6(data)
        elif kind == 0x0806:
            if self.family == 0:
                self.protocol = ARP
                if not self.lacks(8):
                    self.lacks(8 + 2 * (data[self.at + 4] + data[self.at + 5]))
        elif kind == 0x8847 or kind == 0x8848:
            self.mpls(data)
        elif kind == 0x8864:
            if not self.lacks(6):
                self.at += 6
                self.ppp(data)
        elif kind == 0x6558:
            self.ethernet(data)
        elif kind <= 1500:  # a length where the EtherType belongs: IEEE 802.3 within a tag
            self.snap(data)

    @cython.cfunc
    @cython.exceptval(check=False)
    def mpls(self, data: cython.p_const_uchar) -> cython.void:
        last: cython.bint = False
        while not last:
            self.labels += 1
            if self.labels > MOST_LABELS:
                self.flags |= MALFORMED
                return
            if self.lacks(4):
                return
            last = data[self.at + 2] & 1 != 0
            self.at += 4
        if self.lacks(1):
            return
        if data[self.at] >> 4 == 4:
            self.ipv4(data)
        elif data[self.at] >> 4 == 6:
            self.ipv6(data)
        elif data[self.at] >> 4 == 0 and not self.lacks(4):  # the control word of a pseudowire (RFC 4385)
            self.at += 4
            self.ethernet(data)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def deeper(self) -> cython.bint:
        """An internet header is about to be read: what is known becomes a tunnel. False past the last layer."""
        if self.layers >= MOST_LAYERS:
            self.flags |= MALFORMED
            return False
        self.layers += 1
        self.labels = 0
        if self.family != 0:
            self.flags = (self.flags | TUNNELLED) & ~FIRST_FRAGMENT
            if self.keep and self.outer < self.most_tunnels:
                row: cython.Py_ssize_t = self.tunnel_row * self.most_tunnels + self.outer
                self.tunnel_kind[row] = self.carrier
                self.tunnel_family[row] = self.family
                self.tunnel_source[row, 0] = self.source_high
                self.tunnel_source[row, 1] = self.source_low
                self.tunnel_destination[row, 0] = self.destination_high
                self.tunnel_destination[row, 1] = self.destination_low
            self.outer += 1
            self.forget()
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def ipv4(self, data: cython.p_const_uchar) -> cython.void:
        at: cython.Py_ssize_t = self.at
        header: cython.Py_ssize_t
        total: cython.Py_ssize_t
        word: cython.uint
        if self.lacks(20):
            return
        header = (data[at] & 15) * 4
        if data[at] >> 4 != 4 or header < 20:
            self.flags |= MALFORMED
            return
        if not self.deeper():
            return
        self.family = 4
        self.source_high = 0
        self.source_low = be32(data, at + 12)
        self.destination_high = 0
        self.destination_low = be32(data, at + 16)
        self.protocol = data[at + 9]
        total = be16(data, at + 2)
        if total == 0:  # segmentation offload leaves it to the card: the wire's length holds
            total = self.end - at
        if total < header:
            self.flags |= MALFORMED
            return
        if at + total > self.end:
            self.flags |= MALFORMED
        else:
            self.end = at + total
        if self.lacks(header):
            return
        self.at = at + header
        if header > 20:
            self.options(data, at + 20, at + header)
        word = be16(data, at + 6)
        if word & 0x1FFF:
            self.flags |= FRAGMENT
            if (word & 0x1FFF) * 8 + (self.end - self.at) > 65535:
                self.flags |= MALFORMED
            return
        if word & 0x2000:
            self.flags |= FIRST_FRAGMENT
        self.transport(data, data[at + 9])

    @cython.cfunc
    @cython.exceptval(check=False)
    def options(
        self, data: cython.p_const_uchar, at: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.void:
        """Flags IPv4 options that do not fit; the security option has at least three bytes (RFC 1108)."""
        while at < end and data[at] != 0:
            if data[at] == 1:
                at += 1
                continue
            if at + 2 > end or data[at + 1] < (3 if data[at] == 130 else 2) or at + data[at + 1] > end:
                self.flags |= MALFORMED
                return
            at += data[at + 1]

    @cython.cfunc
    @cython.exceptval(check=False)
    def ipv6(self, data: cython.p_const_uchar) -> cython.void:
        at: cython.Py_ssize_t = self.at
        total: cython.Py_ssize_t
        if self.lacks(40):
            return
        if data[at] >> 4 != 6:
            self.flags |= MALFORMED
            return
        if not self.deeper():
            return
        self.family = 6
        self.source_high = be64(data, at + 8)
        self.source_low = be64(data, at + 16)
        self.destination_high = be64(data, at + 24)
        self.destination_low = be64(data, at + 32)
        self.protocol = data[at + 6]
        total = be16(data, at + 4)
        self.at = at + 40
        if total != 0:  # 0 is a jumbogram or offload: the wire's length holds
            if self.at + total > self.end:
                self.flags |= MALFORMED
            else:
                self.end = self.at + total
        elif self.protocol == 59:
            self.end = self.at
        self.extensions(data, data[at + 6])

    @cython.cfunc
    @cython.exceptval(check=False)
    def extensions(self, data: cython.p_const_uchar, kind: cython.uint) -> cython.void:
        """IPv6 extension headers up to the transport header (RFC 8200, section 4)."""
        word: cython.uint
        while (
            kind == 0 or kind == 43 or kind == 44 or kind == 60 or kind == 135 or kind == 139 or kind == 140
        ):
            self.protocol = kind
            self.labels += 1
            if self.labels > MOST_LABELS:
                self.flags |= MALFORMED
                return
            if self.lacks(8):
                return
            if kind == 44:
                word = be16(data, self.at + 2)
                kind = data[self.at]
                self.protocol = kind
                self.at += 8
                if word & 0xFFF8:
                    self.flags |= FRAGMENT
                    return
                if word & 1:
                    self.flags |= FIRST_FRAGMENT
            else:
                word = (data[self.at + 1] + 1) * 8
                if self.at + word > self.end:
                    self.flags |= MALFORMED
                    return
                kind = data[self.at]
                self.at += word
            self.protocol = kind
            if self.at > self.have:
                return
        self.transport(data, kind)

    @cython.cfunc
    @cython.exceptval(check=False)
    def transport(self, data: cython.p_const_uchar, kind: cython.uint) -> cython.void:
        at: cython.Py_ssize_t
        if kind == 51:  # authentication header (RFC 4302): length in words of four bytes, less two
            self.labels += 1
            if self.labels > MOST_LABELS:
                self.flags |= MALFORMED
                return
            if self.lacks(12):
                return
            at = self.at
            if self.at + (data[at + 1] + 2) * 4 > self.end:
                self.flags |= MALFORMED
                return
            self.protocol = data[at]
            self.at += (data[at + 1] + 2) * 4
            if self.family == 6:
                self.extensions(data, data[at])
            else:
                self.transport(data, data[at])
        elif kind == 6:
            self.tcp(data)
        elif kind == 17:
            self.udp(data)
        elif kind == 1 or kind == 58:
            if not self.lacks(8):
                self.payload = cython.cast(cython.uint, self.end - self.at - 8)
                if self.payload != 0 and self.at + 8 < self.have:
                    self.payload_at = self.at + 8
        elif kind == 132 or kind == 33 or kind == 136:  # SCTP, DCCP, UDP-Lite: ports come first
            if not self.lacks(8):
                self.source_port = be16(data, self.at)
                self.destination_port = be16(data, self.at + 2)
        elif kind == 4 or kind == 41:
            self.carrier = IP_IN_IP
            if kind == 4:
                self.ipv4(data)
            else:
                self.ipv6(data)
        elif kind == 47:
            self.gre(data)

    @cython.cfunc
    @cython.exceptval(check=False)
    def tcp(self, data: cython.p_const_uchar) -> cython.void:
        at: cython.Py_ssize_t = self.at
        header: cython.Py_ssize_t
        if self.lacks(4):
            return
        self.source_port = be16(data, at)
        self.destination_port = be16(data, at + 2)
        if self.lacks(20):
            return
        self.sequence = be32(data, at + 4)
        self.acknowledgement = be32(data, at + 8)
        header = (data[at + 12] >> 4) * 4
        if header < 20:
            self.flags |= MALFORMED
            return
        if at + header > self.end:
            if not self.flags & FIRST_FRAGMENT:
                self.flags |= MALFORMED
            return
        self.tcp_flags = data[at + 13]
        self.payload = cython.cast(cython.uint, self.end - at - header)
        if self.payload != 0 and at + header < self.have:
            self.payload_at = at + header

    @cython.cfunc
    @cython.exceptval(check=False)
    def udp(self, data: cython.p_const_uchar) -> cython.void:
        at: cython.Py_ssize_t = self.at
        total: cython.Py_ssize_t
        if self.lacks(4):
            return
        self.source_port = be16(data, at)
        self.destination_port = be16(data, at + 2)
        if self.lacks(8):
            return
        total = be16(data, at + 4)
        if total < 8:
            # 0 stands for a length that a jumbogram or offload left out (RFC 2675)
            if total != 0:
                self.flags |= MALFORMED
                return
            total = self.end - at
        if at + total > self.end:
            if not self.flags & FIRST_FRAGMENT:
                self.flags |= MALFORMED
        else:
            self.end = at + total
        self.at = at + 8
        self.payload = cython.cast(cython.uint, self.end - self.at)
        if self.payload != 0 and self.at < self.have:
            self.payload_at = self.at
            if self.flags & FIRST_FRAGMENT == 0:
                self.udp_tunnel(data)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def udp_tunnel(self, data: cython.p_const_uchar) -> cython.void:
        """VXLAN and Geneve by destination port, Teredo by either; what does not look it stays plain UDP."""
        at: cython.Py_ssize_t = self.at
        usable: cython.Py_ssize_t = (self.have if self.have < self.end else self.end) - at
        options: cython.Py_ssize_t
        if self.destination_port == 4789 or self.destination_port == 8472:
            # at least an Ethernet header behind eight bytes of which one bit is set and seven are reserved
            if usable >= 22 and data[at] == 0x08 and data[at + 7] == 0:
                self.carrier = VXLAN
                self.at = at + 8
                self.ethernet(data)
        elif self.destination_port == 4790:  # VXLAN-GPE names what it carries (draft-ietf-nvo3-vxlan-gpe)
            if usable > 8 and data[at] & 0xC8 == 0x08 and data[at + 7] == 0:
                options = data[at + 3] if data[at] & 4 else 3
                self.carrier = VXLAN
                self.at = at + 8
                if options == 1:
                    self.ipv4(data)
                elif options == 2:
                    self.ipv6(data)
                elif options == 3:
                    self.ethernet(data)
        elif self.destination_port == 6081:
            if usable >= 8 and data[at] >> 6 == 0:
                options = (data[at] & 63) * 4
                if usable > 8 + options:
                    self.carrier = GENEVE
                    self.at = at + 8 + options
                    self.network(data, be16(data, at + 2))
        elif self.destination_port == 3544 or self.source_port == 3544:
            self.teredo(data, usable)

    @cython.cfunc
    @cython.exceptval(check=False)
    def teredo(self, data: cython.p_const_uchar, usable: cython.Py_ssize_t) -> cython.void:
        at: cython.Py_ssize_t = self.at
        if usable >= 4 and be16(data, at) == 1:  # authentication indication (RFC 4380, section 5.1.1)
            at += 13 + data[self.at + 2] + data[self.at + 3]
            usable = self.at + usable - at
        if usable >= 8 and be16(data, at) == 0:  # origin indication
            at += 8
            usable -= 8
        if usable >= 40 and data[at] >> 4 == 6 and at + 40 + be16(data, at + 4) <= self.end:
            self.carrier = TEREDO
            self.at = at
            self.ipv6(data)

    @cython.cfunc
    @cython.exceptval(check=False)
    def gre(self, data: cython.p_const_uchar) -> cython.void:
        flags: cython.uint
        kind: cython.uint
        if self.lacks(4):
            return
        flags = be16(data, self.at)
        kind = be16(data, self.at + 2)
        self.at += 4
        if flags & 0x8000 or flags & 0x4000:
            self.at += 4  # checksum and offset
        if flags & 0x2000:
            self.at += 4  # key
        if flags & 0x1000:
            self.at += 4  # sequence number
        if flags & 7 == 1 and flags & 0x0080:
            self.at += 4  # acknowledgement number of PPTP (RFC 2637)
        if self.at > self.end:
            self.flags |= MALFORMED
            return
        if flags & 0x4000:
            self.source_routes(data)
        if self.at >= self.have or self.at >= self.end or self.flags & FIRST_FRAGMENT:
            return
        self.carrier = GRE
        if flags & 7 == 1:
            if kind == 0x880B:
                self.ppp(data)
        elif kind == 0x88BE:
            self.carrier = ERSPAN
            if flags & 0x1000:  # type II has eight bytes of its own, and type I none
                self.at += 8
            self.ethernet(data)
        elif kind == 0x22EB:
            self.carrier = ERSPAN
            if not self.lacks(12):
                self.at += 20 if data[self.at + 11] & 1 else 12
                self.ethernet(data)
        else:
            self.network(data, kind)

    @cython.cfunc
    @cython.exceptval(check=False)
    def source_routes(self, data: cython.p_const_uchar) -> cython.void:
        """Skips the source routes of GRE (RFC 1701), which end with one of no length."""
        length: cython.Py_ssize_t = 1
        while length != 0:
            self.labels += 1
            if self.labels > MOST_LABELS:
                self.flags |= MALFORMED
                self.at = self.end
                return
            if self.lacks(4):
                self.at = self.end
                return
            length = data[self.at + 3]
            self.at += 4 + length


def run(
    data: cython.const[cython.uchar][::1],
    starts: cython.const[cython.longlong][::1],
    captured: cython.const[cython.uint][::1],
    wire: cython.const[cython.uint][::1],
    links: cython.const[cython.ushort][::1],
    rows: Any,
    tunnels: Any,
    most_tunnels: cython.Py_ssize_t,
) -> None:
    """Fills what a frame's bytes say into `rows` (PACKET) and, where it is not None, `tunnels` (TUNNEL)."""
    # a memoryview is copied with every call, a pointer is not; uncompiled, the memoryview itself stands for it
    pointer: cython.p_const_uchar = cython.address(data[0]) if cython.compiled else data
    frame: Frame = Frame()
    i: cython.Py_ssize_t
    source: cython.ulonglong[:, :] = rows["source"]
    destination: cython.ulonglong[:, :] = rows["destination"]
    sequence: cython.uint[:] = rows["sequence"]
    acknowledgement: cython.uint[:] = rows["acknowledgement"]
    payload: cython.uint[:] = rows["payload"]
    payload_at: cython.uint[:] = rows["payload_at"]
    source_port: cython.ushort[:] = rows["source_port"]
    destination_port: cython.ushort[:] = rows["destination_port"]
    vlan: cython.ushort[:] = rows["vlan"]
    family: cython.uchar[:] = rows["family"]
    protocol: cython.uchar[:] = rows["protocol"]
    tcp_flags: cython.uchar[:] = rows["tcp_flags"]
    flags: cython.uchar[:] = rows["flags"]
    frame.keep = tunnels is not None
    frame.most_tunnels = most_tunnels
    if tunnels is not None:
        frame.tunnel_kind = tunnels["kind"]
        frame.tunnel_family = tunnels["family"]
        frame.tunnel_source = tunnels["source"]
        frame.tunnel_destination = tunnels["destination"]
    for i in range(starts.shape[0]):
        frame.tunnel_row = i
        frame.begin(starts[i], captured[i], wire[i])
        frame.link(pointer, links[i])
        source[i, 0] = frame.source_high
        source[i, 1] = frame.source_low
        destination[i, 0] = frame.destination_high
        destination[i, 1] = frame.destination_low
        sequence[i] = frame.sequence
        acknowledgement[i] = frame.acknowledgement
        payload[i] = frame.payload
        payload_at[i] = cython.cast(cython.uint, frame.payload_at - starts[i]) if frame.payload_at else 0
        source_port[i] = frame.source_port
        destination_port[i] = frame.destination_port
        vlan[i] = frame.vlan
        family[i] = frame.family
        protocol[i] = frame.protocol
        tcp_flags[i] = frame.tcp_flags
        flags[i] = frame.flags
