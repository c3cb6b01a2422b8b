"""How fast authentication logs are parsed, beside fail2ban's matching and sshguard's parser on the same file.

    python benchmarks/auth_parse.py [FILE]

Without FILE a seeded log of 200,000 lines is made. Each figure is the best of three runs; whole processes for the
others, parsing alone for Gatewatch, which runs inside of a process that is already there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from generate_auth_log import generate_auth_log

RUNS = 3
CHUNK_BYTES = 256 << 10
SSHGUARD = Path("/usr/libexec/sshguard/sshg-parser")


def best_of(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least seconds that each took, in turns, so that a busy moment of the machine meets all of them."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(RUNS):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def chunks_of(data: bytes) -> list[bytes]:
    """The data in chunks of whole lines, as a collector hands them on."""
    chunks = []
    at = 0
    while at < len(data):
        end = data.rfind(b"\n", at, at + CHUNK_BYTES) + 1 or len(data)
        chunks.append(data[at:end])
        at = end
    return chunks


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            path = Path(sys.argv[1])
        else:
            path = Path(folder) / "auth.log"
            path.write_bytes(generate_auth_log())
        data = path.read_bytes()
        lines = data.count(b"\n")
        chunks = chunks_of(data)

        def gatewatch() -> None:
            parser = make_parser("sshd", ParserOptions(timezone="UTC"))
            at = 1
            for chunk in chunks:
                at += parser.parse(chunk, at).lines

        works: dict[str, Callable[[], object]] = {"gatewatch, parse": gatewatch}
        if SSHGUARD.exists():

            def sshguard() -> None:
                with open(path, "rb") as log:
                    subprocess.run([SSHGUARD], stdin=log, stdout=subprocess.DEVNULL, check=True)

            works["sshguard, sshg-parser"] = sshguard
        if (program := shutil.which("fail2ban-regex")) is not None:

            def fail2ban() -> None:
                subprocess.run([program, str(path), "sshd"], stdout=subprocess.DEVNULL, check=True)

            works["fail2ban-regex"] = fail2ban
        found = best_of(works)
    print(f"{lines:,} lines, {len(data):,} bytes, best of {RUNS}")
    print(f"{'':24}{'lines/s':>14}{'gatewatch is':>16}")
    for name, seconds in found.items():
        print(f"{name:24}{lines / seconds:>14,.0f}{seconds / found['gatewatch, parse']:>14.1f} x")


if __name__ == "__main__":
    main()
