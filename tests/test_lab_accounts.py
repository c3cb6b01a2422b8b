"""A denied account on a real sshd with PAM: nobody gets in by it, its sessions end, and nobody else notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.denied import DeniedFile
from lab.hosts import program
from lab.lab import Session, unmet, wait_for
from lab.login_host import LoginHost
from lab.services import PASSWORDS

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(program("sshpass") is None, reason="needs sshpass"),
]

STUBBORN = "trap '' HUP TERM INT; while :; do sleep 0.2; done"
LIMIT_S = 30.0


class Helper:
    """`gatewatch-accounts` on the host, and the list that it follows."""

    def __init__(self, host: LoginHost) -> None:
        self.host = host
        self.state = host.folder / "gatewatch"
        self.rails = self.state / "rails.toml"
        self.rails.write_text('management = ["192.0.2.128/26"]\naccounts_helper = true\n')
        self.list = DeniedFile(self.state / "run" / "denied")
        self.said = host.folder / "helper.out"
        self.pid = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "gatewatch.daemon.enforcer.accounts"]
        command += ["--state", str(self.state), "--rails", str(self.rails)]
        with open(self.said, "ab") as said:
            self.host.popen(command, stdout=said, stderr=said)
        self.pid = wait_for("the helper", self._find)
        wait_for("the file", self.host.file.exists)

    def _find(self) -> int:
        listed = self.host.processes().items()
        return next((pid for pid, (_, line) in listed if "enforcer.accounts" in line), 0)

    def kill(self) -> None:
        self.host.run(["kill", "-KILL", str(self.pid)])
        wait_for("the end of the helper", lambda: not self._find())

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "run" / "accounts.json").read_text()))

    def block(self, name: str, lasts_s: float = 0.0) -> None:
        self.list.add("account", name, lasts_s)
        wait_for(f"{name} in the file", lambda: name in self.host.file.read_text().splitlines())

    def unblock(self, name: str) -> None:
        self.list.remove("account", name)
        wait_for(f"{name} out of the file", lambda: name not in self.host.file.read_text().splitlines())


@pytest.fixture
def host() -> Iterator[LoginHost]:
    why = unmet()
    if why:
        pytest.skip("needs root" if os.geteuid() != 0 else why)
    with LoginHost() as built:
        yield built


@pytest.fixture
def helper(host: LoginHost) -> Helper:
    made = Helper(host)
    made.start()
    return made


def session(host: LoginHost, user: str, *options: str) -> Session:
    """A running `ssh … cat` by the key."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    made = Session(host.popen(host.ssh(user, "", "cat", options=options), **pipes))
    made.say("hello")
    return made


def in_by_both(host: LoginHost, user: str) -> tuple[bool, bool]:
    """Whether `user` gets in by password, and by key."""
    return host.logs_in(user, PASSWORDS[user]), host.logs_in(user)


def accounts_files(host: LoginHost) -> list[tuple[bytes, int]]:
    paths = [host.folder / "etc" / name for name in ("shadow", "passwd", "group")]
    return [(path.read_bytes(), path.stat().st_mtime_ns) for path in [*paths, Path("/etc/shadow")]]


def test_a_missing_file_refuses_nobody(host: LoginHost) -> None:
    assert not host.file.exists()
    assert in_by_both(host, "alice") == (True, True)


def test_a_file_that_everybody_may_write_or_that_is_a_link_refuses_everybody(host: LoginHost) -> None:
    host.file.write_text("")
    assert in_by_both(host, "alice") == (True, True)
    host.file.chmod(0o666)
    assert in_by_both(host, "alice") == (False, False)
    assert in_by_both(host, "operator") == (False, False)
    host.file.unlink()
    host.file.symlink_to(host.folder / "rails.toml")
    assert in_by_both(host, "alice") == (False, False)


def test_the_helper_puts_a_writable_file_right_and_people_get_in_again(helper: Helper) -> None:
    host = helper.host
    helper.block("bob")
    host.file.chmod(0o666)
    host.file.write_text("alice\n")
    wait_for("the file's mode", lambda: host.file.stat().st_mode & 0o777 == 0o644, LIMIT_S)
    assert in_by_both(host, "alice") == (True, True)
    assert in_by_both(host, "bob") == (False, False)


def test_a_blocked_account_is_out_and_others_go_on_until_it_is_taken_back(helper: Helper) -> None:
    host = helper.host
    before = accounts_files(host)
    alice, bob = session(host, "alice"), session(host, "bob")
    helper.block("alice")
    assert alice.process.wait(LIMIT_S) != 0
    wait_for("the end of alice's processes", lambda: not host.of_user("alice"), LIMIT_S)
    bob.say("still here")
    assert in_by_both(host, "alice") == (False, False)
    assert in_by_both(host, "bob") == (True, True)
    bob.say("still here")
    wait_for("the count", lambda: helper.status()["sessions_ended"] == 1)
    assert helper.status()["denied"] == ["alice"]
    helper.unblock("alice")
    assert in_by_both(host, "alice") == (True, True)
    bob.say("still here")
    assert accounts_files(host) == before, "no account file was touched"
    assert host.file.read_bytes() == b""


def test_after_its_time_all_is_as_before(helper: Helper) -> None:
    host = helper.host
    helper.block("alice", lasts_s=3)
    assert not host.logs_in("alice")
    wait_for("the end of the block", lambda: host.file.read_bytes() == b"", LIMIT_S)
    assert in_by_both(host, "alice") == (True, True)
    assert "alice: no longer denied" in helper.said.read_text()


def test_a_multiplexed_connection_ends_with_its_forwarded_agent_and_ports(helper: Helper) -> None:
    host = helper.host
    socket = host.folder / "control"
    agent = str(host.folder / "agent")
    host.run(["ssh-agent", "-a", agent])
    master = ["-M", "-S", str(socket), "-A", "-N", "-L", "127.0.0.1:2222:127.0.0.1:22"]
    host.popen(host.ssh("alice", options=master), env={**os.environ, "SSH_AUTH_SOCK": agent})
    wait_for("the control socket", lambda: host.run(["test", "-S", socket], check=False).returncode == 0)
    second = session(host, "alice", "-S", str(socket))
    assert host.run(host.ssh("alice", "", "test -S $SSH_AUTH_SOCK", options=["-S", str(socket)]))
    third = session(host, "alice")
    assert len([line for line in host.of_user("alice") if line.startswith("sshd")]) == 2
    helper.block("alice")
    assert second.process.wait(LIMIT_S) != 0 and third.process.wait(LIMIT_S) != 0
    wait_for("the end of alice's processes", lambda: not host.of_user("alice"), LIMIT_S)
    listening = host.run(["ss", "-Hltn"]).stdout
    assert ":2222" not in listening and ":22 " in listening


@pytest.mark.parametrize("audited", [True, False], ids=["audit", "no-audit"])
def test_what_a_session_left_behind_ends_and_a_service_of_the_same_user_goes_on(
    helper: Helper, audited: bool
) -> None:
    host = helper.host
    if not audited:
        stack = host.folder / "etc" / "pam-sshd"
        stack.write_text(stack.read_text().replace("session optional pam_loginuid.so\n", ""))
    tmux = program("tmux") is not None
    if tmux:
        host.run(host.ssh("alice", "", "TMUX_TMPDIR=$HOME tmux -f /dev/null new-session -d 'sleep 1001'"))
    host.run(
        host.ssh("alice", "", f'setsid nohup sh -c "{STUBBORN}; : left-behind" >/dev/null 2>&1 </dev/null &')
    )
    uid = str((host.folder / "home" / "alice").stat().st_uid)
    as_alice = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"]
    host.popen(["env", "-i", "LOGNAME=alice", *as_alice, "sleep", "1002"])
    host.run(host.ssh("bob", "", "setsid nohup sleep 1003 >/dev/null 2>&1 </dev/null &"))

    def running(what: str) -> bool:
        return any(what in line for _, line in host.processes().values())

    wanted = ["left-behind", "sleep 1002", "sleep 1003", *(["sleep 1001"] if tmux else [])]
    wait_for("what is left behind", lambda: all(map(running, wanted)))
    helper.block("alice")
    wait_for("the end of what was left behind", lambda: host.of_user("alice") == ["sleep 1002"], LIMIT_S)
    assert running("sleep 1003")


def test_nobody_who_was_just_logging_in_stays(helper: Helper) -> None:
    host = helper.host
    stop = threading.Event()

    def again_and_again() -> None:
        while not stop.is_set():
            host.run(host.ssh("alice", "", "sleep 1004"), check=False)

    threads = [threading.Thread(target=again_and_again) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for("somebody inside", lambda: any("sleep 1004" in line for line in host.of_user("alice")))
        helper.block("alice")
        wait_for("the end of all", lambda: not host.of_user("alice"), LIMIT_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)
    assert not host.of_user("alice") and not any(thread.is_alive() for thread in threads)


def test_a_dead_helper_lets_nobody_in_and_the_next_one_brings_all_up_to_date(helper: Helper) -> None:
    host = helper.host
    helper.block("alice")
    helper.kill()
    helper.list.add("account", "bob").remove("account", "alice")
    assert in_by_both(host, "alice") == (False, False)
    assert in_by_both(host, "bob") == (True, True)
    bob = session(host, "bob")
    helper.start()
    wait_for("the file", lambda: host.file.read_text() == "bob\n")
    assert bob.process.wait(LIMIT_S) != 0
    assert in_by_both(host, "bob") == (False, False)
    assert in_by_both(host, "alice") == (True, True)


def test_a_session_that_came_past_pam_is_ended_all_the_same(helper: Helper) -> None:
    host = helper.host
    helper.block("alice")
    stack = host.folder / "etc" / "pam-sshd"
    stack.write_text(
        "\n".join(line for line in stack.read_text().splitlines() if "listfile" not in line) + "\n"
    )
    came = host.folder / "home" / "alice" / "came"
    for _ in range(10):  # the helper may end one before its command runs
        past = host.popen(host.ssh("alice", "", "touch ~/came; sleep 1005"))
        wait_for("the session or its end", lambda past=past: came.exists() or past.poll() is not None)
        assert past.wait(LIMIT_S) != 0
        if came.exists():
            break
    assert came.exists(), "PAM asks for the file all the same"
    wait_for("a word about it", lambda: "does not ask" in helper.status()["pam"], LIMIT_S)


def test_a_signal_ends_the_helper_in_good_order(helper: Helper) -> None:
    helper.block("alice")
    helper.host.run(["kill", f"-{signal.Signals.SIGTERM.name}", str(helper.pid)])
    wait_for("its end", lambda: not helper._find())
    assert helper.host.file.read_text() == "alice\n"
    assert "Traceback" not in helper.said.read_text()


GATEWATCH = [sys.executable, "-c", "import sys; from gatewatch.daemon.cli import main; sys.exit(main())"]


def gatewatch(host: LoginHost, *words: str, fails: bool | None = False) -> str:
    """What a command of `gatewatch` on the host says; `fails` None: however it ends."""
    done = host.run([*GATEWATCH, *words, "--state", str(host.folder / "gatewatch")], check=False)
    assert fails is None or (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_blocking_a_user_by_command_keeps_the_account_out_until_it_is_unblocked(host: LoginHost) -> None:
    folder = host.folder / "own-etc" / "gatewatch"
    (folder / "rails.toml").write_text(
        'management = ["192.0.2.128/26"]\naccounts_helper = true\nnever_block_users = ["operator"]\n'
    )
    (folder / "gatewatch.yaml").write_text(
        "mode: enforce\ncollectors:\n  journal: {enabled: false}\n  packets: {enabled: false}\n  logs: []\n"
    )
    host.popen([*GATEWATCH, "run", "--state", str(host.folder / "gatewatch")])
    wait_for("the file", host.file.exists, LIMIT_S)
    alice, bob = session(host, "alice"), session(host, "bob")
    gatewatch(host, "block", "user", "account:alice", "--ttl", "1h", "--reason", "stolen")
    assert alice.process.wait(LIMIT_S) != 0
    assert in_by_both(host, "alice") == (False, False)
    bob.say("still here")
    said = gatewatch(host, "block", "user", "account:operator", "--reason", "no", fails=True)
    assert "never blocked" in said
    gatewatch(host, "block", "user", "bob", "--ttl", "3s", "--reason", "any kind")
    assert bob.process.wait(LIMIT_S) != 0
    wait_for("the end of the time", lambda: host.file.read_text() == "alice\n", LIMIT_S)
    assert in_by_both(host, "bob") == (True, True)
    gatewatch(host, "unblock", "user", "account:alice", "--reason", "new password")
    wait_for("the end of the block", lambda: host.file.read_text() == "", LIMIT_S)
    assert in_by_both(host, "alice") == (True, True)
    assert "PAM of login" in gatewatch(host, "doctor", fails=None), "only sshd has the lines here"
