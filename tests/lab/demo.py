"""`make demo`: what Gatewatch does, shown on real services within a minute, and nothing left behind.

It builds the lab, runs Gatewatch in enforce mode, lets one address guess passwords at a random pace and another
scan ports, shows each incident and block as it happens, and pulls the kill switch on a model's running answer.
Nothing outside the lab's own network namespaces is touched.
"""

from __future__ import annotations

import random
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.lab import HOSTS, PASSWORDS, Lab, answers, unmet, wait_for
from lab.running import Gatewatch
from lab.stream import Stream

GATEWAY = HOSTS["gateway"].v4
GUESSER = HOSTS["attacker"].v4
SCANNER = HOSTS["attacker"].more[0]
COMMON = [
    "123456",
    "password",
    "qwerty",
    "letmein",
    "dragon",
    "monkey",
    "iloveyou",
    "admin",
    "welcome",
    "sunshine",
]
USERS = ("root", "admin", "alice", "ubuntu", "postgres")
COLOURS = {"attack": "33", "incident": "31;1", "block": "35;1", "proof": "32", "kill": "31;1", "lab": "2"}
REASON = "demonstration"
Say = Callable[[str, str], None]


def speaker() -> Say:
    begun = time.monotonic()
    coloured = sys.stdout.isatty()
    lock = threading.Lock()

    def say(what: str, text: str) -> None:
        label = f"{what:<9}"
        if coloured:
            label = f"\x1b[{COLOURS[what]}m{label}\x1b[0m"
        with lock:
            print(f"{time.monotonic() - begun:5.1f} s  {label} {text}", flush=True)

    return say


class Reporter:
    """Shows what the JSON-lines sink is told, as it is told."""

    def __init__(self, watch: Gatewatch, say: Say) -> None:
        self._watch = watch
        self._say = say
        self._shown = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(0.05):
            self._show()
        self._show()

    def _show(self) -> None:
        alerts = self._watch.alerts()
        for alert in alerts[self._shown :]:
            if alert.get("event") == "incident":
                self._incident(alert)
            elif (
                alert.get("event") == "action"
                and alert["state"] == "done"
                and alert["action"] == "block_source"
            ):
                ttl = f"{alert['ttl_s'] / 60:g} minutes" if alert["ttl_s"] else "good"
                self._say(
                    "block", f"{alert['target']} is dropped in the kernel for {ttl} ({alert['playbook']})"
                )
        self._shown = len(alerts)

    def _incident(self, alert: dict[str, Any]) -> None:
        grown = f", revision {alert['revision']}" if alert["revision"] > 1 else ""
        why = alert["findings"][-1]
        techniques = ", ".join(alert["techniques"])
        self._say("incident", f"{alert['priority'].upper()} {alert['title']} [{techniques}]{grown}")
        if not grown and why["threshold"]:
            self._say("incident", f"  because: {why['threshold']}")


def guess(lab: Lab, watch: Gatewatch, say: Say) -> None:
    """Wrong passwords at a random pace, until the gateway no longer answers; at most forty connections."""
    say("attack", f"{GUESSER} guesses passwords over ssh at a random pace")
    tries = 0
    for _ in range(40):
        passwords = random.sample(COMMON, 3)
        process = lab.popen_in("attacker", **lab.ssh_typed(random.choice(USERS), passwords))
        until = time.monotonic() + 4
        while process.poll() is None and time.monotonic() < until and not watch.in_kernel(GUESSER):
            time.sleep(0.02)
        tries += 3
        if watch.in_kernel(GUESSER):
            process.kill()
            break
        time.sleep(random.uniform(0.05, 0.5))
    with lab.inside("attacker"):
        shut = not answers(GATEWAY, 22, 1.0)
    say(
        "proof",
        f"after about {tries} guesses {GUESSER} {'gets no answer any more' if shut else 'STILL CONNECTS'}",
    )


def scan(lab: Lab, watch: Gatewatch, say: Say) -> None:
    """A TCP connect scan of some hundred ports, from a second address."""
    say("attack", f"{SCANNER} scans ports of the gateway")
    with selectors.DefaultSelector() as waiting, lab.inside("attacker"):
        for port in random.sample(range(1, 1024), 400):
            probe = socket.socket()
            probe.setblocking(False)
            probe.bind((SCANNER, 0))
            probe.connect_ex((GATEWAY, port))
            waiting.register(probe, selectors.EVENT_WRITE)
            time.sleep(0.002)
        for key in list(waiting.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    wait_for("the scan's incident", lambda: watch.incidents("port_scan"))


def innocent(lab: Lab, say: Say) -> None:
    passwords = ["corect-horse-battery", "correct-horse-batery", PASSWORDS["alice"]]
    said = lab.ssh("client", "alice", passwords, "hostname")
    good = said.returncode == 0
    outcome = "logs in and is not blocked" if good else "IS SHUT OUT"
    say("proof", f"alice at {HOSTS['client'].v4} mistypes twice, then {outcome}")


def pull(lab: Lab, watch: Gatewatch, say: Say) -> None:
    session = lab.management_session()
    with Stream(lab) as stream:
        wait_for("the stream", stream.flows)
        say(
            "kill",
            f"the model streams to {HOSTS['client'].v4}: {stream.bytes:,} bytes so far; kill switch: engage",
        )
        begun = time.monotonic_ns()
        watch.kill_switch("engage", "--reason", REASON)
        took = (time.monotonic_ns() - begun) / 1e6
        wait_for("the stream's end", lambda: stream.quiet_for_s() > 0.5, 5)
        last = (stream.last_ns - begun) / 1e6
    with lab.inside("client"):
        shut = not answers(GATEWAY, 80, 0.5)
    session.say("still here")
    say("proof", f"last byte {last:.0f} ms after the command's start, the command took {took:.0f} ms")
    say(
        "proof",
        f"new connections are {'refused' if shut else 'STILL TAKEN'}; ssh from the management host goes on",
    )
    watch.kill_switch("release", "--reason", REASON)
    with Stream(lab) as stream:
        wait_for("the stream after the release", stream.flows)
        say("kill", f"kill switch: released; the model streams again, {stream.bytes:,} bytes")


def main() -> int:
    why = unmet()
    if why:
        print(f"make demo {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, interrupted)
    say = speaker()
    try:
        with Lab() as lab:
            say("lab", f"gateway {GATEWAY} with sshd, nginx and a model server; five hosts around it")
            with Gatewatch(lab) as watch, Reporter(watch, say):
                say("lab", "Gatewatch runs in enforce mode")
                guess(lab, watch, say)
                innocent(lab, say)
                scan(lab, watch, say)
                pull(lab, watch, say)
        say("lab", "everything is removed again")
    except KeyboardInterrupt:
        print("interrupted; the lab is removed", file=sys.stderr)
        return 130
    except (TimeoutError, RuntimeError, OSError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", []):
            print(note, file=sys.stderr)
        return 1
    return 0


def interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
