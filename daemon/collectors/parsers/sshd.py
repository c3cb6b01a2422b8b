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
from .scan import KINDS, Scanner

SSHD, PAM, SUDO, SU, LOGIN, FTPD, LOGIND, KLOGIND, SPEAKS_PAM = range(1, 10)

STRICT = bytes((0, 1, 1, 1, 0, 0, 0, 0, 0, 0))
"""By class: whether a message of no known shape is reported as not understood. (`fatal:`, `error:` of sshd never are.)"""

PROGRAMS: dict[bytes, int] = {
    **dict.fromkeys((b"sshd", b"sshd-session", b"sshd-auth"), SSHD),
    b"sudo": SUDO,
    **dict.fromkeys((b"su", b"su-l", b"runuser"), SU),
    **dict.fromkeys((b"login", b"LOGIN", b"remote"), LOGIN),
    **dict.fromkeys((b"ftpd", b"in.ftpd", b"vsftpd", b"proftpd", b"pure-ftpd"), FTPD),
    b"systemd-logind": LOGIND,
    **dict.fromkeys((b"klogind", b"kshd"), KLOGIND),
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
    )
)  # fmt: skip

PREAUTH = 16
"""Added to an outcome: it holds for messages that end in ` [preauth]`; others say nothing of a login."""

O = Outcome
SHAPES: tuple[tuple[int, bytes, str, int], ...] = (
    (SSHD, b"Failed ", "attempt", O.FAILURE),
    (SSHD, b"Accepted ", "attempt", O.SUCCESS),
    (SSHD, b"Accepted key ", "nothing", O.OTHER),
    (SSHD, b"Accepted certificate ", "nothing", O.OTHER),
    (SSHD, b"Postponed ", "attempt", O.OTHER),
    (SSHD, b"Partial ", "attempt", O.OTHER),
    (SSHD, b"Invalid user ", "user_from", O.INVALID_USER),
    (SSHD, b"Illegal user ", "user_from", O.INVALID_USER),
    (SSHD, b"input_userauth_request: invalid user ", "user", O.OTHER),
    (SSHD, b"input_userauth_request: illegal user ", "user", O.OTHER),
    (SSHD, b"maximum authentication attempts exceeded for ", "user_from", O.DISCONNECT),
    (SSHD, b"PAM: Authentication failure for ", "user_from", O.PAM_FAILURE),
    (SSHD, b"PAM: User not known to the underlying authentication module for ", "user_from", O.PAM_FAILURE),
    (SSHD, b"PAM: User account has expired for ", "user_from", O.OTHER),
    (SSHD, b"PAM: Module is unknown for ", "user_from", O.OTHER),
    (SSHD, b"PAM: Have exhausted maximum number of retries for service", "nothing", O.OTHER),
    (SSHD, b"PAM: Permission denied for ", "user_from", O.PAM_FAILURE),
    (SSHD, b"PAM service(", "nothing", O.OTHER),
    *((SSHD, b"PAM %d" % digit, "more", O.PAM_FAILURE) for digit in range(1, 10)),
    (SSHD, b"Connection closed by ", "user_address", O.DISCONNECT),
    (SSHD, b"Connection reset by ", "user_address", O.DISCONNECT),
    (SSHD, b"Disconnected from ", "user_address", O.DISCONNECT + PREAUTH),
    (SSHD, b"Received disconnect from ", "address", O.DISCONNECT + PREAUTH),
    (SSHD, b"Disconnecting", "disconnecting", O.DISCONNECT),
    (SSHD, b"Did not receive identification string", "last_address", O.DISCONNECT),
    (SSHD, b"Bad protocol version identification ", "last_address", O.DISCONNECT),
    (SSHD, b"banner exchange: Connection from ", "address", O.DISCONNECT),
    (SSHD, b"kex_exchange_identification: ", "nothing", O.OTHER),
    (SSHD, b"kex_protocol_error: ", "nothing", O.OTHER),
    (SSHD, b"ssh_dispatch_run_fatal: Connection from ", "nothing", O.DISCONNECT),
    (SSHD, b"Unable to negotiate with ", "address", O.DISCONNECT),
    (SSHD, b"Protocol major versions differ for ", "address", O.DISCONNECT),
    (SSHD, b"Timeout before authentication for connection from ", "address", O.DISCONNECT),
    (SSHD, b"Timeout before authentication for ", "address", O.DISCONNECT),
    (SSHD, b"Timeout before authentication", "nothing", O.DISCONNECT),
    (SSHD, b"drop connection #", "drop", O.DISCONNECT),
    (SSHD, b"reverse mapping checking getaddrinfo for ", "bracket", O.OTHER),
    (SSHD, b"reverse mapping checking getnameinfo for ", "bracket", O.OTHER),
    (SSHD, b"Address ", "address", O.OTHER),
    (SSHD, b"Nasty PTR record ", "nothing", O.OTHER),
    (SSHD, b"User ", "not_allowed", O.INVALID_USER),
    (SSHD, b"User child is on pid ", "nothing", O.OTHER),
    (SSHD, b"ROOT LOGIN REFUSED FROM ", "address", O.PAM_FAILURE),
    (SSHD, b"refused connect from ", "address", O.DISCONNECT),
    (SSHD, b"Connection from ", "address", O.OTHER),
    *(
        (SSHD, prefix, "nothing", O.OTHER)
        for prefix in (
            b"Access denied for user ", b"Account ", b"Allocated ", b"Attempt to write login records ", b"Authentication ",
            b"Authorized to ", b"Bad ", b"Certificate ", b"Change of username ", b"Changed root directory ",
            b"Close session: ", b"Closing connection to ", b"Connection ", b"Corrupted ", b"Could not ", b"Deprecated ",
            b"Exiting on signal ", b"Found matching ", b"Generating ", b"Login restricted ", b"Local disconnected: ",
            b"Missing privilege separation ", b"Nasty ", b"Password expired ", b"Privilege separation ",
            b"RSA ", b"Read error from ", b"Received SIGHUP", b"Received signal ", b"Received request ", b"Received window ",
            b"SELinux: ", b"Server listening on ", b"Starting session: ", b"Timeout, client not responding", b"Transferred: ",
            b"Unsupported ", b"Write failed: ", b"beginning MaxStartups ", b"cert: ", b"debug1: ", b"debug2: ", b"debug3: ",
            b"dispatch_protocol_error: ", b"dispatch_", b"drop connection from ", b"exited MaxStartups ", b"failed to ",
            b"fatal: ", b"fingerprint ", b"getpeername ", b"internal-sftp", b"lastlog_", b"mm_", b"monitor_", b"no matching ",
            b"open failed ", b"packet_", b"penalising ", b"penalty: ", b"probed from ", b"rexec ", b"rekeyed ", b"scanned from ",
            b"session ", b"srclimit_", b"ssh_", b"subsystem request ", b"syslogin_", b"trusted user CA ", b"userauth_",
            b"using hostname ", b"warning: ", b"no hostkey", b"Postmortem ", b"channel ", b"pam_", b"sshd: ",
        )
    ),
    (PAM, b"authentication failure; ", "pam", O.PAM_FAILURE),
    *((PAM, b"%d" % digit, "more", O.PAM_FAILURE) for digit in range(1, 10)),
    (PAM, b"session opened for user ", "session", O.SESSION_OPENED),
    (PAM, b"session closed for user ", "session", O.SESSION_CLOSED),
    *(
        (PAM, prefix, "nothing", O.OTHER)
        for prefix in (
            b"check pass; user ", b"auth could not identify password for ", b"conversation failed", b"service(",
            b"received for user ", b"account ", b"expired password for user ", b"password changed for ", b"unrecognized option ",
            b"bad username ", b"username ", b"could not ", b"couldn't ", b"new password ", b"password for user ",
            b"Consecutive login failures for user ", b"user ", b"User ", b"(null): ", b"unable to ", b"cannot ", b"error ",
            b"Accepted ", b"Refused user ", b"access denied for user ", b"Access ", b"request ", b"getting ", b"granting ",
            b"Invalid verification code", b"Failed to ", b"failed to ", b"pam_", b"unknown option", b"permission denied",
            b"root login denied", b"authentication success; ", b"temporarily locked", b"auth: ",
        )
    ),
    (SUDO, b"", "sudo", O.OTHER),
    (SU, b"FAILED SU (to ", "su_to", O.FAILURE),
    (SU, b"(to ", "su_to", O.SUCCESS),
    (SU, b"FAILED su for ", "su_for", O.FAILURE),
    (SU, b"Successful su for ", "su_for", O.SUCCESS),
    *((SU, prefix, "nothing", O.OTHER) for prefix in (b"+ ", b"- ", b"pam_", b"No passwd entry ", b"BAD SU ", b"BAD su ")),
    (LOGIN, b"FAILED LOGIN", "login_for", O.FAILURE),
    (LOGIN, b"ROOT LOGIN", "root_login", O.SUCCESS),
    (LOGIN, b"LOGIN ON ", "login_by", O.SUCCESS),
    (LOGIN, b"DIALUP AT ", "login_by", O.SUCCESS),
    (FTPD, b"connection from ", "address", O.OTHER),
    (FTPD, b"ANONYMOUS FTP LOGIN FROM ", "address", O.OTHER),
    (FTPD, b"[", "client", O.FAILURE),
    (LOGIND, b"New session ", "logind", O.SESSION_OPENED),
    (LOGIND, b"Removed session ", "nothing", O.SESSION_CLOSED),
    (KLOGIND, b"Authentication failed from ", "address", O.FAILURE),
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
        most = chunk.count(b"\n") + (0 if not chunk or chunk.endswith(b"\n") else 1)
        batch = AuthBatch.blank(most, chunk)
        unparsed = np.zeros(most, np.int64)
        rows, missed, lines = self._scanner.syslog(chunk, first_line, now_ns, batch, unparsed)
        batch.provenance[:] = self._options.provenance
        return Parsed(batch.take(slice(0, rows)), unparsed[:missed], lines)

    def save(self) -> dict[str, Any]:
        """The time of the last line, on which the year of the next one depends."""
        last_ns = self._scanner.last()
        return {} if last_ns == NO_TIME else {"last_ns": last_ns}

    def load(self, state: dict[str, Any], /) -> None:
        self._scanner.set_last(int(state.get("last_ns", NO_TIME)))
