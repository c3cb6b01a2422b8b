"""`python -m gatewatch.daemon.enforcer`: bring the kernel into the journal's state, then serve.

With `--restore-only` it ends there: for boot, before the network is up and before anything else runs.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from ..errors import EnforcerError, GatewatchError, PrivilegeError, UsageError
from . import rails as rails_file
from .authority import Authority
from .deny_list import DENIED, DenyList
from .journal import Journal, LockedError
from .kernel.nft import Nft
from .server import Options, Server, say
from .state import Moment, clocks


def main(arguments: list[str]) -> int:
    """Exit code 0 after a signal, 1 where it cannot work, 2 for a wrong option or wrong rails."""
    try:
        options = _options(arguments)
        if os.geteuid() != 0:
            raise PrivilegeError("the enforcer changes the kernel's firewall", remedy="start it as root")
        os.setpriority(
            os.PRIO_PROCESS, 0, -10
        )  # a flood that keeps every CPU busy must not hold up its block
        now = clocks()
        journal = _journal(options.state, now)
        gid = None if options.restore_only else options.denied_gid
        deny_list = DenyList(f"{options.state}/{DENIED}", journal, now, gid=gid, complain=say)
        authority = Authority(journal, Nft(), now, deny_list)
        authority.killswitch.restore()  # before anything that may fail: what was cut off stays cut off
        _try(authority.restrictions.restore)
        authority.publish()  # nor does what the gateway refuses depend on the rails
        if options.restore_only:
            return _restore(options, authority)
        server = Server(options, authority)
        server.load_rails()
        authority.restore()
        _try(authority.look_around)
        _try(authority.killswitch.tidy)
        _note(journal, "start")
        gc.freeze()  # the search for garbage need not walk what is in force: 28 ms with 100,000 blocks
        server.serve()
        _try(authority.tick)  # refusals that were only counted are written
        _note(journal, "stop")
        journal.close()
    except GatewatchError as error:
        say(str(error))
        return error.exit_code
    return 0


def _restore(options: Options, authority: Authority) -> int:
    """Blocks as well; without valid rails the kernel has none but the kill switch, and it ends with exit code 2.
    Raises GatewatchError."""
    authority.use(rails_file.load(options.rails))
    authority.restore()
    state = authority.journal.state
    say(f"restored {len(state.blocks)} blocks and {len(state.kills)} kill switches")
    if state.restrictions:
        say(f"restored {len(state.restrictions)} restrictions")
    authority.journal.close()
    return 0


def _journal(state: str, now: Callable[[], Moment]) -> Journal:
    """For writing; for reading where the disk does not let us: then nothing is blocked, but the kill switch works."""
    try:
        os.makedirs(state, mode=0o755, exist_ok=True)
        return Journal(f"{state}/enforcer", now, wait_s=2.0)
    except LockedError:
        raise
    except (EnforcerError, OSError) as error:
        say(f"{error}; going on without writing")
        return Journal(f"{state}/enforcer", now, read_only=True)


def _try(what: Callable[[], object]) -> None:
    """A full disk keeps nobody from being served."""
    try:
        what()
    except (EnforcerError, OSError) as error:
        say(str(error))


def _note(journal: Journal, what: str) -> None:
    try:
        journal.append(what, pid=os.getpid(), note=journal.note)
    except EnforcerError as error:
        say(str(error))


def _options(arguments: list[str]) -> Options:
    import argparse

    parser = argparse.ArgumentParser(
        prog="gatewatch-enforcer", description="The privileged process of Gatewatch."
    )
    parser.add_argument("--state", required=True, help="the state folder")
    parser.add_argument("--rails", required=True, help="the root-owned rails.toml")
    parser.add_argument("--analyser-uid", type=int, default=-1, help="the user that the analyser runs as")
    parser.add_argument(
        "--restore-only", action="store_true", help="bring the kernel into the journal's state, and end"
    )
    parser.add_argument("--socket", type=int, default=-1, help="a listening socket that was handed over")
    parser.add_argument(
        "--denied-gid", type=int, default=0, help="the group that may read the published deny list"
    )
    given = parser.parse_args(arguments)
    if given.analyser_uid <= 0 and not given.restore_only:
        raise UsageError("--analyser-uid: a user that is not root is wanted")
    if given.denied_gid < 0:
        raise UsageError("--denied-gid: the number of a group is wanted")
    return Options(
        given.state, given.rails, given.analyser_uid, given.socket, given.restore_only, given.denied_gid
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
