"""Gatewatch on the lab's gateway: its files, its processes, and what it says and does, as a test sees it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from gatewatch.daemon.supervisor import identity

from .lab import HOSTS, MODEL_PORTS, Lab, Text, json_lines, read, wait_for

RAILS = """\
management = ["{management}/32", "{management6}/128"]
never_block = []
proxies = ["{balancer}/32", "{balancer6}/128"]
operators = ""

[limits]
most_new_per_minute = 6000
"""

ENDPOINT = """
[[endpoint]]
name = "{name}"
criticality = "{criticality}"
fronts = ["*:{front}/tcp"]
backs = ["127.0.0.1:{back}/tcp"]
kill_switch = true
"""

CONFIGURATION: dict[str, Any] = {
    "mode": "enforce",
    "rails": "rails.toml",
    "collectors": {
        "logs": [
            {"path": "/var/log/auth.log", "format": "sshd"},
            {"path": "/var/log/nginx/access.json", "format": "nginx"},
        ],
        "journal": {"enabled": False},
        "packets": {"enabled": True, "interfaces": ["eth0"]},
    },
}


class Gatewatch:
    """`with Gatewatch(lab) as watch:` runs the daemon in enforce mode until the block ends.

    `observe` runs it in observe mode. `configuration` replaces top-level keys of the configuration; `rails` goes
    into the rails file: keys first, then tables.
    """

    def __init__(self, lab: Lab, *, observe: bool = False, rails: str = "", **configuration: Any) -> None:
        self.lab = lab
        self.mode = "--observe" if observe else "--enforce"
        self.configuration = {**copy.deepcopy(CONFIGURATION), **configuration}
        self.folder = lab.folder / "gatewatch"
        self.state = self.folder / "state"
        self.config = self.folder / "gatewatch.yaml"
        self.alerts_file = self.state / "sinks" / "alerts.jsonl"
        self.output = self.folder / "run.out"
        self.process: subprocess.Popen[Any] | None = None
        self.folder.mkdir(exist_ok=True)
        named = {f"{name.replace('-', '')}{end}": address for name, host in HOSTS.items()
                 for end, address in (("", host.v4), ("6", host.v6))}  # fmt: skip
        endpoints = "".join(
            ENDPOINT.format(
                name=name, criticality="critical" if name == "chat" else "normal", front=front, back=back
            )
            for name, (front, back) in MODEL_PORTS.items()
        )
        keys, *tables = re.split(r"^(?=\[)", rails, maxsplit=1, flags=re.MULTILINE)
        text = keys + "\n" + RAILS.format(**named) + "".join(tables) + endpoints
        (self.folder / "rails.toml").write_text(text)
        self.config.write_text(yaml.safe_dump(self.configuration, sort_keys=False))

    def __enter__(self) -> Gatewatch:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"gatewatch said:\n{self.said()[-4000:]}")
        self.stop()

    def start(self) -> None:
        """Start the daemon and wait until it watches."""
        command = self.lab.gatewatch_command(
            ["run", "--config", self.config, self.mode, "--state", self.state]
        )
        with open(self.output, "ab") as said:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        wait_for("the daemon's start", self.watches, limit_s=30, step_s=0.1)

    def stop(self) -> int:
        """End the daemon as a service manager would; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def said(self) -> str:
        return read(self.output)

    def run(self, *arguments: str | Path, check: bool = True) -> Text:
        """A command of `gatewatch` on the gateway, with this configuration and state."""
        return self.lab.gatewatch([*arguments, "--config", self.config, "--state", self.state], check=check)

    def listing(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command lists with `--json`."""
        return [json.loads(line) for line in self.run(*arguments, "--json").stdout.splitlines()]

    def status(self) -> dict[str, Any]:
        """What `gatewatch status` says; empty where it cannot say anything."""
        said = self.run("status", "--json", check=False).stdout
        return dict(json.loads(said)) if said.startswith("{") else {}

    def watches(self) -> bool:
        """Whether every process runs and answers."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended: {self.said()}")
        status = self.status()
        wants_packets = self.configuration["collectors"]["packets"]["enabled"]
        return (
            status.get("analyser") == "running"
            and status.get("enforcer") == "running"
            and (not wants_packets or status["health"]["packets"] is not None)
        )

    def processes(self) -> dict[str, int]:
        """The daemon's processes by name: the supervisor, and its children by whom they run as."""
        assert self.process is not None
        accounts = {
            identity("gatewatch", 0).uid: "analyser",
            identity("gatewatch-packets", 1).uid: "packets",
            identity("gatewatch-sinks", 2).uid: "shipper",
            0: "enforcer",
        }
        found = {"supervisor": self.process.pid}
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                uid = next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))
                if uid in accounts:
                    found[accounts[uid]] = pid
        return found

    def kill(self, *names: str) -> None:
        """Kill (SIGKILL) the named processes, the supervisor first, and wait for their end."""
        processes = self.processes()
        pids = [processes[name] for name in sorted(names, key=lambda name: name != "supervisor")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        if "supervisor" in names and self.process is not None:
            self.process.wait()
        wait_for(f"the end of {', '.join(names)}", lambda: not any(alive(pid) for pid in pids))

    def alerts(self) -> list[dict[str, Any]]:
        """Every line that the JSON-lines sink wrote."""
        return json_lines(self.alerts_file)

    def incidents(self, kind: str) -> list[dict[str, Any]]:
        """The newest revision of each incident of a kind, as the sink told them."""
        newest = {a["id"]: a for a in self.alerts() if a.get("event", "incident") == "incident"}
        return [a for a in newest.values() if a["kind"] == kind]

    def in_kernel(self, address: str) -> bool:
        """Whether an nftables set of the gateway holds the address, alone or in a prefix's first address."""
        return address in self.elements()

    def elements(self) -> set[str]:
        """The addresses and networks in the sets of blocks of the gateway's kernel."""
        listed = json.loads(self.lab.run_in("gateway", ["nft", "-j", "list", "sets"]).stdout)
        found: set[str] = set()
        for item in listed["nftables"]:
            if not item.get("set", {}).get("name", "").startswith("block"):
                continue
            for element in item["set"].get("elem", []):
                value = element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element
                if isinstance(value, str):
                    found.add(value)
        return found

    def wait_for_block(self, address: str, limit_s: float = 20.0) -> None:
        wait_for(f"the block of {address} in the kernel", lambda: self.in_kernel(address), limit_s, 0.05)

    def wait_for_incident(self, kind: str, source: str = "", limit_s: float = 20.0) -> dict[str, Any]:
        """The first incident of a kind (and about a source) that the sink was told."""

        def found() -> dict[str, Any] | None:
            return next((i for i in self.incidents(kind) if not source or source in i["sources"]), None)

        incident = wait_for(f"an incident {kind} {source}", found, limit_s, 0.05)
        assert incident is not None
        return incident

    def kill_switch_command(self, what: str, *arguments: str) -> list[str]:
        return self.lab.gatewatch_command(["kill-switch", what, *arguments, "--state", self.state])

    def kill_switch(self, what: str, *arguments: str, check: bool = True) -> Text:
        """`gatewatch kill-switch` on the gateway, to its end."""
        return self.lab.gatewatch(["kill-switch", what, *arguments, "--state", self.state], check=check)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """The children of a process and theirs, from /proc."""
    found = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(word) for word in task.read_text().split()]
                found += children
                waiting += children
    return found
