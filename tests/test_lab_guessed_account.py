"""A guessed account: what ends, who is kept out and for how long, who goes on; and failures alone block no user."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.enforcer.accounts import FILE
from gatewatch.daemon.enforcer.pamstack import rule
from lab.arrival import Arrival
from lab.lab import HOSTS, PASSWORDS, Lab, Session, answers, read, unmet, wait_for
from lab.running import Gatewatch, descendants
from lab.services import PAM_SSHD, authorise
from lab.tap import Transactions

pytestmark = pytest.mark.lab

GATEWAY = HOSTS["gateway"].v4
ATTACKER = HOSTS["attacker"].v4
RAILS = 'accounts_helper = true\nnever_block_users = ["operator"]\n'
TTL_S = 20
WRONG = [f"wrong-{number}" for number in range(5)]
LIMIT_S = 30.0
SETTLED_NS = 3_000_000_000


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With an /etc of its own and the lines of docs/accounts.md in the PAM of its sshd."""
    why = unmet()
    if why:
        pytest.skip("needs root" if os.geteuid() != 0 else why)
    with Lab(own_etc=True) as built:
        lines = [rule(stack, FILE) for stack in ("auth", "account")]
        (built.folder / "etc" / "pam-sshd").write_text("\n".join([*lines, PAM_SSHD]))
        authorise(built.folder, "alice", "bob")
        yield built


def denied(lab: Lab) -> list[str]:
    """Whom PAM refuses."""
    return read(lab.folder / "own-etc" / Path(FILE).relative_to("/etc")).split()


def by_password(lab: Lab, user: str, host: str = "client", source: str = "") -> bool:
    return lab.ssh(host, user, [PASSWORDS[user]], "hostname", source=source).stdout == "gateway\n"


def by_key(lab: Lab, user: str, host: str = "client") -> bool:
    command = lab.ssh_command(GATEWAY, user, "hostname", key=lab.folder / "operator_ed25519")
    return lab.run_in(host, command, check=False, limit_s=30).stdout == "gateway\n"


def connects(lab: Lab, source: str) -> bool:
    with lab.inside("attacker"):
        return answers(GATEWAY, 22, 1.0, source)


def session(lab: Lab, host: str, user: str, *tried: str, source: str = "") -> Session:
    """A session at a terminal, opened with these passwords and then the right one, that repeats what is said."""
    typed = lab.ssh_typed(user, [*tried, PASSWORDS[user]], "stty -echo; echo open; cat", source=source)
    typed["command"].insert(1, "-tt")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    return Session(lab.popen_in(host, **typed, **pipes))


def opened(session: Session, limit_s: float = 10.0) -> Session:
    """The session, once it says that it is open."""
    session.hear("open", limit_s)
    return session


def processes_of(lab: Lab, user: str) -> list[int]:
    """The processes below sshd that run as the user."""
    uid = (lab.folder / "home" / user).stat().st_uid
    found = []
    for pid in descendants(lab.pid_of("sshd")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}").stat().st_uid == uid:
                found.append(pid)
    return found


def wait_for_end(lab: Lab, user: str, since_ns: int) -> int:
    """When the last process of a denied user's sessions was there for the last time."""
    last_ns = [since_ns]

    def gone() -> bool:
        if processes_of(lab, user):
            last_ns[0] = time.time_ns()
        return user in denied(lab) and time.time_ns() - last_ns[0] > SETTLED_NS

    wait_for(f"the end of the sessions of {user}", gone, LIMIT_S, 0.002)
    return last_ns[0]


def short_lived(lab: Lab) -> dict[str, Any]:
    """The shipped playbooks, of which the one for compromises blocks for seconds."""
    shipped = files("gatewatch.playbooks").joinpath("account-compromise.yaml").read_text()
    assert "ttl: 24h" in shipped and "ttl: 1h " in shipped
    folder = lab.folder / "playbooks"
    folder.mkdir()
    text = shipped.replace("ttl: 24h", f"ttl: {TTL_S}s").replace("ttl: 1h ", f"ttl: {TTL_S}s ")
    (folder / "account-compromise.yaml").write_text(text)
    return {"directories": [str(folder)]}


def guess_from_many(lab: Lab, sources: list[str], each: int) -> None:
    """Each of them fails so often for bob, in one connection; some at a time."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda source: lab.fail(source, each, "bob"), sources))


def test_on_a_guessed_password_the_session_ends_the_account_is_refused_and_the_source_dropped(
    lab: Lab,
) -> None:
    others = lab.roam(14)
    with Gatewatch(lab, rails=RAILS, playbooks=short_lived(lab)) as watch:
        wait_for("the file of who is denied", (lab.folder / "own-etc/gatewatch/denied-accounts").exists)
        for _ in range(3):
            assert by_password(lab, "bob") and by_key(lab, "bob")
        alice = opened(session(lab, "client", "alice"))
        guess_from_many(lab, others, 4)
        watch.wait_for_incident("distributed_brute_force")
        assert denied(lab) == [] and by_password(lab, "bob")

        arrival = Arrival(lab.log / "auth.log", f"Accepted password for bob from {ATTACKER}")
        with Transactions(lab, "gatewatch") as transactions:
            stolen = session(lab, "attacker", "bob", *WRONG, source=ATTACKER)
            came_ns = arrival.wait()
            ended_ns = wait_for_end(lab, "bob", came_ns)
            watch.wait_for_block(ATTACKER)
            dropped_ns = min(ns for ns in transactions.read() if ns > came_ns)
        stolen.process.kill()  # it hears nothing any more, not even that
        ended_ms, dropped_ms = (ended_ns - came_ns) / 1e6, (dropped_ns - came_ns) / 1e6
        print(f"after sshd's line: session ended {ended_ms:.1f} ms, source dropped {dropped_ms:.1f} ms")

        assert denied(lab) == ["bob"]
        assert not by_password(lab, "bob") and not by_key(lab, "bob")
        assert not by_password(lab, "bob", "management") and not by_key(lab, "bob", "management")
        assert not connects(lab, ATTACKER)
        alice.say("still here")
        assert by_password(lab, "alice") and by_key(lab, "alice")

        told_of_it(watch)

        wait_for("the end of the blocks", lambda: not denied(lab) and not watch.elements(), LIMIT_S, 0.1)
        assert by_password(lab, "bob") and by_key(lab, "bob")
        assert connects(lab, ATTACKER)
        alice.say("still here")
        assert watch.listing("blocks", "list") == []
        assert watch.run("audit", "verify").returncode == 0


def told_of_it(watch: Gatewatch) -> None:
    """The incident, its actions and what people ask for say what was done."""
    incident = watch.wait_for_incident("account_compromise", ATTACKER)
    assert (incident["priority"], incident["users"]) == ("critical", ["bob"])
    assert (incident["blockable"], incident["blockable_users"]) == ([ATTACKER], ["account:bob"])
    blocks = {b.get("address") or f"{b['kind']}:{b['user']}": b for b in watch.listing("blocks", "list")}
    assert blocks.keys() == {ATTACKER, "account:bob"}
    assert {b["playbook"] for b in blocks.values()} == {"account-compromise"}

    def done() -> bool:
        actions = [a for a in watch.listing("actions", "list") if a["playbook"] == "account-compromise"]
        states = {(a["action"], a["target"]): a["state"] for a in actions}
        return states == {
            ("block_source", ATTACKER): "done",
            ("block_user", "account:bob"): "done",
            ("capture_evidence", incident["id"]): "done",
        }

    wait_for("the books", done, LIMIT_S, 0.2)
    said = watch.run("explain", "bob").stdout
    assert "blocked" in said and "account-compromise" in said, said


def test_a_session_of_who_guesses_on_ends_though_its_login_was_the_first(lab: Lab) -> None:
    with Gatewatch(lab, rails=RAILS, playbooks=short_lived(lab)) as watch:
        bob = opened(session(lab, "client", "bob"))
        stolen = opened(session(lab, "attacker", "bob", *WRONG, source=ATTACKER))
        stolen.say("inside")
        assert not watch.incidents("account_compromise")
        lab.fail(ATTACKER, 5, "root")
        lab.fail(ATTACKER, 5, "root")
        watch.wait_for_block(ATTACKER)
        wait_for("the end of bob's sessions", lambda: not processes_of(lab, "bob"), LIMIT_S)
        assert bob.process.wait(LIMIT_S) != 0, (
            "who it was cannot be told from the account: all its sessions end"
        )
        assert denied(lab) == ["bob"]
        assert not by_password(lab, "bob")


def test_a_thousand_failures_against_an_account_from_elsewhere_block_no_user(lab: Lab) -> None:
    sources = lab.roam(200)
    with Gatewatch(lab, rails=RAILS) as watch:
        for _ in range(3):
            assert by_password(lab, "bob")
        bob = opened(session(lab, "client", "bob"))
        for first in range(0, len(sources), 40):
            guess_from_many(lab, sources[first : first + 40], 5)
            assert by_password(lab, "bob") and by_key(lab, "bob")
            assert by_password(lab, "bob", "management"), "nor at a place where bob never was"
            bob.say("still here")
        assert read(lab.log / "auth.log").count("Failed password for bob") >= 1000
        told = [a for a in watch.alerts() if a["event"] == "incident"]
        assert any(f["kind"] == "distributed_brute_force" for i in told for f in i["findings"])
        assert all(i["blockable_users"] == [] for i in told)
        assert "failures alone block no user" in watch.run("explain", "bob").stdout
        assert not [a for a in watch.listing("actions", "list") if a["action"] == "block_user"]
        assert not [b for b in watch.listing("blocks", "list") if "user" in b]
        assert denied(lab) == []
