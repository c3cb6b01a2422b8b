"""What is put back into the kernel at boot, by one command that needs neither network nor daemon."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from enforcer_rig import FRONT, RAILS, Rig
from gatewatch.daemon.denied import DenyList
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.state import clocks
from lab.lab import Lab

MANY = 20_000
NETLINK_NETFILTER, SO_RCVBUFFORCE = 12, 33
NEWSETELEM, NEWGEN = (10 << 8) | 12, (10 << 8) | 15  # linux/netfilter/nf_tables.h


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare, RAILS.replace("most_blocks = 50", "most_blocks = 50000")) as rig:
        yield rig


def restore(rig: Rig) -> subprocess.CompletedProcess[str]:
    words = ["--restore-only", "--state", rig.state, "--rails", rig.rails]
    command = [sys.executable, "-m", "gatewatch.daemon.enforcer", *words]
    return rig.lab.run_in("gateway", command, check=False)


def listening() -> socket.socket:
    """A socket that hears of every nftables transaction in this thread's namespace."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
    made.bind((0, 1 << 6))  # NFNLGRP_NFTABLES
    made.setblocking(False)
    return made


def transactions_with_elements(notices: socket.socket) -> int:
    """Of what was heard: transactions that changed elements of a set."""
    count, elements = 0, False
    with contextlib.suppress(BlockingIOError):
        while data := notices.recv(1 << 18):
            at = 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                elements |= kind == NEWSETELEM
                if kind == NEWGEN:
                    count, elements = count + elements, False
                at += (length + 3) & ~3
    return count


@pytest.mark.lab
def test_twenty_thousand_blocks_and_the_kill_switch_come_back_in_one_transaction(rig: Rig) -> None:
    rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    rig.stop()
    journal = Journal(f"{rig.state}/enforcer", clocks())
    first = int(ip_address("198.18.0.0"))
    for at in range(0, MANY, 500):
        blocks = [[str(ip_address(first + n)), 3600] for n in range(at, at + 500)]
        journal.append("import", sync=False, blocks=blocks, owner="operator", by="test", reason="test")
    journal.sync()
    journal.close()
    rig.nft("flush ruleset")
    with rig.lab.inside("gateway"), listening() as notices:
        done = restore(rig)
        assert done.returncode == 0, done.stderr
        assert transactions_with_elements(notices) == 1
    assert f"restored {MANY} blocks and 1 kill switches" in done.stderr
    said = rig.lab.run_in("gateway", ["nft", "-j", "list set inet gatewatch block4_32"]).stdout
    assert len(next(o["set"]["elem"] for o in json.loads(said)["nftables"] if "set" in o)) == MANY
    with rig.serving(FRONT):
        assert rig.unreachable(FRONT)
    rig.start()
    assert rig.enforcer().status()["blocks"] == MANY


@pytest.mark.lab
def test_with_wrong_rails_the_kill_switch_comes_back_all_the_same(rig: Rig) -> None:
    rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    rig.stop()
    rig.nft("flush ruleset")
    rig.rails.write_text("this is no toml")
    done = restore(rig)
    assert done.returncode == 2
    assert "rails.toml" in done.stderr
    with rig.serving(FRONT):
        assert rig.unreachable(FRONT)


@pytest.mark.lab
@pytest.mark.parametrize("at_boot", [True, False])
def test_with_wrong_rails_the_gateway_still_learns_who_is_refused(rig: Rig, at_boot: bool) -> None:
    rig.enforcer().block_user("eve", kind="key", ttl_s=600, reason="test")
    rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    rig.stop()
    path = rig.state / "run" / "denied"
    path.unlink()
    rig.rails.write_text("this is no toml")
    if at_boot:
        assert restore(rig).returncode == 2
    else:
        rig.launch()
        assert rig.process is not None
        assert rig.process.wait(30) == 2
    denied = DenyList(path)
    denied.refresh()
    assert denied.known, denied.problem
    assert denied.denied_user("key", "eve") and denied.killed("models")
    denied.close()


def test_the_unit_comes_before_the_network(repository: Path) -> None:
    assert "Before=network-pre.target" in (repository / "systemd" / "gatewatch-restore.service").read_text()
