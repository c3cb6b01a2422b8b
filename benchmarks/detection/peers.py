"""What operators use today, on the same log: Gatewatch's own `replay`, fail2ban's default sshd jail,
CrowdSec's sshd scenarios.

fail2ban is Debian's own code, run by the interpreter that it is installed for (fail2ban_replay.py): its
sshd filter and its failure counting with `maxretry` 5, `findtime` 600 s and `bantime` 600 s of the default
jail, with its clock set to each line's time. CrowdSec reads the file with its Debian parsers and scenarios
in its one-shot mode, with a local API on loopback that ends with it. A peer that is missing is named.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import crowdsec_replay
from .labels import microseconds
from .score import PRIORITIES, Claim, gatewatch_claims

MEDIUM = PRIORITIES.index("medium")
HERE = Path(__file__).parent


class Missing(Exception):
    """The peer is not installed; the text says what to do."""


def gatewatch(log: Path, year: int = 2026, config: Path | None = None) -> list[Claim]:
    """`gatewatch replay --json`, as it is beside this interpreter."""
    command = [
        str(Path(sys.executable).with_name("gatewatch")),
        "replay",
        "--json",
        "--format",
        "sshd",
        "--year",
        str(year),
    ]
    if config is not None:
        command += ["--config", str(config)]
    done = subprocess.run([*command, str(log)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"gatewatch replay {log}: {done.stderr.strip()}")
    return gatewatch_claims(json.loads(line) for line in done.stdout.splitlines())


def fail2ban(log: Path) -> list[Claim]:
    """One claim for each ban of the default sshd jail."""
    program = shutil.which("fail2ban-regex")
    if program is None:
        raise Missing("fail2ban is not installed: apt-get install fail2ban")
    interpreter = Path(program).read_text().partition("\n")[0].removeprefix("#!").strip()
    done = subprocess.run(
        [interpreter, str(HERE / "fail2ban_replay.py"), str(log)],
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
    )
    if done.returncode:
        raise RuntimeError(f"fail2ban on {log}: {done.stderr.strip()[-500:]}")
    bans = [line.split() for line in done.stdout.splitlines()]
    return [
        Claim(
            f"fail2ban {source}",
            int(float(at) * 1_000_000) + 999_999,
            "ban",
            MEDIUM,
            (source,),
            (),
            (source,),
        )
        for at, source in bans
    ]


def crowdsec(log: Path) -> list[Claim]:
    """One claim for each alert, which its default profile answers with a ban."""
    place = crowdsec_replay.root()
    if place is None:
        raise Missing(
            "CrowdSec is not installed: apt-get install crowdsec, or unpack its package and set CROWDSEC_ROOT"
        )
    with tempfile.TemporaryDirectory() as folder:
        found = crowdsec_replay.alerts(place, log.resolve(), Path(folder))
    return [
        Claim(f"crowdsec {source}", microseconds(at), "ban", MEDIUM, (source,), (), (source,))
        for at, source, _ in found
    ]


PEERS = {"Gatewatch": gatewatch, "fail2ban": fail2ban, "CrowdSec": crowdsec}
