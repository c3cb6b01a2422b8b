"""Login attacks on real services are found and dropped in the kernel, and nobody else is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from lab.lab import HOSTS, PASSWORDS, Lab, answers, read, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.lab

GATEWAY = HOSTS["gateway"].v4
ATTACKER = HOSTS["attacker"].v4
OTHERS = HOSTS["attacker"].more
CLIENT = HOSTS["client"].v4
BALANCER = HOSTS["balancer"].v4
NO_PACKETS = {"journal": {"enabled": False}, "packets": {"enabled": False}}


def connects(lab: Lab, host: str, port: int = 22) -> bool:
    with lab.inside(host):
        return answers(GATEWAY, port, 1.0)


def test_hydra_is_dropped_in_the_kernel_and_who_mistypes_twice_is_not(lab: Lab) -> None:
    words = lab.folder / "words"
    words.write_text("".join(f"guess-{n}\n" for n in range(200)))
    with Gatewatch(lab) as watch:
        session = lab.management_session()
        lab.popen_in("attacker", ["hydra", "-I", "-t", "4", "-l", "root", "-P", words, f"ssh://{GATEWAY}"])
        good = lab.ssh("client", "alice", ["typo", "tpyo", PASSWORDS["alice"]], "hostname")
        assert good.stdout == "gateway\n"
        watch.wait_for_block(ATTACKER)
        assert not connects(lab, "attacker")
        incident = watch.wait_for_incident("brute_force", ATTACKER)
        assert incident["users"] == ["root"]
        assert "T1110.001" in incident["techniques"]
        assert any(
            "Failed password for root" in sample for f in incident["findings"] for sample in f["samples"]
        )
        action = wait_for("the block's alert", lambda: [a for a in watch.alerts() if a["event"] == "action"])[
            0
        ]
        assert (action["target"], action["state"]) == (ATTACKER, "done")
        assert lab.ssh("client", "alice", [PASSWORDS["alice"]], "hostname").stdout == "gateway\n"
        session.say("still here")
        assert watch.elements() == {ATTACKER}
        assert all(CLIENT not in i["sources"] for i in watch.alerts() if i["event"] == "incident")


def test_failures_over_ipv6_are_dropped_as_well(lab: Lab) -> None:
    source, gateway = HOSTS["attacker"].v6, HOSTS["gateway"].v6
    with Gatewatch(lab) as watch:
        for _ in range(3):
            lab.fail(source, 5, address=gateway)
        watch.wait_for_incident("brute_force")
        wait_for("the block", lambda: watch.elements())
        with lab.inside("attacker"):
            assert not answers(gateway, 22)
        with lab.inside("client"):
            assert answers(gateway, 22)
        assert all(source not in alert.get("users", []) for alert in watch.alerts())


def test_a_login_that_succeeds_after_guessing_is_a_compromise(lab: Lab) -> None:
    with Gatewatch(lab, observe=True) as watch:
        for _ in range(3):
            lab.fail(ATTACKER, 4, "bob")
        stolen = lab.ssh("attacker", "bob", ["almost", PASSWORDS["bob"]], "hostname", source=ATTACKER)
        assert stolen.stdout == "gateway\n"
        incident = watch.wait_for_incident("account_compromise", ATTACKER)
        assert incident["users"] == ["bob"]
        assert incident["priority"] in ("critical", "high")
        assert watch.elements() == set(), "in observe mode nothing is done"
        would = [a for a in watch.alerts() if a["event"] == "action" and a["action"] == "block_source"]
        assert {action["state"] for action in would} == {"would"}


def test_the_balancer_is_never_blocked_for_its_clients(lab: Lab) -> None:
    lab.start_balancer()
    with Gatewatch(lab) as watch:
        for _ in range(30):
            lab.run_in("client", ["curl", "-s", f"http://{BALANCER}/v1/models"])
        incident = wait_for("an incident about the client", lambda: [
            i for i in watch.alerts() if i["event"] == "incident" and CLIENT in i["sources"]])[-1]  # fmt: skip
        assert incident["blockable"] == []
        assert all(BALANCER not in i["sources"] for i in watch.alerts() if i["event"] == "incident")
        assert watch.elements() == set()
        assert connects(lab, "balancer", 80)


def test_a_forged_forwarding_header_accuses_nobody_but_its_sender(lab: Lab) -> None:
    lab.start_balancer()
    victim = HOSTS["client"].more[0]
    forged = ["-H", f"X-Forwarded-For: {victim}"]
    with Gatewatch(lab) as watch:
        ask = ["curl", "-s", "-m", "1", *forged]
        for _ in range(30):
            if not watch.in_kernel(ATTACKER):
                lab.run_in("attacker", [*ask, f"http://{GATEWAY}/v1/models"], check=False)
        for _ in range(30):
            lab.run_in("attacker", [*ask, f"http://{BALANCER}/v1/models"], check=False)
        watch.wait_for_block(ATTACKER)
        assert all(victim not in i["sources"] for i in watch.alerts() if i["event"] == "incident")
        assert watch.elements() == {ATTACKER}
        assert connects(lab, "balancer", 80) and connects(lab, "client", 80)


def test_sshd_lines_are_followed_through_logrotates_rename(lab: Lab) -> None:
    log = lab.log / "auth.log"
    rsyslogd = wait_for("rsyslogd", lambda: lab.pid_of("rsyslogd"))
    with Gatewatch(lab) as watch:
        lab.fail(OTHERS[0], 5)
        log.rename(log.with_name("auth.log.1"))
        lab.fail(OTHERS[0], 1)  # rsyslogd still writes to the old file
        os.kill(rsyslogd, signal.SIGHUP)
        wait_for("its new file", lambda: "HUPed" in read(lab.log / "syslog"))
        lab.fail(OTHERS[0], 5)
        watch.wait_for_block(OTHERS[0])
        written = sum(len(read(p).splitlines()) for p in (log, log.with_name("auth.log.1")))
        wait_for("every line", lambda: lines_read(watch, "auth.log") == written)


@pytest.mark.parametrize("way", ["rename", "copytruncate"])
def test_no_line_is_lost_when_a_log_is_rotated_under_attack(lab: Lab, way: str) -> None:
    """Ten failures each from twenty sources at a time; the log is rotated in the middle, twice."""
    log = lab.folder / "busy.log"
    log.write_text("Nov 24 00:00:00 gateway sshd[1]: Server listening on :: port 22.\n")
    collectors = {**NO_PACKETS, "logs": [{"path": str(log), "format": "sshd", "trusted": True}]}
    written = 1
    with Gatewatch(lab, collectors=collectors) as watch:
        wait_for("the first line", partial(has_read, watch, log.name, written))
        for turn in range(2):
            for attempt in range(10):
                if attempt == 5:
                    rotate(log, turn, way)
                with open(log, "a") as file:
                    for source in OTHERS[turn * 20 : turn * 20 + 20]:
                        file.write(line_of(source, written))
                        written += 1
            wait_for("every line", partial(has_read, watch, log.name, written))
        for source in OTHERS[:40]:
            watch.wait_for_incident("brute_force", source)
        # After the fourth of one network all of it is blocked (`widen_after` of the playbook).
        wait_for("the network's block", lambda: any(e.startswith("203.0.113.0") for e in watch.elements()))
        assert len(watch.elements() & set(OTHERS[:40])) >= 4


def rotate(log: Path, number: int, way: str) -> None:
    old = log.with_name(f"{log.name}.{9 - number}")
    if way == "rename":
        log.rename(old)
        log.write_text("")
    else:
        shutil.copy(log, old)
        os.truncate(log, 0)


def line_of(source: str, number: int) -> str:
    when = time.strftime("%b %e %H:%M:%S")
    return f"{when} gateway sshd[{1000 + number}]: Failed password for root from {source} port 40000 ssh2\n"


def has_read(watch: Gatewatch, name: str, lines: int) -> bool:
    return lines_read(watch, name) == lines


def lines_read(watch: Gatewatch, name: str) -> int:
    logs = watch.status()["health"]["logs"]
    return int(next(log["lines"] for log in logs if log["path"].endswith(name)))


def test_what_the_analyst_is_told_can_be_asked_for_again(lab: Lab) -> None:
    with Gatewatch(lab) as watch:
        for _ in range(2):
            lab.fail(ATTACKER, 5)
        told = watch.wait_for_incident("brute_force", ATTACKER)
        watch.wait_for_block(ATTACKER)
        listed = watch.listing("incidents", "list")
        assert told["id"] in {incident["id"] for incident in listed}
        blocks = watch.listing("blocks", "list")
        assert [block.get("address", block.get("network")) for block in blocks] == [ATTACKER]
        explained = watch.run("explain", ATTACKER).stdout
        assert ATTACKER in explained and "guessing" in explained
        watch.run("unblock", "ip", ATTACKER, "--reason", "test")
        wait_for("the end of the block", lambda: not watch.in_kernel(ATTACKER))
        assert json.loads(json.dumps(told)) == told
