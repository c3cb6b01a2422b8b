"""The lab: a gateway with real services, and the hosts around it, in network namespaces of their own.

```
attacker ──┐                       ┌── management   192.0.2.130   2001:db8:0:2::130
client   ──┼── router ── gateway ──┤
balancer ──┤                       └── (sshd :22, nginx :80 and :8081, model servers on loopback)
outside  ──┘   192.0.2.2   2001:db8:0:1::2
```

All addresses are for documentation (RFC 5737, RFC 3849), and no namespace has a way out, so nothing that is done
here can reach anybody. The gateway has its own accounts, /run, /dev/log and /var/log by a mount namespace.
It must never change the machine's own namespaces, accounts or firewall.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from . import janitor
from .hosts import HOSTS, missing, program, unmet
from .services import ACCOUNTS, KEYS, MODEL_PORTS, MOUNTS, OWN_ETC, PASSWORDS, write_accounts, write_services

REPOSITORY = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x4000_0000  # linux/sched.h
T = TypeVar("T")
Text = subprocess.CompletedProcess[str]


_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def wait_for(what: str, condition: Callable[[], T], limit_s: float = 15.0, step_s: float = 0.01) -> T:
    """The first true answer of `condition`. Raises TimeoutError, naming `what`, after `limit_s`."""
    until = time.monotonic() + limit_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(step_s)


class Lab:
    """`with Lab() as lab:` builds it and takes it apart, also when the test crashes or is killed.

    `services` False leaves the gateway bare. `own_etc` gives it an /etc to write in, and its accounts user ids that no
    other lab has. `folder` is the lab's own, `log` the gateway's /var/log.
    """

    def __init__(self, *, services: bool = True, own_etc: bool = False) -> None:
        begun = janitor.started(os.getpid())
        self.prefix = f"{janitor.MARK}-{os.getpid()}-{begun}-{next(_numbers)}"
        self.services = services
        self.own_etc = own_etc
        self.folder = Path()
        self.log = Path()
        self._holder: subprocess.Popen[str] | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lab:
        for prefix in janitor.stale():
            janitor.remove(prefix)
        self._janitor = subprocess.Popen(
            [sys.executable, janitor.__file__, self.prefix],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab and remove its namespaces and its folder."""
        if self._janitor is None:
            return
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait()
        self._janitor = None
        for process in [*self._processes, *([self._holder] if self._holder else [])]:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def namespace(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def _build(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=self.prefix + "-"))
        self.folder.chmod(0o755)
        self.log = self.folder / "log"
        (self.log / "nginx").mkdir(parents=True)
        self._network()
        write_accounts(self.folder, uids=-3 * (os.getpid() % 10_000 + 1) if self.own_etc else 0)
        write_services(self.folder, HOSTS["gateway"].v4)
        self._hold()
        if self.services:
            self._serve()

    def _network(self) -> None:
        router = self.namespace("router")
        for name in ("router", *HOSTS):
            subprocess.run(["ip", "netns", "add", self.namespace(name)], check=True)
            with self.inside(name):
                # Without it a router solicits no neighbour until its own link-local address has been probed for.
                Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        lines = ["link set lo up"]
        for name, host in HOSTS.items():
            lines += [
                f"link add to-{name} type veth peer name eth0 netns {self.namespace(name)}",
                f"addr add {host.v4_router}/{host.v4_length} dev to-{name}",
                f"addr add {host.v6_router}/64 dev to-{name} nodad",
                f"link set to-{name} up",
            ]
        self._ip(router, lines)
        with self.inside("router"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for name, host in HOSTS.items():
            lines = [
                "link set lo up",
                f"addr add {host.v4}/{host.v4_length} dev eth0",
                *(f"addr add {more}/{host.v4_length} dev eth0" for more in host.more),
                f"addr add {host.v6}/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via {host.v4_router}",
                f"-6 route add default via {host.v6_router}",
            ]
            self._ip(self.namespace(name), lines)
        for name in HOSTS.keys() - {"gateway"}:
            with self.inside(name):
                for address in (HOSTS["gateway"].v4, HOSTS["gateway"].v6):
                    # The kernel takes up to a second to notice a carrier, and longer to find a neighbour.
                    wait_for(f"the way from {name} to {address}", partial(_refuses, address))

    @staticmethod
    def _ip(namespace: str, lines: Sequence[str]) -> None:
        for family in ("", "-6 "):
            chosen = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") == bool(family)]
            if chosen:
                command = ["ip", *family.split(), "-n", namespace, "-batch", "-"]
                subprocess.run(command, input="\n".join(chosen), text=True, check=True)

    def _hold(self) -> None:
        """The process that keeps the gateway's mount namespace."""
        command = [
            "nsenter",
            f"--net=/run/netns/{self.namespace('gateway')}",
            "unshare",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "sh",
            "-c",
            ((OWN_ETC if self.own_etc else "") + MOUNTS).format(folder=self.folder),
        ]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError("the gateway's mount namespace could not be made")

    def _serve(self) -> None:
        log = self.log
        config = self.folder / "sshd_config"
        # OpenSSH 9.8 punishes sources by itself; here that is Gatewatch's part. Older ones do not know the word.
        with open(config, "a") as file:
            file.write("PerSourcePenalties no\n")
        sshd = program("sshd") or "sshd"
        if self.run_in("gateway", [sshd, "-t", "-f", str(config)], check=False).returncode != 0:
            config.write_text(config.read_text().replace("PerSourcePenalties no\n", ""))
        self.popen_in(
            "gateway", ["rsyslogd", "-n", "-i", "/run/rsyslogd.pid", "-f", f"{self.folder}/rsyslog.conf"]
        )
        wait_for("rsyslogd's /dev/log", lambda: self._exists_inside("/dev/log"))
        self.popen_in("gateway", [sshd, "-D", "-f", str(config)])
        server = str(Path(__file__).with_name("model_server.py"))
        for _, back in MODEL_PORTS.values():
            self.popen_in("gateway", [sys.executable, server, "127.0.0.1", str(back), *KEYS.values()])
        self.popen_in("gateway", ["nginx", "-c", f"{self.folder}/nginx.conf"])
        with self.inside("gateway"):
            for port in (22, *itertools.chain(*MODEL_PORTS.values())):
                wait_for(f"port {port} of the gateway", partial(answers, "127.0.0.1", port))
        wait_for("the start of sshd in auth.log", lambda: "Server listening" in read(log / "auth.log"))

    def _exists_inside(self, path: str) -> bool:
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{path}").exists()

    def pid_of(self, name: str) -> int:
        """The process id of the program that the lab started under this name; 0 where there is none."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process.pid}/comm").read_text().strip() == name:
                    return process.pid
        return 0

    def roam(self, count: int) -> list[str]:
        """So many further addresses of the attacker, each in a network of its own (RFC 2544's, which nobody owns)."""
        found = [f"198.18.{number}.9" for number in range(count)]
        self._ip(self.namespace("attacker"), [f"addr add {address}/32 dev eth0" for address in found])
        route = f"route add 198.18.0.0/16 via {HOSTS['attacker'].v4}"
        self._ip(self.namespace("router"), [route])
        return found

    def start_balancer(self) -> None:
        """A second nginx, in `balancer`, that passes requests on to the gateway and appends X-Forwarded-For."""
        self.popen_in("balancer", ["nginx", "-c", f"{self.folder}/balancer.conf"])
        with self.inside("balancer"):
            wait_for("the balancer", lambda: answers("127.0.0.1", 80))

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread, and every socket that it makes, in the network namespace of `host` (setns(2))."""
        there = os.open(f"/run/netns/{self.namespace(host)}", os.O_RDONLY)
        here = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            _setns(there)
            try:
                yield
            finally:
                _setns(here)
        finally:
            os.close(there)
            os.close(here)

    def command_in(self, host: str, command: Sequence[str | Path]) -> list[str]:
        """`command` wrapped so that it runs on `host`; on the gateway with its accounts, /run and /var/log."""
        words = [str(word) for word in command]
        if host != "gateway":
            return ["nsenter", f"--net=/run/netns/{self.namespace(host)}", *words]
        assert self._holder is not None
        return ["nsenter", "-t", str(self._holder.pid), "--mount", "--uts", "--net", *words]

    def run_in(
        self,
        host: str,
        command: Sequence[str | Path],
        *,
        check: bool = True,
        limit_s: float = 60.0,
        **options: Any,
    ) -> Text:
        """Run to the end, with output as text. Raises CalledProcessError where `check`, TimeoutExpired."""
        wrapped = self.command_in(host, command)
        options = {
            "capture_output": True,
            "stdin": None if "input" in options else subprocess.DEVNULL,
            **options,
        }
        return subprocess.run(wrapped, text=True, check=check, timeout=limit_s, **options)

    def popen_in(self, host: str, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start and go on; what it says lands in `folder`/NAME.out unless `stdout` is given. Ends with the lab."""
        wrapped = self.command_in(host, command)
        name = Path(str(command[0])).name
        with open(self.folder / f"{name}.out", "ab") as said:
            options = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, **options}
            process = subprocess.Popen(wrapped, start_new_session=True, **options)
        self._processes.append(process)
        return process

    def ssh_command(
        self, address: str, user: str, *words: str, key: Path | None = None, tries: int = 1
    ) -> list[str]:
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=5",
            f"NumberOfPasswordPrompts={tries}",
            f"PreferredAuthentications={'publickey' if key else 'password'}",
        ]
        named = ["-i", str(key)] if key else []
        settings = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "/dev/null", *settings, *named, f"{user}@{address}", *words]

    def ssh_typed(
        self, user: str, passwords: Sequence[str], *words: str, address: str = "", source: str = ""
    ) -> dict[str, Any]:
        """`command` and `env` of one ssh connection in which the passwords are typed one after the other.

        `source` is which of the host's addresses it comes from.
        """
        typed = Path(tempfile.mkdtemp(dir=self.folder))
        left, ask = typed / "left", typed / "ask"
        left.write_text("".join(f"{password}\n" for password in passwords))
        ask.write_text(f"#!/bin/sh\nhead -n 1 {left}\nsed -i 1d {left}\n")
        ask.chmod(0o700)
        words = words or ("true",)
        command = self.ssh_command(address or HOSTS["gateway"].v4, user, *words, tries=len(passwords))
        if source:
            command[1:1] = ["-b", source]
        environment = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":"}
        return {"command": command, "env": environment}

    def ssh(self, host: str, user: str, passwords: Sequence[str], *words: str, **where: str) -> Text:
        """`ssh_typed` to its end; does not raise on refusal."""
        return self.run_in(host, **self.ssh_typed(user, passwords, *words, **where), check=False, limit_s=30)

    def fail(self, source: str, count: int, user: str = "root", address: str = "") -> None:
        """So many wrong passwords (at most five) in one ssh connection from one of the attacker's addresses.

        A client that is dropped meanwhile waits for ever; it is ended after some seconds.
        """
        assert 0 < count <= 5, "sshd ends a connection at the sixth"
        typed = self.ssh_typed(user, [f"wrong-{n}" for n in range(count)], address=address, source=source)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said = self.run_in("attacker", **typed, check=False, limit_s=10)
            assert said.returncode != 0

    def management_session(self) -> Session:
        """A long ssh session from the management host, opened with a key."""
        key = self.folder / "operator_ed25519"
        command = self.ssh_command(HOSTS["gateway"].v4, "operator", "cat", key=key)
        process = self.popen_in(
            "management", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        session = Session(process)
        session.say("hello")
        return session

    def gatewatch_command(self, arguments: Sequence[str | Path]) -> list[str]:
        """Gatewatch's command line for the gateway, run by the interpreter that runs the lab."""
        script = Path(sys.executable).with_name("gatewatch")
        start = "import sys; from gatewatch.daemon.cli import main; sys.exit(main())"
        words = [str(script)] if script.exists() else [sys.executable, "-c", start]
        return self.command_in("gateway", [*words, *arguments])

    def gatewatch(
        self, arguments: Sequence[str | Path], *, check: bool = True, limit_s: float = 30.0
    ) -> Text:
        """Gatewatch's command line on the gateway, to its end. Raises RuntimeError with what it said."""
        command = self.gatewatch_command(arguments)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, stdin=subprocess.DEVNULL
        )
        if check and done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise RuntimeError(f"gatewatch {' '.join(map(str, arguments))}: exit {done.returncode}: {said}")
        return done


class Session:
    """A running `ssh … cat`: what is said to it comes back as long as the connection lives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def say(self, word: str, limit_s: float = 10.0) -> None:
        """Raises AssertionError where the word does not come back."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        self.hear(word, limit_s)

    def hear(self, word: str, limit_s: float = 10.0) -> None:
        """Raises AssertionError where the next line that the session says is another one, or none."""
        assert self.process.stdout is not None
        said = self.process.stdout
        heard: list[str] = []
        listener = threading.Thread(target=lambda: heard.append(said.readline()), daemon=True)
        listener.start()
        listener.join(limit_s)
        assert heard == [word + "\n"], f"the session said {heard}, not {word!r}"


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def answers(address: str, port: int, limit_s: float = 1.0, source: str = "") -> bool:
    """Whether a TCP connection from this thread's namespace (and from `source`) is taken."""
    try:
        with socket.create_connection((address, port), limit_s, (source, 0) if source else None):
            return True
    except OSError:
        return False


def _refuses(address: str) -> bool:
    """Whether the machine at `address` is heard: nothing serves the discard port."""
    try:
        socket.create_connection((address, 9), 0.2).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def read(path: Path) -> str:
    """The text of a file, `""` where it is not there yet."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file."""
    text = read(path)
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


__all__ = [
    "ACCOUNTS",
    "HOSTS",
    "KEYS",
    "MODEL_PORTS",
    "PASSWORDS",
    "Lab",
    "Session",
    "answers",
    "program",
    "missing",
    "unmet",
    "wait_for",
]
