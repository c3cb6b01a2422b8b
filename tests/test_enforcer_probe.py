"""The probe of the kill switch, with real packets: what it calls dropped, what not, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from enforcer_rig import BACK, FRONT, GATEWAY, OTHER
from gatewatch.daemon.enforcer.kernel import killtable
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.proof.probe import remove_stale
from gatewatch.daemon.enforcer.rails import service_of
from lab.lab import HOSTS, Lab, wait_for

FRONTS = [f"*:{FRONT}/tcp", f"*:{FRONT}/udp"]
ROUTED = f"{HOSTS['client'].v4}:{FRONT}/tcp"
TARGETS = {f"{address}:{FRONT}/{p}" for address in (GATEWAY.v4, f"[{GATEWAY.v6}]") for p in ("tcp", "udp")}

_PROGRAM = """
import fcntl, json, os, select, sys
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.proof.probe import Probe
from gatewatch.daemon.enforcer.rails import service_of

lock = open(sys.argv[1], "w")
fcntl.flock(os.dup(lock.fileno()), fcntl.LOCK_EX)
asked = {name: [service_of(s) for s in each] for name, each in json.loads(sys.argv[2]).items()}
probe = Probe(Nft(), asked)
print("started", flush=True)
if probe.fileno() >= 0 and "hurry" not in sys.argv:
    select.select([probe], [], [], 10)
print(json.dumps([outcome._asdict() for outcome in probe.finish()]), flush=True)
os.execlp("ps", "ps", "--ppid", str(os.getpid()), "-o", "stat=,args=")
"""


@pytest.fixture
def gateway(bare: Lab) -> Iterator[Gateway]:
    gateway = Gateway(bare)
    yield gateway
    gateway.nft("flush ruleset")
    assert gateway.interfaces() == {"lo", "eth0"}, "nothing is left behind"


class Gateway:
    """The lab's gateway, on which the probe runs in a process of its own as the enforcer would run it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.lock = lab.folder / "lock"
        self.output = lab.folder

    def start(
        self, *services: str, before: tuple[str, ...] = (), hurry: bool = False
    ) -> subprocess.Popen[str]:
        """Has printed `started` once the probe is under way."""
        words = [self.lock, json.dumps({"models": services or FRONTS}), *(["hurry"] if hurry else [])]
        command = [*before, sys.executable, "-c", _PROGRAM, *words]
        self.output = self.lab.folder / f"{Path(command[0]).name}.out"
        process = self.lab.popen_in("gateway", command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    def outcomes(self, process: subprocess.Popen[str]) -> list[dict[str, str]]:
        assert process.stdout is not None
        said = process.stdout.read()
        process.wait()
        assert said, self.output.read_text()
        found, *left = said.splitlines()
        assert not left, "no child is left"
        return json.loads(found)  # type: ignore[no-any-return]

    def probe(self, *services: str, before: tuple[str, ...] = ()) -> list[dict[str, str]]:
        """What a probe says; nothing of it is left."""
        outcomes = self.outcomes(self.start(*services, before=before))
        assert "gatewatch_probe" not in self.nft("list tables")
        assert self.interfaces() == {"lo", "eth0"}
        return outcomes

    def verdicts(self, *services: str, before: tuple[str, ...] = ()) -> dict[str, str]:
        return {o["target"]: o["verdict"] for o in self.probe(*services, before=before)}

    def kill(self, *services: str, table: str = killtable.KILL) -> None:
        self.load(killtable.render(table, {"models": tuple(map(service_of, services or FRONTS))}))

    def load(self, ruleset: str) -> None:
        self.lab.run_in("gateway", ["nft", "-f", "-"], input=ruleset)

    def nft(self, command: str) -> str:
        return self.lab.run_in("gateway", ["nft", command]).stdout

    def interfaces(self) -> set[str]:
        return {link["ifname"] for link in json.loads(self.ip("-j", "link"))}

    def ip(self, *words: str) -> str:
        return self.lab.run_in("gateway", ["ip", *words]).stdout

    def firewall(self, hook: str, *rules: str, kind: str = "filter") -> None:
        """Somebody else's table."""
        body = "\n".join(rules)
        self.load(f"table inet theirs {{\nchain theirs {{\ntype {kind} hook {hook};\n{body}\n}}\n}}\n")

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """On the front servers that take connections, and that send every datagram back."""
        with contextlib.ExitStack() as stack:
            echoes = []
            with self.lab.inside("gateway"):
                for address in (GATEWAY.v4, GATEWAY.v6):
                    family = socket.AF_INET6 if ":" in address else socket.AF_INET
                    stack.enter_context(socket.create_server((address, FRONT), family=family))
                    echo = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                    echo.bind((address, FRONT))
                    echoes.append(echo)
            stop = threading.Event()
            thread = threading.Thread(target=_send_back, args=(echoes, stop))
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()


def _send_back(echoes: list[socket.socket], stop: threading.Event) -> None:
    while not stop.is_set():
        for echo in select.select(echoes, [], [], 0.02)[0]:
            echo.sendto(*echo.recvfrom(100))


@pytest.mark.lab
def test_a_kill_switch_that_works_is_seen_over_both_families_and_both_protocols(gateway: Gateway) -> None:
    gateway.kill()
    with gateway.serving():
        outcomes = gateway.probe()
    assert {o["target"]: o["verdict"] for o in outcomes} == dict.fromkeys(TARGETS, "dropped")
    assert {(o["endpoint"], o["service"]) for o in outcomes} == {("models", service) for service in FRONTS}
    assert "none got past it" in outcomes[0]["why"]


@pytest.mark.lab
def test_whatever_answers_is_said(gateway: Gateway) -> None:
    def answers(tcp: str, udp: str) -> bool:
        outcomes = gateway.probe()
        assert {o["target"]: o["verdict"] for o in outcomes} == dict.fromkeys(TARGETS, "reached")
        return {(o["target"].rpartition("/")[2], o["why"]) for o in outcomes} == {("tcp", tcp), ("udp", udp)}

    refused = "a reset came back: Connection refused"
    wait_for("a machine that refuses", lambda: answers(refused, "ICMP came back"))
    with gateway.serving():
        wait_for("the servers", lambda: answers("a connection was made", "a datagram came back"))
    gateway.firewall("input priority 0", "reject with icmpx host-unreachable")
    wait_for("a firewall that refuses", lambda: answers("ICMP came back", "ICMP came back"))


@pytest.mark.lab
def test_a_back_on_another_machine_is_probed_at_the_hook_though_nothing_forwards(gateway: Gateway) -> None:
    assert gateway.verdicts(ROUTED) == {ROUTED: "reached"}
    gateway.kill(ROUTED)
    assert gateway.verdicts(ROUTED) == {ROUTED: "dropped"}


@pytest.mark.lab
def test_a_rule_for_the_wrong_port_does_not_count(gateway: Gateway) -> None:
    gateway.kill(f"*:{OTHER}/tcp", f"*:{FRONT}/udp")
    verdicts = gateway.verdicts()
    assert verdicts == {target: "reached" if "tcp" in target else "dropped" for target in TARGETS}


@pytest.mark.lab
@pytest.mark.parametrize(
    ("what", "instead"),
    [
        (f"table inet {killtable.KILL} {{", f"table inet {killtable.KILL} {{\nflags dormant;"),
        ("type filter hook prerouting priority -310; policy accept;", ""),
        ("hook prerouting priority -310", "hook prerouting priority 0"),
        ("jump endpoints", "accept"),
    ],
    ids=["dormant", "no hook", "too late", "no rule is reached"],
)
def test_a_table_without_effect_is_found_out(gateway: Gateway, what: str, instead: str) -> None:
    ruleset = killtable.render(killtable.KILL, {"models": tuple(map(service_of, FRONTS))})
    assert what in ruleset
    gateway.load(ruleset.replace(what, instead))
    with gateway.serving():
        verdicts = gateway.verdicts()
    assert verdicts == dict.fromkeys(TARGETS, "reached")


@pytest.mark.lab
def test_a_port_that_is_rewritten_before_the_hook_is_not_called_dropped(gateway: Gateway) -> None:
    gateway.kill()
    rewrite = [f"{p} dport {FRONT} {p} dport set {OTHER}" for p in ("tcp", "udp")]
    gateway.firewall("prerouting priority -400", *rewrite)
    outcomes = gateway.probe()
    assert {o["target"]: o["verdict"] for o in outcomes} == dict.fromkeys(TARGETS, "reached")
    assert "got past the hook" in outcomes[0]["why"]


@pytest.mark.lab
def test_a_redirection_by_nat_comes_too_late_to_matter(gateway: Gateway) -> None:
    gateway.kill()
    redirect = [f"{p} dport {FRONT} redirect to :{OTHER}" for p in ("tcp", "udp")]
    gateway.firewall("prerouting priority -199", *redirect, kind="nat")
    assert gateway.verdicts() == dict.fromkeys(TARGETS, "dropped")


@pytest.mark.lab
def test_what_does_not_arrive_at_the_hook_proves_nothing(gateway: Gateway) -> None:
    gateway.kill()
    gateway.firewall("prerouting priority -400; policy drop")
    assert {(o["verdict"], o["why"]) for o in gateway.probe()} == {
        ("not probed", "its packets did not arrive at the hook")
    }


@pytest.mark.lab
def test_a_firewall_that_drops_everything_behind_the_hook_is_not_taken_for_the_kill_switch(
    gateway: Gateway,
) -> None:
    gateway.firewall("input priority 0; policy drop")
    outcomes = gateway.probe()
    assert {(o["verdict"], o["why"]) for o in outcomes} == {
        ("reached", "3 of 3 packets got past the hook; no answer came")
    }
    gateway.kill()
    assert gateway.verdicts() == dict.fromkeys(TARGETS, "dropped")


@pytest.mark.lab
def test_the_network_administrators_capability_is_enough_where_user_namespaces_are_allowed(
    gateway: Gateway,
) -> None:
    gateway.kill()
    assert gateway.verdicts(before=("setpriv", "--bounding-set", "-all,+net_admin")) == dict.fromkeys(
        TARGETS, "dropped"
    )


@pytest.mark.lab
def test_without_any_way_to_a_namespace_nothing_is_probed_and_it_is_said_why(gateway: Gateway) -> None:
    inside = (
        "echo 0 >/proc/sys/user/max_user_namespaces; ip link add eth0 type veth peer name eth1;"
        f"ip link set eth0 up; ip addr add {GATEWAY.v4}/24 dev eth0;"
        'exec setpriv --bounding-set -sys_admin "$@"'
    )
    unshare = ("unshare", "--user", "--map-root-user", "--net", "sh", "-ec", inside, "sh")
    outcomes = gateway.probe(before=unshare)
    assert {o["target"] for o in outcomes} == {f"{GATEWAY.v4}:{FRONT}/tcp", f"{GATEWAY.v4}:{FRONT}/udp"}
    assert {o["verdict"] for o in outcomes} == {"not probed"}
    assert "it needs CAP_SYS_ADMIN" in outcomes[0]["why"]


@pytest.mark.lab
def test_a_machine_without_addresses_has_nothing_to_knock_at(gateway: Gateway) -> None:
    outcomes = gateway.probe(before=("unshare", "--net"))
    assert {(o["target"], o["verdict"]) for o in outcomes} == {("", "not probed")}
    assert outcomes[0]["why"] == "this machine has no address but loopback"


@pytest.mark.lab
def test_what_only_this_machine_or_its_link_reaches_is_not_probed(gateway: Gateway) -> None:
    services = [
        f"127.0.0.1:{BACK}/tcp",
        f"[::1]:{BACK}/tcp",
        f"[fe80::1]:{BACK}/tcp",
        f"224.0.0.1:{BACK}/udp",
    ]
    outcomes = gateway.probe(*services)
    assert [o["why"] for o in outcomes] == [
        "only reachable from this machine",
        "only reachable from this machine",
        "only reachable from its own link",
        "no machine's address",
    ]
    assert {o["verdict"] for o in outcomes} == {"not probed"}
    assert [o["service"] for o in outcomes] == services


@pytest.mark.lab
def test_more_than_can_be_probed_at_once_is_said(gateway: Gateway) -> None:
    services = [f"{GATEWAY.v4}:{port}/tcp" for port in range(9000, 9070)]
    gateway.kill(*services)
    outcomes = gateway.probe(*services)
    assert [o["service"] for o in outcomes] == services
    assert [o["verdict"] for o in outcomes] == ["dropped"] * 64 + ["not probed"] * 6


@pytest.mark.lab
def test_the_address_that_the_default_route_shows_is_preferred(gateway: Gateway) -> None:
    for address in ("10.11.12.13/32", "2001:db8:9::9/128"):
        gateway.ip("addr", "add", address, "dev", "lo")
    try:
        outcomes = gateway.probe()
    finally:
        for address in ("10.11.12.13/32", "2001:db8:9::9/128"):
            gateway.ip("addr", "del", address, "dev", "lo")
    assert {o["target"] for o in outcomes} == TARGETS


@pytest.mark.lab
def test_networks_that_this_machine_has_a_way_to_are_left_alone(gateway: Gateway) -> None:
    gateway.kill()
    gateway.ip("route", "add", "198.18.0.0/15", "dev", "eth0")
    try:
        outcomes = gateway.probe()
    finally:
        gateway.ip("route", "del", "198.18.0.0/15")
    for outcome in outcomes:
        if "[" in outcome["target"]:
            assert outcome["verdict"] == "dropped"
        else:
            assert outcome["verdict"] == "not probed"
            assert "198.18.0.0/15 is in use here" in outcome["why"]


@pytest.mark.lab
def test_an_unreadable_answer_of_nftables_is_no_proof(gateway: Gateway) -> None:
    gateway.kill()
    process = gateway.start()
    gateway.nft("delete table inet gatewatch_probe")
    assert {o["verdict"] for o in gateway.outcomes(process)} == {"not probed"}


@pytest.mark.lab
def test_a_second_probe_at_the_same_time_spoils_the_first_and_deceives_nobody(gateway: Gateway) -> None:
    gateway.kill(f"*:{FRONT}/tcp")
    with gateway.serving():
        first = gateway.start(f"*:{FRONT}/udp")
        second = gateway.start(f"*:{FRONT}/tcp")
        assert "dropped" not in {o["verdict"] for o in gateway.outcomes(first)}
        assert "reached" not in {o["verdict"] for o in gateway.outcomes(second)}


@pytest.mark.lab
def test_a_probe_whose_process_hangs_is_ended_and_proves_nothing(gateway: Gateway) -> None:
    gateway.kill()
    process = gateway.start(hurry=True)
    child = wait_for("the child", lambda: children(process.pid))[0]
    os.kill(child, signal.SIGSTOP)
    outcomes = gateway.outcomes(process)
    assert {o["verdict"] for o in outcomes} == {"not probed"}
    assert outcomes[0]["why"] == "the probe did not come to an end"
    wait_for("the interface's end", lambda: gateway.interfaces() == {"lo", "eth0"})


@pytest.mark.lab
def test_an_enforcer_that_is_killed_leaves_nothing_but_a_table_that_the_next_one_removes(
    gateway: Gateway,
) -> None:
    gateway.kill()
    process = wait_for("a probe in the middle of its work", lambda: caught(gateway))
    child = children(process.pid)[0]
    process.kill()
    process.wait()
    wait_for("the child's end", lambda: not Path(f"/proc/{child}").exists())
    wait_for("the interface's end", lambda: gateway.interfaces() == {"lo", "eth0"})
    assert "gatewatch_probe" in gateway.nft("list tables")
    assert gateway.verdicts() == dict.fromkeys(TARGETS, "dropped")


@pytest.mark.lab
def test_a_stale_table_can_be_removed_whether_it_is_there_or_not(gateway: Gateway) -> None:
    gateway.nft("add table inet gatewatch_probe")
    with gateway.lab.inside("gateway"):
        nft = Nft()
        remove_stale(nft)
        remove_stale(nft)
    assert "gatewatch_probe" not in gateway.nft("list tables")


@pytest.mark.lab
def test_the_child_holds_no_descriptor_of_the_enforcers(gateway: Gateway) -> None:
    gateway.kill()
    process = wait_for("a probe in the middle of its work", lambda: caught(gateway))
    child = children(process.pid)[0]
    held = {str(each.readlink()).partition(":")[0] for each in Path(f"/proc/{child}/fd").iterdir()}
    assert str(gateway.lock) not in held
    assert {"net", "pipe", "socket"} < held, "but its own"
    os.kill(child, signal.SIGCONT)
    gateway.outcomes(process)


@pytest.mark.lab
def test_what_drops_the_probe_on_every_port_is_not_taken_for_the_kill_switch(gateway: Gateway) -> None:
    gateway.firewall("prerouting priority -310", "ip saddr 198.18.0.0/15 drop", "ip6 saddr fd00::/8 drop")
    outcomes = gateway.probe()
    assert {o["verdict"] for o in outcomes} == {"not probed"}
    assert "on every port" in outcomes[0]["why"]


@pytest.mark.lab
def test_one_family_does_not_answer_for_the_other(gateway: Gateway) -> None:
    gateway.kill(f"{GATEWAY.v4}:{FRONT}/tcp")
    gateway.firewall("prerouting priority -310", "ip6 saddr fd00::/8 drop")
    assert gateway.verdicts(f"*:{FRONT}/tcp") == {
        f"{GATEWAY.v4}:{FRONT}/tcp": "dropped",
        f"[{GATEWAY.v6}]:{FRONT}/tcp": "not probed",
    }


@pytest.mark.lab
def test_a_server_that_is_reached_is_let_go_by_a_reset(gateway: Gateway) -> None:
    with gateway.lab.inside("gateway"):
        server = socket.create_server((GATEWAY.v4, FRONT))
    with server:
        assert gateway.verdicts(f"{GATEWAY.v4}:{FRONT}/tcp") == {f"{GATEWAY.v4}:{FRONT}/tcp": "reached"}
        server.settimeout(5)
        connection, peer = server.accept()
        with connection, pytest.raises(ConnectionResetError):
            connection.settimeout(5)
            connection.recv(1)
        assert peer[0].startswith(("198.18.", "198.19."))


@pytest.mark.lab
def test_whoever_does_not_wait_for_it_gets_the_same_outcomes(gateway: Gateway) -> None:
    gateway.kill()

    def dropped() -> bool:
        outcomes = gateway.outcomes(gateway.start(hurry=True))
        assert "reached" not in {o["verdict"] for o in outcomes}
        return {o["target"]: o["verdict"] for o in outcomes} == dict.fromkeys(TARGETS, "dropped")

    wait_for("a probe that is finished within its second", dropped)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (("setpriv", "--bounding-set", "-all"), "not permitted"),
        (("prlimit", "--nofile=7"), "Too many open files"),
    ],
    ids=["no capability", "no descriptors"],
)
def test_what_cannot_be_done_raises_nothing(gateway: Gateway, before: tuple[str, ...], said: str) -> None:
    gateway.kill()
    outcomes = gateway.probe(before=before)
    assert {(o["endpoint"], o["service"]) for o in outcomes} == {("models", service) for service in FRONTS}
    assert {o["verdict"] for o in outcomes} == {"not probed"}
    assert said in outcomes[0]["why"]


def caught(gateway: Gateway) -> subprocess.Popen[str] | None:
    """A process whose probe is stopped while its interface is there; on a busy machine that may be missed."""
    process = gateway.start()
    for child in children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            while len(gateway.interfaces()) == 2:
                os.kill(child, 0)
            os.kill(child, signal.SIGSTOP)
            if len(gateway.interfaces()) == 3:
                return process
    process.kill()
    process.wait()
    return None


def children(pid: int) -> list[int]:
    """Of a process, but not of its threads."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
