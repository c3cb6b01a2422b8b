"""An enforcer in the gateway's namespace of a bare lab, the command beside it, and connections to try it with."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gatewatch.daemon.enforcer.client import Enforcer, UnreachableError
from lab.lab import HOSTS, Lab, wait_for

GATEWAY = HOSTS["gateway"]
ANALYSER_UID = 61_234
OPERATORS_GID = 0  # the group root exists everywhere
FRONT, BACK, OTHER = 8443, 8000, 8500
SILENCE_S = 0.7  # how long nothing has to come, where nothing may

RAILS = f"""
management = ["{HOSTS["management"].v4}/32"]
never_block = ["203.0.113.70/32"]
proxies = ["{HOSTS["balancer"].v4}/32"]
operators = "root"
[limits]
most_blocks = 50
most_new_per_minute = 20
longest_ttl_s = 3600
[[endpoint]]
name = "models"
criticality = "critical"
fronts = ["*:{FRONT}/tcp", "*:{FRONT}/udp"]
backs = ["127.0.0.1:{BACK}/tcp"]
[[endpoint]]
name = "automatic"
fronts = ["{GATEWAY.v4}:8600/tcp"]
kill_without_person = true
[[endpoint]]
name = "spared"
fronts = ["*:8700/tcp"]
kill_switch = false
[[endpoint]]
name = "door"
fronts = ["*:22/tcp"]
"""


class Rig:
    """`with Rig(lab) as rig:` starts an enforcer with a state folder of its own; the kernel is clean before."""

    def __init__(self, lab: Lab, rails: str = RAILS) -> None:
        self.lab = lab
        self.state = lab.folder / "enforcer-state"
        self.rails = lab.folder / "rails.toml"
        self._rails = rails
        self.output = lab.folder / f"{Path(sys.executable).name}.out"
        self.process: subprocess.Popen[bytes] | None = None
        self.denied_gid = 0

    def __enter__(self) -> Rig:
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir()
        self.rails.write_text(self._rails)
        self.nft("flush ruleset")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.nft("flush ruleset")

    def start(self, *before: str) -> None:
        """`before`: a program that starts the enforcer, and its options."""
        self.launch(*before)
        wait_for("the enforcer", self._answers)

    def launch(self, *before: str) -> None:
        """Start it and do not wait until it answers."""
        words = ["--state", self.state, "--rails", self.rails, "--analyser-uid", str(ANALYSER_UID)]
        words += ["--denied-gid", str(self.denied_gid)]
        self.process = self.lab.popen_in(
            "gateway", [*before, sys.executable, "-m", "gatewatch.daemon.enforcer", *words]
        )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        try:
            return bool(self.enforcer().status())
        except UnreachableError:
            return False

    def enforcer(self) -> Enforcer:
        return Enforcer(self.state / "run" / "enforcer.sock")

    def nft(self, command: str) -> str:
        return self.lab.run_in("gateway", ["nft", command]).stdout

    def nft_file(self, path: Path) -> None:
        self.lab.run_in("gateway", ["nft", "-f", path])

    def command(self, *words: str, limit_s: float = 30.0) -> tuple[int, dict[str, Any]]:
        """`gatewatch kill-switch WORDS --json` on the gateway: exit code and what it printed."""
        done = self.run("kill-switch", *words, "--state", str(self.state), "--json", limit_s=limit_s)
        return done.returncode, json.loads(done.stdout or json.dumps({"stderr": done.stderr}))

    def run(self, *words: str, limit_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        return self.lab.gatewatch(words, check=False, limit_s=limit_s)

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "enforcer" / "journal").read_text().splitlines()]

    def ask_as(self, uid: int, *messages: object, groups: Sequence[int] = ()) -> list[dict[str, Any]]:
        """What another user is answered, message by message; `bytes` go as they are."""
        path = str(self.state / "run" / "enforcer.sock")
        said = [m.hex() if isinstance(m, bytes) else json.dumps(m).encode().hex() for m in messages]
        who = [str(uid), ",".join(map(str, groups))]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _ASK, *who, path],
            input="\n".join(said).encode(),
            capture_output=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    @contextlib.contextmanager
    def serving(self, port: int, address: str = "::") -> Iterator[None]:
        """A TCP server on the gateway that streams to whoever connects, without end."""
        with self.lab.inside("gateway"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, port), family=family, dualstack_ipv6=address == "::")
        stop = threading.Event()
        thread = threading.Thread(target=_serve, args=(listener, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            listener.close()

    def connect(self, port: int, source: str = HOSTS["client"].v4, limit_s: float = 5.0) -> socket.socket:
        """A connection to the gateway from one of the lab's addresses. Raises OSError where it is not taken."""
        host = next(n for n, h in HOSTS.items() if source in (h.v4, h.v6, *h.more))
        with self.lab.inside(host):
            address = GATEWAY.v6 if ":" in source else GATEWAY.v4
            return socket.create_connection((address, port), timeout=limit_s, source_address=(source, 0))

    def reaches(self, port: int, source: str = HOSTS["client"].v4, limit_s: float = 5.0) -> bool:
        """Whether data comes from there; see `unreachable` for the opposite, which cannot wait as long."""
        try:
            with self.connect(port, source, limit_s) as connection:
                return bool(connection.recv(1))
        except OSError:
            return False

    def unreachable(self, port: int, source: str = HOSTS["client"].v4) -> bool:
        """Whether nothing comes from there, for some time."""
        return not self.reaches(port, source, SILENCE_S)


def stopped(connection: socket.socket) -> bool:
    """Whether nothing comes any more, for some time."""
    return not flows(connection, SILENCE_S)


def flows(connection: socket.socket, limit_s: float = 5.0) -> bool:
    """Whether data still comes, once what had arrived before is read."""
    try:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while connection.recv(1 << 20):
                pass
        connection.settimeout(limit_s)
        return bool(connection.recv(1))
    except OSError:
        return False


def _serve(listener: socket.socket, stop: threading.Event) -> None:
    listener.settimeout(0.02)
    clients: list[socket.socket] = []
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            client, _ = listener.accept()
            client.setblocking(False)
            clients.append(client)
        for client in list(clients):
            try:
                client.send(b"x" * 512)
            except BlockingIOError:
                continue
            except OSError:
                clients.remove(client)
                client.close()
    for client in clients:
        client.close()


_ASK = """
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[2].split(",") if group])
os.setresgid(65534, 65534, 65534)
os.setresuid(*[int(sys.argv[1])] * 3)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(10)
s.connect(sys.argv[3])
for message in sys.stdin:
    try:
        s.send(bytes.fromhex(message))
    except BrokenPipeError:
        pass
    try:
        answer = s.recv(65536)
    except ConnectionResetError:
        answer = s.recv(65536)
    print(answer.decode(), flush=True)
"""
