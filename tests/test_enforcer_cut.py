"""A model server behind the gateway: reset when it next sends, and ended at once in its namespace by the helper."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import _ASK, GATEWAY, RAILS, SILENCE_S, Rig
from gatewatch.daemon.enforcer import cut
from gatewatch.daemon.enforcer.cut import Place
from gatewatch.daemon.enforcer.kernel import killtable
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.rails import service_of
from gatewatch.daemon.errors import EnforcerError
from lab.lab import HOSTS, Lab, answers, unmet, wait_for

FRONT, BACK = 8090, 9000
V4, V6 = "192.0.2.66", "2001:db8:0:7::66"
V4_GATEWAY, V6_GATEWAY = "192.0.2.65", "2001:db8:0:7::1"
CLIENT = HOSTS["client"]
CUT_OFF = (ConnectionResetError, ConnectionAbortedError)

DNAT = f"""
table inet published {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname "eth0" meta nfproto ipv4 tcp dport {FRONT} dnat ip to {V4}:{BACK}
    iifname "eth0" meta nfproto ipv6 tcp dport {FRONT} dnat ip6 to [{V6}]:{BACK}
  }}
}}
"""

PUBLISHED = f"""
[[endpoint]]
name = "published"
fronts = ["*:{FRONT}/tcp"]
backs = ["{V4}:{BACK}/tcp", "[{V6}]:{BACK}/tcp", "{V4}:{BACK}/udp"]
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab(services=False) as lab:
        _add_container(lab)
        yield lab


def _add_container(lab: Lab) -> None:
    """A namespace `models` behind the gateway, which forwards to it."""
    inner, outer = lab.namespace("models"), lab.namespace("gateway")
    for command in (
        f"netns add {inner}",
        f"-n {outer} link add to-models type veth peer name eth0 netns {inner}",
        f"-n {outer} addr add {V4_GATEWAY}/26 dev to-models",
        f"-n {outer} addr add {V6_GATEWAY}/64 dev to-models nodad",
        f"-n {outer} link set to-models up",
        f"-n {inner} link set lo up",
        f"-n {inner} addr add {V4}/26 dev eth0",
        f"-n {inner} addr add {V6}/64 dev eth0 nodad",
        f"-n {inner} link set eth0 up",
        f"-n {inner} route add default via {V4_GATEWAY}",
        f"-n {inner} -6 route add default via {V6_GATEWAY}",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    with lab.inside("gateway"):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    with model(lab), lab.inside("gateway"):
        for address in (V4, V6):
            wait_for(f"the way to {address}", partial(answers, address, BACK))


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare, RAILS + PUBLISHED) as rig:
        (bare.folder / "dnat.nft").write_text(DNAT)
        rig.nft_file(bare.folder / "dnat.nft")
        yield rig


@contextlib.contextmanager
def model(lab: Lab, address: str = "::", port: int = BACK) -> Iterator[socket.socket]:
    """A listener in the container's namespace."""
    with lab.inside("models"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, dualstack_ipv6=address == "::")
    with listener:
        listener.settimeout(5)
        yield listener


def _connect(rig: Rig, port: int, source: str = CLIENT.v4) -> socket.socket:
    """A connection that is forgotten when it is closed: a FIN would be sent again and again, into the next test."""
    client = rig.connect(port, source)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return client


@contextlib.contextmanager
def answering(
    rig: Rig, listener: socket.socket, source: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through the published port, that of the client and that of the model server."""
    with _connect(rig, FRONT, source) as client, listener.accept()[0] as server:
        server.sendall(b"token")
        assert client.recv(100) == b"token"
        yield client, server


class Helper:
    """`gatewatch-cut` in the gateway's network namespace. `patch`: statements that change it first."""

    def __init__(
        self,
        lab: Lab,
        namespaces: Sequence[str],
        *,
        before: str = "cut_helper = true\n",
        path: Path | None = None,
        under: Sequence[str] = (),
        patch: str = "",
    ) -> None:
        self._lab = lab
        self.path = path or lab.folder / "cut.sock"
        self.rails = lab.folder / "cut-rails.toml"
        self.write(namespaces, before)
        self._command = [*under, sys.executable, "-m", "gatewatch.daemon.enforcer.cut"]
        if patch:
            program = (
                f"import sys; from gatewatch.daemon.enforcer import cut; {patch}; cut.main(sys.argv[1:])"
            )
            self._command[-2:] = ["-c", program]
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, namespaces: Sequence[str], before: str = "cut_helper = true\n") -> None:
        named = f"namespaces = {json.dumps(list(namespaces))}\n"
        other = '[[endpoint]]\nname = "other"\nbacks = ["*:1/tcp"]\n'
        self.rails.write_text(f"{before}{PUBLISHED}{named}{other}{named}")

    def __enter__(self) -> Helper:
        with self._lab.inside("gateway"):
            self.process = subprocess.Popen(
                [*self._command, "--rails", str(self.rails), "--listen", str(self.path)]
            )
        wait_for("the helper", self._listens)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            return connection.connect_ex(str(self.path)) == 0

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(10) == 0

    def ask(self, *endpoints: str) -> list[Place]:
        return cut.ask(str(self.path), endpoints or ("published",), 10.0)

    def said(self, message: bytes, uid: int = 0) -> dict[str, Any]:
        """What it answers to any message of anybody."""
        done = subprocess.run(
            [sys.executable, "-I", "-c", _ASK, str(uid), "", str(self.path)],
            input=message.hex().encode() + b"\n",
            capture_output=True,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


class Capture:
    """What the gateway sends out of one of its interfaces, or what comes in at a host's, but for neighbours."""

    def __init__(self, lab: Lab, host: str, interface: str) -> None:
        with lab.inside(host):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            self._socket.bind((interface, 3))
        self._outgoing = host == "gateway"

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packets(self, limit_s: float = 0.0) -> list[tuple[int, bytes]]:
        """(protocol, the packet behind its IP header) of each that came until none comes for `limit_s`."""
        self._socket.settimeout(limit_s)  # 0: what is there already
        found = []
        with contextlib.suppress(BlockingIOError, TimeoutError):
            while True:
                data, (_, kind, direction, *_) = self._socket.recvfrom(65536)
                if (direction == socket.PACKET_OUTGOING) != self._outgoing:
                    continue
                if kind == 0x0800:
                    found.append((data[9], data[(data[0] & 15) * 4 : int.from_bytes(data[2:4], "big")]))
                elif kind == 0x86DD and not _of_neighbours(data):
                    found.append((data[6], data[40 : 40 + int.from_bytes(data[4:6], "big")]))
        return found


def _of_neighbours(packet: bytes) -> bool:
    """Neighbour discovery (RFC 4861), and reports of multicast listeners behind a hop-by-hop header (RFC 3810)."""
    return packet[6] == 0 or (packet[6] == socket.IPPROTO_ICMPV6 and 133 <= packet[40] <= 137)


@pytest.mark.lab
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("source", [CLIENT.v4, CLIENT.v6])
def test_a_server_behind_the_gateway_is_reset_when_it_next_sends_and_clients_hear_nothing(
    rig: Rig, source: str, masked: bool
) -> None:
    """Masked: the server knows the gateway as its client."""
    if masked:
        rig.nft("add chain inet published postrouting { type nat hook postrouting priority srcnat; }")
        rig.nft("add rule inet published postrouting oifname to-models masquerade")
    with (
        model(rig.lab) as listener,
        answering(rig, listener, source) as (client, server),
        Capture(rig.lab, "gateway", "eth0") as out,
        Capture(rig.lab, "models", "eth0") as inside,
    ):
        _, receipt = rig.command("engage", "--endpoint", "published", "--reason", "test")
        assert "published" in receipt["engaged"]
        server.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            server.recv(1)
        inside.packets()
        server.settimeout(5)
        server.sendall(b"one more token")
        with pytest.raises(CUT_OFF):
            server.recv(1)
        assert [(p, t[13], len(t) - (t[12] >> 4) * 4) for p, t in inside.packets()] == [
            (socket.IPPROTO_TCP, 4, 0)
        ]
        client.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert out.packets() == []


@pytest.mark.lab
def test_the_client_of_a_destroyed_socket_hears_nothing_either(rig: Rig) -> None:
    with rig.lab.inside("gateway"):
        listener = socket.create_server((GATEWAY.v4, 8443))
    with listener, _connect(rig, 8443) as client, Capture(rig.lab, "gateway", "eth0") as out:
        server = listener.accept()[0]
        with server:
            _, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
            assert receipt["connections_before"] == 1
            with pytest.raises(CUT_OFF):
                server.recv(1)
            client.sendall(b"are you there?")
            client.settimeout(SILENCE_S)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert out.packets() == []


@pytest.mark.lab
@pytest.mark.parametrize("address", [V4, V6])
def test_a_silent_server_that_a_proxy_here_was_connected_to_is_reset_at_once(rig: Rig, address: str) -> None:
    with model(rig.lab) as listener:
        with rig.lab.inside("gateway"):
            proxy = socket.create_connection((address, BACK), timeout=5)
        with proxy, listener.accept()[0] as server:
            rig.command("engage", "--endpoint", "published", "--reason", "test")
            server.settimeout(5)
            with pytest.raises(CUT_OFF):
                server.recv(1)
            with pytest.raises(CUT_OFF):
                proxy.recv(1)


@pytest.mark.lab
@pytest.mark.parametrize("address", [V4, V6])
def test_nothing_but_a_reset_without_payload_goes_to_the_server(rig: Rig, address: str) -> None:
    def sent(flags: int, payload: bytes = b"", options: bytes = b"", port: int = BACK) -> list[bytes]:
        words = 5 + len(options) // 4
        header = struct.pack("!HHIIBBHHH", 40000, port, 1, 1, words << 4, flags, 0, 0, 0) + options
        with contextlib.suppress(PermissionError):  # dropped on the way out
            raw.sendto(header + payload, (address, 0))
        return [data for protocol, data in inside.packets(SILENCE_S) if protocol == socket.IPPROTO_TCP]

    with rig.lab.inside("gateway"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw, Capture(rig.lab, "models", "eth0") as inside:
        rig.command("engage", "--endpoint", "published", "--reason", "test")
        rst, ack, syn, psh = 4, 16, 2, 8
        for nothing in (
            sent(syn),
            sent(ack),
            sent(psh | ack, b"prompt"),
            sent(rst, b"x"),
            sent(rst | ack, b"12 bytes of.", b""),
            sent(rst, b"", bytes(4)),
            sent(rst, bytes(8), bytes(12)),
        ):
            assert nothing == []
        assert len(sent(rst)) == len(sent(rst | ack, options=b"\1\1\x08\x0a" + bytes(8))) == 1


@pytest.mark.lab
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_what_the_gateway_forwards_to_the_server_is_dropped_whatever_it_is(rig: Rig, payload: bytes) -> None:
    with rig.lab.inside("client"):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw, Capture(rig.lab, "models", "eth0") as inside:
        rig.command("engage", "--endpoint", "published", "--reason", "test")
        raw.sendto(struct.pack("!HHIIBBHHH", 40000, BACK, 1, 1, 5 << 4, 4, 0, 0, 0) + payload, (V4, 0))
        assert inside.packets(SILENCE_S) == []


@pytest.mark.lab
def test_datagrams_of_the_server_are_dropped_in_silence(rig: Rig) -> None:
    with rig.lab.inside("models"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((V4, BACK))
    with server, Capture(rig.lab, "models", "eth0") as inside, Capture(rig.lab, "gateway", "eth0") as out:
        rig.command("engage", "--endpoint", "published", "--reason", "test")
        server.sendto(b"token", (CLIENT.v4, 5000))
        assert inside.packets(SILENCE_S) == []
        assert out.packets() == []


@pytest.mark.lab
def test_the_break_glass_file_resets_as_well(rig: Rig) -> None:
    with model(rig.lab) as listener, answering(rig, listener, CLIENT.v4) as (_, server):
        rig.stop()
        rig.nft_file(rig.state / "enforcer" / "break-glass.nft")
        server.settimeout(5)
        server.sendall(b"token")
        with pytest.raises(CUT_OFF):
            server.recv(1)


ENDPOINTS = {
    "models": tuple(map(service_of, ("*:8443/tcp", "*:8443/udp", "127.0.0.1:8000/tcp"))),
    "published": tuple(map(service_of, (f"{V4}:{BACK}/tcp", f"[{V6}]:{BACK}/tcp", f"{V4}:{BACK}/udp"))),
    "mapped": (service_of("[::ffff:192.0.2.1]:1/tcp"),),
}


@pytest.fixture(scope="module")
def nft(bare: Lab) -> Nft:
    with bare.inside("gateway"):
        return Nft()


@pytest.mark.lab
@pytest.mark.parametrize("resets", [True, False])
def test_what_was_written_is_recognised(nft: Nft, resets: bool) -> None:
    nft.run(killtable.render("try_kill", ENDPOINTS, resets))
    held = killtable.held(nft, "try_kill")
    assert held == killtable.Held({n: frozenset(s) for n, s in ENDPOINTS.items()}, True, 14, resets)
    nft.run(killtable.render("try_kill", {}))
    assert killtable.held(nft, "try_kill") is None


_FROM_SERVER = f"ip saddr {V4} tcp sport {BACK}"


@pytest.mark.lab
@pytest.mark.parametrize(
    "change",
    [
        "add rule inet try_kill endpoints accept",
        "add rule inet try_kill endpoints counter",
        "insert rule inet try_kill from_servers accept",
        "insert rule inet try_kill to_servers accept",
        "add rule inet try_kill bare_reset accept",
        "add rule inet try_kill prerouting accept",
        "flush chain inet try_kill bare_reset",
        "flush chain inet try_kill from_servers",
        "flush chain inet try_kill endpoints",
        "replace from_servers 0 " + _FROM_SERVER + ' counter drop comment "published"',
        "replace from_servers 0 "
        + _FROM_SERVER
        + ' counter reject with icmp port-unreachable comment "published"',
        "replace from_servers 0 " + _FROM_SERVER + ' counter reject with tcp reset comment "other"',
        f'replace from_servers 0 ip saddr {V4} tcp sport 9001 counter reject with tcp reset comment "published"',
        f'replace to_servers 0 ip daddr {V4} tcp dport {BACK} counter accept comment "published"',
        f'replace to_servers 0 ip daddr 192.0.2.64/26 tcp dport {BACK} counter jump bare_reset comment "published"',
        "replace bare_reset 0 tcp flags & rst == rst tcp doff 5 ip length 41 accept",
        "replace bare_reset 0 tcp flags & rst == rst tcp doff 5 ip length <= 40 accept",
        "replace bare_reset 0 tcp flags & (rst | ack) == rst tcp doff 5 ip length 40 accept",
        "replace bare_reset 0 tcp flags & ack == ack tcp doff 5 ip length 40 accept",
        'replace endpoints 0 fib daddr type local tcp dport 8443 ip ttl 1 counter drop comment "models"',
        'replace endpoints 0 fib daddr type local tcp dport 8444 counter drop comment "models"',
        'replace endpoints 0 fib daddr type local tcp dport != 8443 counter drop comment "models"',
        'replace endpoints 0 fib daddr type unicast tcp dport 8443 counter drop comment "models"',
        'replace endpoints 0 fib daddr type local tcp dport 8443 counter drop comment "other"',
        "replace endpoints 0 fib daddr type local tcp dport 8443 counter drop",
        "replace endpoints 0 fib daddr type local tcp dport { 8443 } counter drop",
        "delete prerouting 0",
        "delete output 1",
        "delete endpoints 3",
        "chain inet try_kill input { policy drop; }",
        "add chain inet try_kill more",
        "add chain inet try_kill later { type filter hook forward priority 0; }",
        "add set inet try_kill more { type ipv4_addr; }",
        "add counter inet try_kill more",
        "hook forward type filter hook forward priority -100",
        "hook forward type filter hook input priority -310",
        "hook forward type filter hook forward priority -310; policy drop",
    ],
)
def test_any_change_is_seen(nft: Nft, change: str) -> None:
    nft.run(killtable.render("try_kill", ENDPOINTS))
    verb, chain, number, *rest = change.split()
    if verb == "hook":
        nft.run(f"flush chain inet try_kill {chain}\ndelete chain inet try_kill {chain}")
        change = (
            f"table inet try_kill {{ chain {chain} {{ {change.partition(chain)[2]}; jump endpoints; }}; }}"
        )
    elif number.isdigit():
        listed = nft.table("try_kill") or []
        in_chain = [o["rule"]["handle"] for o in listed if "rule" in o and o["rule"]["chain"] == chain]
        change = f"{verb} rule inet try_kill {chain} handle {in_chain[int(number)]} {' '.join(rest)}"
    nft.run(change)
    held = killtable.held(nft, "try_kill")
    assert held is not None
    assert not held.hooked
    nft.run(killtable.remove("try_kill"))


@pytest.mark.lab
def test_a_changed_order_is_seen(nft: Nft) -> None:
    text = killtable.render("try_kill", ENDPOINTS)
    first, second = "jump from_servers", "jump endpoints"
    nft.run(text.replace(f"{first}\n{second}", f"{second}\n{first}"))
    held = killtable.held(nft, "try_kill")
    assert held is not None
    assert not held.hooked
    nft.run(killtable.remove("try_kill"))


@pytest.mark.lab
@pytest.mark.parametrize("source", [CLIENT.v4, CLIENT.v6])
def test_a_silent_server_sees_its_connection_end_when_the_helper_is_asked(rig: Rig, source: str) -> None:
    namespace = f"/run/netns/{rig.lab.namespace('models')}"
    with (
        model(rig.lab) as listener,
        answering(rig, listener, source) as (_, server),
        Capture(rig.lab, "gateway", "eth0") as out,
        Helper(rig.lab, [namespace]) as helper,
    ):
        rig.command("engage", "--endpoint", "published", "--reason", "test")
        server.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            server.recv(1)
        assert helper.ask() == [Place(namespace, "published", 1, 0, "")]
        server.settimeout(5)
        with pytest.raises(CUT_OFF):
            server.recv(1)
        assert out.packets() == []
        rig.command("release", "--reason", "over")
        with answering(rig, listener, source):
            pass


@pytest.mark.lab
def test_every_connection_of_the_namespace_ends_and_listeners_and_other_sockets_stay(rig: Rig) -> None:
    """An endpoint's own address, loopback, a back elsewhere and a proxy's port; not what the container asked."""
    lab = rig.lab
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(model(lab))
        also = stack.enter_context(model(lab, "127.0.0.1", 7000))
        with lab.inside("gateway"):
            asked = stack.enter_context(socket.create_server((V4_GATEWAY, 443)))
        with lab.inside("models"):
            looping = stack.enter_context(socket.create_connection(("127.0.0.1", 7000), timeout=5))
            own = stack.enter_context(socket.create_connection((V6, BACK), timeout=5))
            asking = stack.enter_context(socket.create_connection((V4_GATEWAY, 443), timeout=5))
            quic, quic_of_one, resolver = (
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
            )
        for datagrams in (quic, quic_of_one):
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            datagrams.bind(("0.0.0.0", 4433))
        quic_of_one.connect((CLIENT.v4, 5000))
        resolver.connect((CLIENT.v4, 53))
        inside_peer = stack.enter_context(inside.accept()[0])
        also_peer = stack.enter_context(also.accept()[0])
        asked_peer = stack.enter_context(asked.accept()[0])
        with Helper(lab, [f"/run/netns/{lab.namespace('models')}"]) as helper:
            assert [(p.before, p.after, p.error) for p in helper.ask()] == [(3, 0, "")]
            for ended in (looping, own, inside_peer, also_peer, quic_of_one):
                ended.settimeout(5)
                with pytest.raises(CUT_OFF):
                    ended.recv(1)
            asked_peer.sendall(b"answer")
            asking.settimeout(5)
            assert asking.recv(10) == b"answer"
            for stays in (quic, resolver):
                assert stays.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            with lab.inside("models"):
                assert answers("127.0.0.1", 7000)
            assert [p.after for p in helper.ask()] == [0]


@pytest.mark.lab
def test_patterns_name_namespaces_and_the_own_one_is_never_entered(rig: Rig) -> None:
    lab = rig.lab
    gateway, models = (f"/run/netns/{lab.namespace(host)}" for host in ("gateway", "models"))
    with lab.inside("gateway"):
        management = socket.create_server((GATEWAY.v4, 2222))
    with management, _connect(rig, 2222) as session, model(lab):
        peer = management.accept()[0]
        with peer, Helper(lab, [f"{models[:-6]}[gm]*[ys]"]) as helper:
            assert [(p.path, p.error) for p in helper.ask()] == [(models, "")]
            helper.write([gateway, models, models.replace("/netns/", "/netns/../netns/")])
            assert [(p.path, p.error) for p in helper.ask()] == [
                (gateway, "the namespace of this machine, which the helper never enters"),
                (models, ""),
            ]
            peer.sendall(b"here")
            assert session.recv(10) == b"here"


@pytest.mark.lab
def test_what_is_no_namespace_is_said_and_does_not_stop_the_others(rig: Rig) -> None:
    lab = rig.lab
    models, folder = f"/run/netns/{lab.namespace('models')}", lab.folder
    pipe = folder / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    named = [str(pipe), str(folder), "/dev/zero", "/proc/self/ns/mnt", "/nowhere", f"{folder}/none-*", models]
    with model(lab) as listener, answering(rig, listener, CLIENT.v4) as (_, server):
        with Helper(lab, named) as helper:
            places = {place.path: place for place in helper.ask()}
            assert places.keys() == set(named)
            assert {path: places[path].error for path in named} == {
                str(pipe): "no namespace",
                str(folder): "no namespace",
                "/dev/zero": "no namespace",
                "/proc/self/ns/mnt": "no network namespace",
                "/nowhere": "No such file or directory",
                f"{folder}/none-*": "No such file or directory",
                models: "",
            }
            assert (places[models].before, places[models].after) == (1, 0)
        server.settimeout(5)
        with pytest.raises(CUT_OFF):
            server.recv(1)


@pytest.mark.lab
def test_only_root_is_heard_and_only_in_the_one_form(rig: Rig) -> None:
    with Helper(rig.lab, [f"/run/netns/{rig.lab.namespace('models')}"]) as helper:
        assert helper.path.stat().st_mode & 0o777 == 0o600
        helper.path.chmod(0o666)
        asked = b'{"endpoints": ["published"]}'
        assert helper.said(asked, uid=65534)["error"] == "uid 65534 is not root"
        assert helper.said(asked)["ok"] is True
        for malformed in (
            b"nonsense",
            b"\xff\x00",
            b"[]",
            b"7" * 5000,
            b"[" * 60_000,
            b'{"endpoints": "published"}',
            b'{"endpoints": [1]}',
            b'{"endpoints": [""]}',
            b'{"endpoints": [["published"]]}',
            b'{"endpoints": {"published": 1}}',
            json.dumps({"endpoints": ["published"], "namespaces": ["/proc/1/ns/net"]}).encode(),
            json.dumps({"endpoints": ["x" * 65]}).encode(),
            json.dumps({"endpoints": ["x"] * 257}).encode(),
        ):
            assert helper.said(malformed) == {
                "ok": False,
                "error": 'message is not {"endpoints": [names]}',
                "remedy": "",
            }
        assert helper.said(asked + b" " * 65_536)["error"] == "message longer than 65536 bytes"
        assert helper.said(b'{"endpoints": []}') == {"ok": True, "namespaces": []}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
            mute.connect(str(helper.path))
            assert helper.ask()[0].error == "", "whoever connects and says nothing holds up nobody for long"


@pytest.mark.lab
def test_it_does_only_what_the_rails_say_at_that_moment(rig: Rig) -> None:
    models = f"/run/netns/{rig.lab.namespace('models')}"
    with Helper(rig.lab, [models], before="") as helper:
        with pytest.raises(EnforcerError, match="the rails do not allow the cut helper; cut_helper = true"):
            helper.ask()
        helper.write([models])
        assert sorted(helper.ask("published", "other", "unknown")) == [
            Place("", "unknown", 0, 0, "the rails name no such endpoint"),
            Place(models, "other", 0, 0, ""),
            Place(models, "published", 0, 0, ""),
        ]
        helper.rails.write_text(helper.rails.read_text() + "kill_switch = false\n")
        assert helper.ask("other") == [Place("", "other", 0, 0, "the rails keep the kill switch from it")]
        helper.rails.write_text("management = 7")
        with pytest.raises(EnforcerError, match="key management"):
            helper.ask()
        helper.write([models])
        helper.rails.chmod(0o666)
        with pytest.raises(EnforcerError, match="others may write it"):
            helper.ask()
        helper.rails.unlink()
        with pytest.raises(EnforcerError, match="No such file"):
            helper.ask()


@pytest.mark.lab
def test_two_capabilities_are_all_that_it_needs(rig: Rig) -> None:
    namespace = f"/run/netns/{rig.lab.namespace('models')}"
    under = ["setpriv", "--bounding-set=-all,+sys_admin,+net_admin", "--no-new-privs"]
    with (
        model(rig.lab) as listener,
        answering(rig, listener, CLIENT.v4),
        Helper(rig.lab, [namespace], under=under) as helper,
    ):
        assert helper.ask() == [Place(namespace, "published", 1, 0, "")]


@pytest.mark.lab
def test_pulling_the_kill_switch_asks_the_helper(bare: Lab) -> None:
    namespace = f"/run/netns/{bare.namespace('models')}"
    rails = f"cut_helper = true\n{RAILS}{PUBLISHED}namespaces = [{json.dumps(namespace)}]\n"
    with Rig(bare, rails) as rig, model(bare) as listener:
        with bare.inside("models"):
            local = socket.create_connection((V4, BACK), timeout=5)
        with local, listener.accept()[0] as server:
            with Helper(bare, [namespace], path=rig.state / "run" / "cut.sock"):
                _, receipt = rig.command("engage", "--endpoint", "published", "--reason", "test")
            assert receipt["namespaces"] == [Place(namespace, "published", 1, 0, "")._asdict()]
            server.settimeout(5)
            with pytest.raises(CUT_OFF):
                server.recv(1)


@pytest.mark.lab
def test_a_namespace_that_takes_too_long_or_too_much_does_not_stop_the_others(rig: Rig) -> None:
    namespace = f"/run/netns/{rig.lab.namespace('models')}"
    for what, said in (
        ("__import__('signal').pause()", "not done within 3 s"),
        ("bytearray(1 << 30)", "more sockets than there is memory to list"),
        ("1 / 0", "it failed"),
        ("exit(3)", "it failed"),
    ):
        patch = (
            "end = cut._end; cut._LIMIT_S = 3; "
            f"cut._end = lambda at, services: end(at, services) if services[0].port == 1 else {what}"
        )
        with Helper(rig.lab, [namespace], patch=patch) as helper:
            assert sorted(helper.ask("published", "other")) == [
                Place(namespace, "other", 0, 0, ""),
                Place(namespace, "published", 0, 0, said),
            ]
            assert helper.ask("other") == [Place(namespace, "other", 0, 0, "")]


@pytest.mark.lab
def test_the_number_of_namespaces_is_limited(rig: Rig) -> None:
    namespaces = [f"/run/netns/{rig.lab.namespace(host)}" for host in ("models", "client", "router")]
    with Helper(rig.lab, namespaces, patch="cut.MOST_NAMESPACES = 2") as helper:
        assert sorted(helper.ask()) == sorted(
            [
                Place(namespaces[0], "published", 0, 0, ""),
                Place(namespaces[1], "published", 0, 0, ""),
                Place(namespaces[2], "published", 0, 0, "more than 2: the rest is not cut"),
            ]
        )


@pytest.mark.lab
@pytest.mark.parametrize("handed_over", ["option", "environment"])
def test_handed_a_socket_it_answers_and_ends_when_nobody_asks(rig: Rig, handed_over: str) -> None:
    lab = rig.lab
    path = lab.folder / "handed.sock"
    path.unlink(missing_ok=True)
    Helper(lab, [f"/run/netns/{lab.namespace('models')}"])
    program = "import os, sys; from gatewatch.daemon.enforcer import cut; cut._IDLE_S = 0.5; "
    words = ["--rails", str(lab.folder / "cut-rails.toml")]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking,
    ):
        listener.bind(str(path))
        listener.listen()
        asking.connect(str(path))
        asking.send(b'{"endpoints": ["published"]}')
        if handed_over == "option":
            words += ["--socket", str(listener.fileno())]
        else:
            program += f"os.dup2({listener.fileno()}, 3); "
            program += "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        with lab.inside("gateway"):
            process = subprocess.Popen(
                [sys.executable, "-c", f"{program} sys.exit(cut.main(sys.argv[1:]))", *words],
                pass_fds=[listener.fileno()],
            )
        asking.settimeout(10)
        assert json.loads(asking.recv(65536))["namespaces"][0]["error"] == ""
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--rails"),
        (["--rails", "r"], "no socket"),
        (["--rails", "r", "--socket", "0"], "descriptor 0: Socket operation on non-socket"),
        (["--rails", "r", "--socket", "1"], "descriptor 1 is no Unix socket that keeps messages whole"),
        (["--rails", "r", "--listen", "/nowhere/cut.sock"], "--listen /nowhere/cut.sock: No such file"),
        (["--rails", "r", "--socket", "1", "--listen", "x"], "not allowed with"),
    ],
)
def test_wrong_options_are_said(words: list[str], said: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-m", "gatewatch.daemon.enforcer.cut", *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert said in done.stderr


def test_who_asks_a_helper_that_is_not_there_or_says_nothing_is_told_so(tmp_path: Path) -> None:
    path = str(tmp_path / "cut.sock")
    with pytest.raises(EnforcerError, match="No such file"):
        cut.ask(path, ["published"], 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(EnforcerError, match="no answer in time"):
            cut.ask(path, ["published"], 0.2)
    with pytest.raises(EnforcerError, match="Connection refused"):
        cut.ask(path, ["published"], 0.2)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"7",
        b'{"ok": true}',
        b'{"ok": true, "namespaces": [{"path": 1}]}',
        b"[" * 60_000,
    ],
)
def test_an_answer_that_is_none_is_an_error(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "cut.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                client.recv(65536)
                if answer:
                    client.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(EnforcerError, match="gave an answer that is none"):
            cut.ask(path, ["published"], 5)
        thread.join()
