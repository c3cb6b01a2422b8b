"""What `gatewatch doctor` checks: whether this machine has what Gatewatch needs, and how to mend what is missing.

Every check looks and changes nothing. A check that cannot be made says so; none may raise.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Literal

from ..config.schema import Config
from .errors import ConfigError, GatewatchError

State = Literal["ok", "warn", "fail"]

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
"""linux/capability.h."""

STA_UNSYNC, TIME_ERROR = 0x0040, 5
"""linux/timex.h."""

LIBRARIES = ("numpy", "Cython", "pydantic", "msgspec", "asyncinotify", "typer", "rich", "PyYAML", "maxminddb")
LEAST_FREE_BYTES, LOW_FREE_BYTES = 100 << 20, 1 << 30
MOST_DAYS_OF_PLACES = 60
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `remedy` is empty where nothing needs mending."""

    check: str
    state: State
    detail: str
    remedy: str = ""


def examine(config: Config, *, socket: Path, file: Path | None = None) -> Iterator[Check]:
    """Every check, in the order in which they are best mended.

    `socket` is the enforcer's, `file` the one that the configuration was read from.
    """
    checks: tuple[Callable[[], Iterator[Check]], ...] = (
        lambda: _configuration_file(file),
        _python,
        _libraries,
        _extensions,
        lambda: _privileges(config),
        lambda: _nftables(config),
        _sandbox,
        lambda: _interfaces(config),
        lambda: _logs(config),
        lambda: _journal(config),
        lambda: _places(config),
        _clock,
        lambda: _state_folder(config),
        lambda: _rails(config),
        lambda: _commands(config),
        lambda: _playbooks(config),
        lambda: _hooks(config),
        lambda: _enforcer(config, socket),
        lambda: _authz(config),
        lambda: _accounts(config),
    )
    for check in checks:
        try:
            yield from check()
        except GatewatchError as error:
            yield Check("examination", "fail", error.message, error.remedy)
        except Exception as error:
            yield Check(
                "examination", "warn", f"one check could not be made: {error}", "see the other checks"
            )


def _configuration_file(file: Path | None) -> Iterator[Check]:
    """Whoever can write the configuration decides what Gatewatch watches and whether it acts."""
    if file is not None and file.exists() and file.stat().st_mode & 0o022:
        yield Check("configuration file", "warn", f"{file}: others may write it", f"chmod go-w {file}")


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")


def _libraries() -> Iterator[Check]:
    least = _lower_bounds()
    found, wrong = [], []
    for name in LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {version}")
        if _numbers(version) < _numbers(least.get(name.lower(), "0")):
            wrong.append(f"{name} {version} is older than {least[name.lower()]}")
    if wrong:
        yield Check(
            "libraries", "fail", ", ".join(wrong), "run `make venv`, or install Gatewatch again with pip"
        )
    else:
        yield Check("libraries", "ok", ", ".join(found))


def _lower_bounds() -> dict[str, str]:
    try:
        required = importlib.metadata.requires("gatewatch") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pairs = (re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)", r) for r in required)
    return {p[1].lower(): p[2] for p in pairs if p is not None}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _extensions() -> Iterator[Check]:
    """The hot loops are the files that import Cython's shadow module; compiled, an extension lies beside them."""
    hot = [p for p in sorted(PACKAGE.glob("d*/**/*.py")) if _is_hot(p)]
    slow = [p.stem for p in hot if not any(p.with_name(p.stem + s).exists() for s in EXTENSION_SUFFIXES)]
    if slow:
        yield Check(
            "compiled loops",
            "warn",
            f"{', '.join(slow)} run uncompiled: all works, many times slower",
            "install a C compiler and Python's headers (apt install gcc python3-dev), then install Gatewatch again",
        )
    else:
        yield Check("compiled loops", "ok", f"{len(hot)} compiled")


def _is_hot(path: Path) -> bool:
    with open(path, encoding="utf-8") as file:
        return any(line.startswith("import cython") for line in file)


def capabilities() -> int:
    """The effective capabilities of this process as a bit set (proc(5)); 0 where they cannot be read."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _privileges(config: Config) -> Iterator[Check]:
    held = capabilities()
    for name, bit, what, needed in (
        ("CAP_NET_ADMIN", CAP_NET_ADMIN, "block and kill", config.mode == "enforce"),
        ("CAP_NET_RAW", CAP_NET_RAW, "watch packets", config.collectors.packets.enabled is True),
    ):
        if held >> bit & 1:
            yield Check(name, "ok", f"held: may {what}")
        else:
            state: State = "fail" if needed else "warn"
            yield Check(name, state, f"not held: cannot {what}", "run as root (sudo gatewatch ...)")


def _nftables(config: Config) -> Iterator[Check]:
    from .enforcer.kernel.nft import Nft

    bad: State = "fail" if config.mode == "enforce" else "warn"
    try:
        nft = Nft()
    except GatewatchError as error:
        yield Check("libnftables", bad, f"{error.message}: nothing can be blocked", error.remedy)
        return
    yield Check("libnftables", "ok", "libnftables.so.1")
    if capabilities() >> CAP_NET_ADMIN & 1:
        try:
            nft.table("gatewatch_doctor")  # there is none: the list of tables alone is read
        except GatewatchError as error:
            yield Check(
                "nf_tables",
                bad,
                error.message,
                "load it with modprobe nf_tables, or use a kernel that has it",
            )
        else:
            yield Check("nf_tables", "ok", "the kernel answers")


def _sandbox() -> Iterator[Check]:
    import platform

    from .sandbox import seccomp_supported

    if seccomp_supported():
        yield Check("system-call filter", "ok", f"known for {platform.machine()}")
    else:
        detail = f"unknown for {platform.machine()}: the packet worker runs without one"
        yield Check("system-call filter", "warn", detail, "run on x86-64 or ARM64, or switch packets off")


def _interfaces(config: Config) -> Iterator[Check]:
    wanted = config.collectors.packets
    if wanted.enabled is False:
        yield Check("interfaces", "ok", "packets are not watched (collectors.packets.enabled: false)")
        return
    there = sorted(p.name for p in Path("/sys/class/net").iterdir())
    if wanted.interfaces == "auto":
        from .service import default_interface

        default = default_interface()
        if default is None:
            yield Check(
                "interfaces", "warn", "no default route", "name them under collectors.packets.interfaces"
            )
        else:
            yield Check("interfaces", "ok", f"{default}, by the default route")
        return
    for name in wanted.interfaces:
        if name in there:
            yield Check(f"interface {name}", "ok", "there")
        else:
            yield Check(f"interface {name}", "fail", "unknown", f"there are: {', '.join(there)}")


def _logs(config: Config) -> Iterator[Check]:
    logs = config.collectors.logs
    if isinstance(logs, list):
        for log in logs:
            yield _log(log.path, missing="fail")
        return
    from .service import ACCESS_LOGS, AUTH_LOGS

    for paths, what in ((AUTH_LOGS, "logins"), (ACCESS_LOGS, "requests")):
        there = [path for path in paths if Path(path).exists()]
        for path in there[:1]:
            yield _log(path, missing="warn")
        if not there:
            detail = f"no log of {what}: none of {', '.join(paths)} exists"
            yield Check("logs", "warn", detail, "name yours under collectors.logs, or use the journal")


def _log(path: str, *, missing: State) -> Check:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except FileNotFoundError:
        return Check(f"log {path}", missing, "no such file", "correct collectors.logs")
    except IsADirectoryError:
        return Check(f"log {path}", "fail", "is a folder", "name a file under collectors.logs")
    except PermissionError:
        return Check(
            f"log {path}", "fail", "not readable by this user", f"sudo usermod -aG adm {_user()}, log in anew"
        )
    except OSError as error:
        return Check(f"log {path}", "fail", error.strerror or str(error), "correct collectors.logs")
    return Check(f"log {path}", "ok", "readable")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _journal(config: Config) -> Iterator[Check]:
    enabled = config.collectors.journal.enabled
    if enabled is False:
        yield Check("journal", "ok", "not read (collectors.journal.enabled: false)")
        return
    from .collectors.journal import probe

    reason = probe()
    if reason is None:
        yield Check("journal", "ok", "readable")
        return
    state: State = "fail" if enabled is True else "warn"
    yield Check("journal", state, reason, "set collectors.journal.enabled: false where logs are files")


def _places(config: Config) -> Iterator[Check]:
    from .assembly import build_geography

    geography = build_geography(config)
    if geography is None:
        detail = "no database (detection.geo): neither new countries nor impossible travel are seen"
        yield Check("places", "ok", detail)
        return
    for path, built_s in geography.built().items():
        days = int(time.time() - built_s) // 86_400
        detail = f"{path}, made {days} days ago"
        if days > MOST_DAYS_OF_PLACES:
            yield Check("places", "warn", detail, "fetch a newer one: addresses change hands")
        else:
            yield Check("places", "ok", detail)


def _clock() -> Iterator[Check]:
    synchronised = clock_synchronised()
    if synchronised is None:
        yield Check(
            "clock", "warn", "the kernel does not say whether it is synchronised", "look at timedatectl"
        )
    elif synchronised:
        yield Check("clock", "ok", "synchronised")
    else:
        yield Check("clock", "warn", "not synchronised", "timedatectl set-ntp true, or apt install chrony")


def clock_synchronised() -> bool | None:
    """What the kernel says (adjtimex(2), which only reads with modes = 0); None where it does not say."""
    size, offset = 256, struct.calcsize("@Illlli") - struct.calcsize("i")
    buffer = ctypes.create_string_buffer(size)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    status = struct.unpack_from("@i", buffer, offset)[0]
    return not status & STA_UNSYNC


def _state_folder(config: Config) -> Iterator[Check]:
    folder = config.state_folder()
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield Check(
            "state folder", "fail", f"{folder} cannot be written", "run as root, or set another with --state"
        )
        return
    yield Check("state folder", "ok", f"{folder}{'' if nearest == folder else ', made at the first start'}")
    free = shutil.disk_usage(nearest).free
    detail = f"{free / (1 << 30):.1f} GiB free at {nearest}"
    if free < LEAST_FREE_BYTES:
        yield Check("disk space", "fail", detail, "make room: alerts and the audit log need it")
    elif free < LOW_FREE_BYTES:
        yield Check("disk space", "warn", detail, "make room before it is needed")
    else:
        yield Check("disk space", "ok", detail)


def _rails(config: Config) -> Iterator[Check]:
    from .enforcer.rails import load

    bad: State = "fail" if config.mode == "enforce" else "warn"
    path = Path(config.rails)
    if not path.exists():
        yield Check("rails", bad, f"{path} does not exist", "gatewatch config init")
        return
    try:
        rails = load(path)
    except ConfigError as error:
        yield Check("rails", "fail", error.message, error.remedy)
        return
    if not rails.management:
        yield Check("rails", bad, f"{path} names no management network", "name where operators come from")
        return
    yield Check("rails", "ok", f"management: {', '.join(map(str, rails.management))}")
    if not rails.endpoints:
        yield Check(
            "endpoints", "warn", f"{path} names none: a kill switch has nothing to cut", "name them there"
        )


def _commands(config: Config) -> Iterator[Check]:
    """Whether each program that the rails name is there, and nobody but root could put another in its place."""
    from .commands import safety
    from .enforcer.rails import load

    try:
        named = load(config.rails).commands
    except ConfigError:
        return  # said of the rails already
    for command in named:
        try:
            for line in filter(None, (command.run, command.undo)):
                safety.check(line[0])
        except GatewatchError as error:
            yield Check(f"command {command.name}", "fail", error.message, error.remedy)
        else:
            yield Check(f"command {command.name}", "ok", " ".join(command.run))


def _playbooks(config: Config) -> Iterator[Check]:
    from ..playbooks.loader import load_playbooks

    try:
        found = load_playbooks(config.playbooks.directories, shipped=config.playbooks.shipped)
    except ConfigError as error:
        yield Check("playbooks", "fail", error.message, error.remedy)
    else:
        if found:
            yield Check("playbooks", "ok", ", ".join(p.name for p in found))
        else:
            yield Check("playbooks", "warn", "none: nothing is answered", "set playbooks.shipped: true")


def _enforcer(config: Config, socket: Path) -> Iterator[Check]:
    from .enforcer.client import Enforcer

    bad: State = "fail" if config.mode == "enforce" else "warn"
    enforcer = Enforcer(socket)
    try:
        enforcer.status()
    except GatewatchError as error:
        yield Check("enforcer", bad, error.message, error.remedy or "gatewatch run, as root, starts it")
    else:
        yield Check("enforcer", "ok", f"answers at {socket}")
    finally:
        enforcer.close()


def _hooks(config: Config) -> Iterator[Check]:
    """Whether the files that each hook names can be read; `gatewatch hooks test` asks the hook itself."""
    from .sinks.hook_files import check_files

    for name, hook in config.hooks.items():
        try:
            check_files(name, hook.model_dump())
        except GatewatchError as error:
            yield Check(f"hook {name}", "fail", error.message, error.remedy)
        else:
            yield Check(f"hook {name}", "ok", f"its files are in order; gatewatch hooks test {name} tries it")


def _authz(config: Config) -> Iterator[Check]:
    """Whether the authorisation endpoint answers and knows the deny list."""
    from .cli.authz import health_of

    said = health_of(config)
    if said is None:
        return
    if "deny_list" not in said:
        yield Check(
            "authorisation", "warn", f"does not answer: {said['problem']}", "`gatewatch run` starts it"
        )
        return
    known = said["deny_list"]
    if known["known"]:
        yield Check("authorisation", "ok", f"answers at {config.authz.listen[0]}")
    else:
        yield Check(
            "authorisation", "fail", f"the deny list is unknown: {known['problem']}", "see the enforcer"
        )


def _accounts(config: Config) -> Iterator[Check]:
    from .doctor_accounts import account_checks
    from .enforcer.accounts import FILE
    from .enforcer.rails import load

    if Path(config.rails).exists():
        try:
            wanted = load(config.rails).accounts_helper
        except ConfigError:
            return  # said of the rails already
        yield from account_checks(config.state_folder() / "run" / "accounts.json", FILE, wanted=wanted)
