"""The published deny list: what it says after every change, that it is readable by one group, and how it is mended."""

from __future__ import annotations

import json
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import FRONT, RAILS, Rig
from gatewatch.daemon.enforcer.authority import Authority
from gatewatch.daemon.enforcer.deny_list import DenyList
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.state import NS_PER_S, clocks
from lab.lab import Lab, wait_for
from test_enforcer_users import Clock, block_user


class Published:
    """A journal with its deny list; no kernel."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.complaints: list[str] = []
        self.path = folder / "run" / "denied"
        self.journal = Journal(str(folder / "enforcer"), self.clock)
        self.list = DenyList(str(self.path), self.journal, self.clock, complain=self.complaints.append)

    def block(self, address: str, ttl_s: int = 600) -> None:
        self.journal.append("block", address=address, ttl_s=ttl_s, owner="operator", by="x", reason="x")

    def lines(self) -> list[Any]:
        return lines(self.path)

    def boot_ns(self, seconds: int) -> int:
        return self.clock.moment.boot_ns + seconds * NS_PER_S


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def lines(path: Path) -> list[Any]:
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_it_begins_with_what_is_in_force_and_every_change_is_a_line(published: Published) -> None:
    published.block("198.18.0.1")
    block_user(published.journal, "alice", kind="account")
    published.journal.append("kill", endpoints={"models": ["*:1/tcp"]}, by="x", reason="x")
    assert not published.path.exists()
    published.list.write()
    first, *rest = published.lines()
    assert first == {"denied": 1, "boot_id": "one", "sequence": 3}
    assert rest == [
        ["+", "address", "198.18.0.1", published.boot_ns(600)],
        ["+", "account", "alice", published.boot_ns(600)],
        ["+", "killed", "models", 0],
    ]
    published.clock.passes(10)
    published.block("198.18.0.1", 900)
    block_user(published.journal, "é: at home", kind="any", ttl_s=60)
    published.journal.append("unblock", address="198.18.0.1", by="x", reason="x")
    published.journal.append("unblock_user", user="alice", kind="account", by="x", reason="x")
    published.journal.append(
        "import", blocks=[["198.18.0.2", 60], ["198.18.0.0/24", 70]], owner="operator", by="x", reason="x"
    )
    published.journal.append("release", endpoints=["models"], by="x", reason="x")
    published.journal.append("kill", endpoints={"chat": ["*:2/tcp"]}, by="x", reason="x", ttl_s=30)
    published.journal.append("tick")
    assert published.lines()[4:] == [
        ["+", "address", "198.18.0.1", published.boot_ns(900)],
        ["+", "any", "é: at home", published.boot_ns(60)],
        ["-", "address", "198.18.0.1"],
        ["-", "account", "alice"],
        ["+", "address", "198.18.0.2", published.boot_ns(60)],
        ["+", "address", "198.18.0.0/24", published.boot_ns(70)],
        ["-", "killed", "models"],
        ["+", "killed", "chat", published.boot_ns(30)],
    ]


def test_after_a_restart_it_has_what_the_journal_says_of_that_boot(
    published: Published, tmp_path: Path
) -> None:
    published.block("198.18.0.1")
    published.list.write()
    published.clock.passes(100)
    published.journal.append("tick")
    published.journal.close()
    published.clock.moment = published.clock.moment._replace(boot_ns=5 * NS_PER_S, boot_id="two")
    journal = Journal(str(tmp_path / "enforcer"), published.clock)
    DenyList(str(published.path), journal, published.clock).write()
    first, block = published.lines()
    assert first["boot_id"] == "two"
    assert block == ["+", "address", "198.18.0.1", published.boot_ns(500)]
    journal.close()


def test_it_is_written_anew_once_most_of_it_is_out_of_date(published: Published) -> None:
    published.list.write()
    before = published.path.stat().st_ino
    for _ in range(520):
        published.block("198.18.0.1")
        published.journal.append("unblock", address="198.18.0.1", by="x", reason="x", sync=False)
    published.block("198.18.0.2")
    assert published.list.grown
    published.list.write()
    assert not published.list.grown
    assert published.path.stat().st_ino != before
    assert [line[2] for line in published.lines()[1:]] == ["198.18.0.2"]


def test_a_disk_that_is_full_is_said_once_and_the_list_is_right_again_when_there_is_room(
    published: Published, tmp_path: Path
) -> None:
    published.list.write()
    published.block("198.18.0.1")
    whole = published.path.read_bytes()
    gone = DenyList(
        str(published.path), published.journal, published.clock, complain=published.complaints.append
    )
    gone._file, gone._bytes, gone.problem = os.open(published.path, os.O_WRONLY | os.O_APPEND), len(whole), ""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, hard))
    try:
        entry = {"do": "block", "address": "198.18.0.1", "boot": published.clock.moment.boot_ns}
        gone._follow(entry)
        gone._follow(entry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert published.path.read_bytes() == whole, "no torn line stays"
    assert gone.problem == "No space left on device"
    assert len(published.complaints) == 1 and "cannot be written" in published.complaints[0]
    published.block("198.18.0.2")
    assert published.path.read_bytes() == whole, "until the tick"
    assert "No space left" in gone.mend()[0]
    assert [line[2] for line in published.lines()[1:]] == ["198.18.0.1", "198.18.0.2"]
    assert gone.mend() == []


def test_a_folder_that_cannot_be_written_hinders_nothing(published: Published, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    published.list.write()
    published.block("198.18.0.1")
    assert published.list.problem
    assert published.list.mend() == []
    assert len(published.complaints) == 1
    assert "198.18.0.1" in published.journal.state.blocks
    (tmp_path / "run").unlink()
    assert published.list.mend() != []
    assert len(published.lines()) == 2


def test_what_could_not_be_written_is_tried_again_soon_and_less_often_the_longer_it_fails(
    published: Published, tmp_path: Path
) -> None:
    authority = Authority(published.journal, Nft(), published.clock, published.list)
    assert authority.next_end_s() == float("inf")
    (tmp_path / "run").write_text("no folder")
    authority.publish()
    assert 0 < authority.next_end_s() <= 1
    published.block("198.18.0.1")
    wait_for("the second try", lambda: authority.end_due() == [] and authority.next_end_s() > 1)
    (tmp_path / "run").unlink()
    wait_for("the third", lambda: authority.end_due() == [] and published.path.exists())
    assert [line[2] for line in published.lines()[1:]] == ["198.18.0.1"]
    assert authority.next_end_s() == float("inf")


@pytest.mark.parametrize("change", ["removed", "replaced", "longer", "open to others"])
def test_what_others_do_to_it_is_mended(published: Published, change: str) -> None:
    published.list.write()
    published.block("198.18.0.1")
    whole = published.lines()
    if change == "removed":
        published.path.unlink()
    elif change == "replaced":
        published.path.unlink()
        published.path.write_text("forged")
    elif change == "longer":
        with published.path.open("a") as file:
            file.write('["-", "address", "198.18.0.1"]\n')
    else:
        published.path.chmod(0o666)
    assert len(published.list.mend()) == 1
    assert published.lines()[1:] == whole[1:]
    assert stat.S_IMODE(published.path.stat().st_mode) == 0o640
    assert published.list.mend() == []


@pytest.mark.lab
def test_the_enforcer_publishes_for_one_group_and_so_does_the_command_in_its_place(bare: Lab) -> None:
    with Rig(bare, RAILS) as rig:
        rig.stop()
        rig.denied_gid = 61_400
        rig.start()
        path = rig.state / "run" / "denied"
        there = path.stat()
        assert (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid) == (0o640, 0, 61_400)
        now = clocks()()
        rig.enforcer().block("198.18.0.1", ttl_s=600, reason="test", where="gateway")
        rig.enforcer().block_user("alice", kind="key", ttl_s=600, reason="test")
        rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
        first, address, user, killed = lines(path)
        assert first["boot_id"] == now.boot_id
        assert address[:3] == ["+", "address", "198.18.0.1"] and user[:3] == ["+", "key", "alice"]
        assert now.boot_ns < address[3] - 500 * NS_PER_S < now.boot_ns + 200 * NS_PER_S
        assert killed == ["+", "killed", "models", 0]
        path.unlink()
        rig.stop()
        assert len(lines(path)) == 4, "mended at the last tick"
        path.write_text("")
        os.chown(path, 0, 61_400)
        code, _ = rig.command("release", "--endpoint", "models", "--reason", "test")
        assert code == 0
        assert [line[1] for line in lines(path)[1:]] == ["address", "key"]
        assert path.stat().st_gid == 61_400
        rig.start()
        with rig.serving(FRONT):
            assert rig.reaches(FRONT)
        wait_for("the list", lambda: len(lines(path)) == 3)
