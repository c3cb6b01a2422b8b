"""Parse and detect: `gatewatch replay` over an authentication log, beside fail2ban-regex, which only matches.

Whole commands are timed, start-up included, the best of some runs each, in turn, so that a busy machine burdens
both; with compiled Python, as what is installed has it, whatever the environment says. The second figure of
Gatewatch leaves its start-up out: it is the difference between the log and one line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate_auth_log import generate_auth_log


def seconds(command: list[str], bytecode: Path) -> float:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=environment)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", nargs="?", type=Path, help="an sshd log; without it one is generated")
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = options.log
        if log is None:
            log = Path(folder) / "auth.log"
            log.write_bytes(generate_auth_log(options.lines, options.seed))
        one = Path(folder) / "one.log"
        with log.open("rb") as stream:
            one.write_bytes(stream.readline())
        lines = log.read_bytes().count(b"\n")
        gatewatch = [str(Path(sys.executable).with_name("gatewatch")), "replay", "--format", "sshd", "--json"]
        commands = {
            "gatewatch replay": [*gatewatch, str(log)],
            "(its start-up)": [*gatewatch, str(one)],
        }
        if shutil.which("fail2ban-regex"):
            commands["fail2ban-regex"] = ["fail2ban-regex", str(log), "sshd"]
        else:
            print("fail2ban-regex is not installed: no ratio")
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(options.runs):
            for name, command in commands.items():
                best[name] = min(best[name], seconds(command, Path(folder, "bytecode")))
    peer = best.get("fail2ban-regex")
    marginal = max(best["gatewatch replay"] - best["(its start-up)"], 1e-9)
    print(f"{lines:,} lines, best of {options.runs}")
    for name, took in (
        ("fail2ban-regex", peer),
        ("gatewatch replay", best["gatewatch replay"]),
        ("gatewatch, start-up left out", marginal),
    ):
        if took is not None:
            ratio = f"{peer / took:8.1f} x" if peer else ""
            print(f"{name:32}{took:8.2f} s {lines / took:12,.0f} lines/s {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
