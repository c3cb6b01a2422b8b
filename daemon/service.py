"""Starts and joins the processes where systemd does not: `gatewatch run`.

It looks at what this machine has and what this user may do, says in one line each what is off and how to turn it
on, and goes on with the rest. Everything that it writes lies in one state folder.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..playbooks.loader import load_playbooks
from ..playbooks.schema import Playbook
from . import sandbox
from .analyser import run_analyser
from .assembly import authz_settings, load_rails
from .authz.keys import make_secret
from .authz.listening import listen as listen_at
from .cli.output import printable
from .collectors.worker import WorkerOptions, run_worker
from .enforcer.kernel.host import own_addresses
from .enforcer.rails import Rails
from .errors import ConfigError, GatewatchError
from .events import NS_PER_S, rfc3339
from .parts import LogSource, Parts
from .sinks import jsonl  # noqa: F401 - the shipper has no right to read our files once it runs
from .sinks.hook_files import check_files
from .sinks.shipper import run_shipper
from .sshd_settings import SshdSettings, sshd_settings
from .supervisor import (
    Identity,
    Process,
    Supervisor,
    fork,
    identity,
    listen,
    lock,
    make_folder,
    may_write,
    notify_systemd,
    start_accounts_helper,
    start_authz,
    start_cut_helper,
    start_enforcer,
    start_exec_helper,
    with_group,
)

AUTH_LOGS = ("/var/log/auth.log", "/var/log/secure")
ACCESS_LOGS = ("/var/log/nginx/access.log",)
LOG_GROUPS = ("adm", "systemd-journal")
EXEC_USER = "gatewatch-exec"
ENFORCER_PATIENCE_S = 5.0


def say(text: str) -> None:
    """One line for whoever watches, with the time; nothing from a log can do harm in a terminal."""
    second, rest = divmod(time.time_ns(), NS_PER_S)
    moment = f"{rfc3339(second * NS_PER_S)[:-1]}.{rest // 1_000_000:03d}Z"
    print(f"{moment} {printable(text)}", flush=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs on this machine with this configuration and these privileges."""

    logs: tuple[LogSource, ...]
    journal: bool
    interfaces: tuple[str, ...]
    enforcer: bool
    rails: Rails | None
    playbooks: tuple[Playbook, ...]
    local: tuple[str, ...]
    sshd: SshdSettings


def plan(config: Config, mode: str, tell: Callable[[str], None]) -> Plan:
    """What can run; tells in one line what cannot, why, and how to turn it on.

    Raises ConfigError where enforcing is asked for and cannot be had.
    """
    root = os.geteuid() == 0
    rails = load_rails(config)
    if mode == "enforce":
        _may_enforce(root, rails, config)
    logs = _logs(config, tell)
    journal = _journal(config, logs, tell)
    interfaces = _interfaces(config, root, tell)
    enforcer = root and rails is not None
    if not root:
        tell("response is off: blocks and the kill switch need root; start as root to have them")
    elif rails is None:
        tell(f"response is off: no rails file {config.rails}; `gatewatch config init` writes one")
    for name, hook in config.hooks.items():
        check_files(name, hook.model_dump())
    playbooks = tuple(load_playbooks(config.playbooks.directories, shipped=config.playbooks.shipped))
    return Plan(logs, journal, interfaces, enforcer, rails, playbooks, _local(config), sshd_settings(config))


def _may_enforce(root: bool, rails: Rails | None, config: Config) -> None:
    if not root:
        raise ConfigError("mode enforce needs root", remedy="start as root, or with --observe")
    if rails is None:
        raise ConfigError(
            f"mode enforce needs the rails file {config.rails}", remedy="`gatewatch config init` writes one"
        )
    if not rails.management:
        raise ConfigError(
            f"{rails.path}: management: is empty, and enforcing could lock you out",
            remedy="name the networks from which you manage this machine",
        )


def _logs(config: Config, tell: Callable[[str], None]) -> tuple[LogSource, ...]:
    chosen = config.collectors.logs
    if chosen != "auto":
        return tuple(
            LogSource(Path(log.path), log.format, log.trusted, log.timezone, log.year, log.verified_users)
            for log in chosen
        )
    found = []
    for paths, form, what in ((AUTH_LOGS, "sshd", "logins"), (ACCESS_LOGS, "nginx", "requests")):
        present = [p for p in paths if Path(p).exists()]
        readable = [p for p in present if os.access(p, os.R_OK)]
        found += [LogSource(Path(p), form) for p in readable[:1]]
        if present and not readable:
            tell(
                f"{what}: {present[0]} is off: not readable; add this user to the group adm, or start as root"
            )
        elif not present:
            tell(f"{what}: off: none of {', '.join(paths)} exists; name yours under collectors.logs")
    return tuple(found)


def _journal(config: Config, logs: tuple[LogSource, ...], tell: Callable[[str], None]) -> bool:
    chosen = config.collectors.journal.enabled
    has_auth_log = config.collectors.logs != "auto" or any(log.format == "sshd" for log in logs)
    if chosen is False:
        tell("journal: off: collectors.journal.enabled is false; set it to auto or true")
        return False
    if chosen == "auto" and has_auth_log:
        return False
    from .collectors.journal import probe

    reason = probe()
    if reason is not None:
        tell(f"journal: off: {reason}")
    return reason is None


def _interfaces(config: Config, root: bool, tell: Callable[[str], None]) -> tuple[str, ...]:
    packets = config.collectors.packets
    if packets.enabled is False:
        tell("packets: off: collectors.packets.enabled is false; set it to auto or true")
        return ()
    if not root:
        tell("packets: off: capturing needs CAP_NET_RAW; start as root")
        return ()
    if packets.interfaces != "auto":
        names = [name for _, name in socket.if_nameindex()]
        missing = [i for i in packets.interfaces if i not in names]
        if missing:
            present = ", ".join(names)
            raise ConfigError(
                f"collectors.packets.interfaces: there is no interface {missing[0]}",
                remedy=f"choose among {present}",
            )
        return tuple(packets.interfaces)
    name = default_interface()
    if name is None:
        tell("packets: off: there is no default route; name interfaces under collectors.packets.interfaces")
        return ()
    return (name,)


def default_interface() -> str | None:
    """The interface of the IPv4 or IPv6 default route, from /proc/net (proc(5))."""
    for line in _lines("/proc/net/route")[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            return fields[0]
    for line in _lines("/proc/net/ipv6_route"):
        fields = line.split()
        if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
            return fields[9]
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _local(config: Config) -> tuple[str, ...]:
    if config.network.local != "auto":
        return tuple(str(n) for n in config.network.local)
    return tuple(str(a) for a in own_addresses())


class Service:
    """The processes of one gateway, with what joins them."""

    def __init__(self, config: Config, mode: str, state: Path) -> None:
        self._config = config
        self._mode = mode
        self._state = state
        self._plan = plan(config, mode, say)
        self._authz_id = identity("gatewatch-authz", 4)
        self._analyser_id = with_group(identity("gatewatch", 0, LOG_GROUPS), self._authz_id)
        self._packets_id = identity("gatewatch-packets", 1)
        self._shipper_id = identity("gatewatch-sinks", 2)
        self._supervisor = Supervisor(say)
        self._packets: Process | None = None
        self._exec: Process | None = None
        self._enforcer: Process | None = None
        self._control: socket.socket | None = None
        self._authz: list[socket.socket] = []

    def run(self) -> int:
        """Starts everything and supervises it until SIGTERM or Ctrl-C; where a start fails, ends what was started."""
        try:
            self._start()
        except BaseException:
            self._supervisor.stop()
            raise
        notify_systemd("READY=1")
        return self._supervisor.run(self._reload, self._exited)

    def _start(self) -> None:
        self._make_folders()
        say(f"{self._mode} mode; state in {self._state}, alerts in {self._sinks_text()}")
        for log in self._plan.logs:
            say(f"follows {log.path}")
        if self._plan.journal:
            say(f"follows the journal of {', '.join(self._config.collectors.journal.units)}")
        if self._plan.interfaces:
            say(f"captures on {', '.join(self._plan.interfaces)}")
        if not (self._plan.logs or self._plan.journal or self._plan.interfaces):
            say("nothing to watch on this machine as this user")
        if not (self._plan.interfaces and (self._plan.logs or self._plan.journal)):
            say("`make demo` (as root) shows all of Gatewatch at work, in network namespaces of its own")
        self._authz = [listen_at(text) for text in self._config.authz.listen]
        self._commands = listen(self._state / "run" / "analyser.sock", 0o666)
        self._outbox = listen(self._state / "run" / "outbox.sock", 0o666)
        if self._plan.enforcer:
            self._enforcer = self._supervisor.add(
                "enforcer",
                partial(
                    start_enforcer,
                    self._state,
                    Path(self._config.rails),
                    self._analyser_id,
                    self._authz_id.gid,
                ),
            )
            self._await_enforcer()
            if self._plan.rails is not None and self._plan.rails.cut_helper and not self._answers("cut.sock"):
                helper = partial(start_cut_helper, self._state, Path(self._config.rails))
                self._supervisor.add("cut helper", helper)
            if self._plan.rails is not None and self._plan.rails.accounts_helper:
                helper = partial(start_accounts_helper, self._state, Path(self._config.rails))
                self._supervisor.add("accounts helper", helper)
        self._start_commands()
        if self._config.authz.listen:
            self._add_authz()
        self._supervisor.add("analyser", self._start_analyser)
        self._supervisor.add("shipper", self._start_shipper)
        if self._plan.interfaces:
            self._packets = self._supervisor.add("packets", self._start_packets)

    def _start_commands(self) -> None:
        """The helper that runs what the rails name as `[[command]]`, as a user of its own; so as root alone."""
        rails = self._plan.rails
        if rails is None or not rails.commands:
            return
        if os.geteuid() != 0:
            say("commands: off: they run as a user of their own; start as root to have them")
        elif not self._answers("exec.sock"):
            groups = [group.gr_name for group in grp.getgrall() if EXEC_USER in group.gr_mem]
            own = identity(EXEC_USER, 5, groups)
            start = partial(start_exec_helper, self._state, Path(self._config.rails), self._analyser_id, own)
            self._exec = self._supervisor.add("exec helper", start)

    def _reload(self) -> None:
        """The rails are read anew by those of our processes that live by them; wrong ones change nothing there."""
        readers = [p for p in (self._enforcer, self._exec) if p is not None and p.pid]
        if not readers:
            say("SIGHUP: nothing to reload")
            return
        say(f"SIGHUP: {' and '.join(f'the {p.name}' for p in readers)} read the rails anew")
        for process in readers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGHUP)

    def _add_authz(self) -> None:
        """The sockets stay ours: who asks while the endpoint starts again waits for it."""
        options = self._config.authz
        say(f"authorises on {', '.join(options.listen)}")
        if not self._plan.enforcer:
            say(
                "authorisation: there is no deny list without the enforcer, which needs root and a rails file"
            )
        own = [str(address) for address in own_addresses()]
        settings = json.dumps(authz_settings(self._config, self._plan.rails, own))
        start = partial(start_authz, self._state, self._authz, settings, options.connections, self._authz_id)
        self._supervisor.add("authz", start)

    def _sinks_text(self) -> str:
        return ", ".join(str(self._config.sink_path(name)) for name in self._config.sinks) or "no sink"

    def _make_folders(self) -> None:
        everyone = Identity(None, None)
        make_folder(self._state, everyone, 0o755)
        make_folder(self._state / "run", everyone, 0o755)
        self._lock = lock(self._state / "run")
        make_folder(self._state / "analyser", self._analyser_id, 0o750)
        make_folder(self._state / "sinks", self._shipper_id, 0o750)
        if self._config.authz.listen:
            theirs = self._authz_id
            make_folder(self._state / "authz", Identity(None if theirs.uid is None else 0, theirs.gid), 0o750)
            make_secret(self._state / "authz" / "key", self._authz_id.uid, self._authz_id.gid)
        for name in self._config.sinks:
            folder = self._config.sink_path(name).parent
            if not folder.exists():
                make_folder(folder, self._shipper_id, 0o750)
        if not may_write(self._state / "analyser", self._analyser_id):
            raise GatewatchError(
                f"{self._state}: cannot be reached by user id {self._analyser_id.uid}, as which the analyser runs",
                remedy="name a folder with --state whose parents everybody may enter, such as /var/lib/gatewatch",
            )
        for name in self._config.sinks:
            path = self._config.sink_path(name)
            if not may_write(path if path.exists() else path.parent, self._shipper_id):
                say(
                    f"sink {name}: off: user id {self._shipper_id.uid}, as which the shipper runs, cannot write "
                    f"{path}; let it, and the alerts that wait until then go there"
                )

    def _answers(self, name: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.connect(str(self._state / "run" / name))
                return True
        except OSError:
            return False

    def _await_enforcer(self) -> None:
        """The kernel's state is restored before anything else starts; a slow enforcer does not stop detection."""
        limit = time.monotonic() + ENFORCER_PATIENCE_S
        while time.monotonic() < limit:
            if self._answers("enforcer.sock"):
                return
            time.sleep(0.01)
        say("the enforcer is not up yet; detection starts without it")

    def _start_analyser(self) -> int:
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        parts = Parts(
            config=self._config,
            rails=self._plan.rails,
            state=self._state,
            mode=self._mode,
            playbooks=self._plan.playbooks,
            logs=self._plan.logs,
            journal_units=tuple(self._config.collectors.journal.units) if self._plan.journal else (),
            local=self._plan.local,
            control=theirs,
            commands=self._commands,
            outbox=self._outbox,
            shipper_uid=self._shipper_id.uid if self._shipper_id.uid is not None else os.geteuid(),
            watches_packets=bool(self._plan.interfaces),
            enforces=self._mode == "enforce" and self._plan.enforcer,
            say=say,
            sshd=self._plan.sshd,
        )
        parent = os.getpid()
        if self._config.detection.geo.city or self._config.detection.geo.asn:
            import_module("maxminddb")  # the analyser's user may not be able to read where modules are

        def work() -> int:
            become(self._analyser_id, parent)
            return run_analyser(parts, lambda: say("ready"))

        pid = fork(work, "analyser", [self._control])
        theirs.close()
        if self._packets is not None:
            self._supervisor.restart(self._packets)
        return pid

    def _start_shipper(self) -> int:
        sinks: dict[str, Any] = {name: self._config.sink_path(name) for name in self._config.sinks}
        rails = self._plan.rails or Rails()
        protected = tuple(f"{kind}:{name}" for kind, name in rails.never_block_users)
        sinks |= {name: self._config.hook_options(name, protected) for name in self._config.hooks}
        parent = os.getpid()

        def work() -> int:
            return run_shipper(
                self._state / "run" / "outbox.sock",
                sinks,
                give_up_rights=lambda: become(self._shipper_id, parent),
            )

        return fork(work, "shipper", self._private_sockets())

    def _start_packets(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        packets = self._config.collectors.packets
        options = WorkerOptions(
            interfaces=self._plan.interfaces,
            one_in=packets.sample,
            frames=packets.ring_frames,
            uid=self._packets_id.uid,
            gid=self._packets_id.gid,
            sandbox=sandbox.seccomp_supported(),
        )
        if not options.sandbox:
            say("packets: this processor has no system-call filter; the worker runs without it")

        def work() -> int:
            return run_worker(options, theirs)

        pid = fork(work, "packets", [ours, *self._private_sockets()])
        theirs.close()
        assert self._control is not None
        try:
            socket.send_fds(self._control, [b"packets"], [ours.fileno()])
        except OSError:
            pass  # the analyser is gone: its restart restarts this worker
        ours.close()
        return pid

    def _private_sockets(self) -> list[socket.socket]:
        return [s for s in (self._control, self._commands, self._outbox, *self._authz) if s is not None]

    def _exited(self, process: Process) -> None:
        notify_systemd(f"STATUS={process.name} is started again")


def become(who: Identity, parent: int) -> None:
    """Gives up root for good, where there is root to give up, and ends with the service."""
    if who.uid is not None and who.gid is not None:
        sandbox.drop_to(who.uid, who.gid, who.groups)
        sandbox.drop_capabilities()
    sandbox.no_new_privileges()
    sandbox.die_with_parent(parent)


def run_service(config: Config, mode: str, state: Path) -> int:
    """`gatewatch run`. Raises GatewatchError before anything was started."""
    if sys.platform != "linux":
        raise GatewatchError("Gatewatch runs on Linux alone")
    return Service(config, mode, state).run()
