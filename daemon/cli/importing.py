"""`gatewatch config import`: take over the bans and ignore lists of fail2ban or CrowdSec.

What is blocked goes to the enforcer, which judges each block by the rails; ignore lists are proposed for
`never_block`, and the rails file is changed only where the command is told to. The other program is left alone.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import ConfigError, EnforcerError, InputError, UsageError
from .options import ConfigOption, StateOption, load_config, socket_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...config.imports import Found, Plan
    from ..enforcer.rails import Rails

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be done; no enforcer is needed, nothing is changed."),
]
WriteOption = Annotated[
    bool, typer.Option("--write-rails", help="Add the ignore lists to never_block; asks on a terminal.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]
RailsOption = Annotated[
    Path | None,
    typer.Option(
        "--rails",
        metavar="FILE",
        envvar="GATEWATCH_RAILS",
        help="The rails file; default: what the configuration says.",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]

MOST_SHOWN = 20


class Asked(NamedTuple):
    """What was asked for on the command line, of either program."""

    program: str
    write_rails: bool
    dry_run: bool
    reason: str
    rails: Path | None
    config: Path | None
    state: Path | None
    as_json: bool


def group() -> typer.Typer:
    made = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    made.command("fail2ban")(fail2ban)
    made.command("crowdsec")(crowdsec)
    return made


def fail2ban(
    database: Annotated[
        Path | None,
        typer.Option(
            "--database", metavar="FILE", help="Its database; default: what its configuration says (dbfile)."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="Its configuration; default: /etc/fail2ban."),
    ] = None,
    write_rails: WriteOption = False,
    dry_run: DryRunOption = False,
    reason: ReasonOption = "imported from fail2ban",
    rails: RailsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over fail2ban's bans that have not ended, and propose its ignore lists for never_block.

    Where one of both is named, the other is not read.
    """
    from ...config.import_fail2ban import DATABASE, FOLDER, read_bans, read_ignored
    from ...config.imports import Found

    found = Found()
    default = database is None and directory is None
    theirs = DATABASE if default else ""
    if directory is not None or (default and Path(FOLDER).exists()):
        named = read_ignored(directory or FOLDER, found)
        theirs = named if default else ""
    if database is not None or (theirs and Path(theirs).exists()):
        read_bans(database or theirs, found, time.time())
    elif theirs and found.read:
        found.remark(theirs, "", "fail2ban's database is not there: no bans are read")
    if not found.read:
        raise InputError(
            "fail2ban was not found on this machine", remedy="name its files with --database and --directory"
        )
    asked = Asked("fail2ban", write_rails, dry_run, reason, rails, config, state, as_json)
    _take_over(found, asked)


def crowdsec(
    decisions: Annotated[
        Path | None,
        typer.Option(
            "--decisions",
            metavar="FILE",
            help="Decisions as JSON, from cscli or the local API; default: cscli is asked.",
        ),
    ] = None,
    allowlists: Annotated[
        Path | None,
        typer.Option(
            "--allowlists", metavar="FILE", help="Allowlists as JSON, from cscli; default: cscli is asked."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="Its configuration; default: /etc/crowdsec."),
    ] = None,
    write_rails: WriteOption = False,
    dry_run: DryRunOption = False,
    reason: ReasonOption = "imported from crowdsec",
    rails: RailsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over CrowdSec's bans that have not ended, and propose its whitelists and allowlists for never_block.

    Where no file is named, cscli is asked, and /etc/crowdsec is read if it exists.
    """
    from ...config import import_crowdsec as theirs
    from ...config.imports import Found

    found = Found()
    default = decisions is None and allowlists is None and directory is None
    if decisions is not None:
        said, written = theirs.read_json(decisions)
        theirs.read_decisions(said, str(decisions), time.time() - written, found)
    elif default:
        said, name = theirs.ask(["decisions", "list", "-a", "-l", "0"])
        theirs.read_decisions(said, name, 0.0, found)
    if allowlists is not None:
        said, _ = theirs.read_json(allowlists)
        for bare in theirs.read_allowlists(said, str(allowlists), found):
            found.remark(str(allowlists), bare, "its entries are not in the file")
    elif default:
        theirs.ask_allowlists(found)
    if directory is not None or (default and Path(theirs.FOLDER).exists()):
        theirs.read_whitelists(directory or theirs.FOLDER, found)
    asked = Asked("crowdsec", write_rails, dry_run, reason, rails, config, state, as_json)
    _take_over(found, asked)


def _take_over(found: Found, asked: Asked) -> None:
    from ...config.imports import plan
    from ..enforcer.client import Enforcer
    from ..enforcer.rails import load

    if not asked.reason.strip():
        raise UsageError("the reason is empty", remedy='--reason "…" says why')
    config = load_config(asked.config, asked.state)
    in_force = load(asked.rails or config.rails)
    wanted = plan(found, in_force)
    said: dict[str, Any] = {"from": asked.program, "dry_run": asked.dry_run, "read": found.read}
    said["never_block"] = _rails(wanted, found, in_force, asked)
    if asked.dry_run:
        said["bans"] = _judge(wanted.blocks, in_force)
    else:
        said["bans"] = _send(wanted.blocks, Enforcer(socket_path(config)), asked.reason)
        # The enforcer says why in words; the rails' names are for the summary.
        refused = said["bans"]["refused"]
        again = _judge([(r["address"], 1) for r in refused], in_force)["refused"]
        names = {r["address"]: r["rail"] for r in again}
        for one in refused:
            one["rail"] = names.get(one["address"], "enforcer")
    said["bans"] |= {"found": len(found.bans), "permanent": wanted.permanent, "ended": found.ended}
    said["not_taken"] = [r._asdict() for r in found.remarks]
    said["not_taken_more"] = found.remarks_more
    if asked.as_json:
        from .output import json_line

        print(json_line(said))
    else:
        _summary(said)


def _rails(wanted: Plan, found: Found, rails: Rails, asked: Asked) -> dict[str, Any]:
    """The rails file with the ignore lists in it, written where that is wanted; what was proposed."""
    from ...config.rails_edit import difference, with_never_block
    from ...config.rails_edit import write as put

    added = [(str(i.network), f"from {asked.program}: {i.where}") for i in wanted.proposed]
    try:
        after = with_never_block(rails.text, added, rails.path)
    except ConfigError as error:
        if asked.write_rails:
            raise
        found.remark(rails.path, "", error.message)
        after = rails.text
    diff = difference(rails.text, after, rails.path)
    written = False
    if asked.write_rails and not asked.dry_run and added:
        if not asked.as_json and sys.stdin.isatty() and sys.stdout.isatty():
            _show(diff)
            written = typer.confirm(f"change {rails.path}?")
        else:
            written = True
        if written:
            put(Path(rails.path), rails.text, after)
            if not asked.as_json:
                print(f"wrote {rails.path}; `systemctl reload gatewatch-enforcer` (SIGHUP) makes it count")
    proposed = [{"network": n, "from": i.where} for (n, _), i in zip(added, wanted.proposed, strict=True)]
    return {
        "rails": rails.path,
        "proposed": proposed,
        "covered": wanted.covered,
        "written": written,
        "diff": diff,
    }


def _judge(blocks: Sequence[tuple[str, int]], rails: Rails) -> dict[str, Any]:
    """What the enforcer would say, as far as the rails file and this machine's own addresses tell."""
    from ..enforcer.kernel import host
    from ..enforcer.rails import network_of, refusal

    never = rails.never(host.surroundings())
    longest = rails.limits.longest_ttl_s
    refused, shortened = [], 0
    for address, ttl_s in blocks:
        why = refusal(network_of(address), min(ttl_s, longest), rails, never)
        if why is not None:
            refused.append({"address": address, "reason": why.reason, "rail": why.rail})
        else:
            shortened += ttl_s > longest
    taken = len(blocks) - len(refused)
    return {"imported": taken, "already": 0, "shortened": shortened, "refused": refused}


def _send(blocks: Sequence[tuple[str, int]], enforcer: Any, reason: str) -> dict[str, Any]:
    """Ask the enforcer for `blocks`, so many in each message as it takes."""
    from ..enforcer.protocol import MOST_IMPORTED

    total: dict[str, Any] = {"imported": 0, "already": 0, "shortened": 0, "refused": []}
    with _progress(len(blocks)) as advance:
        for start in range(0, len(blocks), MOST_IMPORTED):
            part = blocks[start : start + MOST_IMPORTED]
            try:
                answer = enforcer.import_blocks(part, reason)
            except EnforcerError as error:
                if start:
                    error.message = f"after {start:,} of {len(blocks):,} blocks: {error.message}"
                    error.remedy = error.remedy or "run the same command again: what is in force stays"
                raise
            for key in ("imported", "already", "shortened"):
                total[key] += answer[key]
            total["refused"] += [{"address": address, "reason": why} for address, why in answer["refused"]]
            advance(len(part))
    return total


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal where there is much to do, and nothing elsewhere."""
    if total <= 1000 or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("blocks", total=total)
        yield lambda done: bar.advance(task, done)


def _summary(said: dict[str, Any]) -> None:
    from .output import printable

    bans, never = said["bans"], said["never_block"]
    would = "would be " if said["dry_run"] else ""
    print(printable(f"read: {', '.join(said['read'])}"))
    print(
        f"bans: {bans['found']:,} in force there, {bans['ended']:,} ended; {bans['imported']:,} blocks {would}taken "
        f"over, {bans['already']:,} in force already"
    )
    if bans["shortened"]:
        endless = f"; bans without an end: {bans['permanent']:,}" if bans["permanent"] else ""
        print(f"  {bans['shortened']:,} {would}shortened to the rails' longest_ttl_s{endless}")
    by_rail = Counter(r["rail"] for r in bans["refused"])
    for rail, count in by_rail.most_common():
        print(printable(f"  {count:,} {would}refused by rail {rail}"))
    _listed([f"{r['address']}: {r['reason']}" for r in bans["refused"]])
    if said["not_taken"]:
        print(f"not taken over: {len(said['not_taken']) + said['not_taken_more']:,}")
        _listed(
            [f"{r['where']}: {r['value']}{': ' if r['value'] else ''}{r['why']}" for r in said["not_taken"]]
        )
    print(f"ignore lists: {len(never['proposed']):,} for never_block, {never['covered']:,} covered already")
    if never["diff"] and not never["written"]:
        _show(never["diff"])
        print("  --write-rails makes this change")


def _listed(lines: Sequence[str]) -> None:
    from .output import printable

    for line in lines[:MOST_SHOWN]:
        print(printable(f"  {line}"))
    if len(lines) > MOST_SHOWN:
        print(f"  and {len(lines) - MOST_SHOWN:,} more, which --json shows")


def _show(diff: str) -> None:
    from .output import printable

    for line in diff.split("\n"):
        print(printable(line))
