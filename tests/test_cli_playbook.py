"""`playbook check` and `playbook test` as somebody types them, and what `config check` says of playbooks."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.cli import main
from gatewatch.daemon.cli.playbook import MOST_ALIKE, decided_text
from gatewatch.daemon.store import Store
from test_geography import database
from test_playbook_library import ATTACKER, fails, scan, sshd, stored

Said = pytest.CaptureFixture[str]

MINE = """name: mine
when: {kinds: [brute_force]}
then:
  - {action: block_source, ttl: 1h}
"""
GUESSING = sshd(*fails(ATTACKER, ["root"], 20))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a configuration in use, a playbook and a log."""
    (tmp_path / "gatewatch.yaml").write_text(
        "state: state\nrails: rails.toml\nplaybooks: {directories: [books]}\n"
    )
    (tmp_path / "books").mkdir()
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "auth.log").write_bytes(GUESSING)
    monkeypatch.setenv("GATEWATCH_CONFIG", str(tmp_path / "gatewatch.yaml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return main(["playbook", "test", *arguments])


def rows(capsys: Said, *arguments: str) -> list[dict[str, Any]]:
    assert run(*arguments, "--json") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def told(capsys: Said, *arguments: str, code: int = 0) -> str:
    """What a person reads."""
    assert run(*arguments) == code
    said = capsys.readouterr()
    return said.out + said.err


def test_a_log_is_replayed_and_each_decision_has_its_why(folder: Path, capsys: Said) -> None:
    said = told(capsys, "mine.yaml", "auth.log", "--earlier", "1").splitlines()
    assert said[0].endswith(
        f"medium brute_force, confidence 0.9: Password guessing from {ATTACKER} at sshd@gw"
    )
    assert said[1].split() == ["done", "at", "once", "block_source", ATTACKER, "for", "2h"]
    assert said[2].strip() == "why: for 2h, as 1 blocks came before"


def test_a_playbook_in_use_is_known_by_its_name(folder: Path, capsys: Said) -> None:
    assert rows(capsys, "login-burst", "auth.log")[0]["playbook"] == "login-burst"
    (folder / "books" / "own.yaml").write_text(MINE)
    assert rows(capsys, "mine", "auth.log")[0]["playbook"] == "mine"
    said = told(capsys, "nosuch", "auth.log", code=2)
    assert "nosuch: no such file, and no playbook in use has that name; known: account-compromise" in said
    assert "nosuch.yaml: no such file" in told(capsys, "nosuch.yaml", "auth.log", code=2)


def test_a_capture_is_replayed(folder: Path, capsys: Said) -> None:
    (folder / "scan.pcap").write_bytes(scan(0))
    (row,) = rows(capsys, "scan", "scan.pcap")
    assert (row["state"], row["target"]) == ("skip", ATTACKER)
    (folder / "quiet.pcap").write_bytes(b"")
    assert "it is empty" in told(capsys, "scan", "quiet.pcap", code=1)


def test_a_stored_incident_is_found_by_the_beginning_of_its_id(folder: Path, capsys: Said) -> None:
    store = Store.open(folder / "state" / "analyser" / "gatewatch.db")
    now_ns = time.time_ns()
    for kind in ("beacon", "exfiltration"):
        document = json.loads(stored(kind, 75))
        store.save_incident(document | {"id": f"ab{kind}"}, {}, now_ns, now_ns, now_ns)
    (row, _, _) = rows(capsys, "exfiltration", "abb")
    assert (row["incident"], row["target"]) == ("abbeacon", "sinks")
    assert "several incidents begin with ab" in told(capsys, "exfiltration", "ab", code=1)
    said = told(capsys, "exfiltration", "ffff", code=1)
    assert "no incident begins with ffff; `gatewatch incidents list` shows their ids" in said
    store.set_status("abbeacon", "closed", "ours")
    assert rows(capsys, "exfiltration", "abb")[0]["why"] == "the incident is closed"


def test_without_a_store_an_id_is_answered_with_what_to_do(folder: Path, capsys: Said) -> None:
    said = told(capsys, "mine.yaml", "deadbeef", code=1)
    assert "there is no store" in said
    assert "--state" in said


def test_incidents_come_as_json_lines_or_on_standard_input(
    folder: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = stored("exfiltration", 75) + stored("exfiltration", 50)
    (folder / "found.jsonl").write_bytes(both)
    from_file = rows(capsys, "exfiltration", "found.jsonl")
    assert [row["state"] for row in from_file] == ["act", "act", "wait", "none"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(both)))
    assert rows(capsys, "exfiltration", "-") == from_file


def test_a_log_without_an_attack_is_no_error_and_one_that_is_not_understood_is(
    folder: Path, capsys: Said
) -> None:
    (folder / "quiet.log").write_bytes(sshd((0, ATTACKER, "alice", True)))
    assert "no incident is found in its 1 lines: there is nothing to decide" in told(
        capsys, "mine.yaml", "quiet.log"
    )
    assert rows(capsys, "mine.yaml", "quiet.log") == []
    (folder / "empty.log").write_text("")
    assert "empty.log: it is empty" in told(capsys, "mine.yaml", "empty.log", code=1)
    assert "nothing.log: No such file" in told(capsys, "mine.yaml", "nothing.log", code=1)
    (folder / "verse.txt").write_text("a rose\nis a rose\n")
    assert "verse.txt: no known log format" in told(capsys, "mine.yaml", "verse.txt", code=1)
    said = told(capsys, "mine.yaml", "verse.txt", "--format", "sshd", code=1)
    assert "verse.txt: no line is understood; see `gatewatch parse verse.txt`" in said


def test_whom_it_hits_is_shown_and_the_circuit_breaker_asks(folder: Path, capsys: Said) -> None:
    one = told(capsys, "mine.yaml", "auth.log", "--good", ATTACKER)
    assert "done at once" in one
    assert f"hits: {ATTACKER}" in one
    (folder / "gatewatch.yaml").write_text("response: {breaker: {share: 0.1, spared: 0}}\n")
    said = told(
        capsys, "mine.yaml", "auth.log", "--good", ATTACKER, "--good", "198.51.100.9", "--good", "alice"
    )
    assert "circuit breaker: with what is blocked it would hit 1 of 2 clients" in said
    assert "asks: a person" in said
    (row,) = rows(capsys, "mine.yaml", "auth.log", "--good", ATTACKER)
    assert (row["state"], row["hits"], row["approval"]) == ("wait", [ATTACKER], "one")
    assert row["tripped"].startswith("circuit breaker")


def test_users_count_for_the_circuit_breaker_as_well(folder: Path, capsys: Said) -> None:
    (folder / "taken.log").write_bytes(sshd(*fails(ATTACKER, ["bob"], 20), (90, ATTACKER, "bob", True)))
    found = rows(capsys, "account-compromise", "taken.log", "--good", "bob")
    assert {row["action"]: row["hits"] for row in found}["block_user"] == ["bob"]


def test_each_circumstance_can_be_tried(folder: Path, capsys: Said) -> None:
    def one(*options: str) -> tuple[str, str]:
        (row,) = rows(capsys, "mine.yaml", "auth.log", *options)
        return row["state"], row["why"]

    assert one() == ("act", "for 1h")
    assert one("--mode", "observe") == ("would", "observe mode: nothing is done")
    assert one("--uncorroborated")[0] == "wait"
    assert one("--age", "9m")[0] == "act"
    assert one("--age", "11m") == ("skip", "its last event is 660 s old, more than 600 s")
    (folder / "mine.yaml").write_text(MINE.replace("brute_force]", "brute_force], repeats: 2"))
    assert one() == ("none", "nobody of it was blocked 2 times before: see --earlier")
    assert one("--earlier", "2")[0] == "act"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--mode", "enforced"], "observe or enforce"),
        (["--age", "soon"], "--age soon: 'soon' is no duration"),
    ],
)
def test_a_wrong_option_is_wrong_usage(folder: Path, capsys: Said, options: list[str], problem: str) -> None:
    assert problem in told(capsys, "mine.yaml", "auth.log", *options, code=2)


def test_a_playbook_that_is_off_is_tried_all_the_same_and_it_is_said(folder: Path, capsys: Said) -> None:
    (folder / "mine.yaml").write_text(MINE + "enabled: false\n")
    said = told(capsys, "mine.yaml", "auth.log")
    assert "mine is not enabled; it is tried as if it were" in said
    assert "done at once" in said


def test_a_system_is_looked_up_where_a_playbook_blocks_whole_ones(folder: Path, capsys: Said) -> None:
    (folder / "mine.yaml").write_text(MINE.replace("ttl: 1h", "ttl: 1h, asn: true"))
    (row,) = rows(capsys, "mine.yaml", "auth.log")
    assert (row["state"], row["why"]) == (
        "skip",
        "no database (detection.geo.asn) says in which autonomous system it is",
    )
    database(folder / "asn.mmdb", {"203.0.112.0/23": {"autonomous_system_number": 64500}})
    (folder / "gatewatch.yaml").write_text("detection: {geo: {asn: asn.mmdb}}\n")
    found = rows(capsys, "mine.yaml", "auth.log")
    assert [(row["state"], row["target"], row["approval"]) for row in found] == [
        ("wait", "203.0.113.0/24", "one"),
        ("wait", "203.0.112.0/24", "one"),
    ]


def test_what_is_decided_alike_is_told_once() -> None:
    decision = {
        "state": "skip",
        "action": "block_source",
        "ttl_s": 0,
        "approval": "none",
        "why": "forged",
        "hits": (),
    }
    many = [decision | {"target": f"192.0.2.{n}", "detail": {}} for n in range(MOST_ALIKE + 5)]
    text = decided_text({"id": "ab", "kind": "port_scan", "priority": "low", "confidence": 0.9}, many)
    assert len(text) == 3
    assert text[1].endswith("192.0.2.3 and 5 more")


def test_a_hostile_name_does_not_reach_the_terminal(folder: Path, capsys: Said) -> None:
    document = json.loads(stored("exfiltration", 75)) | {"title": "\x1b]0;own\x07", "id": "\x1b[2J"}
    (folder / "hostile.json").write_text(json.dumps(document))
    assert all(c.isprintable() or c == "\n" for c in told(capsys, "exfiltration", "hostile.json"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no incident"),
        ("{}\nx\n", ":2: no JSON object"),
        ("[1]", ":1: an incident is a JSON object"),
    ],
)
def test_what_is_no_incident_is_named_with_its_line(
    tmp_path: Path, text: str, problem: str, capsys: Said
) -> None:
    book, incident = tmp_path / "book.yaml", tmp_path / "incident.json"
    book.write_text("name: mine\nthen: [{action: notify}]\n")
    incident.write_text(text)
    assert main(["playbook", "test", str(book), str(incident)]) == 1
    assert problem in capsys.readouterr().err


RAILS = """
management = ["192.0.2.0/24"]

[[endpoint]]
name = "chat"
fronts = ["*:443/tcp"]
allowed = ["198.51.100.0/24"]

[[endpoint]]
name = "open"
fronts = ["*:8443/tcp"]
kill_switch = false

[[command]]
name = "page"
run = ["/bin/true"]
"""


@pytest.mark.parametrize(
    ("step", "line", "problem"),
    [
        ("{action: block_user, hooks: [staf]}", 4, "no hook 'staf'; did you mean 'staff'?"),
        ("{action: notify, hooks: [staff, pager]}", 4, "then.0.hooks.1: the configuration has no hook 'pager'"),
        ("{action: notify,\n     commands: [pge]}", 5, "rails.toml names no command 'pge'; did you mean 'page'?"),
        ("{action: exec, command: reboot}", 4, "then.0.command: "),
        ("{action: kill_switch, endpoint: caht}", 4, "rails.toml names no endpoint 'caht'; did you mean 'chat'?"),
        ("{action: kill_switch, endpoint: open}", 4, "endpoint 'open' has no kill switch"),
        ("{action: restrict_endpoint, endpoint: all}", 4, "then.0.endpoint: "),
        ("{action: restrict_endpoint, endpoint: open}", 4, "endpoint 'open' cannot be restricted"),
        ("{action: block_source, asn: true}", 4, "then.0.asn: needs a database"),
    ],
)  # fmt: skip
def test_a_playbook_that_names_what_is_nowhere_fails_the_check_with_file_line_and_key(
    folder: Path, capsys: Said, root: None, step: str, line: int, problem: str
) -> None:
    (folder / "gatewatch.yaml").write_text(
        "rails: rails.toml\nplaybooks: {directories: [books], shipped: false}\n"
        "hooks: {staff: {type: webhook, url: 'http://127.0.0.1:1/', secret_file: s}}\n"
    )
    (folder / "s").write_text("0123456789abcdef" * 4)
    (folder / "s").chmod(0o600)
    (folder / "rails.toml").write_text(RAILS)
    book = folder / "books" / "mine.yaml"
    book.write_text(f"name: mine\nwhen: {{endpoints: [chat]}}\nthen:\n  - {step}\n")
    assert main(["config", "check"]) == 2
    said = capsys.readouterr().err
    assert f"{book}:{line}: " in said
    assert problem in said


def test_a_playbook_whose_names_are_all_known_passes_the_check(
    folder: Path, capsys: Said, root: None
) -> None:
    (folder / "rails.toml").write_text(RAILS)
    (folder / "books" / "mine.yaml").write_text(
        "name: mine\nwhen: {endpoints: [chat, open]}\nthen:\n"
        "  - {action: kill_switch}\n  - {action: restrict_endpoint, endpoint: chat}\n"
        "  - {action: exec, command: page}\n  - {action: notify, commands: [page]}\n"
    )
    assert main(["config", "check"]) == 0
    assert "mine" in capsys.readouterr().out


def test_the_condition_of_a_playbook_is_checked_as_well(folder: Path, capsys: Said, root: None) -> None:
    (folder / "rails.toml").write_text(RAILS)
    (folder / "books" / "mine.yaml").write_text(
        "name: mine\nthen: [{action: notify}]\nwhen:\n  endpoints:\n  - chatt\n"
    )
    assert main(["config", "check"]) == 2
    assert "mine.yaml:5: when.endpoints.0: " in capsys.readouterr().err


def test_check_names_each_problem_of_each_file(folder: Path, capsys: Said) -> None:
    (folder / "a.yaml").write_text("name: a\nthen:\n  - {action: block_user, kinds: [acount]}\n")
    (folder / "b.yaml").write_text(
        "name: b\nthen:\n  - action: restrict_endpoint\n  - {action: block_source, widen_after: -1}\n"
    )
    assert main(["playbook", "check", "mine.yaml", "a.yaml", "b.yaml"]) == 2
    said = capsys.readouterr()
    assert "mine.yaml: ok, mine: block_source" in said.out
    assert (
        "a.yaml:3: then.0.kinds.0: must be one of account, key, subject, certificate, not 'acount'"
        in said.err
    )
    assert "b.yaml:3: then.0.endpoint: is missing" in said.err
    assert "b.yaml:4: then.1.widen_after: must be 0 or more, not -1" in said.err
