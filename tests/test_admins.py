"""Who can become root here, and who is the last of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gatewatch.daemon.enforcer.admins import admins, would_lock_out

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
toor:x:0:27:another root:/root:/bin/bash
alice:x:1000:1000::/home/alice:/bin/bash
bob:x:1001:27::/home/bob:
carol:x:1002:1002::/home/carol:/bin/zsh
dave:x:1003:1003::/home/dave:/bin/sh
robot:x:998:998::/var/lib/robot:/usr/sbin/nologin
broken:x:1004
"""
GROUP = """\
root:x:0:
sudo:x:27:alice,robot,gone,root
wheel:x:10:
oncall:x:2000:carol
users:x:100:dave
sudo
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "group").write_text(GROUP)
    (tmp_path / "passwd").write_text(PASSWD)
    return str(tmp_path / "group"), str(tmp_path / "passwd")


def test_members_and_those_whose_own_group_it_is_can_become_root(files: tuple[str, str]) -> None:
    assert admins(*files) == {"alice", "bob"}
    assert admins(*files, extra_groups=["oncall"]) == {"alice", "bob", "carol"}
    assert admins(*files, extra_groups=[""]) == {"alice", "bob"}, "no operators' group is named"


def test_uid_0_an_account_without_a_shell_and_one_that_is_gone_do_not_count(files: tuple[str, str]) -> None:
    assert not admins(*files) & {"root", "toor", "robot", "gone", "broken"}


def test_files_that_are_no_text_name_nobody_and_missing_ones_are_told(
    tmp_path: Path, files: tuple[str, str]
) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 50)
    with pytest.raises(FileNotFoundError):
        admins(str(tmp_path / "none"), str(tmp_path / "none"))
    assert admins(str(tmp_path / "noise"), str(tmp_path / "noise")) == set()
    assert admins(files[0], str(tmp_path / "noise")) == set()


def test_the_last_admin_is_the_one_after_whom_none_is_left() -> None:
    both = {"alice", "bob"}
    assert not would_lock_out("alice", set(), both)
    assert would_lock_out("alice", {"bob"}, both)
    assert would_lock_out("alice", set(), {"alice"})


def test_who_is_no_admin_or_denied_already_locks_nobody_out() -> None:
    assert not would_lock_out("dave", {"alice"}, {"alice", "bob"})
    assert not would_lock_out("dave", set(), set())
    assert not would_lock_out("alice", {"alice", "bob"}, {"alice", "bob"})
