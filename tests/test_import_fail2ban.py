"""Reading what fail2ban blocks and ignores: its own formats, and whatever else may lie there."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gatewatch.config import import_fail2ban as fail2ban
from gatewatch.config.imports import FOREVER_S, Found
from gatewatch.daemon.errors import InputError
from hypothesis import example, given, settings
from hypothesis import strategies as st

NOW = 1_800_000_000

# As fail2ban 1.0.2 makes them (schema 4).
SCHEMA = """
CREATE TABLE fail2banDb(version INTEGER);
INSERT INTO fail2banDb VALUES (4);
CREATE TABLE jails(name TEXT NOT NULL UNIQUE, enabled INTEGER NOT NULL DEFAULT 1);
CREATE TABLE bips(ip TEXT NOT NULL, jail TEXT NOT NULL, timeofban INTEGER NOT NULL, bantime INTEGER NOT NULL,
    bancount INTEGER NOT NULL default 1, data JSON, PRIMARY KEY(ip, jail), FOREIGN KEY(jail) REFERENCES jails(name));
"""


def database(path: Path, *rows: tuple[Any, ...], jails: dict[str, int] | None = None) -> Path:
    """A database with bans of (ip, jail, timeofban, bantime)."""
    with closing(sqlite3.connect(path)) as made, made:
        made.executescript(SCHEMA)
        made.executemany("INSERT INTO jails VALUES (?, ?)", (jails or {}).items())
        made.executemany("INSERT INTO bips(ip, jail, timeofban, bantime) VALUES (?, ?, ?, ?)", rows)
    return path


def bans_of(path: Path) -> tuple[dict[str, int], Found]:
    found = Found()
    fail2ban.read_bans(path, found, NOW)
    return {str(n): b.ttl_s for n, b in found.bans.items()}, found


def test_bans_that_have_not_ended_are_read_with_what_is_left(tmp_path: Path) -> None:
    path = database(
        tmp_path / "f.sqlite3",
        ("198.51.100.7", "sshd", NOW - 100, 600),
        ("198.51.100.8", "sshd", NOW - 600, 600),
        ("198.51.100.9", "sshd", NOW - 9_000_000, -1),
        ("2001:db8::7", "sshd", NOW - 1, 600.5),
        ("::ffff:198.51.100.10", "sshd", NOW, 600),
        ("198.51.100.129/25", "sshd", NOW, 600),
        ("198.51.100.11", "sshd", NOW + 5000, 600),
        ("198.51.100.12", "sshd", NOW - 1000, -2),
        ("198.51.100.13", "sshd", NOW, 10**17),
    )
    bans, found = bans_of(path)
    assert bans == {
        "198.51.100.7/32": 500,
        "198.51.100.9/32": FOREVER_S,
        "2001:db8::7/128": 599,
        "198.51.100.10/32": 600,
        "198.51.100.128/25": 600,
        "198.51.100.11/32": 600,
        "198.51.100.13/32": FOREVER_S,
    }
    assert found.ended == 2
    assert found.remarks == []


@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_of_several_jails_counts(tmp_path: Path, order: int) -> None:
    rows = [("198.51.100.7", f"jail{i}", NOW - i, t) for i, t in enumerate((600, 3600, 60, 5))]
    assert bans_of(database(tmp_path / "f", *rows[::order]))[0] == {"198.51.100.7/32": 3599}


def test_a_jail_that_was_disabled_beside_others_is_left_out_and_a_stopped_server_is_not(
    tmp_path: Path,
) -> None:
    rows = [("198.51.100.7", "sshd", NOW, 600), ("198.51.100.8", "old", NOW, 600)]
    bans, found = bans_of(database(tmp_path / "running", *rows, jails={"sshd": 1, "old": 0}))
    assert list(bans) == ["198.51.100.7/32"]
    assert [(r.value, r.why) for r in found.remarks] == [("198.51.100.8", "jail old is not enabled any more")]
    bans, _ = bans_of(database(tmp_path / "stopped", *rows, jails={"sshd": 0, "old": 0}))
    assert len(bans) == 2


def test_rows_that_are_no_bans_are_remarked_on_and_the_others_count(tmp_path: Path) -> None:
    odd = [
        (b"\x00\xff" * 100, "a", NOW, 600),
        ("x" * 1_000_000, "b", NOW, 600),
        ("", "c", NOW, 600),
        ("198.51.100.1", "d", "yesterday", 600),
        ("198.51.100.2", "e", NOW, b"600"),
        ("198.51.100.3", b"\xff\xfe", float("inf"), 600),
        ("198.51.100.4%eth0", "f", NOW, 600),
        ("fe80::1%eth0", "g", NOW, 600),
        ("010.0.0.1", "h", NOW, 600),
        ("user; DROP TABLE bips", "i", NOW, 600),
        ("198.51.100.5\n198.51.100.6", "j", NOW, 600),
        ("１９８.51.100.5", "k", NOW, 600),
    ]
    path = database(tmp_path / "f", *odd, ("198.51.100.7", "sshd", NOW, 600))
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("INSERT INTO bips VALUES (CAST(x'ff41' AS TEXT), 'z', 1, -1, 1, zeroblob(10000000))")
    bans, found = bans_of(path)
    assert bans == {"198.51.100.7/32": 600}
    assert len(found.remarks) == len(odd) + 1
    assert found.remarks[0].where == f"{path}, table bips, row 1"
    assert all(len(r.value) <= 101 for r in found.remarks)


def test_a_database_from_before_the_table_of_addresses_is_read_from_its_history(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE bans(jail TEXT, ip TEXT, timeofban INTEGER, bantime INTEGER, data JSON)")
        made.execute("INSERT INTO bans VALUES ('sshd', '198.51.100.7', ?, 600, '{}')", (NOW,))
    assert bans_of(path)[0] == {"198.51.100.7/32": 600}


def not_there(path: Path) -> None:
    pass


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_text(path: Path) -> None:
    path.write_text("no database" * 1000)


def another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE VIEW bips AS SELECT 1")


def an_old_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE bans(jail TEXT, ip TEXT, timeofban INTEGER, data JSON)")


def a_cut_database(path: Path) -> None:
    database(path, *[(f"198.51.100.{i}", "sshd", NOW, 600) for i in range(200)])
    os.truncate(path, 9000)


@pytest.mark.parametrize(
    "make", [not_there, a_folder, a_pipe, a_text, another_database, an_old_database, a_cut_database]
)
def test_what_is_no_database_is_one_error_that_names_it(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "f2b?.sqlite3#"
    make(path)
    with pytest.raises(InputError, match=r"f2b\?\.sqlite3#"):
        fail2ban.read_bans(path, Found(), NOW)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=20)
)
@example([(3984, b"\x80")])
def test_a_database_with_any_bytes_changed_is_read_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "f"
    database(path, *[(f"198.51.100.{i}", f"jail{i}", NOW, 600) for i in range(250)], jails={"jail1": 1})
    content = bytearray(path.read_bytes())
    for at, new in changes:
        content[at % len(content) : at % len(content) + len(new)] = new
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        fail2ban.read_bans(path, Found(), NOW)


def test_the_database_is_not_written_to_and_may_be_in_use(tmp_path: Path) -> None:
    path = database(tmp_path / "f", ("198.51.100.7", "sshd", NOW, 600))
    before = path.read_bytes()
    with closing(sqlite3.connect(path)) as server:
        server.execute("PRAGMA journal_mode = MEMORY")
        server.execute("BEGIN IMMEDIATE")
        server.execute("INSERT INTO bips VALUES ('198.51.100.8', 'sshd', ?, 600, 1, '{}')", (NOW,))
        assert list(bans_of(path)[0]) == ["198.51.100.7/32"]
        server.rollback()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_transaction_that_somebody_left_half_done_is_not_rolled_back(tmp_path: Path) -> None:
    path, left = database(tmp_path / "f"), tmp_path / "left"
    with closing(sqlite3.connect(path, isolation_level=None)) as server:
        server.execute("PRAGMA cache_size = 1")
        server.execute("BEGIN")
        for i in range(2000):
            server.execute("INSERT INTO bips VALUES (?, 'sshd', 1, -1, 1, '')", (f"198.51.100.{i}",))
        left.write_bytes(path.read_bytes())
        Path(f"{left}-journal").write_bytes(Path(f"{path}-journal").read_bytes())
        server.execute("ROLLBACK")
    before = left.read_bytes()
    with contextlib.suppress(InputError):
        fail2ban.read_bans(left, Found(), NOW)
    assert left.read_bytes() == before
    assert Path(f"{left}-journal").exists()


JAILS: dict[str, dict[str, str]] = {
    "defaults": {
        "jail.conf": "[DEFAULT]\nignoreip = 198.51.100.1\n[a]\nenabled = true\n[b]\nenabled = false\n"
    },
    "order": {
        "jail.conf": "[DEFAULT]\nignoreip = 198.51.100.1\n[a]\nenabled = true\n",
        "jail.local": "[DEFAULT]\nignoreip = 198.51.100.2\n",
        "jail.d/x.conf": "[DEFAULT]\nignoreip = 198.51.100.3\n",
        "jail.d/a.local": "[a]\nignoreip = 198.51.100.4, 198.51.100.5\n\t198.51.100.6   2001:db8::/32\n",
        "jail.d/b.local": "[a]\nignoreip = %(known/ignoreip)s 198.51.100.7/28\n",
    },
    "references": {
        "jail.conf": "[DEFAULT]\nmine = 198.51.100.1 ; a remark\nignoreip = %(mine)s\n"
        "[a]\nenabled = %(on)s\non = yes\nignoreip = %(b/ignoreip)s %(default/mine)s %(other)s\nother = 198.51.100.9\n"
        "[b]\nenabled = 1\nignoreip = 198.51.100.3 2001:db8::%(default/mine)s %(__name__)s\n"
    },
    "known of the default": {
        "jail.conf": "[DEFAULT]\nignoreip = 198.51.100.1\n"
        "[a]\nenabled = true\nignoreip = %(known/ignoreip)s 198.51.100.2\n"
    },
    "includes": {
        "jail.conf": "[INCLUDES]\nbefore = first.conf\nafter = last.conf\n[DEFAULT]\nignoreip = 198.51.100.1\n"
        "[a]\nenabled = true\n[b]\nenabled = true\n",
        "first.conf": "[DEFAULT]\nignoreip = 198.51.100.2\n[b]\nignoreip = 198.51.100.3\n",
        "first.local": "[b]\nignoreip = 198.51.100.4\n",
        "last.conf": "[a]\nignoreip = 198.51.100.5 127.0.0.1/8 ::1\n",
    },
    "includes itself": {
        "jail.conf": "[INCLUDES]\nbefore = jail.conf\n[a]\nenabled = true\nignoreip = 198.51.100.1\n"
    },
    "a database": {
        "jail.conf": "[a]\nenabled = true\nignoreip = 198.51.100.1\n",
        "fail2ban.conf": "[DEFAULT]\nbase = /elsewhere\n[Definition]\ndbfile = /x\n",
        "fail2ban.local": "[Definition]\ndbfile = %(base)s/f.sqlite3\n",
    },
    "no database": {
        "jail.conf": "[a]\nenabled = true\nignoreip = 198.51.100.1\n",
        "fail2ban.d/a.conf": "[Definition]\ndbfile = None\n",
    },
    "a command": {
        "jail.conf": "[a]\nenabled = true\nignoreip = 198.51.100.1\nignorecommand = /bin/ask <ip>\n"
    },
}


def configuration(folder: Path, files: dict[str, str]) -> Path:
    """A fail2ban configuration that its own client accepts."""
    whole = {"fail2ban.conf": "[Definition]\n[DEFAULT]\n", **files}
    whole["jail.conf"] = whole["jail.conf"].replace("enabled", "backend = polling\naction =\nenabled")
    for name, text in whole.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def ignored_of(folder: Path) -> tuple[set[str], list[tuple[str, str]], str, str]:
    found = Found()
    path = fail2ban.read_ignored(folder, found)
    return {str(n) for n in found.ignored}, [(r.value, r.why) for r in found.remarks], path, found.read[0]


@pytest.mark.parametrize("files", JAILS.values(), ids=JAILS.keys())
def test_ignore_lists_are_what_fail2ban_itself_makes_of_them(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("fail2ban-client") is None:
        pytest.skip("fail2ban-client is not installed")
    folder = configuration(tmp_path, files)
    *theirs, read = ignored_of(folder)
    assert read == f"{folder} (fail2ban-client -d)"
    monkeypatch.setattr(fail2ban, "_ask", lambda folder: None)
    *ours, read = ignored_of(folder)
    assert read == f"{folder} (merged here)"
    assert ours == theirs
    assert ours[0]


def test_ignore_lists_of_a_configuration_that_fail2ban_refuses_are_read_as_far_as_they_go(
    tmp_path: Path,
) -> None:
    folder = configuration(
        tmp_path,
        {
            "jail.conf": "[a]\nenabled = true\nignoreip = %(x)s\nx = %(ignoreip)s\n"
            "[b]\nenabled = true\nignoreip = 198.51.100.1 %(nowhere)s\n"
            "[c]\nenabled = true\nignoreip = 198.51.100.2 office.example.org example file:/x 198.51.100.300\n",
            "jail.d/no.conf": "no section\n",
            "jail.d/twice.conf": "[a]\nx=1\nx=2\n",
            "jail.local": "[d]\nenabled = true\nignoreip = 198.51.100.3\n",
        },
    )
    (folder / "jail.d" / "bytes.conf").write_bytes(b"[e]\nenabled = true\nignoreip = 198.51.100.4 \xff\x00\n")
    (folder / "jail.d" / "loop.conf").symlink_to("loop.conf")
    os.mkfifo(folder / "jail.d" / "pipe.conf")
    networks, remarks, *_ = ignored_of(folder)
    assert networks == {"198.51.100.2/32", "198.51.100.3/32", "198.51.100.4/32"}
    told = dict(remarks)
    assert "circle" in told["%(x)s"]
    assert told["198.51.100.1 %(nowhere)s"] == "%(nowhere)s is set nowhere"
    assert told["office.example.org"] == told["example"] == "a host name: the rails take literal addresses"
    assert told["198.51.100.300"] == "no address"
    assert "file of addresses" in told["file:/x"]


def test_a_remark_names_file_line_and_jail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fail2ban, "_ask", lambda folder: None)
    folder = configuration(
        tmp_path, {"jail.conf": "# a\n[a]\nenabled = true\n\nignoreip = office.example.org\n"}
    )
    found = Found()
    fail2ban.read_ignored(folder, found)
    assert found.remarks[0].where == f"{folder}/jail.conf:7, jail a"


@pytest.mark.parametrize("asked", [True, False])
def test_the_jails_that_share_a_list_are_named_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    if not asked:
        monkeypatch.setattr(fail2ban, "_ask", lambda folder: None)
    elif shutil.which("fail2ban-client") is None:
        pytest.skip("fail2ban-client is not installed")
    jails = "".join(f"[{name}]\nenabled = true\n" for name in "abcde")
    folder = configuration(tmp_path, {"jail.conf": f"[DEFAULT]\nignoreip = 198.51.100.1\n{jails}"})
    found = Found()
    fail2ban.read_ignored(folder, found)
    assert [i.where.partition(", ")[2] for i in found.ignored.values()] == ["jails a, b, c and 2 more"]


@settings(deadline=None)
@given(st.text(max_size=400), st.text(max_size=100))
def test_any_configuration_is_read_or_remarked_on(tmp_path_factory: Any, text: str, value: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "jail.conf").write_text(f"[a]\nenabled = true\n{text}\n", errors="replace")
    (folder / "jail.local").write_text(f"[a]\nenabled = true\nignoreip = {value}\n", errors="replace")
    fail2ban._read_files(folder, Found())


@settings(deadline=None)
@given(st.lists(st.text(max_size=60) | st.sampled_from(["['set', 'a', 'addignoreip', 1]", "['" + "[" * 500])))
def test_whatever_fail2ban_client_says_is_read_or_passed_over(lines: list[str]) -> None:
    fail2ban._read_dump("\n".join(lines), "folder", Found())
