"""Whatever process is killed: blocks and kill switch stand, no alert is lost or doubled, nothing is forgotten."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from functools import partial

import pytest
from lab.lab import HOSTS, Lab, answers, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.lab

GATEWAY = HOSTS["gateway"].v4
BLOCKED, UNDER_WAY, LATER = HOSTS["attacker"].more[:3]


def closed(lab: Lab, source: str) -> bool:
    with lab.inside("attacker"):
        return not answers(GATEWAY, 22, 0.5, source)


def restarted(watch: Gatewatch, name: str, before: int) -> bool:
    return watch.processes().get(name, before) != before


def assert_told_once(watch: Gatewatch) -> None:
    """The sink has every revision of every incident, and each exactly once."""
    incidents = {i["id"]: i for i in watch.listing("incidents", "list")}

    def told() -> Counter[tuple[str, int]]:
        return Counter((a["id"], a["revision"]) for a in watch.alerts() if a["event"] == "incident")

    wanted = {(i["id"], r) for i in incidents.values() for r in range(1, i["revision"] + 1)}
    wait_for("every revision at the sink", lambda: set(told()) >= wanted)
    assert set(told()) == wanted
    assert set(told().values()) == {1}
    actions = Counter((a["id"], a["state"]) for a in watch.alerts() if a["event"] == "action")
    assert set(actions.values()) <= {1}


@pytest.mark.parametrize("victim", ["analyser", "packets", "shipper", "enforcer"])
def test_after_a_killed_process_everything_stands_and_goes_on(lab: Lab, victim: str) -> None:
    with Gatewatch(lab) as watch:
        for _ in range(2):
            lab.fail(BLOCKED, 5)
        watch.wait_for_block(BLOCKED)
        watch.kill_switch("engage", "--endpoint", "embeddings", "--reason", "test")
        lab.fail(UNDER_WAY, 5)
        before = watch.processes()[victim]
        os.kill(before, signal.SIGKILL)
        assert closed(lab, BLOCKED)
        with lab.inside("client"):
            assert not answers(GATEWAY, 8081, 0.5)
            assert answers(GATEWAY, 80)
        wait_for("its restart", partial(restarted, watch, victim, before))
        wait_for("all at work", watch.watches, 30, 0.1)
        assert closed(lab, BLOCKED)
        with lab.inside("client"):
            assert not answers(GATEWAY, 8081, 0.5)
        lab.fail(UNDER_WAY, 5)
        watch.wait_for_incident("brute_force", UNDER_WAY)
        watch.wait_for_block(UNDER_WAY)
        for _ in range(2):
            lab.fail(LATER, 5)
        watch.wait_for_block(LATER)
        assert watch.elements() >= {BLOCKED, UNDER_WAY, LATER}
        assert_told_once(watch)


def test_an_analyser_killed_again_and_again_under_attack_tells_each_incident_once(lab: Lab) -> None:
    """Ten failures each from thirty sources are written while the analyser is killed five times."""
    log = lab.folder / "busy.log"
    log.write_text("")
    collectors = {
        "logs": [{"path": str(log), "format": "sshd", "trusted": True}],
        "journal": {"enabled": False},
        "packets": {"enabled": False},
    }
    sources = HOSTS["attacker"].more[:30]
    with Gatewatch(lab, collectors=collectors) as watch:
        for turn in range(10):
            with open(log, "a") as file:
                for number, source in enumerate(sources):
                    when = time.strftime("%b %e %H:%M:%S")
                    process = 1000 + turn * len(sources) + number
                    file.write(
                        f"{when} gateway sshd[{process}]: Failed password for root from {source} port 4 ssh2\n"
                    )
            if turn % 2:
                before = watch.processes()["analyser"]
                os.kill(before, signal.SIGKILL)
                wait_for("its restart", partial(restarted, watch, "analyser", before))
        for source in sources:
            watch.wait_for_incident("brute_force", source)
        wait_for("every block", lambda: watch.elements() == set(sources))
        wait_for("all at work", watch.watches, 30, 0.1)
        about = Counter(source for i in watch.incidents("brute_force") for source in i["sources"])
        assert about == Counter(sources)
        assert_told_once(watch)


def test_all_processes_killed_at_once_and_started_again_forget_nothing(lab: Lab) -> None:
    with Gatewatch(lab) as watch:
        for _ in range(2):
            lab.fail(BLOCKED, 5)
        watch.wait_for_block(BLOCKED)
        lab.fail(UNDER_WAY, 5)
        watch.kill(*watch.processes())
        assert closed(lab, BLOCKED)
        lab.fail(UNDER_WAY, 2)  # while nobody watches
        watch.start()
        assert closed(lab, BLOCKED)
        lab.fail(UNDER_WAY, 3)
        watch.wait_for_block(UNDER_WAY)
        assert_told_once(watch)
