"""The authorisation endpoint as the daemon runs it: the operator blocks a key, the next request is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.supervisor import identity
from lab.lab import Lab, wait_for
from lab.running import Gatewatch, descendants

pytestmark = pytest.mark.lab
LISTEN = ["127.0.0.1:9180", "unix:/run/gatewatch/authz.sock"]


def answer(lab: Lab, *headers: str, endpoint: str = "chat", place: tuple[str, ...] = ()) -> str:
    """Status and reason, such as `403 blocked-key`."""
    said = lab.run_in(
        "gateway",
        ["curl", "-s", "-m", "10", "-D", "-", *place, *(word for header in headers for word in ("-H", header)),
         f"http://127.0.0.1:9180/authz/{endpoint}"],
        check=False,
    ).stdout  # fmt: skip
    lines = said.splitlines()
    reason = next(
        (line.partition(": ")[2] for line in lines if line.lower().startswith("x-gatewatch-reason")), ""
    )
    return f"{lines[0].split()[1]} {reason}" if lines else ""


def endpoint_pid(watch: Gatewatch) -> int:
    assert watch.process is not None
    for pid in descendants(watch.process.pid):
        if b"gatewatch.daemon.authz" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return 0


def test_an_operators_block_of_a_key_refuses_its_next_request(lab: Lab) -> None:
    quiet: dict[str, Any] = {
        "collectors": {"logs": [], "journal": {"enabled": False}, "packets": {"enabled": False}}
    }
    with Gatewatch(lab, authz={"listen": LISTEN}, **quiet) as watch:
        key_file = watch.state / "authz" / "key"
        own = identity("gatewatch-authz", 4)
        assert (key_file.stat().st_uid, key_file.stat().st_mode & 0o777) == (own.uid, 0o400)
        wait_for("an answer", lambda: answer(lab, "X-API-Key: sk-1") == "200 -")
        status = Path(f"/proc/{endpoint_pid(watch)}/status").read_text()
        assert f"Uid:\t{own.uid}\t{own.uid}" in status
        api_key = lab.folder / "api-key"
        api_key.write_text("sk-1\n")
        command = watch.lab.gatewatch_command(
            ["authz", "key-id", "--config", watch.config, "--state", watch.state]
        )
        quoted = " ".join(f"'{word}'" for word in map(str, command))
        key_id = watch.lab.run_in("gateway", ["sh", "-c", f"{quoted} < {api_key}"]).stdout.strip()
        assert key_id.startswith("k-") and len(key_id) == 18

        watch.run("block", "user", f"key:{key_id}", "--ttl", "1h", "--reason", "leaked")
        wait_for("the refusal", lambda: answer(lab, "X-API-Key: sk-1") == "403 blocked-key")
        assert answer(lab, "Authorization: Bearer sk-1") == "403 blocked-key"
        assert answer(lab, "X-API-Key: sk-2") == "200 -"
        assert (
            answer(lab, "X-API-Key: sk-1", place=("--unix-socket", "/run/gatewatch/authz.sock"))
            == "403 blocked-key"
        )
        said = watch.status()["authz"]
        assert said["deny_list"]["known"] and said["answered"]["blocked-key"] >= 3

        before = endpoint_pid(watch)
        os.kill(before, signal.SIGKILL)  # whoever asks meanwhile waits for the next one
        assert answer(lab, "X-API-Key: sk-1") == "403 blocked-key"
        assert endpoint_pid(watch) not in (0, before)

        watch.run("unblock", "user", f"key:{key_id}", "--reason", "renewed")
        wait_for("the way back", lambda: answer(lab, "X-API-Key: sk-1") == "200 -")


def test_where_the_place_cannot_be_had_one_line_says_so_and_nothing_stays_behind(lab: Lab) -> None:
    quiet: dict[str, Any] = {
        "collectors": {"logs": [], "journal": {"enabled": False}, "packets": {"enabled": False}}
    }
    watch = Gatewatch(lab, authz={"listen": ["203.0.113.199:9180"]}, **quiet)
    done = watch.run("run", "--observe", check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gatewatch: ")]
    assert "203.0.113.199:9180" in line
    assert watch.run("blocks", "list", check=False).returncode == 1  # no enforcer was left


def test_a_hangup_signal_lets_the_enforcer_read_the_rails_anew(lab: Lab) -> None:
    quiet: dict[str, Any] = {
        "collectors": {"logs": [], "journal": {"enabled": False}, "packets": {"enabled": False}}
    }
    with Gatewatch(lab, **quiet) as watch:
        assert watch.process is not None
        watch.run("block", "user", "key:k-1", "--reason", "before")
        rails = watch.folder / "rails.toml"
        rails.write_text('never_block_users = ["partner"]\n' + rails.read_text())
        watch.process.send_signal(signal.SIGHUP)

        def refused() -> bool:
            return watch.run("block", "user", "subject:partner", "--reason", "x", check=False).returncode == 1

        wait_for("the new rails", refused)
        assert "the enforcer read" in watch.said()
        assert [block["user"] for block in watch.listing("blocks", "list")][:1] == ["k-1"]
