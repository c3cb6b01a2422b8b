"""What OpenSSH 9.2, PAM, sudo and systemd-logind of Debian 12 write about one connection.

Taken from sshd's sources: `auth_log()` in auth.c, `input_userauth_request()` in auth2.c,
`ssh_packet_read_seqnr()` in packet.c. At the default LogLevel INFO a failure of a valid user is logged for
the method `password`, and for any other method only from half of MaxAuthTries on; with VERBOSE each is. A
line is `(seconds after the start, tag, message, weight)`: weight is how many failed attempts it stands for,
or ACCEPTED. Nothing here knows whether its actor is hostile.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode

from .chance import Chance

ACCEPTED = -1
Line = tuple[float, str, str, int]
SSHD = "sshd[%d]"
LOGIND = "systemd-logind[612]"


def fingerprint(of: str) -> str:
    """`ED25519 SHA256:…`, always the same for the same name."""
    digest = hashlib.sha256(of.encode("utf-8", "surrogateescape")).digest()
    return f"ED25519 SHA256:{b64encode(digest).decode().rstrip('=')}"


def pam_failure(source: str, user: str = "") -> str:
    named = f"  user={user}" if user else " "
    return f"pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost={source}{named}"


def failures(
    chance: Chance,
    user: str,
    source: str,
    *,
    known: bool,
    tries: int = 1,
    pace: float = 2.0,
    repeated: bool = False,
) -> list[Line]:
    """A connection of `tries` wrong passwords (sshd ends it at six), with its end."""
    lines, at, port = password_failures(chance, user, source, known, tries, pace, repeated)
    more = tries - 1
    who = f"{'authenticating' if known else 'invalid'} user {user} {source} port {port}"
    if tries >= 6:
        named = f"{'' if known else 'invalid user '}{user} from {source} port {port} ssh2"
        lines.append((at, SSHD, f"error: maximum authentication attempts exceeded for {named} [preauth]", 0))
        lines.append((at, SSHD, f"Disconnecting {who}: Too many authentication failures [preauth]", 0))
    elif chance.chosen(0.5):
        lines.append((at, SSHD, f"Connection closed by {who} [preauth]", 0))
    else:
        lines.append((at, SSHD, f"Received disconnect from {source} port {port}:11: Bye Bye [preauth]", 0))
        lines.append((at, SSHD, f"Disconnected from {who} [preauth]", 0))
    if more:
        kept = f"logname= uid=0 euid=0 tty=ssh ruser= rhost={source}" + (f"  user={user}" if known else " ")
        lines.append((at, SSHD, f"PAM {more} more authentication failure{'s' * (more > 1)}; {kept}", 0))
        if more > 3:
            lines.append((at, SSHD, f"PAM service(sshd) ignoring max retries; {tries} > 3", 0))
    return lines


def password_failures(
    chance: Chance, user: str, source: str, known: bool, tries: int, pace: float, repeated: bool
) -> tuple[list[Line], float, int]:
    """The failures alone, when the next thing happens, and the port."""
    port = chance.whole(1024, 65535)
    lines: list[Line] = []
    if not known:
        lines.append((0.0, SSHD, f"Invalid user {user} from {source} port {port}", 0))
    failed = f"Failed password for {'' if known else 'invalid user '}{user} from {source} port {port} ssh2"
    at = 0.1
    for n in range(tries):
        if not known:
            lines.append((at, SSHD, "pam_unix(sshd:auth): check pass; user unknown", 0))
        if n == 0:
            lines.append((at, SSHD, pam_failure(source, user if known else ""), 0))
        at += 1.6 + pace * 0.2 * chance.random()
        if n == 1 and repeated and known and tries > 2:
            at += pace * (tries - 2)
            lines.append((at, SSHD, f"message repeated {tries - 1} times: [ {failed}]", tries - 1))
            break
        lines.append((at, SSHD, failed, 1))
        at += pace * chance.random() if n + 1 < tries else 0.0
    return lines, at + 0.2, port


def login(
    chance: Chance,
    user: str,
    source: str,
    *,
    uid: int,
    method: str = "password",
    key: str = "",
    typed_wrong: int = 0,
    seconds: float = 600.0,
    sudo: int = 0,
    repeated: bool = False,
) -> list[Line]:
    """A connection that succeeds, after `typed_wrong` wrong passwords in it, and its session to the end."""
    lines, at, port = (
        password_failures(chance, user, source, True, typed_wrong, 5.0, repeated)
        if typed_wrong
        else ([], 0.0, chance.whole(1024, 65535))
    )
    at += 1.5 * chance.random()
    proof = f": {fingerprint(key or user)}" if method == "publickey" else ""
    lines.append((at, SSHD, f"Accepted {method} for {user} from {source} port {port} ssh2{proof}", ACCEPTED))
    number = chance.whole(100, 99999)
    opened = f"session opened for user {user}(uid={uid}) by (uid=0)"
    lines.append((at + 0.02, SSHD, f"pam_unix(sshd:session): {opened}", 0))
    lines.append((at + 0.05, LOGIND, f"New session {number} of user {user}.", 0))
    for _ in range(sudo):
        then = at + 5 + (seconds - 10) * 0.9 * chance.random()
        what = chance.pick(
            (
                "/usr/bin/systemctl status vllm",
                "/usr/bin/journalctl -e",
                "/usr/bin/nvidia-smi",
                "/usr/bin/apt-get update",
            )
        )
        command = f"{user} : TTY=pts/{chance.below(20)} ; PWD=/home/{user} ; USER=root ; COMMAND={what}"
        if chance.chosen(0.06):
            who = f"logname={user} uid={uid} euid=0 tty=/dev/pts/1 ruser={user} rhost=  user={user}"
            lines.append((then - 4, "sudo", f"pam_unix(sudo:auth): authentication failure; {who}", 0))
            if chance.chosen(0.3):
                lines.append(
                    (
                        then - 1,
                        "sudo",
                        f"{user} : 1 incorrect password attempt ; {command.split(' : ')[1]}",
                        0,
                    )
                )
        lines.append((then, "sudo", command, 0))
        lines.append(
            (
                then,
                "sudo",
                f"pam_unix(sudo:session): session opened for user root(uid=0) by {user}(uid={uid})",
                0,
            )
        )
        lines.append((then + 1.0, "sudo", "pam_unix(sudo:session): session closed for user root", 0))
    end = at + seconds
    lines.append((end, SSHD, f"Received disconnect from {source} port {port}:11: disconnected by user", 0))
    lines.append((end, SSHD, f"Disconnected from user {user} {source} port {port}", 0))
    lines.append((end + 0.01, SSHD, f"pam_unix(sshd:session): session closed for user {user}", 0))
    lines.append((end + 0.02, LOGIND, f"Session {number} logged out. Waiting for processes to exit.", 0))
    lines.append((end + 0.03, LOGIND, f"Removed session {number}.", 0))
    return lines


def short_job(chance: Chance, user: str, source: str, uid: int, seconds: float) -> list[Line]:
    """A machine's login by key: what stays in the log of it."""
    port = chance.whole(1024, 65535)
    return [
        (
            0.1,
            SSHD,
            f"Accepted publickey for {user} from {source} port {port} ssh2: {fingerprint(user)}",
            ACCEPTED,
        ),
        (0.12, SSHD, f"pam_unix(sshd:session): session opened for user {user}(uid={uid}) by (uid=0)", 0),
        (seconds, SSHD, f"pam_unix(sshd:session): session closed for user {user}", 0),
    ]


def dead_key(chance: Chance, user: str, source: str, *, verbose: bool, known: bool = True) -> list[Line]:
    """A client with one key that the server does not take: at INFO only the end of its connection is
    logged."""
    port = chance.whole(1024, 65535)
    who = f"{'authenticating' if known else 'invalid'} user {user} {source} port {port} [preauth]"
    lines: list[Line] = []
    if not known:
        lines.append((0.0, SSHD, f"Invalid user {user} from {source} port {port}", 0))
    if verbose:
        said = f"{'' if known else 'invalid user '}{user} from {source} port {port} ssh2: {fingerprint('old ' + user)}"
        lines.append((0.1, SSHD, f"Failed publickey for {said}", 1))
    lines.append((0.2, SSHD, f"Connection closed by {who}", 0 if verbose else 1))
    return lines


def pushes(
    chance: Chance,
    user: str,
    source: str,
    *,
    uid: int,
    denied: int,
    accepted: bool,
    verbose: bool,
    duo: bool,
    pace: float = 20.0,
) -> list[Line]:
    """Keyboard-interactive prompts of a second factor that are denied, then (`accepted`) let through.

    With pam_duo each push is a line of `pam_duo` (duo_unix, pam_duo.c: `duo_log()`); with
    google-authenticator a wrong code is one of `sshd(pam_google_authenticator)`. sshd's own lines are
    `error: PAM: Authentication failure for USER from ADDRESS` each time, and `Failed
    keyboard-interactive/pam` from the third on (each time with VERBOSE).
    """
    port = chance.whole(1024, 65535)
    lines: list[Line] = []
    at = 0.5
    for n in range(min(denied, 6)):
        at += pace * chance.between(0.6, 1.4)
        if duo:
            lines.append(
                (at, "pam_duo[%d]", f"Failed Duo login for '{user}' from {source}: Login request denied.", 0)
            )
        else:
            lines.append(
                (at, "sshd(pam_google_authenticator)[%d]", f"Invalid verification code for {user}", 0)
            )
        logged = verbose or n >= 3
        lines.append(
            (
                at + 0.1,
                SSHD,
                f"error: PAM: Authentication failure for {user} from {source}",
                0 if logged else 1,
            )
        )
        if logged:
            lines.append(
                (
                    at + 0.1,
                    SSHD,
                    f"Failed keyboard-interactive/pam for {user} from {source} port {port} ssh2",
                    1,
                )
            )
    if accepted:
        at += pace
        if duo:
            lines.append((at, "pam_duo[%d]", f"Successful Duo login for '{user}' from {source}", 0))
        else:
            lines.append(
                (at, "sshd(pam_google_authenticator)[%d]", f"Accepted google_authenticator for {user}", 0)
            )
        said = f"{user} from {source} port {port} ssh2"
        lines.append((at + 0.1, SSHD, f"Accepted keyboard-interactive/pam for {said}", ACCEPTED))
        lines.append(
            (
                at + 0.2,
                SSHD,
                f"pam_unix(sshd:session): session opened for user {user}(uid={uid}) by (uid=0)",
                0,
            )
        )
        lines.append((at + 900, SSHD, f"pam_unix(sshd:session): session closed for user {user}", 0))
    else:
        lines.append(
            (
                at + 1,
                SSHD,
                f"Connection closed by authenticating user {user} {source} port {port} [preauth]",
                0,
            )
        )
    return lines


def probe(chance: Chance, source: str) -> list[Line]:
    """A connection without a login: a monitor's, or a scanner's at the banner."""
    port = chance.whole(1024, 65535)
    draw = chance.random()
    if draw < 0.3:
        closed = "error: kex_exchange_identification: Connection closed by remote host"
        return [(0.0, SSHD, closed, 0), (0.0, SSHD, f"Connection closed by {source} port {port}", 0)]
    if draw < 0.55:
        return [(0.0, SSHD, f"Did not receive identification string from {source} port {port}", 0)]
    if draw < 0.7:
        return [(0.0, SSHD, f"banner exchange: Connection from {source} port {port}: invalid format", 0)]
    if draw < 0.75:
        return [(120.0, SSHD, f"fatal: Timeout before authentication for {source} port {port}", 0)]
    if draw < 0.85:
        why = "no matching host key type found. Their offer: ssh-rsa,ssh-dss"
        return [(0.0, SSHD, f"Unable to negotiate with {source} port {port}: {why} [preauth]", 0)]
    return [
        (0.0, SSHD, f"Connection {chance.pick(('closed', 'reset'))} by {source} port {port} [preauth]", 0)
    ]


def cron(chance: Chance) -> list[Line]:
    tag = "CRON[%d]"
    return [
        (0.0, tag, "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)", 0),
        (chance.between(0.05, 3), tag, "pam_unix(cron:session): session closed for user root", 0),
    ]
