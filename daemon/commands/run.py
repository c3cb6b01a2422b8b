"""One command while it runs: its input is fed, its output read and bounded, and it is ended with all that it started.

No shell and no inherited environment. It runs in a session of its own, and nothing that stays in its process group
outlives it. What it writes beyond the first bytes is thrown away as it comes, and too much of it ends it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial

from .. import sandbox
from ..errors import CommandError, PrivilegeError
from . import safety
from .request import Request, plain

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/"}
MOST_OUTPUT = 16 << 20  # bytes, thrown away but for the first; who writes more is ended
_KEPT = 4096  # bytes: 500 characters, and what is not printable before them
_SHOWN = 500
_PIECE = 65_536


class Run:
    """A running command. `ended` is called once, with it, when it is over; then `answer` says how.

    `deadline` is on the monotonic clock; who owns it calls `end` when it has come. Raises CommandError where the
    program cannot be started.
    """

    def __init__(
        self,
        line: Sequence[str],
        timeout_s: float,
        request: Request,
        selector: selectors.BaseSelector,
        ended: Callable[[Run], None],
    ) -> None:
        safety.check(line[0])
        self.request = request
        self.answer: dict[str, object] = {}
        self._selector = selector
        self._ended = ended
        self._started = time.monotonic()
        self.deadline = self._started + timeout_s
        self._wrote = 0
        self._output = b""
        self._why = ""
        self._input = memoryview(request.input)
        try:
            self._process = subprocess.Popen(
                list(line),
                stdin=subprocess.PIPE if request.input else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd="/",
                env={**ENVIRONMENT, **request.environment},
                start_new_session=True,
                umask=0o077,
                preexec_fn=partial(_end_with, os.getpid()),
            )
        except (OSError, subprocess.SubprocessError) as error:
            why = error.strerror if isinstance(error, OSError) else "it could not be set up"
            raise CommandError(
                f"command {request.run}: {line[0]} cannot be run ({why})",
                remedy="see whether the helper's user may run it",
            ) from None
        try:
            self._watch = os.pidfd_open(self._process.pid)
        except OSError as error:  # no descriptor left: what cannot be watched must not run
            self._kill()
            self._process.communicate()
            raise CommandError(f"command {request.run}: cannot be watched ({error.strerror})") from None
        selector.register(self._watch, selectors.EVENT_READ, self._exited)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        selector.register(self._process.stdout, selectors.EVENT_READ, self._read)
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
            selector.register(self._process.stdin, selectors.EVENT_WRITE, self._write)

    def end(self, why: str) -> None:
        """Kill it and all that it started in its group; `why` is said in the answer."""
        self._why = self._why or why
        self.deadline = float("inf")
        self._kill()

    def _kill(self) -> None:
        """Until it is waited for, its process id and that of its group are nobody else's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> bool:
        """Whether there was something."""
        stream = self._process.stdout
        if stream is None or stream.closed:
            return False
        try:
            piece = os.read(stream.fileno(), _PIECE)
        except BlockingIOError:
            return False
        if not piece:
            self._close(stream)
            return False
        self._wrote += len(piece)
        if len(self._output) < _KEPT:
            self._output += piece[: _KEPT - len(self._output)]
        if self._wrote > MOST_OUTPUT and not self._why:
            self.end(f"wrote more than {MOST_OUTPUT >> 20} MiB")
        return True

    def _write(self) -> None:
        stream = self._process.stdin
        if stream is None or stream.closed:
            return
        try:
            self._input = self._input[os.write(stream.fileno(), self._input[:_PIECE]) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self._input = self._input[:0]
        if not self._input:
            self._close(stream)

    def _close(self, stream: object) -> None:
        self._selector.unregister(stream)  # type: ignore[arg-type]
        stream.close()  # type: ignore[attr-defined]

    def _exited(self) -> None:
        self._kill()  # what it left running in its group, while the number is still its own
        while len(self._output) < _KEPT and self._read():
            pass  # what it wrote at last; another that holds the pipe open is not waited for
        for stream in (self._process.stdout, self._process.stdin):
            if stream is not None and not stream.closed:
                self._close(stream)
        self._selector.unregister(self._watch)
        os.close(self._watch)
        code = self._process.wait()
        self.answer = self._told(code)
        self._ended(self)

    def _told(self, code: int) -> dict[str, object]:
        shown = self._output.decode("utf-8", "replace").replace("\n", " ").replace("\t", " ").strip()[:_SHOWN]
        told: dict[str, object] = {
            "ok": code == 0 and not self._why,
            "exit_code": code,
            "output": plain(shown),
            "seconds": round(time.monotonic() - self._started, 3),
        }
        if not told["ok"]:
            how = self._why or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
            told["error"] = f"command {self.request.run}: {how}"
        return told


def _end_with(parent: int) -> None:
    """In the child: it ends with the helper, even where that is killed."""
    with contextlib.suppress(PrivilegeError):
        sandbox.die_with_parent(parent)
        return
    os._exit(1)
