"""The syslog authentication log: sshd of every age, PAM, sudo, su, login, ftpd, systemd-logind.

The tables say which message means what; `scan.Scanner` does the work. A message is believed only as what the
program at its fixed place in the line says; no text in another place can make it another program's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...events import AuthBatch, Outcome
from .clock import NO_TIME, Clock, zone_of
from .common import Parsed, ParserOptions
from .scan import KINDS, Scanner, count_lines

SSHD, PAM, SUDO, SU, LOGIN, FTPD, LOGIND, KLOGIND, SPEAKS_PAM, FACTOR = range(1, 11)

STRICT = bytes((0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0))
"""By class: whether a message of no known shape is reported as not understood; sshd's errors are not."""

PROGRAMS: dict[bytes, int] = {
    **dict.fromkeys((b"sshd", b"sshd-session", b"sshd-auth"), SSHD),
    b"sudo": SUDO,
    **dict.fromkeys((b"su", b"su-l", b"runuser"), SU),
    **dict.fromkeys((b"login", b"LOGIN", b"remote"), LOGIN),
    **dict.fromkeys((b"ftpd", b"in.ftpd", b"vsftpd", b"proftpd", b"pure-ftpd"), FTPD),
    b"systemd-logind": LOGIND,
    **dict.fromkeys((b"klogind", b"kshd"), KLOGIND),
    **dict.fromkeys((b"pam_duo", b"login_duo"), FACTOR),
    **dict.fromkeys(
        (
            b"CRON", b"cron", b"crond", b"CROND", b"atd", b"systemd", b"auth", b"dovecot", b"saslauthd", b"imapd",
            b"gdm", b"gdm-password", b"gdm-launch-environment", b"lightdm", b"sddm", b"kdm", b"xdm", b"screen",
            b"passwd", b"chsh", b"chfn", b"useradd", b"usermod", b"userdel", b"groupadd", b"pkexec",
            b"polkit-agent-helper-1", b"cockpit-session", b"xrdp-sesman", b"smbd", b"rshd", b"rlogind", b"rexecd",
            b"telnetd", b"in.telnetd", b"xscreensaver", b"kcheckpass", b"httpd", b"apache2", b"nginx", b"openvpn",
            b"squid", b"postgres", b"cyrus", b"webmin", b"doas",
        ),
        SPEAKS_PAM,
    ),
}  # fmt: skip

QUIET_MODULES = frozenset(
    (
        b"pam_systemd", b"pam_systemd_home", b"pam_env", b"pam_limits", b"pam_mail", b"pam_motd", b"pam_selinux",
        b"pam_loginuid", b"pam_keyinit", b"pam_umask", b"pam_lastlog", b"pam_lastlog2", b"pam_mkhomedir",
        b"pam_gnome_keyring", b"pam_kwallet", b"pam_kwallet5", b"pam_succeed_if", b"pam_console", b"pam_stack",
        b"pam_namespace", b"pam_xauth", b"pam_apparmor", b"pam_cap", b"pam_group", b"pam_ecryptfs", b"pam_ck_connector",
        b"pam_localuser", b"pam_nologin", b"pam_time", b"pam_tty_audit", b"pam_rootok", b"pam_wheel",
        b"pam_google_authenticator",
    )
)  # fmt: skip

PREAUTH = 16
"""Added to an outcome: it holds for messages that end in ` [preauth]`; others say nothing of a login."""

PAM_ERRORS = (
    (b"Authentication failure", Outcome.PAM_FAILURE),
    (b"authentication error", Outcome.PAM_FAILURE),
    (b"Authentication failed", Outcome.PAM_FAILURE),
    (b"User not known to the underlying authentication module", Outcome.PAM_FAILURE),
    (b"Permission denied", Outcome.PAM_FAILURE),
    (b"Have exhausted maximum number of retries for service", Outcome.PAM_FAILURE),
    (b"User account has expired", Outcome.OTHER),
    (b"Authentication token expired", Outcome.OTHER),
)
"""What `pam_strerror` of Linux-PAM, OpenPAM and Solaris says, and sshd repeats beside its own line."""

# Messages that say nothing of a login, or nothing that another line does not say as well.
SSHD_QUIET = (
    "Access denied for user |Account |Allocated |Attempt to write login records |Authentication |"
    "Authorized to |Bad |Certificate |Change of username |Changed root directory |Close session: |"
    "Closing connection to |Connection |Corrupted |Could not |Deprecated |Exiting on signal |"
    "Found matching |Generating |Login restricted |Local disconnected: |"
    "Missing privilege separation |Nasty |Password expired |Privilege separation |RSA |"
    "Read error from |Received SIGHUP|Received signal |Received request |Received window |SELinux: |"
    "Server listening on |Starting session: |Timeout, client not responding|Transferred: |"
    "Unsupported |Write failed: |beginning MaxStartups |cert: |debug1: |debug2: |debug3: |"
    "dispatch_protocol_error: |dispatch_|drop connection from |exited MaxStartups |failed to |"
    "fatal: |fingerprint |getpeername |internal-sftp|lastlog_|mm_|monitor_|no matching |"
    "open failed |packet_|penalising |penalty: |probed from |rexec |rekeyed |scanned from |"
    "session |srclimit_|ssh_|subsystem request |syslogin_|trusted user CA |userauth_|"
    "Protocol |Forwarding |Forced command|Remote |Client |Set |Disabling |Login |Public key |Killing |"
    "Ignoring |Ignored |Setting |Starting |Executing |Maximum |Refusing |No |Key |auth_|krb5|sent |"
    "using hostname |warning: |no hostkey|Postmortem |channel |pam_|sshd: |"
    "starting Duo Unix: |Loading config file |Presenting GECOS-derived Duo username|Empty GECOS field|"
    "Couldn't open |Missing host, ikey, or skey in |Parse error in |All configured groups are negated|"
    "TLS certificate verification is disabled|fallback_local_ip is "
)
PAM_QUIET = (
    "check pass; user |auth could not identify password for |conversation failed|service(|"
    "received for user |account |expired password for user |password changed for |"
    "unrecognized option |bad username |username |could not |couldn't |new password |"
    "password for user |Consecutive login failures for user |user |User |(null): |unable to |"
    "cannot |error |Accepted |Refused user |access denied for user |Access |request |getting |"
    "granting |Invalid verification code|Failed to |failed to |pam_|unknown option|"
    "permission denied|root login denied|authentication success; |temporarily locked|auth: "
)


def _quiet(program: int, prefixes: str) -> list[tuple[int, bytes, str, int]]:
    return [(program, prefix.encode(), "nothing", Outcome.OTHER) for prefix in prefixes.split("|")]


FACTORS: tuple[tuple[bytes, str, int], ...] = (
    (b"Failed Duo login for '", "duo", Outcome.FACTOR_DENIED),
    (b"Successful Duo login for '", "duo", Outcome.OTHER),
    (b"Aborted Duo login for '", "duo", Outcome.PAM_FAILURE),
    (b"Skipped Duo login for '", "duo", Outcome.OTHER),
    (b"Failsafe Duo login for '", "duo", Outcome.OTHER),
    (b"Failsecure Duo login for '", "duo", Outcome.OTHER),
    (b"Error in Duo login for '", "duo", Outcome.OTHER),
)
"""What Duo says of a prompt (duo_unix, pam_duo.c and login_duo.c: `duo_log()`).

`Failed` is a prompt that was denied, or ran out, or a wrong passcode, one line each. `Aborted` is one that Duo would
not send. The login itself is told by sshd. The name before it can be sshd's, whose process loads the module.
"""

SHAPES: tuple[tuple[int, bytes, str, int], ...] = (
    (SSHD, b"Failed ", "attempt", Outcome.FAILURE),
    (SSHD, b"Accepted ", "attempt", Outcome.SUCCESS),
    (SSHD, b"Accepted key ", "nothing", Outcome.OTHER),
    (SSHD, b"Accepted certificate ", "nothing", Outcome.OTHER),
    (SSHD, b"Postponed ", "attempt", Outcome.OTHER),
    (SSHD, b"Partial ", "attempt", Outcome.OTHER),
    (SSHD, b"Invalid user ", "user_from", Outcome.INVALID_USER),
    (SSHD, b"Illegal user ", "user_from", Outcome.INVALID_USER),
    (SSHD, b"input_userauth_request: invalid user ", "user", Outcome.OTHER),
    (SSHD, b"input_userauth_request: illegal user ", "user", Outcome.OTHER),
    (SSHD, b"maximum authentication attempts exceeded for invalid user ", "user_from", Outcome.DISCONNECT),
    (SSHD, b"maximum authentication attempts exceeded for ", "user_from", Outcome.DISCONNECT),
    *(
        (SSHD, b"PAM: " + said + b" for " + who, "user_from", outcome)
        for said, outcome in PAM_ERRORS
        for who in (b"illegal user ", b"invalid user ", b"")
    ),
    (SSHD, b"PAM: ", "nothing", Outcome.OTHER),
    (SSHD, b"PAM service(", "nothing", Outcome.OTHER),
    *((SSHD, b"PAM %d" % digit, "more", Outcome.PAM_FAILURE) for digit in range(1, 10)),
    (SSHD, b"Connection closed by ", "user_address", Outcome.DISCONNECT),
    (SSHD, b"Connection reset by ", "user_address", Outcome.DISCONNECT),
    (SSHD, b"Disconnected from ", "user_address", Outcome.DISCONNECT + PREAUTH),
    (SSHD, b"Received disconnect from ", "address", Outcome.DISCONNECT + PREAUTH),
    (SSHD, b"Disconnecting", "disconnecting", Outcome.DISCONNECT),
    (SSHD, b"Did not receive identification string", "last_address", Outcome.DISCONNECT),
    (SSHD, b"Bad protocol version identification ", "last_address", Outcome.DISCONNECT),
    (SSHD, b"banner exchange: Connection from ", "address", Outcome.DISCONNECT),
    (SSHD, b"kex_exchange_identification: ", "nothing", Outcome.OTHER),
    (SSHD, b"kex_protocol_error: ", "nothing", Outcome.OTHER),
    (SSHD, b"ssh_dispatch_run_fatal: Connection from ", "address", Outcome.DISCONNECT),
    (SSHD, b"Unable to negotiate with ", "address", Outcome.DISCONNECT),
    (SSHD, b"Protocol major versions differ for ", "address", Outcome.DISCONNECT),
    (SSHD, b"Timeout before authentication for connection from ", "address", Outcome.DISCONNECT),
    (SSHD, b"Timeout before authentication for ", "address", Outcome.DISCONNECT),
    (SSHD, b"Timeout before authentication", "nothing", Outcome.DISCONNECT),
    (SSHD, b"drop connection #", "drop", Outcome.DISCONNECT),
    (SSHD, b"reverse mapping checking getaddrinfo for ", "bracket", Outcome.OTHER),
    (SSHD, b"reverse mapping checking getnameinfo for ", "bracket", Outcome.OTHER),
    (SSHD, b"Address ", "address", Outcome.OTHER),
    (SSHD, b"Nasty PTR record ", "nothing", Outcome.OTHER),
    (SSHD, b"User ", "not_allowed", Outcome.INVALID_USER),
    (SSHD, b"User child is on pid ", "nothing", Outcome.OTHER),
    (SSHD, b"ROOT LOGIN REFUSED FROM ", "address", Outcome.PAM_FAILURE),
    (SSHD, b"refused connect from ", "address", Outcome.DISCONNECT),
    (SSHD, b"Connection from ", "address", Outcome.OTHER),
    *((program, *shape) for program in (SSHD, PAM, FACTOR) for shape in FACTORS),
    *_quiet(SSHD, SSHD_QUIET),
    (PAM, b"authentication failure; ", "pam", Outcome.PAM_FAILURE),
    *((PAM, b"%d" % digit, "more", Outcome.PAM_FAILURE) for digit in range(1, 10)),
    (PAM, b"session opened for user ", "session", Outcome.SESSION_OPENED),
    (PAM, b"session closed for user ", "session", Outcome.SESSION_CLOSED),
    (PAM, b"Invalid verification code for ", "code", Outcome.FACTOR_DENIED),
    (PAM, b"Accepted google_authenticator for ", "code", Outcome.OTHER),
    *_quiet(PAM, PAM_QUIET),
    (SUDO, b"", "sudo", Outcome.OTHER),
    (SU, b"FAILED SU (to ", "su_to", Outcome.FAILURE),
    (SU, b"(to ", "su_to", Outcome.SUCCESS),
    (SU, b"FAILED su for ", "su_for", Outcome.FAILURE),
    (SU, b"Successful su for ", "su_for", Outcome.SUCCESS),
    *_quiet(SU, "+ |- |pam_|No passwd entry |BAD SU |BAD su "),
    (LOGIN, b"FAILED LOGIN", "login_for", Outcome.FAILURE),
    (LOGIN, b"ROOT LOGIN", "root_login", Outcome.SUCCESS),
    (LOGIN, b"LOGIN ON ", "login_by", Outcome.SUCCESS),
    (LOGIN, b"DIALUP AT ", "login_by", Outcome.SUCCESS),
    (FTPD, b"connection from ", "address", Outcome.OTHER),
    (FTPD, b"ANONYMOUS FTP LOGIN FROM ", "address", Outcome.OTHER),
    (FTPD, b"[", "client", Outcome.FAILURE),
    (LOGIND, b"New session ", "logind", Outcome.SESSION_OPENED),
    (LOGIND, b"Removed session ", "nothing", Outcome.SESSION_CLOSED),
    (KLOGIND, b"Authentication failed from ", "address", Outcome.FAILURE),
)  # fmt: skip


class SshdParser:
    """Parses a syslog authentication log; see docs/formats.md for what becomes of each line."""

    name: ClassVar[str] = "sshd"

    def __init__(self, options: ParserOptions) -> None:
        self._options = options
        self._clock = Clock(zone_of(options.timezone), options.year, options.received_ns)
        self._scanner = Scanner(
            options.hash_key,
            self._clock,
            PROGRAMS,
            (PAM, LOGIN),
            QUIET_MODULES,
            STRICT,
            [(program, prefix, KINDS[kind], int(outcome)) for program, prefix, kind, outcome in SHAPES],
        )

    def parse(self, chunk: bytes, first_line: int = 1, receive_ns: int | None = None) -> Parsed:
        if len(chunk) >= 1 << 31:
            raise ValueError("a chunk must be smaller than 2 GiB")
        now_ns = self._options.received_ns if receive_ns is None else receive_ns
        self._clock.now_ns = now_ns
        most = count_lines(chunk)
        batch = AuthBatch.blank(most, chunk)
        unparsed = np.zeros(most, np.int64)
        rows, missed, lines = self._scanner.syslog(chunk, first_line, now_ns, batch, unparsed)
        batch.provenance[:] = self._options.provenance
        return Parsed(batch.take(slice(0, rows)), unparsed[:missed], lines)

    def save(self) -> dict[str, Any]:
        """The last time that had no offset, on which the year of the next one depends."""
        last_ns = self._scanner.last()
        return {} if last_ns == NO_TIME else {"last_ns": last_ns}

    def load(self, state: dict[str, Any], /) -> None:
        self._scanner.set_last(int(state.get("last_ns", NO_TIME)))
