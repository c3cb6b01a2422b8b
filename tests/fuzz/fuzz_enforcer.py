"""Fuzzes what the enforcer takes from others: `python tests/fuzz/fuzz_enforcer.py --seconds 60`, or `make fuzz`.

Guided by coverage (atheris, libFuzzer); where atheris cannot be installed, hypothesis drives the same targets without
guidance, and says so. What made something fail is kept in `--folder` and named; give it as INPUT to see it again.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

_CLONE_NEWNET = 0x4000_0000  # linux/sched.h


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Fuzz what the enforcer takes from others.")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/fuzz"), help="for the corpus and what failed"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the fuzzer's random numbers; 0: another one each time"
    )
    parser.add_argument("--once", action="store_true", help="only run the seeds and what is in the folder")
    parser.add_argument("inputs", metavar="INPUT", nargs="*", type=Path, help="only run these files")
    given = parser.parse_args(arguments)
    _leave_the_network()
    run = _instrumented()
    corpus = given.folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    _write_seeds(corpus)
    if given.inputs or given.once:
        for path in given.inputs or sorted(corpus.iterdir()):
            run(path.read_bytes())
        return 0
    if atheris is None:
        return hypothesis_driven_loop(run, given.seconds, given.folder)
    return _coverage_guided_loop(run, given, corpus)


def hypothesis_driven_loop(run: Callable[[bytes], None], seconds: int, folder: Path) -> int:
    """The same targets where there is no atheris for this interpreter: random input, no coverage to guide it."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    print("fuzz: no atheris here; hypothesis drives the targets without the guidance of coverage", flush=True)
    until, executions = time.monotonic() + seconds, 0

    @settings(
        max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(data=st.binary(min_size=1, max_size=1_000))
    def some(data: bytes) -> None:
        nonlocal executions
        if time.monotonic() < until:
            executions += 1
            (folder / "last").write_bytes(data)
            run(data)

    while time.monotonic() < until:
        some()
    print(f"fuzz: {executions} executions, nothing failed", flush=True)
    return 0


def _coverage_guided_loop(run: Callable[[bytes], None], given: argparse.Namespace, corpus: Path) -> int:
    dictionary = given.folder / "dictionary"
    dictionary.write_text(_dictionary())
    options = [
        f"-max_total_time={given.seconds}", f"-dict={dictionary}", f"-artifact_prefix={given.folder}/",
        f"-seed={given.seed}", "-handle_xfsz=0",
        "-max_len=4096", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], run)
    atheris.Fuzz()  # does not return
    return 1


def _instrumented() -> Callable[[bytes], None]:
    """`targets.run`, with the enforcer's modules instrumented where atheris is there to do so."""
    if atheris is None:
        import targets

        return targets.run
    with atheris.instrument_imports(include=["gatewatch.daemon.enforcer"]):
        import targets

    return lambda data: targets.run(data, atheris.FuzzedDataProvider)


def _leave_the_network() -> None:
    """As root, go where no real firewall or connection is, should a double be missing."""
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise SystemExit(
            f"fuzz: no network namespace: {os.strerror(ctypes.get_errno())}; run it as another user"
        )


def _write_seeds(corpus: Path) -> None:
    """A few inputs that get the fuzzer past the first checks; the same ones every time."""
    import random

    chance = random.Random(5)
    for number in range(60):
        (corpus / f"seed-{number}").write_bytes(
            bytes([number % 7]) + chance.randbytes(40 * (1 + number // 7))
        )


def _dictionary() -> str:
    from gatewatch.daemon.enforcer.protocol import REQUESTS

    words = {
        "request",
        "ok",
        "seq",
        "hash",
        "previous",
        "do",
        *REQUESTS,
        *(f for fields in REQUESTS.values() for f in fields),
    }
    return "".join(f'"{word}"\n' for word in sorted(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
