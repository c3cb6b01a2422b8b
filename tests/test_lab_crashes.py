"""The enforcer killed at any moment, and its journal damaged while it is away: what it said holds, all that was cut off
stays so."""

from __future__ import annotations

import json
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import Rig
from gatewatch.daemon.enforcer.client import Enforcer, UnreachableError
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.state import clocks
from lab.lab import HOSTS, Lab, wait_for

pytestmark = pytest.mark.lab

CRASHES = 100
LATEST_S = 0.2  # after the clients have begun, and every fourth time after its own start
DAMAGES = 30
ENDPOINTS = ("alpha", "beta", "gamma")
RAILS = f"""
management = ["{HOSTS["management"].v4}/32"]
[limits]
most_blocks = 2000
""" + "".join(
    f'[[endpoint]]\nname = "{name}"\nfronts = ["*:{8100 + n}/tcp"]\n' for n, name in enumerate(ENDPOINTS)
)


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare, RAILS) as rig:
        yield rig


@dataclass
class Truth:
    """What is blocked and cut off, as one of those who can know says."""

    blocks: set[str]
    kills: set[str]


def of_journal(rig: Rig) -> Truth:
    journal = Journal(f"{rig.state}/enforcer", clocks(), read_only=True)
    try:
        return Truth(set(journal.state.blocks), set(journal.state.kills))
    finally:
        journal.close()


def of_kernel(rig: Rig) -> Truth:
    """By nft(8), which knows nothing of Gatewatch."""
    said = rig.lab.run_in("gateway", ["nft", "-j", "list", "ruleset"]).stdout
    blocks: set[str] = set()
    kills: set[str] = set()
    for item in json.loads(said)["nftables"]:
        if re.match("block[46]_", item.get("set", {}).get("name", "")):
            length = item["set"]["name"].partition("_")[2]
            for element in item["set"].get("elem", []):
                address = str(element["elem"]["val"])
                blocks.add(address if length in ("32", "128") else f"{address}/{length}")
        if item.get("rule", {}).get("table") == "gatewatch_kill" and "comment" in item["rule"]:
            kills.add(item["rule"]["comment"])
    return Truth(blocks, kills)


def of_status(rig: Rig) -> tuple[Truth, dict[str, Any]]:
    enforcer = rig.enforcer()
    status = enforcer.status()
    blocks = {b["address"] for b in enforcer.blocks()}
    enforcer.close()
    return Truth(blocks, {k["endpoint"] for k in status["kills"] if k["kernel"]}), status


@dataclass
class Client:
    """Does and undoes things that nobody else touches, and remembers what it was told about each.

    `told` holds whether a thing is in force; one that was asked for and not answered is in `open`.
    """

    things: list[str]
    do: Callable[[Enforcer, str], object]
    undo: Callable[[Enforcer, str], object]
    chance: random.Random
    told: dict[str, bool] = field(default_factory=dict)
    open: str = ""
    answers: int = 0

    def work(self, rig: Rig) -> None:
        """Until the enforcer goes away."""
        enforcer = rig.enforcer()
        while True:
            thing = self.chance.choice(self.things)
            on = not self.told.get(thing, False)
            self.open = thing
            try:
                (self.do if on else self.undo)(enforcer, thing)
            except UnreachableError:
                enforcer.close()
                return
            self.told[thing] = on
            self.open = ""
            self.answers += 1

    def agree(self, in_force: set[str]) -> list[str]:
        """What was promised and does not hold. What was left open is from now on as it turned out."""
        if self.open:
            self.told[self.open] = self.open in in_force
            self.open = ""
        return [f"{thing}: {on}" for thing, on in self.told.items() if (thing in in_force) != on]


def _block(enforcer: Enforcer, address: str) -> object:
    return enforcer.block(address, ttl_s=3600, reason="test")


def _unblock(enforcer: Enforcer, address: str) -> object:
    return enforcer.unblock(address, "test")


def _kill(enforcer: Enforcer, endpoint: str) -> object:
    return enforcer.call({"request": "kill", "endpoints": [endpoint], "reason": "test", "probe": 0})


def _kill_and_probe(enforcer: Enforcer, endpoint: str) -> object:
    return enforcer.kill([endpoint], "test")


def _release(enforcer: Enforcer, endpoint: str) -> object:
    return enforcer.release([endpoint], "test")


@pytest.mark.timeout(600)
def test_killed_at_a_hundred_moments_it_holds_whatever_it_said(rig: Rig) -> None:
    chance = random.Random(5)
    pools = [
        [f"198.18.0.{n}" for n in range(40)],
        [f"198.18.1.{n}" for n in range(40)] + [f"198.19.{n}.0/24" for n in range(1, 11)],
        [f"2001:db8:7::{n:x}" for n in range(1, 40)] + [f"2001:db8:8:{n:x}::/64" for n in range(1, 11)],
    ]
    clients = [Client(pool, _block, _unblock, random.Random(n)) for n, pool in enumerate(pools)]
    clients += [
        Client([*ENDPOINTS[:2]], _kill, _release, random.Random(10)),
        Client([*ENDPOINTS[2:]], _kill_and_probe, _release, random.Random(11)),  # longer than it lives
    ]
    blockers, killers = clients[:3], clients[3:]
    for crash in range(CRASHES):
        threads = [threading.Thread(target=client.work, args=(rig,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        threading.Event().wait(chance.uniform(0, LATEST_S))
        rig.stop(signal.SIGKILL)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        if crash % 4 == 0:
            rig.launch()
            threading.Event().wait(chance.uniform(0, LATEST_S))
            rig.stop(signal.SIGKILL)
        rig.start()
        journal, kernel, (said, status) = of_journal(rig), of_kernel(rig), of_status(rig)
        assert journal == kernel == said, f"after crash {crash}"
        assert status["differs"] == [], f"after crash {crash}"
        assert status["journal"]["intact"], f"after crash {crash}: {status['journal']['note']}"
        broken = [w for c in blockers for w in c.agree(said.blocks)]
        broken += [w for c in killers for w in c.agree(said.kills)]
        assert broken == [], f"after crash {crash}"
    print(f"{sum(c.answers for c in clients)} answers, all of which hold")
    assert all(c.answers > CRASHES // 10 for c in clients[:-1])
    assert rig.enforcer().kill(["gamma"], "test")["engaged"] == ["gamma"]
    for what in ("table inet gatewatch_probe", "gwprobe"):
        assert what not in rig.nft("list tables") + rig.lab.run_in("gateway", ["ip", "link"]).stdout
    assert rig.run("audit", "verify", "--state", str(rig.state)).returncode == 0


def _damage(journal: Path, chance: random.Random) -> str:
    """Cut the journal off or flip one of its bits, somewhere; what was done."""
    data = bytearray(journal.read_bytes())
    at = chance.randrange(len(data))
    if chance.random() < 0.5:
        journal.write_bytes(data[:at])
        return f"cut off at {at} of {len(data)}"
    data[at] ^= 1 << chance.randrange(8)
    journal.write_bytes(data)
    return f"a bit flipped at {at} of {len(data)}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kernel", ["as it was", "after a reboot"])
def test_a_journal_that_was_damaged_meanwhile_is_noticed_and_lets_nothing_go(bare: Lab, kernel: str) -> None:
    for seed in range(DAMAGES // 2):
        chance = random.Random(f"{kernel} {seed}")
        with Rig(bare, RAILS) as rig:
            enforcer = rig.enforcer()
            _kill(enforcer, "beta")
            _block(enforcer, "198.18.0.1")
            _kill(enforcer, "alpha")
            _release(enforcer, "beta")
            for n in range(2, 6):
                _block(enforcer, f"198.18.0.{n}")
            _unblock(enforcer, "198.18.0.2")
            enforcer.close()
            rig.stop(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            done = f"seed {seed}: {_damage(rig.state / 'enforcer' / 'journal', chance)}"
            if kernel == "after a reboot":
                rig.nft("flush ruleset")
            rig.start()
            said, status = of_status(rig)
            assert "alpha" in said.kills, done
            assert "alpha" in of_kernel(rig).kills, done
            assert "alpha" in of_journal(rig).kills, done
            assert status["differs"] == [], done
            assert not status["journal"]["intact"] and status["journal"]["note"], done
            assert rig.run("audit", "verify", "--state", str(rig.state)).returncode == 1, done
            enforcer = rig.enforcer()
            _release(enforcer, "alpha")
            enforcer.close()
            wait_for("the release", lambda rig=rig: "alpha" not in of_kernel(rig).kills)  # type: ignore[misc]
