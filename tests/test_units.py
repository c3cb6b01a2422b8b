"""The systemd units are understood by systemd, and allow no more than is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab.hosts import program

EXPOSURE = {
    "gatewatch-accounts.service": 15,
    "gatewatch-cut.service": 30,
    "gatewatch-exec.service": 30,
    "gatewatch-restore.service": None,
}
"""The most that `systemd-analyze security` may say, in tenths; None where root's work at boot needs it all."""


def test_every_unit_is_looked_at(repository: Path) -> None:
    assert {path.name for path in (repository / "systemd").glob("*.service")} == EXPOSURE.keys()


@pytest.mark.skipif(program("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", EXPOSURE)
def test_a_unit_is_understood_and_allows_no_more_than_is_needed(
    repository: Path, tmp_path: Path, name: str
) -> None:
    for path in (repository / "systemd").iterdir():  # with its socket, and what it names
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace("/opt/gatewatch/bin/python", sys.executable))
    unit = str(tmp_path / name)
    words = [["verify", "--man=no", unit]]
    socket = Path(unit).with_suffix(".socket")
    if socket.exists():
        words[0].insert(2, str(socket))
    if EXPOSURE[name] is not None:
        words.append(["security", "--offline=true", f"--threshold={EXPOSURE[name]}", unit])
    for asked in words:
        done = subprocess.run(
            ["systemd-analyze", *asked],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        )
        assert name.removesuffix(".service") not in done.stderr, done.stderr
        assert done.returncode == 0, done.stdout
