"""Makes a realistic sshd authentication log from a seed, for benchmarks and tests.

It writes what OpenSSH 9 and PAM write on a gateway: people and machines who log in, now and then with a typo, scanners
that leave at the banner, and a background of password guessing. It must give the same bytes for the same arguments.

    python benchmarks/generate_auth_log.py --lines 200000 --seed 1 > auth.log
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

PEOPLE = (
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory",
    "niaj", "olivia", "peggy", "rupert", "sybil", "trent", "victor", "walter", "wendy",
)  # fmt: skip
MACHINES = (
    "backup", "deploy", "ansible", "monitor",
)  # fmt: skip
GUESSED = (
    "admin", "test", "oracle", "postgres", "git", "ubuntu", "user", "guest", "ftp", "mysql", "jenkins",
    "hadoop", "pi", "nagios", "tomcat", "www", "support", "minecraft", "deployer", "vagrant", "es",
    "elastic", "odoo", "zabbix", "ts3", "kafka", "spark", "llm", "vllm", "ollama",
)  # fmt: skip
START = datetime(2026, 3, 2, 0, 0, 0)


def generate_auth_log(
    lines: int = 200_000, seed: int = 1, *, host: str = "gateway", start: datetime = START, iso: bool = False
) -> bytes:
    """A log of exactly `lines` lines, in the order of time, about five lines a second; `iso` gives RFC 3339 times."""
    chance = random.Random(seed)
    made: list[tuple[datetime, str]] = []
    pid = 1000
    now = start
    office = [f"198.51.{a}.{b}" for a in range(100, 104) for b in range(2, 40)]
    attackers = [_address(chance) for _ in range(800)]
    loud = attackers[:40]
    while len(made) < lines + 100:
        pid = 1000 + (pid - 999) % 60_000
        now += timedelta(seconds=chance.expovariate(1.2))
        draw = chance.random()
        if draw < 0.12:
            session = _person(chance, chance.choice(office))
        elif draw < 0.20:
            session = _machine(chance)
        elif draw < 0.26:
            session = _scanner(chance, chance.choice(attackers))
        else:
            source = chance.choice(loud) if chance.random() < 0.7 else chance.choice(attackers)
            session = _guesser(chance, source)
        at = now
        for program, message in session:
            stamp = f"{at:%b} {at.day:2d} {at:%H:%M:%S}"
            if iso:
                stamp = at.isoformat(timespec="microseconds") + "+00:00"
            tag = program if program.endswith("]") else f"{program}[{pid}]"
            made.append((at, f"{stamp} {host} {tag}: {message}\n"))
            at += timedelta(seconds=chance.choice((0, 0, 0, 1, 2)))
    made.sort(key=lambda entry: entry[0])
    return "".join(text for _, text in made[:lines]).encode()


def _address(chance: random.Random) -> str:
    if chance.random() < 0.05:
        return f"2001:db8:{chance.randrange(65536):x}:{chance.randrange(65536):x}::{chance.randrange(1, 65536):x}"
    first = chance.choice((45, 61, 91, 103, 141, 185, 193, 218))
    return f"{first}.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"


def _port(chance: random.Random) -> int:
    return chance.randrange(1024, 65536)


def _pam_failure(source: str, user: str = "") -> str:
    named = f"  user={user}" if user else " "
    return f"pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost={source}{named}"


def _person(chance: random.Random, source: str) -> Iterator[tuple[str, str]]:
    user, port = chance.choice(PEOPLE), _port(chance)
    if chance.random() < 0.1:
        yield "sshd", _pam_failure(source, user)
        yield "sshd", f"Failed password for {user} from {source} port {port} ssh2"
    if chance.random() < 0.7:
        print_ = f"ED25519 SHA256:{user}k7Qm1xYtB3vN5dRfW9zLpC2gHsJ8aEuT4oXi0b"
        yield "sshd", f"Accepted publickey for {user} from {source} port {port} ssh2: {print_}"
    else:
        yield "sshd", f"Accepted password for {user} from {source} port {port} ssh2"
    yield "sshd", f"pam_unix(sshd:session): session opened for user {user}(uid=1001) by {user}(uid=0)"
    yield "systemd-logind[612]", f"New session {chance.randrange(1, 99999)} of user {user}."
    if chance.random() < 0.3:
        yield "sudo", f"pam_unix(sudo:session): session opened for user root(uid=0) by {user}(uid=1001)"
        yield "sudo", "pam_unix(sudo:session): session closed for user root"
    yield "sshd", f"Received disconnect from {source} port {port}:11: disconnected by user"
    yield "sshd", f"Disconnected from user {user} {source} port {port}"
    yield "sshd", f"pam_unix(sshd:session): session closed for user {user}"


def _machine(chance: random.Random) -> Iterator[tuple[str, str]]:
    if chance.random() < 0.5:
        yield "CRON", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)"
        yield "CRON", "pam_unix(cron:session): session closed for user root"
        return
    user, source, port = chance.choice(MACHINES), f"10.20.0.{chance.randrange(2, 12)}", _port(chance)
    yield "sshd", f"Accepted publickey for {user} from {source} port {port} ssh2: RSA SHA256:{user}Zk3rT8"
    yield "sshd", f"pam_unix(sshd:session): session opened for user {user}(uid=990) by {user}(uid=0)"
    yield "sshd", f"pam_unix(sshd:session): session closed for user {user}"


def _scanner(chance: random.Random, source: str) -> Iterator[tuple[str, str]]:
    port = _port(chance)
    draw = chance.random()
    if draw < 0.4:
        yield "sshd", "error: kex_exchange_identification: Connection closed by remote host"
        yield "sshd", f"Connection closed by {source} port {port}"
    elif draw < 0.6:
        yield "sshd", f"banner exchange: Connection from {source} port {port}: invalid format"
    elif draw < 0.8:
        why = "no matching key exchange method found. Their offer: diffie-hellman-group1-sha1"
        yield "sshd", f"Unable to negotiate with {source} port {port}: {why} [preauth]"
    else:
        yield "sshd", f"Connection reset by {source} port {port} [preauth]"


def _guesser(chance: random.Random, source: str) -> Iterator[tuple[str, str]]:
    port = _port(chance)
    if chance.random() < 0.45:
        user = chance.choice(GUESSED)
        yield "sshd", f"Invalid user {user} from {source} port {port}"
        yield "sshd", "pam_unix(sshd:auth): check pass; user unknown"
        yield "sshd", _pam_failure(source)
        yield "sshd", f"Failed password for invalid user {user} from {source} port {port} ssh2"
        yield "sshd", f"Connection closed by invalid user {user} {source} port {port} [preauth]"
        return
    user = "root" if chance.random() < 0.8 else chance.choice(PEOPLE)
    tries = chance.choice((1, 1, 1, 2, 3, 6))
    yield "sshd", _pam_failure(source, user)
    for _ in range(tries):
        yield "sshd", f"Failed password for {user} from {source} port {port} ssh2"
    if tries == 6:
        yield (
            "sshd",
            f"error: maximum authentication attempts exceeded for {user} from {source} port {port} ssh2 [preauth]",
        )
        who = f"authenticating user {user} {source} port {port}"
        yield "sshd", f"Disconnecting {who}: Too many authentication failures [preauth]"
    else:
        yield "sshd", f"Received disconnect from {source} port {port}:11: Bye Bye [preauth]"
        yield "sshd", f"Disconnected from authenticating user {user} {source} port {port} [preauth]"
    if tries > 1:
        kept = f"logname= uid=0 euid=0 tty=ssh ruser= rhost={source}  user={user}"
        plural = "s" if tries > 2 else ""
        yield "sshd", f"PAM {tries - 1} more authentication failure{plural}; {kept}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes a seeded sshd authentication log to standard output."
    )
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--iso", action="store_true", help="RFC 3339 times in place of the traditional ones")
    chosen = parser.parse_args()
    sys.stdout.buffer.write(generate_auth_log(chosen.lines, chosen.seed, iso=chosen.iso))


if __name__ == "__main__":
    main()
