"""What the authorisation endpoint adds to a request: latency at a fixed rate, beside nginx that only says 204.

    python benchmarks/authz.py [--rate 1000] [--seconds 20] [--blocked 10000] [--connections 32]

An open loop: requests leave at their times whether or not earlier ones were answered, and each is measured from the
time at which it was due, so that a pause counts for all that waited in it. Half of the principals asked about are
blocked. Then: from the write of a line to the deny list to the first 403 on a kept connection.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from figures import machine, table
from gatewatch.daemon.authz.keys import key_id, make_secret, read_secret

NGINX = """\
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1; {user}
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }}
}}
"""
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
SPIN_S = 0.0002


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=1000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--blocked", type=int, default=10_000, help="principals in the deny list")
    parser.add_argument("--connections", type=int, default=32, help="kept connections")
    parser.add_argument("--lines", type=int, default=200, help="lines appended, one by one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        denied = folder / "denied"
        make_secret(folder / "key", None, None)
        secret = read_secret(folder / "key")
        write_denied(denied, secret, given.blocked)
        requests = [
            (
                b"GET /authz/chat HTTP/1.1\r\nHost: authz\r\nAuthorization: Bearer sk-%d\r\n"
                b"X-Gatewatch-Client: 198.51.100.%d\r\n\r\n" % (number, number % 250)
            )
            for number in range(2 * given.blocked)
        ]
        authz_port, nginx_port = free_port(), free_port()
        words = [
            "--denied",
            str(denied),
            "--key-file",
            str(folder / "key"),
            "--listen",
            f"127.0.0.1:{authz_port}",
        ]
        servers = [subprocess.Popen([sys.executable, "-m", "gatewatch.daemon.authz", *words])]
        if (nginx := shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")) is not None:
            user = "user root;" if os.geteuid() == 0 else ""
            (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=nginx_port, user=user))
            servers.append(
                subprocess.Popen([nginx, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")])
            )
        try:
            names = {"gatewatch authz": authz_port} | ({"nginx return 204": nginx_port} if nginx else {})
            wait_for(names.values())
            print(machine())
            rows = []
            for (title, port), server in zip(names.items(), servers, strict=True):
                drive(port, requests, given.rate, 1.0, given.connections)  # warm
                before = cpu_s(server.pid)
                measured = drive(port, requests, given.rate, given.seconds, given.connections)
                each_us = 1e6 * (cpu_s(server.pid) - before) / len(measured[0])
                rows.append([*row(title, measured), f"{each_us:.0f}"])
            print(
                table(
                    ["", "requests", "refused", "p50 ms", "p99 ms", "p99.9 ms", "most ms", "CPU us each"],
                    rows,
                )
            )
            delays = sorted(first_refusals(authz_port, denied, secret, given.lines))
            print(
                table(
                    ["", "lines", "p50 ms", "p99 ms", "most ms"],
                    [
                        [
                            "deny line written -> first 403",
                            str(len(delays)),
                            *(f"{1e3 * quantile(delays, q):.2f}" for q in (0.5, 0.99, 1.0)),
                        ]
                    ],
                )
            )
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()


def write_denied(path: Path, secret: bytes, count: int) -> None:
    lines = [{"denied": 1, "boot_id": BOOT, "sequence": 1}]
    lines += [["+", "key", key_id(secret, b"sk-%d" % number), 0] for number in range(count)]  # type: ignore[misc]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.chmod(0o640)


def drive(
    port: int, requests: list[bytes], rate: int, seconds: float, connections: int
) -> tuple[list[float], int]:
    """Seconds from when each request was due to its answer, sorted; and how many were refused."""
    peers = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    poller = select.epoll()
    waiting: dict[int, tuple[socket.socket, deque[float]]] = {}
    for peer in peers:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(peer, select.EPOLLIN)
        waiting[peer.fileno()] = peer, deque()
    taken: list[float] = []
    refused = sent = 0
    total = int(rate * seconds)
    gc.disable()
    start = time.perf_counter() + 0.05
    while len(taken) < total:
        due = start + sent / rate
        now = time.perf_counter()
        if sent < total and now >= due:
            peer = peers[sent % connections]
            waiting[peer.fileno()][1].append(due)
            peer.sendall(requests[sent * 7919 % len(requests)])
            sent += 1
            continue
        left = due - now if sent < total else 1.0
        for number, _ in poller.poll(left - SPIN_S if left > SPIN_S else 0):
            peer, dues = waiting[number]
            data = peer.recv(1 << 16)
            now = time.perf_counter()
            answers = data.count(b"HTTP/1.1 ")
            refused += data.count(b" 403 ")
            taken += [now - dues.popleft() for _ in range(answers)]
            if not data:
                raise SystemExit("a connection was ended")
    gc.enable()
    poller.close()
    for peer in peers:
        peer.close()
    return sorted(taken), refused


def first_refusals(port: int, denied: Path, secret: bytes, count: int) -> list[float]:
    """Seconds from before a line is written to the first 403 that it causes."""
    delays = []
    with socket.create_connection(("127.0.0.1", port)) as peer, denied.open("ab", buffering=0) as file:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            key = b"new-%d" % number
            line = json.dumps(["+", "key", key_id(secret, key), 0]).encode() + b"\n"
            request = b"GET /authz/chat HTTP/1.1\r\nX-API-Key: %s\r\n\r\n" % key
            begun = time.perf_counter()
            file.write(line)
            while True:
                peer.sendall(request)
                if b" 403 " in peer.recv(1 << 16):
                    break
            delays.append(time.perf_counter() - begun)
            time.sleep(0.005)
    return delays


def row(title: str, measured: tuple[list[float], int]) -> list[str]:
    taken, refused = measured
    return [
        title,
        f"{len(taken):,}",
        f"{refused:,}",
        *(f"{1e3 * quantile(taken, q):.2f}" for q in (0.5, 0.99, 0.999, 1.0)),
    ]


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cpu_s(pid: int) -> float:
    """CPU time of a process and its children, in all (proc_pid_stat(5))."""
    total = 0
    for child in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
        return number


def wait_for(ports: object) -> None:
    limit = time.monotonic() + 20
    for port in ports:  # type: ignore[attr-defined]
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionError:
                if time.monotonic() > limit:
                    raise SystemExit(f"nobody answers on port {port}") from None
                time.sleep(0.02)


if __name__ == "__main__":
    main()
