"""Ways past the kill switch, each really built: traffic passes by the kill switch's table, and `find` names the way.

What this machine's kernel does not build is recorded as a property of the tests (`untested`), after the kernel has
said that it does not know it; docs/kill-switch.md says so as well.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from enforcer_echo import UDP, ask, client, echo, endpoint, silent
from enforcer_site import (
    BEHIND,
    BEHIND_GATEWAY,
    BESIDE,
    BESIDE6,
    FRONT,
    NEAR6_GATEWAY,
    NEAR_GATEWAY,
    Site,
    site_of,
)
from gatewatch.daemon.enforcer.kernel.netlink import Netlink, attribute
from gatewatch.daemon.enforcer.proof import bypass
from gatewatch.daemon.enforcer.proof.bypass import Bypass
from gatewatch.daemon.enforcer.rails import Endpoint
from lab.lab import HOSTS, Lab, wait_for

GATEWAY = HOSTS["gateway"]
FAR = "203.0.113.250"
UNKNOWN = ("Unknown device type", "No such file or directory", "not supported")
RecordProperty = Callable[[str, object], None]


@pytest.fixture
def site(bare: Lab) -> Iterator[Site]:
    with site_of(bare) as site:
        yield site


def refuses(record: RecordProperty, name: str, build: Callable[[], object]) -> bool:
    """Whether the kernel does not know what `build` builds."""
    try:
        build()
    except (subprocess.CalledProcessError, OSError) as error:
        said = str(getattr(error, "stderr", "") or error)
        unknown = (*UNKNOWN, "Invalid argument") if name == "tcx" else UNKNOWN  # as bpf(2) says it
        assert any(word in said for word in unknown), said
        record("untested", name)
        return True
    return False


def passes_by(site: Site, models: Endpoint, address: str = BESIDE) -> list[Bypass]:
    """The model answers though it is cut off; what `find` says."""
    site.cut(models)
    with echo(site.lab, "box", address, FRONT, UDP):
        ask(site.lab, "client", address, FRONT, UDP)
    return site.find(models)


@pytest.mark.lab
def test_nothing_is_named_where_all_traffic_passes_the_hooks(site: Site) -> None:
    site.join(BEHIND)
    site.ip("gateway", f"addr add {BEHIND_GATEWAY}/27 dev c0")
    site.ip("box", f"route add default via {BEHIND_GATEWAY}")
    models = endpoint([f"*:{FRONT}/tcp", f"{BEHIND}:{FRONT}/udp"], ["127.0.0.1:8000/tcp"])
    with echo(site.lab, "box", BEHIND, FRONT, UDP), echo(site.lab, "gateway", GATEWAY.v4, FRONT):
        ask(site.lab, "client", BEHIND, FRONT, UDP)
        assert site.find(models) == []
        site.cut(models)
        assert silent(site.lab, "client", BEHIND, FRONT)
        assert site.find(models) == [], "and the kill switch's own table is no way past it"
    assert site.find() == []


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
@pytest.mark.parametrize("inhabited", [True, False], ids=["a process in it", "a name alone"])
def test_an_interface_in_a_container_that_sits_on_one_of_ours_is_named(
    site: Site, record_testsuite_property: RecordProperty, kind: str, inhabited: bool
) -> None:
    mode = "bridge" if kind == "macvlan" else "l2"
    add = f"link add link up0 name mv0 netns {site.lab.namespace('box')} type {kind} mode {mode}"
    if refuses(record_testsuite_property, kind, lambda: site.ip("gateway", add)):
        return
    site.ip("box", f"addr add {BESIDE}/27 dev mv0", "link set mv0 up")
    process = site.lab.popen_in("box", ["sleep", "600"]) if inhabited else None
    try:
        if process:
            wait_for("its namespace", lambda: "nsenter" not in Path(f"/proc/{process.pid}/comm").read_text())
        (found,) = passes_by(site, endpoint([f"{BESIDE}:{FRONT}/udp"]))
    finally:
        if process:
            process.kill()
            process.wait()
    place = f"process {process.pid} (sleep)" if process else f"/run/netns/{site.lab.namespace('box')}"
    assert found.kind == kind
    assert found.what.startswith(f"{kind} mv0 in the network namespace of {place} sits on up0: ")


@pytest.mark.lab
def test_the_name_that_a_container_gives_its_interface_does_no_harm(site: Site) -> None:
    box = site.lab.namespace("box")
    site.ip("gateway", f"link add link up0 name mv0 netns {box} type macvlan mode bridge")
    subprocess.run(["ip", "-n", box, "link", "set", "mv0", "name", "\x1b$(reboot)"], check=True)
    (found,) = site.find(endpoint([f"*:{FRONT}/udp"]))
    assert found.what.startswith("macvlan ?$(reboot) in the network namespace of ")
    assert found.remedy.endswith(f"in need: nsenter --net=/run/netns/{box} ip link set NAME down")


@pytest.mark.lab
def test_an_interface_of_our_own_namespace_on_another_is_no_way_past(site: Site) -> None:
    site.ip("gateway", "link add link up0 name mv0 type macvlan mode bridge", f"addr add {BESIDE}/27 dev mv0")
    site.ip("gateway", "link set mv0 up")
    models = endpoint([f"{BESIDE}:{FRONT}/udp"])
    with echo(site.lab, "gateway", BESIDE, FRONT, UDP):
        ask(site.lab, "client", BESIDE, FRONT, UDP)
        site.cut(models)
        assert silent(site.lab, "client", BESIDE, FRONT)
    assert site.find(models) == []


@pytest.mark.lab
def test_an_interface_of_two_other_namespaces_is_not_our_matter(site: Site) -> None:
    site.ip(
        "client", f"link add link down0 name mv0 netns {site.lab.namespace('box')} type macvlan mode bridge"
    )
    assert site.find(endpoint([f"*:{FRONT}/udp"])) == []


@pytest.mark.lab
def test_a_macvtap_is_named_as_a_guest_reads_it(
    site: Site, record_testsuite_property: RecordProperty
) -> None:
    add = "link add link up0 name mt0 type macvtap mode bridge"
    if refuses(record_testsuite_property, "macvtap", lambda: site.ip("gateway", add)):
        return
    (found,) = site.find(endpoint([f"*:{FRONT}/udp"]))
    assert found.kind == "macvlan"
    assert found.what.startswith("macvtap mt0 of this namespace sits on up0: ")


@pytest.mark.lab
def test_a_flow_table_is_named_with_the_flows_that_it_carries(
    site: Site, record_testsuite_property: RecordProperty
) -> None:
    site.join(BEHIND)
    site.ip("gateway", f"addr add {BEHIND_GATEWAY}/27 dev c0")
    site.ip("box", f"route add default via {BEHIND_GATEWAY}")
    table = (
        "table inet fast {\n flowtable ft { hook ingress priority 0; devices = { c0, up0 }; }\n"
        " chain f { type filter hook forward priority 0; ip protocol tcp flow add @ft; }\n}\n"
    )
    load = site.lab.folder / "flowtable.nft"
    load.write_text(table)
    models = endpoint([f"{BEHIND}:{FRONT}/tcp"])
    if refuses(
        record_testsuite_property, "flowtable", lambda: site.lab.run_in("gateway", ["nft", "-f", load])
    ):
        return
    with echo(site.lab, "box", BEHIND, FRONT), client(site.lab, "client", BEHIND, FRONT) as asking:

        def carried() -> bool:
            asking.sendall(b"request")
            assert asking.recv(100)
            with site.lab.inside("gateway"):
                return bypass.offloaded([models]) > 0

        wait_for("the flow to be offloaded", carried)
        site.cut(models)
        asking.sendall(b"request")
        assert asking.recv(100) == b"request", "past the kill switch's table"
        (found,) = site.find(models)
    assert found.kind == "flowtable"
    assert found.what.startswith("flow table ft of table inet fast (devices: c0, up0) carries")
    assert "; 1 of the endpoints' is in it now" in found.what


@pytest.mark.lab
def test_offloaded_flows_are_told_from_others_by_the_kernel_and_by_their_ports(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another bit of the status, which every kernel can set: IPS_SEEN_REPLY."""
    site.nft.run("table inet t { chain c { type filter hook input priority 0; ct state new counter; }\n}")
    with echo(site.lab, "gateway", GATEWAY.v4, FRONT, UDP), echo(site.lab, "gateway", GATEWAY.v6, FRONT, UDP):
        ask(site.lab, "client", GATEWAY.v4, FRONT, UDP)
        ask(site.lab, "client", GATEWAY.v6, FRONT, UDP)
        with client(site.lab, "client", GATEWAY.v4, FRONT + 1, UDP) as unanswered:
            unanswered.sendall(b"request")
        with site.lab.inside("gateway"):
            assert bypass.offloaded([endpoint([f"*:{FRONT}/udp"])]) == 0
            monkeypatch.setattr(bypass, "_OFFLOADED", 1 << 1)
            assert bypass.offloaded([endpoint([f"*:{FRONT}/udp"])]) == 2
            assert bypass.offloaded([endpoint([f"{GATEWAY.v4}:{FRONT}/udp"])]) == 1
            assert bypass.offloaded([endpoint([f"[{GATEWAY.v6}]:{FRONT}/udp"])]) == 1
            assert bypass.offloaded([endpoint([f"*:{FRONT}/tcp", f"*:{FRONT + 1}/udp"])]) == 0


@pytest.mark.lab
@pytest.mark.parametrize("how", ["xdp", "tcx"])
def test_a_program_on_an_interface_that_redirects_is_named(
    site: Site, record_testsuite_property: RecordProperty, how: str
) -> None:
    site.join(BESIDE)
    pairs = (("up0", "c0"), ("c0", "up0"))
    with site.lab.inside("gateway"):
        if refuses(record_testsuite_property, how, lambda: [_redirect(*pair, how) for pair in pairs]):
            return
    found = passes_by(site, endpoint([f"{BESIDE}:{FRONT}/udp"]))
    assert [f.kind for f in found] == [how.replace("tcx", "tc")] * 2
    assert {word for f in found for word in f.what.split()} >= {"up0", "c0"}


@pytest.mark.lab
def test_a_redirection_by_traffic_control_is_named(site: Site) -> None:
    site.join(BESIDE)
    for one, other in (("up0", "c0"), ("c0", "up0")):
        site.lab.run_in("gateway", ["tc", "qdisc", "add", "dev", one, "clsact"])
        words = f"filter add dev {one} ingress u32 match u32 0 0 action mirred egress redirect dev {other}"
        site.lab.run_in("gateway", ["tc", *words.split()])
    found = passes_by(site, endpoint([f"{BESIDE}:{FRONT}/udp"]))
    assert [f.kind for f in found] == ["tc", "tc"]
    assert "filter (u32) on up0" in "".join(f.what for f in found)


@pytest.mark.lab
def test_of_very_many_the_first_are_named_and_the_others_counted(site: Site) -> None:
    rules = "".join(f"chain c{n} {{ fwd to lo; }}\n" for n in range(200))
    with site.lab.inside("gateway"):
        site.nft.run(f"table netdev many {{ {rules} }}")
    found = site.find(endpoint([f"*:{FRONT}/udp"]))
    assert [f.kind for f in found] == ["netdev"] * 11
    assert found[-1].what == "190 more of the kind netdev were found, and are not listed"


@pytest.mark.lab
def test_traffic_control_that_only_classifies_is_not_named(site: Site) -> None:
    site.lab.run_in("gateway", ["tc", "qdisc", "add", "dev", "up0", "ingress"])
    words = ["match", "u32", "0", "0", "classid", "1:1"]
    site.lab.run_in("gateway", ["tc", "filter", "add", "dev", "up0", "ingress", "u32", *words])
    assert site.find(endpoint([f"*:{FRONT}/udp"])) == []


@pytest.mark.lab
def test_a_rule_that_forwards_at_ingress_is_named(site: Site) -> None:
    site.join(BESIDE)
    for one, other in (("up0", "c0"), ("c0", "up0")):
        with site.lab.inside("gateway"):  # libnftables looks the interfaces up where it is called
            rule = f"type filter hook ingress device {one} priority 0; fwd to {other};"
            site.nft.run(f"table netdev {one} {{ chain in {{ {rule} }}\n}}")
    found = passes_by(site, endpoint([f"{BESIDE}:{FRONT}/udp"]))
    assert [f.kind for f in found] == ["netdev", "netdev"]
    assert "chain in of table netdev up0 sends packets on" in "".join(f.what for f in found)


@pytest.mark.lab
@pytest.mark.parametrize(("address", "family"), [(BESIDE, ""), (BESIDE6, "6")])
@pytest.mark.parametrize("remedy", ["for all bridges", "for one"])
def test_a_bridge_that_does_not_ask_the_hooks_is_named(
    site: Site, address: str, family: str, remedy: str
) -> None:
    site.join(address)
    here = (f"{NEAR_GATEWAY}/27", f"{NEAR6_GATEWAY}/64")
    site.ip("gateway", "link add br0 type bridge", "link set up0 master br0", "link set c0 master br0")
    site.ip(
        "gateway", "link set br0 up", "addr flush dev up0", *(f"addr add {a} dev br0 nodad" for a in here)
    )
    setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-ip{family}tables")
    service = f"{f'[{address}]' if family else address}:{FRONT}/udp"
    models = endpoint([f"*:{FRONT}/tcp"], [service])
    with site.lab.inside("gateway"):
        filtered = setting.exists()
        if filtered:
            setting.write_text("0")
    (found,) = passes_by(site, models, address)
    assert found.kind == "bridge"
    assert f"bridge br0 passes what goes between its ports (up0, c0) on to {address} of models" in found.what
    site.ip("gateway", f"route add {FAR} via {BESIDE}")
    assert site.find(endpoint([f"{FAR}:{FRONT}/udp"])) == [], (
        "what is beyond a router is not behind the bridge"
    )
    if not filtered:
        return
    if remedy == "for one":
        site.ip("gateway", f"link set br0 type bridge nf_call_ip{family}tables 1")
    else:
        with site.lab.inside("gateway"):
            setting.write_text("1")
    with echo(site.lab, "box", address, FRONT, UDP):
        assert silent(site.lab, "client", address, FRONT), "the remedy works"
    assert site.find(models) == []


@pytest.mark.lab
def test_it_needs_the_right_to_administer_the_network_and_says_what_else_it_lacks(site: Site) -> None:
    said = {}
    container = site.lab.popen_in(
        "gateway", ["unshare", "--net", "sleep", "600"]
    )  # a namespace without a name
    try:
        wait_for("its namespace", lambda: Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n")
        site.ip("gateway", f"link add link up0 name mv0 netns {container.pid} type macvlan mode bridge")
        with echo(site.lab, "gateway", GATEWAY.v4, FRONT):
            for rights in ("+net_admin", ""):
                said[rights] = site.find_with(rights, f"*:{FRONT}/tcp")
    finally:
        container.kill()
        container.wait()
    unseen = "unseen models: whether it can be reached by a Unix socket"
    beside = f"macvlan macvlan mv0 in the network namespace of process {container.pid} (sleep) sits on up0: "
    assert said["+net_admin"] == [
        f"{beside}its packets never reach the kill switch's hooks",
        f"{unseen} could not be told, as not every process may be looked into",
    ]
    first, second, *others = [line.partition(" could")[0] for line in said[""]]
    assert [first, *others] == ["unseen nftables", "unseen programs on the interfaces", unseen]
    assert second in ("unseen the interfaces", "unseen not every other network namespace")


@pytest.mark.parametrize(
    ("status", "port", "carried"), [(0x400E, 9000, True), (0x8, 9000, False), (0x4008, 9001, False)]
)
def test_a_flow_is_carried_by_its_status_and_belongs_to_who_serves_it(
    status: int, port: int, carried: bool
) -> None:
    def entry(kind: int, source: bytes, to: bytes, from_port: bytes, to_port: bytes) -> bytes:
        addresses = attribute(1, source) + attribute(2, to)
        protocol = attribute(1, b"\x06") + attribute(2, from_port) + attribute(3, to_port)
        inner = attribute(1, addresses, nested=True) + attribute(2, protocol, nested=True)
        return attribute(kind, inner, nested=True)

    ends = (
        entry(1, b"\xc0\0\2\1", b"\xc0\0\2\2", b"\x90\0", b"\1\xbb"),
        entry(2, b"\xc0\0\2\x42", b"\xc0\0\2\1", struct.pack("!H", port), b"\x90\0"),
    )
    body = b"\2\0\0\0" + b"".join(ends) + attribute(3, struct.pack("!I", status))
    assert bypass.carried(body, {*endpoint(["192.0.2.66:9000/tcp"]).services}) is carried


@pytest.mark.parametrize(
    "body", [b"", b"\0" * 3, b"\xff" * 64, attribute(3, b"\xff" * 4) * 3, os.urandom(200)]
)
def test_no_entry_of_connection_tracking_breaks_it(body: bytes) -> None:
    assert bypass.carried(body, {*endpoint([f"*:{FRONT}/tcp"]).services}) is False


def _redirect(name: str, to: str, how: str) -> None:
    """Attach `return bpf_redirect(to, 0)` to the interface `name`, with which it goes (linux/bpf.h, if_link.h)."""
    code = b"".join(
        struct.pack("=BBhi", *instruction)
        for instruction in (
            (0xB7, 1, 0, socket.if_nametoindex(to)),  # r1 = to
            (0xB7, 2, 0, 0),  # r2 = 0
            (0x85, 0, 0, 23),  # call bpf_redirect
            (0x95, 0, 0, 0),  # exit
        )
    )
    program, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    kind = 6 if how == "xdp" else 3  # BPF_PROG_TYPE_XDP, BPF_PROG_TYPE_SCHED_CLS
    place = ctypes.addressof(program), ctypes.addressof(licence)
    descriptor = _bpf(5, struct.pack("=IIQQ", kind, len(code) // 8, *place))  # BPF_PROG_LOAD
    try:
        if how == "tcx":  # BPF_PROG_ATTACH: interface, program, BPF_TCX_INGRESS
            _bpf(8, struct.pack("=III", socket.if_nametoindex(name), descriptor, 46))
            return
        inner = attribute(1, struct.pack("=i", descriptor)) + attribute(
            3, struct.pack("=I", 1 << 1)
        )  # IFLA_XDP_*
        with Netlink(socket.NETLINK_ROUTE) as netlink:
            header = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)
            (error,) = netlink.tell(19, [header + attribute(43, inner, nested=True)])  # RTM_SETLINK, IFLA_XDP
        if error:
            raise OSError(error, os.strerror(error))
    finally:
        os.close(descriptor)


def _bpf(command: int, request: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    number = bypass._BPF[platform.machine()]
    done = int(libc.syscall(number, command, ctypes.create_string_buffer(request.ljust(128, b"\0")), 128))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
