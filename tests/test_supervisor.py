"""The supervisor: what dies is started again, and stopping it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gatewatch.daemon.errors import GatewatchError
from gatewatch.daemon.supervisor import Identity, listen, lock, make_folder, may_write

PROGRAM = """
import os, signal, sys
from gatewatch.daemon.supervisor import Supervisor, fork
def work():
    print('child', os.getpid(), flush=True)
    signal.pause()
    return 0
supervisor = Supervisor(lambda text: print('say', text, flush=True))
supervisor.add('worker', lambda: fork(work, 'worker'))
supervisor.add('broken', lambda: fork(lambda: 1 / 0, 'broken')) if 'broken' in sys.argv else None
sys.exit(supervisor.run(lambda: print('reload', flush=True), lambda process: None))
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        if process.poll() is None:
            process.terminate()


def child_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("child"):
            return int(line.split()[1])
    raise AssertionError("no child")


def gone(pid: int) -> bool:
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        if not psutil.pid_exists(pid):
            return True
        os.sched_yield()
    return False


def test_a_killed_process_is_started_again(supervisor: subprocess.Popen[str]) -> None:
    first = child_of(supervisor)
    os.kill(first, signal.SIGKILL)
    second = child_of(supervisor)
    assert second != first


def test_stopping_ends_the_processes(supervisor: subprocess.Popen[str]) -> None:
    child = child_of(supervisor)
    supervisor.terminate()
    assert supervisor.wait(20) == 0
    assert gone(child)


def test_a_reload_is_passed_on(supervisor: subprocess.Popen[str]) -> None:
    child_of(supervisor)
    supervisor.send_signal(signal.SIGHUP)
    assert supervisor.stdout is not None
    assert next(line for line in supervisor.stdout if "reload" in line)


def test_a_process_that_fails_says_why_in_one_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "broken"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("say broken"):
                break
        process.terminate()
        assert any("gatewatch broken: ZeroDivisionError" in line for line in lines)
        assert not any("Traceback" in line for line in lines)


SCARCE = """
import errno, os, signal, sys
from gatewatch.daemon import supervisor
supervisor.RESTART_S = (0.01,)
attempts = []
def start():
    attempts.append(1)
    if len(attempts) < 3:
        raise OSError(errno.EAGAIN, 'Resource temporarily unavailable')
    os.kill(os.getpid(), signal.SIGTERM)
    return supervisor.fork(lambda: 0, 'late')
made = supervisor.Supervisor(lambda text: print(text, flush=True))
made.add('late', start)
sys.exit(made.run(lambda: None, lambda process: None))
"""


def test_a_process_that_cannot_be_started_now_is_started_later() -> None:
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("late cannot be started (Resource temporarily unavailable)") == 2


def test_a_folder_in_which_another_service_works_is_refused_until_all_of_it_is_gone(tmp_path: Path) -> None:
    held = lock(tmp_path)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.close(held)
    with pytest.raises(GatewatchError, match=rf"another .* works here \(process {os.getpid()}\)"):
        lock(tmp_path, 0.1)
    os.close(write)
    os.waitpid(child, 0)
    os.close(lock(tmp_path, 0.1))


def test_a_path_that_is_too_long_for_a_socket_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(GatewatchError, match=r"too long\); choose a shorter --state path"):
        listen(tmp_path / ("x" * 120), 0o600)


def test_whether_another_user_can_write_is_asked_by_becoming_it(tmp_path: Path, root: None) -> None:
    other = Identity(61_999, 61_999)
    inner = tmp_path / "closed" / "inner"
    make_folder(inner, other, 0o700)
    (tmp_path / "closed").chmod(0o700)
    assert not may_write(inner, other)
    assert may_write(Path("/dev/null"), other)
    assert may_write(inner, Identity(None, None))
