"""What a user sees after a mistake: one clear line that names file, key or offset and what to do, and no traceback."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
PACKET = bytes(range(60))


@pytest.fixture
def gatewatch(tmp_path: Path) -> Run:
    """The command as a user calls it, with a state folder of its own."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from gatewatch.daemon.cli import main; sys.exit(main())",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "GATEWATCH_STATE": str(tmp_path / "state"), "COLUMNS": "200"},
            check=False,
        )

    return run


def one_line(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0]


def pcap(*lengths: int) -> bytes:
    """A capture of Ethernet frames with these record lengths."""
    made = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for length in lengths:
        made += struct.pack("<IIII", 1, 0, length, length) + PACKET[:length].ljust(length, b"\0")
    return made


@pytest.mark.parametrize("command", ["replay", "parse"])
def test_a_missing_file(gatewatch: Run, tmp_path: Path, command: str) -> None:
    one_line(gatewatch(command, tmp_path / "none.log"), 1, "none.log", ";")


@pytest.mark.parametrize("command", ["replay", "parse"])
def test_a_folder_in_place_of_a_file(gatewatch: Run, tmp_path: Path, command: str) -> None:
    one_line(gatewatch(command, tmp_path), 1, str(tmp_path))


@pytest.mark.parametrize("command", ["replay", "parse"])
def test_an_unreadable_file(tmp_path: Path, command: str) -> None:
    path = tmp_path / "secret.log"
    path.write_text("x\n")
    path.chmod(0)
    good = tmp_path / "good.log"
    good.write_text("Dec 10 06:55:46 gw sshd[1]: Invalid user a from 192.0.2.1 port 1\n")
    # Another user may not be able to read this interpreter's files: everything is imported before.
    code = (
        "import os, sys; from gatewatch.daemon.cli import main; "
        f"main([{command!r}, {str(good)!r}, '--format', 'sshd']); "
        "os.geteuid() == 0 and os.setresuid(65534, 65534, 65534); sys.stderr.flush(); print('', file=sys.stderr); "
        f"sys.exit(main([{command!r}, {str(path)!r}, '--format', 'sshd']))"
    )
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "secret.log" in last
    assert ";" in last
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["replay", "parse"])
def test_a_binary_file_as_a_log(gatewatch: Run, tmp_path: Path, command: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(1 << 16))
    one_line(gatewatch(command, path), 1, "model.safetensors", ";")


@pytest.mark.parametrize("command", ["replay", "parse"])
def test_a_capture_that_ends_inside_a_record(gatewatch: Run, tmp_path: Path, command: str) -> None:
    path = tmp_path / "cut.pcap"
    path.write_bytes(pcap(60, 60)[:-10])
    result = gatewatch(command, path, "--json")
    one_line(result, 1, "cut.pcap", "offset 100")
    if command == "parse":
        assert result.stdout.count("\n") == 1, "the whole frame before it is shown"


def test_a_capture_whose_header_is_cut_short(gatewatch: Run, tmp_path: Path) -> None:
    path = tmp_path / "short.pcap"
    path.write_bytes(pcap()[:20])
    one_line(gatewatch("replay", path), 1, "short.pcap")


def test_a_wrong_configuration_key(gatewatch: Run, tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.yaml"
    path.write_text("mode: observe\ncollectors:\n  pakets: {}\n")
    for command in (("run", "--observe"), ("config", "check"), ("replay", "x.log")):
        arguments = [*command, path] if command[0] == "config" else [*command, "--config", path]
        one_line(gatewatch(*arguments), 2, "gatewatch.yaml:3", "collectors.pakets", "packets")


def test_a_detector_option_that_does_not_exist(gatewatch: Run, tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.yaml"
    path.write_text("detectors:\n  brute_force: {failurs: 5}\n")
    log = tmp_path / "auth.log"
    log.write_text("Dec 10 06:55:46 gw sshd[1]: Invalid user a from 192.0.2.1 port 1\n")
    one_line(gatewatch("replay", log, "--config", path), 2, "brute_force.failurs")


def test_an_unknown_interface(gatewatch: Run, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / "gatewatch.yaml"
    path.write_text(
        "collectors:\n  logs: []\n  journal: {enabled: false}\n  packets: {interfaces: [nowhere9]}\n"
    )
    result = gatewatch("run", "--observe", "--config", path)
    one_line(result, 2, "collectors.packets.interfaces", "nowhere9", "lo")
    assert not (tmp_path / "state").exists(), "nothing half-done"


@pytest.mark.parametrize(
    "arguments",
    [("replay",), ("replay", "--year", "12", "x"), ("run", "--observe", "--enforce"), ("nonsense",)],
)
def test_wrong_usage(gatewatch: Run, arguments: tuple[str, ...]) -> None:
    result = gatewatch(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_enforcing_without_management_networks(gatewatch: Run, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "rails.toml").write_text("management = []\n")
    path = tmp_path / "gatewatch.yaml"
    path.write_text(
        "mode: enforce\ncollectors: {logs: [], journal: {enabled: false}, packets: {enabled: false}}\n"
    )
    result = gatewatch("run", "--config", path)
    one_line(result, 2, "management", "lock you out")
    assert not (tmp_path / "state").exists(), "nothing half-done"
