"""The accounts helper: whom it denies and whom never, what it writes, and which processes are a login session's."""

from __future__ import annotations

import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.enforcer import accounts, pamstack, sessions
from gatewatch.daemon.enforcer.accounts import Accounts, Places
from gatewatch.daemon.enforcer.pamstack import missing, rule, summary, uses_pam
from gatewatch.daemon.enforcer.sessions import NOBODY, Account, Look, Process, of_account
from gatewatch.daemon.errors import ConfigError
from lab.denied import DeniedFile
from lab.lab import read, wait_for

FIRST_UID = 1000
PEOPLE = {"root": 0, "daemon": 1, "alice": 2001, "bob": 2002, "carol": 2003, "carol-too": 2003, "dave": 2004}
GROUP = "sudo:x:27:alice,bob\nusers:x:100:carol\n"


def person(name: str, uid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", "/bin/sh"))


class Site:
    """The helper with files of its own, and people who are not this machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("run", "etc", "pam.d"):
            (folder / name).mkdir(mode=0o755)
        self.file = folder / "etc" / "denied-accounts"
        self.status_file = folder / "run" / "accounts.json"
        (folder / "group").write_text(GROUP)
        lines = [f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n" for name, uid in PEOPLE.items()]
        (folder / "passwd").write_text("".join(lines))
        (folder / "login.defs").write_text(f"# UID_MIN 5\nUID_MIN\t\t\t {FIRST_UID}\nUID_MAX 60000\n")
        self.rails()
        self.list = DeniedFile(folder / "run" / "denied")
        self.said: list[str] = []
        self.places = Places(
            str(folder / "run" / "denied"),
            str(self.status_file),
            str(folder / "rails.toml"),
            str(self.file),
            *(str(folder / name) for name in ("passwd", "group", "login.defs", "pam.d", "sshd_config")),
        )
        self.helper = Accounts(self.places, self.said.append)

    def rails(self, more: str = "") -> None:
        (self.folder / "rails.toml").write_text(f"accounts_helper = true\n{more}\n")

    def restart(self) -> None:
        self.helper.denied.close()
        self.helper = Accounts(self.places, self.said.append)

    def names(self) -> list[str]:
        return self.file.read_text().splitlines()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(read(self.status_file) or "{}"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    entries = {name: person(name, uid) for name, uid in PEOPLE.items()}
    monkeypatch.setattr(accounts.pwd, "getpwnam", lambda name: entries[name])
    monkeypatch.setattr(accounts.pwd, "getpwall", lambda: list(entries.values()))
    made = Site(tmp_path)
    yield made
    made.helper.denied.close()


def test_accounts_on_the_list_are_in_the_file_one_a_line_and_root_alone_may_write_it(site: Site) -> None:
    site.list.add("account", "dave").add("any", "carol").add("address", "192.0.2.9").add("key", "alice")
    site.helper.step()
    assert site.file.read_bytes() == b"carol\ndave\n"
    status = site.file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o644, os.geteuid())
    assert [p.name for p in site.file.parent.iterdir()] == ["denied-accounts"], "nothing else is left there"
    assert site.status()["denied"] == ["carol", "dave"]


def test_an_empty_list_makes_an_empty_file(site: Site) -> None:
    site.helper.step()
    assert site.file.read_bytes() == b""


def test_who_is_taken_back_is_no_longer_in_the_file(site: Site) -> None:
    site.list.add("account", "dave").add("account", "carol")
    site.helper.step()
    site.list.remove("account", "dave")
    site.helper.step()
    assert site.names() == ["carol"]
    assert "dave: no longer denied" in site.said


def test_who_is_taken_back_before_the_grace_is_over_has_nothing_killed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(sessions, "of_account", lambda account, *_: {2**22 + 1: 7})
    monkeypatch.setattr(sessions, "tell", lambda *_: 0)
    monkeypatch.setattr(sessions, "by_logind", lambda account: 0)
    monkeypatch.setattr(
        sessions, "kill", lambda account, first_uid: killed.append(account.name) or frozenset()
    )
    site.list.add("account", "dave").add("account", "carol")
    site.helper.step()
    site.list.remove("account", "dave")
    site.helper.step()
    monkeypatch.setattr(accounts, "GRACE_S", 0.0)
    wait_for("the end of the grace", lambda: site.helper.step() >= 0 and killed)
    site.helper.step()
    assert killed == ["carol"]


def test_one_of_two_blocks_of_a_name_that_is_taken_back_frees_nobody(site: Site) -> None:
    site.list.add("account", "dave").add("any", "dave")
    site.helper.step()
    site.list.remove("account", "dave")
    site.helper.step()
    assert site.names() == ["dave"]


def test_a_block_that_ends_by_itself_ends_in_the_file_and_the_helper_wakes_for_it(site: Site) -> None:
    site.list.add("account", "dave", lasts_s=0.3)
    patience = site.helper.step()
    assert site.names() == ["dave"]
    assert patience <= 0.3
    wait_for("the end of the block", lambda: site.helper.step() >= 0 and site.names() == [])


def test_uid_0_system_accounts_and_those_of_the_rails_are_never_denied(site: Site) -> None:
    site.rails('never_block_users = ["account:dave", "carol-too", "key:bob"]')
    for name in ("root", "daemon", "carol", "dave", "bob"):
        site.list.add("account", name)
    site.helper.step()
    assert site.names() == ["bob"]
    assert site.status()["refused"] == {
        "root": "it is uid 0",
        "daemon": "it is a system account (uid 1 is below UID_MIN, 1000)",
        "carol": "it shares its uid with carol-too",
        "dave": "the rails never block it",
    }
    site.helper.step()
    assert sum("not denied" in line for line in site.said) == 4, "each is said once"


def test_who_is_never_denied_is_not_by_a_name_in_another_case_either(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a directory (sssd) answers that takes names in any case, and does not list its accounts."""
    monkeypatch.setattr(accounts.pwd, "getpwnam", lambda name: person(name.lower(), PEOPLE[name.lower()]))
    monkeypatch.setattr(accounts.pwd, "getpwall", list)
    site.rails('never_block_users = ["dave"]')
    for name in ("Dave", "ALICE", "Bob", "Carol"):
        site.list.add("account", name)
    site.helper.step()
    assert site.names() == ["ALICE", "Carol"]
    assert site.helper._refused == {
        "Dave": "it shares its uid with dave",
        "Bob": "it is the last account that can become root (last_admin)",
    }


def test_the_last_account_that_can_become_root_is_not_denied_and_the_first_stays_so(site: Site) -> None:
    site.list.add("account", "bob")
    site.helper.step()
    site.list.add("account", "alice")
    site.helper.step()
    assert site.names() == ["bob"]
    assert "last_admin" in site.status()["refused"]["alice"]
    site.restart()
    site.helper.step()
    assert site.names() == ["bob"], "who was denied before a restart stays it, whatever the order"
    site.list.remove("account", "bob")
    site.helper.step()
    assert site.names() == ["alice"]


def test_where_it_cannot_be_told_who_can_become_root_everybody_stays_as_they_are(site: Site) -> None:
    site.list.add("account", "dave")
    site.helper.step()
    (site.folder / "group").rename(site.folder / "group.gone")
    site.list.add("account", "carol")
    site.helper.step()
    assert site.names() == ["dave"]
    (site.folder / "group.gone").rename(site.folder / "group")
    site.list.add("account", "bob")
    site.helper.step()
    assert site.names() == ["bob", "carol", "dave"]


def test_rails_that_do_not_want_the_helper_are_named(site: Site) -> None:
    (site.folder / "rails.toml").write_text("")
    with pytest.raises(ConfigError, match="do not want the accounts helper"):
        site.helper.load_rails()


def test_a_name_that_is_no_account_here_is_said_only_where_an_account_was_meant(site: Site) -> None:
    site.list.add("account", "ghost").add("any", "subject-of-a-token").add("any", "two words")
    site.list.add("account", "alice\u2028").add("account", "al:ice").add("account", "a\nroot")
    site.helper.step()
    assert site.names() == []
    assert site.status()["refused"]["ghost"] == "there is no such account here"
    assert "subject-of-a-token" not in site.status()["refused"]


@pytest.mark.parametrize("what", ["mode", "missing", "boot", "noise"])
def test_a_list_that_cannot_be_believed_leaves_the_file_as_it_is_and_is_said_once(
    site: Site, what: str
) -> None:
    site.file.write_text("bob\n")
    if what == "mode":
        site.list.path.chmod(0o666)
    elif what == "missing":
        site.list.path.unlink()
    elif what == "boot":
        site.list.write(boot_id="another")
    else:
        site.list.path.write_bytes(os.urandom(500))
    for _ in range(3):
        site.helper.step()
    assert site.names() == ["bob"]
    assert len(site.said) == 1 and "who is denied stays so" in site.said[0]
    assert site.status()["denied"] == ["bob"] and site.status()["problems"] == site.said
    site.list.write()
    site.helper.step()
    assert site.names() == [], "once the list is known again it counts"


def test_a_file_that_others_may_write_or_that_is_a_link_or_was_changed_is_put_right(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "LOOK_S", 0.0)
    site.list.add("account", "dave")
    site.helper.step()
    site.file.chmod(0o666)
    site.helper.step()
    assert stat.S_IMODE(site.file.stat().st_mode) == 0o644
    victim = site.folder / "victim"
    victim.write_text("keep me\n")
    site.file.unlink()
    site.file.symlink_to(victim)
    site.helper.step()
    assert not site.file.is_symlink() and site.names() == ["dave"]
    assert victim.read_text() == "keep me\n"
    site.file.write_text("")
    site.helper.step()
    assert site.names() == ["dave"]


def test_a_file_that_is_right_is_not_written_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "LOOK_S", 0.0)
    site.list.add("account", "dave")
    site.helper.step()
    before = site.file.stat().st_ino
    site.helper.step()
    assert site.file.stat().st_ino == before


def test_a_folder_in_which_others_may_write_is_not_written_to(site: Site) -> None:
    site.file.parent.chmod(0o777)
    site.list.add("account", "dave")
    site.helper.step()
    assert not site.file.exists()
    assert any("others than root may write" in line for line in site.said)
    site.file.parent.chmod(0o755)
    site.list.add("account", "carol")
    site.helper.step()
    assert site.names() == ["carol", "dave"]


def test_wrong_rails_leave_the_former_ones_in_force(site: Site) -> None:
    site.helper.load_rails()
    (site.folder / "rails.toml").write_text("nonsense = [")
    site.list.add("account", "dave")
    site.helper.step()
    assert site.names() == ["dave"]
    assert any("the former ones hold" in line for line in site.said)


def test_a_program_of_its_own_follows_the_list_and_leaves_the_file_when_it_ends(
    site: Site, root: None
) -> None:
    command = [sys.executable, "-m", "gatewatch.daemon.enforcer.accounts"]
    command += ["--state", str(site.folder), "--rails", site.places.rails, "--file", str(site.file)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for("the file", site.file.exists)
        site.list.add("account", "root").add("account", "ghost")
        wait_for("both refused", lambda: len(site.status().get("refused", ())) == 2)
        second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "another one keeps" in second.stderr.readline()
        second.send_signal(signal.SIGTERM)
        assert second.wait(20) == 0
        second.stderr.close()
    finally:
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=20)
    assert first.returncode == 0 and "Traceback" not in said
    assert "root: not denied: it is uid 0" in said
    assert site.names() == []


# What is a login session, on a table of processes.

ALICE = Account("alice", 2001)
LOGIN = {b"LOGNAME=alice", b"SSH_CONNECTION=192.0.2.7 1 192.0.2.1 22"}


class Machine:
    """A table of processes, made line by line."""

    def __init__(self) -> None:
        self.every: dict[int, Process] = {}
        self.groups: dict[int, str] = {}
        self.environments: dict[int, set[bytes]] = {}
        self.elsewhere: set[int] = set()
        self.add(1, 0, 0, "systemd")
        self.add(10, 1, 0, "sshd", group="/system.slice/ssh.service")

    def add(
        self,
        pid: int,
        parent: int,
        uid: int,
        name: str,
        audit: tuple[int, int] = (NOBODY, NOBODY),
        group: str = "/",
        environment: set[bytes] | None = None,
    ) -> Machine:
        self.every[pid] = Process(pid, parent, pid, uid, name, *audit)
        self.groups[pid] = group
        self.environments[pid] = environment or set()
        return self

    def sessions(self, spared: set[int] | None = None) -> dict[int, int]:
        look = Look(
            self.groups.__getitem__, self.environments.__getitem__, lambda pid: pid not in self.elsewhere
        )
        return of_account(ALICE, self.every, FIRST_UID, spared or set(), look)


def test_everything_below_a_login_program_is_its_session_whatever_user_it_became() -> None:
    machine = Machine()
    machine.add(20, 10, 0, "sshd").add(21, 20, 2001, "sshd").add(22, 21, 2001, "bash")
    machine.add(23, 22, 0, "sudo").add(24, 23, 0, "bash").add(25, 24, 33, "curl")
    machine.add(30, 10, 0, "sshd").add(31, 30, 2002, "sshd").add(32, 31, 2002, "bash")
    machine.add(40, 1, 0, "login").add(41, 40, 2001, "bash")
    found = machine.sessions()
    assert set(found) == {21, 22, 23, 24, 25, 41}
    assert len(set(found.values())) == 2, "one by ssh, one at the console"


def test_what_was_left_behind_is_told_by_the_audit_session() -> None:
    machine = Machine()
    machine.add(50, 1, 2001, "tmux: server", (2001, 7)).add(51, 50, 2001, "bash", (2001, 7))
    machine.add(60, 1, 2001, "trainer")
    machine.add(61, 1, 2002, "tmux: server", (2002, 8))
    machine.add(62, 1, 2002, "su", (2001, 9))
    assert set(machine.sessions()) == {50, 51, 62}


def test_what_was_left_behind_without_audit_is_told_by_its_environment() -> None:
    machine = Machine()
    machine.add(50, 1, 2001, "tmux: server", environment=LOGIN)
    machine.add(51, 1, 2001, "service", environment={b"LOGNAME=alice", b"PATH=/bin"})
    machine.add(52, 1, 2001, "started-by-bob", environment={b"LOGNAME=bob", b"SSH_CLIENT=x"})
    machine.add(53, 1, 2002, "liar", environment=LOGIN)
    assert set(machine.sessions()) == {50}


def test_services_jobs_and_the_service_manager_are_no_login_sessions() -> None:
    machine = Machine()
    machine.add(50, 1, 2001, "python", group="/system.slice/models.service", environment=LOGIN)
    machine.add(51, 1, 2001, "python", (2001, 5), group="/system.slice/models.service")
    machine.add(60, 1, 0, "cron").add(61, 60, 0, "cron", (2001, 6)).add(62, 61, 2001, "sh", (2001, 6))
    machine.add(63, 1, 2001, "left-by-cron", (2001, 6))
    manager = "/user.slice/user-2001.slice/user@2001.service/init.scope"
    machine.add(70, 1, 2001, "systemd", (2001, 9), group=manager)
    machine.add(71, 1, 0, "nginx", (2001, 11))
    machine.add(72, 71, 33, "nginx", (2001, 11))
    assert machine.sessions() == {}


def test_all_of_a_sessions_scope_is_the_session_but_for_who_opened_it() -> None:
    machine = Machine()
    scope = "/user.slice/user-2001.slice/session-4.scope"
    machine.add(20, 10, 0, "sshd", (2001, 4), group=scope)
    machine.add(21, 1, 0, "left-by-sudo", (2001, 4), group=scope)
    machine.add(22, 1, 2001, "tmux: server", group=scope)
    assert set(machine.sessions()) == {21, 22}


def test_a_session_in_a_container_with_accounts_of_its_own_is_another_ones() -> None:
    machine = Machine()
    machine.add(80, 1, 0, "sshd").add(81, 80, 0, "sshd", (2001, 14)).add(82, 81, 2001, "bash", (2001, 14))
    machine.elsewhere = {80, 81}
    assert machine.sessions() == {}


def test_another_login_program_below_a_session_keeps_the_sessions_of_others() -> None:
    machine = Machine()
    machine.add(20, 10, 0, "sshd").add(21, 20, 2001, "bash").add(22, 21, 0, "sudo").add(23, 22, 0, "sshd")
    machine.add(24, 23, 0, "sshd").add(25, 24, 2002, "sshd")
    assert set(machine.sessions()) == {21, 22}


def test_the_helper_does_not_end_itself() -> None:
    machine = Machine()
    machine.add(20, 10, 0, "sshd").add(21, 20, 2001, "bash").add(22, 21, 0, "sudo")
    assert set(machine.sessions(spared={22})) == {21}
    me = os.getpid()
    machine.add(22, 21, 0, "sudo").add(30, 22, 0, "gatewatch").add(me, 30, 0, "python").add(
        31, 30, 0, "python"
    )
    assert sessions.own(machine.every) >= {22, 30, 31, me}
    assert not sessions.own(machine.every) & {1, 10, 20, 21}


def test_a_process_that_took_over_the_number_of_another_gets_no_signal() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        every = sessions.processes()
        another = every[child.pid]._replace(start=every[child.pid].start - 1)
        assert sessions.tell([child.pid], {child.pid: another}, signal.SIGKILL) == 0
        assert sessions.tell([child.pid], every, signal.SIGKILL) == 1
        assert child.wait(20) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def test_logind_is_asked_for_the_sessions_of_people_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "loginctl"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/asked
case "$1 $2" in
  "show-user 2001") echo "3 c1 5" ;;
  "show-session 3"|"show-session 5") echo user ;;
  "show-session c1") echo background ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(sessions, "LOGINCTL", str(program))
    monkeypatch.setattr(sessions, "LOGIND", str(tmp_path))
    assert sessions.by_logind(ALICE) == 2
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("terminate")] == [
        "terminate-session 3",
        "terminate-session 5",
    ]
    monkeypatch.setattr(sessions, "LOGIND", str(tmp_path / "none"))
    assert sessions.by_logind(ALICE) == 0


# Whether PAM asks the file.

COMMON_AUTH = "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\n"
COMMON_ACCOUNT = "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n"
FILE = "/etc/gatewatch/denied-accounts"


def stacks(folder: Path, sshd: str) -> list[str]:
    (folder / "common-auth").write_text(COMMON_AUTH)
    (folder / "common-account").write_text(COMMON_ACCOUNT)
    (folder / "sshd").write_text(sshd)
    return missing("sshd", FILE, str(folder))


BOTH = f"{rule('auth', FILE)}\n{rule('account', FILE)}\n"
DEBIAN = "@include common-auth\naccount required pam_nologin.so\n@include common-account\n"


def test_our_lines_at_the_top_of_a_service_are_found(tmp_path: Path) -> None:
    assert stacks(tmp_path, BOTH + DEBIAN) == []


def test_a_stack_without_our_line_is_named(tmp_path: Path) -> None:
    assert stacks(tmp_path, DEBIAN) == [
        f"sshd: its {s} stack does not ask {FILE}" for s in ("auth", "account")
    ]
    assert stacks(tmp_path, rule("auth", FILE) + "\n" + DEBIAN) == [
        f"sshd: its account stack does not ask {FILE}"
    ]
    assert stacks(tmp_path, BOTH.replace(FILE, "/etc/other") + DEBIAN) != []
    assert stacks(tmp_path, "#" + BOTH.replace("\n", "\n#") + DEBIAN) != []
    assert stacks(tmp_path, BOTH.replace("required", "optional") + DEBIAN) != []


def test_a_line_before_ours_that_can_let_somebody_in_is_named(tmp_path: Path) -> None:
    assert stacks(tmp_path, DEBIAN + BOTH) == ["sshd: pam_unix.so can pass over the account line"]
    early = "auth sufficient pam_krb5.so\n" + BOTH
    assert stacks(tmp_path, early) == ["sshd: pam_krb5.so can pass over the auth line"]
    jump = "auth [success=1 default=ignore] pam_succeed_if.so quiet uid {} 0\n" + BOTH
    assert stacks(tmp_path, jump.format("eq")) == [], "root alone"
    assert stacks(tmp_path, jump.format("ne")) == ["sshd: pam_succeed_if.so can pass over the auth line"]


def test_included_stacks_and_continued_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "denied").write_text(BOTH.replace("onerr", "\\\n onerr"))
    assert stacks(tmp_path, "auth include denied\naccount substack denied\n" + DEBIAN) == []
    assert stacks(tmp_path, "@include sshd\n@include denied\n") == [], "a circle ends"
    assert stacks(tmp_path, "@include none\n") != []


def test_the_summary_names_every_service_that_there_is_and_sshd_that_does_without_pam(tmp_path: Path) -> None:
    config = tmp_path / "sshd_config"
    config.write_text("UsePAM yes\n")
    assert summary(FILE, str(tmp_path), str(config)).startswith("no service of sshd or login")
    stacks(tmp_path, BOTH + DEBIAN)
    assert summary(FILE, str(tmp_path), str(config)) == "asked by sshd"
    (tmp_path / "login").write_text(DEBIAN)
    assert "login: its auth stack" in summary(FILE, str(tmp_path), str(config))
    config.write_text("")
    assert "does not say UsePAM yes" in summary(FILE, str(tmp_path), str(config))


def test_the_first_word_of_sshd_about_pam_counts(tmp_path: Path) -> None:
    config, more = tmp_path / "sshd_config", tmp_path / "more.conf"
    assert uses_pam(str(config)) is None
    for text, wanted in (
        ("UsePAM yes\nUsePAM no\n", True),
        ("usepam=no\n", False),
        (f"Include {tmp_path}/*.conf\nUsePAM yes\n", False),
        ("# UsePAM yes\n", False),
        ("Match User x\nUsePAM yes\n", False),
    ):
        config.write_text(text)
        more.write_text("UsePAM no\n")
        assert uses_pam(str(config)) is wanted, text


def test_any_bytes_as_stacks_or_configuration_raise_nothing(tmp_path: Path) -> None:
    for _ in range(200):
        (tmp_path / "sshd").write_bytes(os.urandom(60) + b"\nauth [" + os.urandom(60))
        (tmp_path / "sshd_config").write_bytes(
            b"Include " + os.urandom(9).replace(b"\0", b"*") + os.urandom(99)
        )
        assert missing("sshd", FILE, str(tmp_path))
        uses_pam(str(tmp_path / "sshd_config"))


def test_the_first_uid_of_a_person_is_read_as_login_defs_has_it(tmp_path: Path) -> None:
    path = tmp_path / "login.defs"
    for text, wanted in (("UID_MIN 500\n", 500), ("#UID_MIN 5\n", 1000), ("UID_MIN x\n", 1000), ("", 1000)):
        path.write_text(text)
        assert accounts._first_uid(str(path)) == wanted
    path.write_bytes(b"\xff\xfe")
    assert accounts._first_uid(str(path)) == 1000
    assert accounts._first_uid(str(tmp_path / "none")) == 1000


def test_the_list_of_the_machine_has_this_process(root: None) -> None:
    me = sessions.processes()[os.getpid()]
    assert (me.parent, me.uid) == (os.getppid(), os.getuid())
    assert 0 < me.start < time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert pamstack.SERVICES == ("sshd", "login")
