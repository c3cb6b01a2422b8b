"""The command line, one file a command group; thin.

`kill-switch` is dispatched before anything else is imported, so that it starts within milliseconds, and `replay`
before typer; the other groups are imported when they are called (`app.py`). What goes wrong is one line on
standard error, never a traceback (GATEWATCH_TRACEBACK=1 shows it).
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from ..errors import GatewatchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage or configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale without a character is no reason to fail
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 1
    except Exception as error:
        if os.environ.get("GATEWATCH_TRACEBACK") == "1":
            raise
        if isinstance(error, GatewatchError):
            _complain(str(error))
            return error.exit_code
        _complain(_unexpected(error))
        return 1


def _run(arguments: list[str]) -> int:
    # No arithmetic here is worth a thread for each core, and starting them takes longer than some commands.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if arguments[:1] == ["kill-switch"]:
        from .kill_switch import main as kill_switch

        return kill_switch(arguments[1:])
    if arguments[:1] == ["replay"]:
        from .replay import main as replay

        return replay(arguments[1:])
    # Plugins of pydantic would be code of others in every process, and looking for them takes a tenth of the start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from .app import run

    return run(arguments)


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    said = str(error).splitlines()
    what = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    return f"internal error ({what}); GATEWATCH_TRACEBACK=1 shows where"


def _complain(text: str) -> None:
    from .output import printable

    lines = text.split("\n")
    try:
        print("\n".join([f"gatewatch: {printable(lines[0])}", *map(printable, lines[1:])]), file=sys.stderr)
    except OSError:
        pass


def _drop_output() -> None:
    """The reader has gone: whatever is still buffered must not raise again when Python ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
