"""The deny list as its readers see it: followed as it grows, replaced, damaged, written by somebody else."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
from gatewatch.daemon.denied import DenyList
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def head(boot_id: str = BOOT, sequence: int = 1) -> str:
    return json.dumps({"denied": 1, "boot_id": boot_id, "sequence": sequence}) + "\n"


def line(*entry: object) -> str:
    return json.dumps(entry) + "\n"


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "denied"
    path.write_text(head())
    path.chmod(0o640)
    return path


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(lines))


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.chmod(0o640)
    new.rename(path)


def read(path: Path) -> DenyList:
    denied = DenyList(path)
    denied.refresh()
    return denied


def test_an_empty_list_is_known_and_refuses_nobody(path: Path) -> None:
    denied = read(path)
    assert (denied.known, denied.problem, denied.sequence) == (True, "", 1)
    assert not denied.denied_user("key", "k-1")
    assert not denied.denied_address("192.0.2.1")
    assert not denied.killed("chat")
    assert denied.restricted("chat") is None
    assert list(denied.entries()) == []


def test_a_user_is_refused_by_kind_and_by_any(path: Path) -> None:
    append(path, line("+", "key", "k-1", 0), line("+", "any", "mallory", 0))
    denied = read(path)
    assert denied.denied_user("key", "k-1")
    assert not denied.denied_user("subject", "k-1")
    assert not denied.denied_user("key", "K-1")
    for kind in ("account", "key", "subject", "certificate", "any"):
        assert denied.denied_user(kind, "mallory")


def test_an_address_is_refused_by_each_network_around_it(path: Path) -> None:
    append(path, *(line("+", "address", a, 0) for a in ("192.0.2.7", "198.51.100.0/24", "2001:db8::/48")))
    denied = read(path)
    for refused in ("192.0.2.7", "198.51.100.200", "2001:db8:0:9::1", "::ffff:192.0.2.7"):
        assert denied.denied_address(refused)
    assert denied.denied_address(IPv4Address("192.0.2.7"))
    assert denied.denied_address(IPv6Address("::ffff:198.51.100.1"))
    for passed in ("192.0.2.8", "198.51.101.1", "2001:db8:1::1"):
        assert not denied.denied_address(passed)
    with pytest.raises(ValueError, match="no address"):
        denied.denied_address("example.org")


def test_taking_back_ends_an_entry_and_a_later_one_replaces_the_former(path: Path) -> None:
    denied = read(path)
    append(
        path, line("+", "address", "192.0.2.7", 0), line("+", "key", "k-1", 1), line("+", "killed", "chat", 0)
    )
    assert denied.refresh()
    assert not denied.denied_user("key", "k-1")  # it ended a nanosecond after the machine started
    append(path, line("-", "address", "192.0.2.7"), line("+", "key", "k-1", 0), line("-", "killed", "chat"))
    assert denied.refresh()
    assert not denied.refresh()
    assert denied.denied_user("key", "k-1")
    assert not denied.denied_address("192.0.2.7")
    assert not denied.killed("chat")
    assert list(denied.entries()) == [("key", "k-1", 0)]


def test_entries_end_by_themselves_on_the_clock_since_boot(path: Path) -> None:
    ends = now() + 300_000_000
    append(
        path, line("+", "address", "192.0.2.7", ends), line("+", "restricted", "chat", ends, ["10.0.0.0/8"])
    )
    denied = read(path)
    assert denied.denied_address("192.0.2.7")
    assert denied.restricted("chat") == (ip_network("10.0.0.0/8"),)
    assert sorted(denied.entries()) == [("address", "192.0.2.7", ends), ("restricted", "chat", ends)]
    select.select([], [], [], max(0.0, (ends - now()) / 1e9) + 0.001)
    assert not denied.denied_address("192.0.2.7")
    assert denied.restricted("chat") is None
    assert list(denied.entries()) == []


def test_a_line_counts_once_its_end_is_written(path: Path) -> None:
    denied = read(path)
    whole = line("+", "key", "k-1", 0)
    append(path, whole[:10])
    denied.refresh()
    assert denied.known
    assert not denied.denied_user("key", "k-1")
    append(path, whole[10:])
    assert denied.refresh()
    assert denied.denied_user("key", "k-1")


def test_a_file_that_replaces_the_list_is_the_list(path: Path) -> None:
    append(path, line("+", "key", "k-1", 0))
    denied = read(path)
    replace(path, head(sequence=9) + line("+", "key", "k-2", 0))
    assert denied.refresh()
    assert denied.sequence == 9
    assert not denied.denied_user("key", "k-1")
    assert denied.denied_user("key", "k-2")


def test_a_replacement_that_is_read_in_parts_counts_when_it_is_read_to_its_end(path: Path) -> None:
    append(path, line("+", "key", "old", 0))
    denied = read(path)
    replace(path, head() + "".join(line("+", "key", f"k-{n}", 0) for n in range(20_000)))
    calls = 0
    while True:
        denied.refresh(most_bytes=1)
        calls += 1
        if not denied.behind:
            break
        assert denied.denied_user("key", "old")
        assert not denied.denied_user("key", "k-0")
    assert calls > 3
    assert denied.denied_user("key", "k-0") and denied.denied_user("key", "k-19999")
    assert not denied.denied_user("key", "old")


@pytest.mark.parametrize("most_bytes", [None, 1])
def test_a_restriction_with_thousands_of_networks_is_read_in_parts_too(
    path: Path, most_bytes: int | None
) -> None:
    networks = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(20_000)]
    append(path, line("+", "key", "before", 0), line("+", "restricted", "chat", 0, networks))
    append(path, line("+", "key", "after", 0))
    denied = DenyList(path)
    denied.refresh(most_bytes)
    while denied.behind:
        denied.refresh(most_bytes)
    assert denied.known, denied.problem
    assert len(denied.restricted("chat") or ()) == 20_000
    assert denied.denied_user("key", "before") and denied.denied_user("key", "after")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no first line"),
        (head("another-boot"), "before this machine started"),
        (json.dumps({"denied": 2, "boot_id": BOOT, "sequence": 1}) + "\n", "version 1"),
        (json.dumps({"denied": 1, "boot_id": BOOT}) + "\n", "sequence"),
        ("[]\n", "version 1"),
        (head() + "nonsense\n", "line 2: is no JSON"),
        (head() + line("+", "key", "k-1"), "line 2: no entry"),
        (head() + line("+", "colour", "red", 0), "line 2: unknown kind 'colour'"),
        (head() + line("+", ["key"], "red", 0), "line 2: unknown kind"),
        (head() + line("+", "address", "192.0.2.1/24", 0), "line 2: host bits"),
        (head() + line("+", "address", "nowhere", 0), "line 2: no address"),
        (head() + line("+", "restricted", "chat", 0), "line 2: no networks"),
        (head() + line("+", "restricted", "chat", 0, [1]), "line 2: a network that is no text"),
        (head() + line("+", "key", "k-1", -1), "line 2: no entry"),
        (head() + line("+", "key", "x" * 257, 0), "line 2: no name"),
        (head() + line("*", "key", "k-1", 0), "line 2: no entry"),
        (head() + "[" * 5000 + "\n", "line 2"),
        (head() + "x" * 5_000_000, "without an end"),
    ],
)
def test_what_cannot_be_believed_is_unknown_and_what_was_known_stays(
    path: Path, text: str, says: str
) -> None:
    append(path, line("+", "key", "old", 0))
    denied = read(path)
    replace(path, text)
    assert denied.refresh()
    assert not denied.known
    assert says in denied.problem
    assert denied.problem.startswith(str(path))
    assert denied.denied_user("key", "old")
    replace(path, head() + line("+", "key", "new", 0))
    assert denied.refresh()
    assert denied.known
    assert denied.denied_user("key", "new") and not denied.denied_user("key", "old")


def test_a_damaged_line_leaves_what_stands_before_it_in_force(path: Path) -> None:
    denied = read(path)
    append(path, line("+", "key", "k-1", 0), "damage\n", line("-", "key", "k-1"))
    denied.refresh()
    denied.refresh()
    assert not denied.known
    assert "line 3" in denied.problem
    assert denied.denied_user("key", "k-1")


def test_a_missing_file_is_unknown(tmp_path: Path) -> None:
    denied = read(tmp_path / "denied")
    assert not denied.known
    assert "No such file" in denied.problem


@pytest.mark.parametrize("mode", [0o660, 0o642])
def test_a_file_that_others_may_write_is_not_believed(path: Path, mode: int) -> None:
    append(path, line("+", "key", "k-1", 0))
    path.chmod(mode)
    denied = read(path)
    assert not denied.known
    assert "written by others" in denied.problem
    assert not denied.denied_user("key", "k-1")
    path.chmod(0o640)
    denied.refresh()
    assert denied.known


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_not_believed(path: Path) -> None:
    os.chown(path, 61234, 0)
    denied = read(path)
    assert "owned by uid 61234" in denied.problem


def test_a_link_or_a_pipe_is_not_read(path: Path) -> None:
    other = path.with_name("link")
    other.symlink_to(path)
    assert not read(other).known
    pipe = path.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    assert "no regular file" in read(pipe).problem


def test_the_descriptor_tells_of_growth_and_of_replacement_and_of_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "denied"
    path.parent.mkdir()
    denied = DenyList(path)

    def told() -> bool:
        return bool(select.select([denied.fileno()], [], [], 10)[0])

    assert not select.select([denied.fileno()], [], [], 0)[0]
    replace(path, head())
    assert told()
    denied.refresh()
    assert denied.known
    append(path, line("+", "key", "k-1", 0))
    assert told()
    denied.refresh()
    assert denied.denied_user("key", "k-1")
    assert not select.select([denied.fileno()], [], [], 0)[0]
    path.parent.rename(tmp_path / "away")
    (tmp_path / "away" / "denied").unlink()
    (tmp_path / "away").rmdir()
    path.parent.mkdir()
    denied.refresh()
    replace(path, head(sequence=5))
    assert told()
    denied.refresh()
    assert denied.sequence == 5
    denied.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from(['["+","key","a",0]', "[]", "1", "{}"])), max_size=8
    )
)
def test_no_bytes_in_the_file_make_it_raise(path: Path, lines: list[bytes | str]) -> None:
    body = b"\n".join(part.encode() if isinstance(part, str) else part for part in lines)
    path.write_bytes(head().encode() + body)
    denied = read(path)
    denied.denied_user("key", "a")
    list(denied.entries())
    path.write_bytes(body)
    denied.refresh()
    assert denied.known or denied.problem
    denied.close()


def test_it_loads_nothing_heavy() -> None:
    code = "import sys, gatewatch.daemon.denied; print([m for m in ('numpy','pydantic','typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
