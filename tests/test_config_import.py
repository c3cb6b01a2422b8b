"""`gatewatch config import`: what becomes of bans and ignore lists, with a real fail2ban and a real enforcer."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from ipaddress import collapse_addresses, ip_network
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import Rig
from gatewatch.config import import_fail2ban, imports
from gatewatch.config.imports import FOREVER_S, Found, pieces_of, plan
from gatewatch.daemon.cli import main
from gatewatch.daemon.enforcer.rails import PREFIXES, Limits, Rails
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.lab import HOSTS, Lab, unmet, wait_for

RAILS = Rails(management=(ip_network("192.0.2.0/24"),), never_block=(ip_network("203.0.113.70/32"),))

networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(12, 32)).map(lambda p: ip_network(p, strict=False)),
    st.tuples(st.integers(2**125, 2**126), st.integers(38, 128)).map(
        lambda p: ip_network((p[0].to_bytes(16, "big"), p[1]), strict=False)
    ),
)
limits = st.builds(
    Limits, smallest_prefix_ipv4=st.sampled_from([24, 32]), smallest_prefix_ipv6=st.sampled_from([48, 64])
)


@settings(deadline=None)
@given(networks, limits)
def test_a_range_is_split_into_what_can_be_blocked_and_never_widened(network: Any, limits: Limits) -> None:
    pieces = list(pieces_of(network, RAILS._replace(limits=limits)))
    smallest = limits.smallest_prefix_ipv4 if network.version == 4 else limits.smallest_prefix_ipv6
    assert len(pieces) <= 256
    if pieces:
        assert list(collapse_addresses(pieces)) == [network]
        assert {p.prefixlen for p in pieces} <= set(PREFIXES[network.version])
        assert min(p.prefixlen for p in pieces) >= smallest
    else:
        wanted = min(p for p in PREFIXES[network.version] if p >= max(smallest, network.prefixlen))
        assert wanted - network.prefixlen > 8


def found_of(bans: dict[str, int], ignored: list[str]) -> Found:
    found = Found()
    for text, ttl_s in bans.items():
        found.ban(text, ttl_s, "ban")
    for text in ignored:
        found.ignore(text, "list")
    return found


def test_what_is_ignored_is_not_blocked_and_what_surrounds_it_waits_for_the_rails() -> None:
    found = found_of(
        {
            "198.51.100.7": 60,
            "198.51.100.0/24": 60,
            "203.0.113.70": 60,
            "203.0.113.0/24": 60,
            "2001:db8::/60": FOREVER_S,
            "10.0.0.0/8": 60,
        },
        [
            "198.51.100.7",
            "203.0.113.70",
            "0.0.0.0/0",
            "::/0",
            "0.0.0.0/1",
            "127.0.0.1/8",
            "fd00::/8",
            "198.51.100.7/32",
        ],
    )
    wanted = plan(found, RAILS)
    assert [str(i.network) for i in wanted.proposed] == ["fd00::/8", "198.51.100.7/32"]
    assert wanted.covered == 2
    assert wanted.permanent == 1
    assert [a for a, _ in wanted.blocks] == [
        "203.0.113.0/24",
        *map(str, ip_network("2001:db8::/60").subnets(new_prefix=64)),
    ]
    why = {r.value: r.why for r in found.remarks}
    assert why["198.51.100.7"] == why["203.0.113.70"] == "on the ignore list as well"
    assert why["198.51.100.0/24"] == "holds 198.51.100.7 of the ignore list, which the rails do not name yet"
    assert "too wide" in why["10.0.0.0/8"]
    assert {"0.0.0.0/0", "::/0", "0.0.0.0/1"} <= set(why)


@pytest.mark.parametrize("order", [1, -1])
def test_an_address_in_a_range_is_blocked_as_long_as_the_longer_of_both(order: int) -> None:
    bans = {"198.51.100.7": 60, "198.51.100.0/25": 600, "198.51.100.8": 6000}
    blocks = dict(plan(found_of(dict(list(bans.items())[::order]), []), RAILS).blocks)
    assert (blocks["198.51.100.7"], blocks["198.51.100.8"], blocks["198.51.100.9"]) == (600, 6000, 600)


def test_ranges_do_not_become_more_blocks_than_the_rails_allow() -> None:
    found = found_of({f"{i}.0.0.0/16": 60 for i in range(11, 90)}, [])
    wanted = plan(found, RAILS._replace(limits=Limits(most_blocks=1000)))
    assert len(wanted.blocks) == 3 * 256
    assert len(found.remarks) == 79 - 3


@settings(deadline=None)
@given(st.lists(networks, max_size=8), st.lists(networks, max_size=8))
def test_no_block_touches_what_is_ignored(bans: list[Any], ignored: list[Any]) -> None:
    found = found_of({str(n): 60 for n in bans}, [str(n) for n in ignored])
    wanted = plan(found, RAILS)
    for address, _ in wanted.blocks:
        block = ip_network(address)
        assert any(block.subnet_of(n) for n in bans if n.version == block.version)
        covered = [n for n, _ in RAILS.never()]
        mine = [n for n in ignored if not any(n.version == c.version and n.subnet_of(c) for c in covered)]
        assert not any(block.overlaps(n) for n in mine if n.version == block.version)
    for new in wanted.proposed:
        assert new.network in ignored


def test_remarks_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "MOST_REMARKS", 10)
    found = found_of(dict.fromkeys(map(str, range(25)), 60), [])
    assert (len(found.remarks), found.remarks_more) == (10, 15)


RAILS_TEXT = """# ours
management = ["192.0.2.0/24"]  # the office
never_block = []
[limits]
longest_ttl_s = 3600
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rails, decisions of CrowdSec's and a whitelist, and a state folder without an enforcer."""
    monkeypatch.setenv("GATEWATCH_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rails.toml").write_text(RAILS_TEXT)
    (tmp_path / "rails.toml").chmod(0o640)
    decisions = [
        decision("198.51.100.7", "10m"),
        decision("198.51.100.0/25", "96h", "Range"),
        decision("192.0.2.9", "1h"),
        decision("198.51.100.200", "-1m"),
        decision("no\x1b]0;address\x07", "1h"),
    ]
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    (tmp_path / "parsers" / "s02-enrich").mkdir(parents=True)
    white = "whitelist:\n  ip: [203.0.113.7, office.example.org]\n"
    (tmp_path / "parsers" / "s02-enrich" / "mine.yaml").write_text(white)
    return tmp_path


def decision(value: str, duration: str, scope: str = "Ip") -> dict[str, str]:
    return {"value": value, "duration": duration, "scope": scope, "type": "ban"}


WORDS = [
    "config",
    "import",
    "crowdsec",
    "--decisions",
    "decisions.json",
    "--directory",
    ".",
    "--rails",
    "rails.toml",
]


def test_a_dry_run_tells_everything_and_changes_nothing(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--dry-run", "--write-rails", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    refused = said["bans"].pop("refused")
    assert said["bans"] == {
        "imported": 128, "already": 0, "shortened": 128, "found": 3, "permanent": 0, "ended": 1,
    }  # fmt: skip
    assert [(r["address"], r["rail"]) for r in refused] == [("192.0.2.9", "management")]
    assert {r["where"] for r in said["not_taken"]} == {"decisions.json[4]", "parsers/s02-enrich/mine.yaml:2"}
    assert said["never_block"]["proposed"] == [
        {"network": "203.0.113.7/32", "from": "parsers/s02-enrich/mine.yaml:2"}
    ]
    assert said["never_block"]["written"] is False
    assert (files / "rails.toml").read_text() == RAILS_TEXT


def test_people_read_a_summary_without_control_characters(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "bans: 3 in force there, 1 ended; 128 blocks would be taken over" in said
    assert "1 would be refused by rail management" in said
    assert "decisions.json[4]: no\\x1b]0;address\\x07: no address" in said
    assert '+    "203.0.113.7/32",  # from crowdsec: parsers/s02-enrich/mine.yaml:2' in said
    assert "\x1b" not in said


def test_rails_are_written_before_the_enforcer_is_asked(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--write-rails"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("gatewatch: enforcer at ")
    assert said.err.count("\n") == 1
    assert said.out.startswith("wrote rails.toml; `systemctl reload")
    now = files / "rails.toml"
    assert tomllib.loads(now.read_text())["never_block"] == ["203.0.113.7/32"]
    assert now.stat().st_mode & 0o777 == 0o640
    assert main([*WORDS, "--dry-run", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["never_block"]
    assert (again["proposed"], again["covered"], again["diff"]) == ([], 1, "")


@pytest.mark.parametrize(("answer", "changed"), [("y", True), ("n", False)])
def test_on_a_terminal_it_asks_before_it_changes_the_rails(files: Path, answer: str, changed: bool) -> None:
    start = "import sys; from gatewatch.daemon.cli import main; sys.exit(main())"
    said = on_terminal([sys.executable, "-c", start, *WORDS, "--write-rails"], f"{answer}\n")
    assert "203.0.113.7/32" in said
    assert "change rails.toml? [y/N]" in said
    assert ((files / "rails.toml").read_text() != RAILS_TEXT) is changed


def on_terminal(command: list[str], typed: str = "") -> str:
    """What the command says on a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        said = b""
        with contextlib.suppress(OSError):  # the other side was closed
            while data := os.read(ours, 65536):
                said += data
        process.wait(30)
    os.close(ours)
    return said.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["fail2ban", "--database", "none"], 1, "none: No such file or directory"),
        (["fail2ban", "--directory", "none"], 1, "none: no such folder; name fail2ban's configuration"),
        (["crowdsec", "--decisions", "rails.toml"], 1, "rails.toml:1: no JSON"),
        (["crowdsec", "--directory", "none"], 1, "none: no such folder"),
        (["crowdsec", "--allowlists", "decisions.json"], 1, "decisions.json[0]: no allowlist"),
        (["crowdsec", "--decisions", "decisions.json", "--reason", " "], 2, "the reason is empty"),
        (["crowdsec", "--decisions", "decisions.json", "--rails", "none"], 2, "rails none: No such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    files: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "import", words[0], "--rails", "rails.toml", *words[1:]]) == code
    told = capsys.readouterr().err
    assert told.startswith(f"gatewatch: {said}")
    assert told.count("\n") == 1


def test_where_nothing_is_named_its_own_configuration_says_where_the_bans_are(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_fail2ban, "FOLDER", str(files / "f"))
    monkeypatch.setattr(import_fail2ban, "DATABASE", str(files / "default"))
    words = ["config", "import", "fail2ban", "--rails", "rails.toml", "--dry-run", "--json"]
    assert main(words) == 1
    assert "fail2ban was not found on this machine" in capsys.readouterr().err
    (files / "f").mkdir()
    (files / "f" / "jail.conf").write_text("[a]\nenabled = false\n")
    assert main(words) == 0
    why = [r["why"] for r in json.loads(capsys.readouterr().out)["not_taken"]]
    assert why[-1] == "fail2ban's database is not there: no bans are read"
    (files / "f" / "fail2ban.local").write_text(f"[Definition]\ndbfile = {files}/bans\n")
    with contextlib.closing(sqlite3.connect(files / "bans")) as made, made:
        made.execute("CREATE TABLE bips(ip TEXT, jail TEXT, timeofban INTEGER, bantime INTEGER)")
        made.execute("INSERT INTO bips VALUES ('198.51.100.7', 'sshd', 1, -1)")
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["read"][-1] == str(files / "bans")
    assert (said["bans"]["imported"], said["bans"]["permanent"]) == (1, 1)


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    why = unmet() or ("" if shutil.which("fail2ban-server") else "fail2ban is not installed")
    if why:
        pytest.skip(why)
    with Lab(services=False) as lab:
        yield lab


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare) as rig:
        yield rig


class Fail2ban:
    """A real server in the gateway's namespace, with a folder, socket and database of its own and no actions."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / "fail2ban"
        self.database = self.folder / "bans.sqlite3"

    def __enter__(self) -> Fail2ban:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "filter.d").mkdir(parents=True)
        (self.folder / "log").touch()
        (self.folder / "filter.d" / "lab.conf").write_text("[Definition]\nfailregex = ^failed <HOST>$\n")
        ignored = "ignoreip = 127.0.0.1/8 198.51.100.70 10.9.0.7/16 office.example.org"
        jail = f"enabled = true\nfilter = lab\nbackend = polling\nlogpath = {self.folder}/log\naction =\n"
        jails = f"[DEFAULT]\n{ignored}\nbantime = 10m\n[first]\n{jail}[second]\n{jail}bantime = -1\n"
        (self.folder / "jail.conf").write_text(jails)
        (self.folder / "fail2ban.conf").write_text(
            f"[Definition]\nlogtarget = {self.folder}/messages\nsocket = {self.folder}/socket\n"
            f"pidfile = {self.folder}/pid\ndbfile = {self.database}\ndbpurgeage = 1d\n"
        )
        self.process = self.lab.popen_in("gateway", ["fail2ban-server", "-c", self.folder, "-f", "start"])
        wait_for("fail2ban", lambda: self.ask("status", "second").returncode == 0, 30)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self.lab.command_in("gateway", ["fail2ban-client", "-c", self.folder, *words])
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    def ban(self, jail: str, *addresses: str) -> None:
        assert self.ask("set", jail, "banip", *addresses).returncode == 0
        wait_for("the bans", lambda: all(a in self.ask("status", jail).stdout for a in addresses))


@pytest.mark.lab
def test_a_running_fail2ban_is_taken_over(rig: Rig) -> None:
    with Fail2ban(rig.lab) as theirs:
        theirs.ban("first", "198.51.100.7", "198.51.100.8", "2001:db8:5::7", "203.0.113.70")
        theirs.ban("second", "198.51.100.7", HOSTS["balancer"].v4)
        words = ["--database", str(theirs.database), "--directory", str(theirs.folder), "--json"]
        said = run(rig, *words, "--write-rails")
        assert said["read"] == [f"{theirs.folder} (fail2ban-client -d)", str(theirs.database)]
        bans = said["bans"]
        assert (bans["found"], bans["imported"], bans["already"], bans["shortened"]) == (5, 3, 0, 1)
        refused = {r["address"]: r["rail"] for r in bans["refused"]}
        assert refused == {"203.0.113.70": "never_block", HOSTS["balancer"].v4: "proxies"}
        left = {b["address"]: b["ttl_s"] for b in rig.enforcer().blocks()}
        assert set(left) == {"198.51.100.7", "198.51.100.8", "2001:db8:5::7"}
        assert 3000 < left["198.51.100.7"] <= 3600, "a ban without an end lasts as long as the rails allow"
        assert left["198.51.100.8"] <= 600
        assert "198.51.100.8" in rig.nft("list table inet gatewatch")
        entry = next(e for e in rig.journal() if "198.51.100.8" in json.dumps(e))
        assert entry["reason"] == "imported from fail2ban"
        assert "uid 0" in entry["by"]
        assert [r["value"] for r in said["not_taken"]] == ["office.example.org"]

        assert said["never_block"]["written"] is True
        assert tomllib.loads(rig.rails.read_text())["never_block"] == [
            "203.0.113.70/32",
            "10.9.0.0/16",
            "198.51.100.70/32",
        ]
        assert rig.process is not None
        rig.process.send_signal(signal.SIGHUP)
        wait_for("the new rails", lambda: rig.enforcer().check("198.51.100.70")["would_refuse"])

        again = run(rig, *words)
        assert again["bans"]["imported"] + again["bans"]["already"] == 3
        assert len(list(rig.enforcer().blocks())) == 3
        assert again["never_block"]["proposed"] == []


@pytest.mark.lab
def test_a_fail2ban_that_was_stopped_or_killed_is_taken_over_as_well(rig: Rig) -> None:
    with Fail2ban(rig.lab) as theirs:
        theirs.ban("first", "198.51.100.7")
    words = ["--database", str(theirs.database), "--json"]
    assert run(rig, *words)["bans"]["imported"] == 1
    with Fail2ban(rig.lab) as theirs:
        theirs.ban("first", "198.51.100.8")
        theirs.process.kill()
    assert run(rig, *words)["bans"]["imported"] == 1


def run(rig: Rig, *words: str, code: int = 0) -> dict[str, Any]:
    done = rig.run(
        "config",
        "import",
        "fail2ban",
        "--rails",
        str(rig.rails),
        "--state",
        str(rig.state),
        *words,
        limit_s=60,
    )
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.lab
def test_more_than_one_message_holds_is_taken_over_with_what_the_rails_allow(
    rig: Rig, tmp_path: Path
) -> None:
    rig.stop()
    rig.rails.write_text(rig.rails.read_text().replace("most_blocks = 50", "most_blocks = 1400"))
    rig.start()
    decisions = [decision(f"198.{18 + i // 65536}.{i // 256 % 256}.{i % 256}", "30m") for i in range(1500)]
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    done = rig.run(
        "config", "import", "crowdsec", "--decisions", str(tmp_path / "decisions.json"), "--json", "--rails",
        str(rig.rails), "--state", str(rig.state), limit_s=60,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (said["bans"]["imported"], said["bans"]["refused"]) == (1400, [])
    assert {r["why"] for r in said["not_taken"]} == {"more blocks than most_blocks of the rails"}
    assert len(said["not_taken"]) == 100
    assert len(list(rig.enforcer().blocks())) == 1400

    words = ["config", "import", "crowdsec", "--decisions", str(tmp_path / "decisions.json")]
    words += ["--rails", str(rig.rails), "--state", str(rig.state)]
    said = on_terminal(rig.lab.gatewatch_command(words))
    assert "blocks" in said.partition("read: ")[0], "a bar while it lasts"
    assert "bans: 1,500 in force there" in said
