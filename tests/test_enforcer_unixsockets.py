"""Ways to a model by a Unix socket: `Watch` names them while the drill runs, with real proxies and servers."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from enforcer_echo import LIMIT_S, client, endpoint
from enforcer_site import FRONT, Site, site_of
from gatewatch.daemon.enforcer.proof import bypass, unixsockets
from lab.lab import HOSTS, Lab, wait_for

GATEWAY = HOSTS["gateway"]
NGINX = """
daemon off; pid {folder}/bypass-nginx.pid; error_log {folder}/bypass-nginx.log; worker_processes 2;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen {front}; location / {{ proxy_pass {upstream}; proxy_buffering off; }} }} }}
"""


@pytest.fixture
def site(bare: Lab) -> Iterator[Site]:
    with site_of(bare) as site:
        yield site


@contextlib.contextmanager
def nginx(site: Site, upstream: str) -> Iterator[None]:
    config = site.lab.folder / "bypass-nginx.conf"
    config.write_text(NGINX.format(folder=site.lab.folder, front=FRONT, upstream=upstream))
    process = site.lab.popen_in("gateway", ["nginx", "-c", config])
    try:
        with site.lab.inside("gateway"):
            wait_for("nginx", lambda: _connects(("127.0.0.1", FRONT)))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def model(listener: socket.socket) -> Iterator[threading.Event]:
    """Begins each answer and ends it when the event is set."""
    finish, stop = threading.Event(), threading.Event()

    def serve() -> None:
        listener.settimeout(0.02)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                taken, _ = listener.accept()
                taken.settimeout(LIMIT_S)
                with taken, contextlib.suppress(OSError):
                    taken.recv(4096)
                    taken.sendall(b"HTTP/1.0 200 OK\r\n\r\nanswer")
                    finish.wait(LIMIT_S)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield finish
    finally:
        finish.set()
        stop.set()
        thread.join()
        listener.close()


@pytest.mark.lab
def test_a_model_that_a_proxy_asks_by_a_unix_socket_is_named_with_its_path(site: Site) -> None:
    path = str(site.lab.folder / "model.sock")
    listener = socket.socket(socket.AF_UNIX)  # of another network namespace, as a container's is
    listener.bind(path)
    Path(path).chmod(0o666)  # nginx's workers are nobody
    listener.listen()
    models = endpoint([f"{GATEWAY.v4}:{FRONT}/tcp"])
    watch = bypass.Watch([models])
    with site.lab.inside("gateway"):
        watch.sample()
    with model(listener) as finish, nginx(site, f"http://unix:{path}:"):
        assert site.find(models) == [], "nobody asks"
        with client(site.lab, "client", GATEWAY.v4, FRONT) as asking:
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" 200 " in asking.recv(4096)
            with site.lab.inside("gateway"):
                wait_for("the way to the model", lambda: _seen(watch))
            as_back = site.find(endpoint(["*:9999/tcp"], [f"{GATEWAY.v4}:{FRONT}/tcp"]))
            assert as_back == [], "what a model itself asks is no way to it"
            finish.set()
            while asking.recv(4096):
                pass
        with site.lab.inside("gateway"):
            wait_for(
                "the end of the connection", lambda: not unixsockets._named()[0].keys() & _inodes_of("nginx")
            )
        (found,) = site.find(models, watch=watch)
        assert found.kind == "unix-socket"
        assert found.what.startswith(
            f"models: nginx, which listens on {GATEWAY.v4}:{FRONT}/tcp, is connected to the Unix socket {path}: local"
        )
        site.cut(models)
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(path)
            local.sendall(b"GET / HTTP/1.0\r\n\r\n")
            local.settimeout(LIMIT_S)
            assert local.recv(4096).startswith(b"HTTP/1.0 200"), "the way that is named is open"


@pytest.mark.lab
def test_a_proxy_that_asks_its_model_by_tcp_is_not_named(site: Site) -> None:
    with site.lab.inside("gateway"):
        listener = socket.create_server(("127.0.0.1", 8000))
    models = endpoint([f"*:{FRONT}/tcp"], ["127.0.0.1:8000/tcp"])
    with (
        model(listener),
        nginx(site, "http://127.0.0.1:8000"),
        client(site.lab, "client", GATEWAY.v4, FRONT) as asking,
    ):
        asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 200 " in asking.recv(4096)
        assert site.find(models) == []


SERVER = """
import socket, sys
family, place = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, (sys.argv[1], int(sys.argv[2]))
kept = [socket.create_server(place, family=family, dualstack_ipv6=place[0] == "::")]
quic = socket.socket(family, socket.SOCK_DGRAM)
quic.bind(place)
logs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
logs[0].bind(chr(0) + "datagrams-are-no-way-to-a-model")
logs[1].connect(logs[0].getsockname())
for path in sys.argv[3:]:
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind(path.replace("@", chr(0)))
    kept[-1].listen()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def server(site: Site, paths: Sequence[str], address: str = "::") -> Iterator[int]:
    command = [sys.executable, "-c", SERVER, address, str(FRONT), *paths]
    process = site.lab.popen_in("gateway", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.lab
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_server_that_listens_on_a_unix_socket_as_well_is_named(site: Site, protocol: str) -> None:
    path = str(site.lab.folder / f"also\n{protocol}.sock")
    with server(site, [path, "@abstract"]):
        found = site.find(endpoint([f"*:9999/{protocol}"], [f"{GATEWAY.v4}:{FRONT}/{protocol}"]))
    assert [f.kind for f in found] == ["unix-socket", "unix-socket"]
    assert f"listens also on the Unix socket {path.replace(chr(10), '?')}: " in found[0].what + found[1].what
    assert "listens also on the Unix socket @abstract: " in found[0].what + found[1].what


@pytest.mark.lab
def test_a_server_on_the_same_port_of_another_address_is_not_meant(site: Site) -> None:
    with server(site, [str(site.lab.folder / "other.sock")], "127.0.0.1"):
        assert site.find(endpoint([f"{GATEWAY.v4}:{FRONT}/tcp"])) == []


@pytest.mark.lab
def test_well_known_unix_sockets_are_left_out(site: Site) -> None:
    site.lab.run_in("gateway", ["mkdir", "-p", "/run/dbus"])
    with server(site, ["/run/dbus/for-a-test", "/var/run/docker.for-a-test"]):
        assert site.find(endpoint([f"*:{FRONT}/tcp"])) == []


@pytest.mark.lab
def test_the_unix_sockets_of_others_are_not_meant(site: Site) -> None:
    path = str(site.lab.folder / "others.sock")
    with site.lab.inside("gateway"):
        listener, asking = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with listener, asking, server(site, []):
        listener.bind(path)
        listener.listen()
        asking.connect(path)
        with listener.accept()[0]:
            assert site.find(endpoint([f"*:{FRONT}/tcp"])) == []


@pytest.mark.lab
def test_workers_that_may_not_be_looked_into_are_said(site: Site) -> None:
    """The master's sockets can be read with CAP_SYS_PTRACE alone, as it is root's; those of its workers cannot."""
    with nginx(site, "http://127.0.0.1:8000"):
        with site.lab.inside("gateway"):
            wait_for("the workers", lambda: len(_pids_of("nginx: worker")) == 2)
        (said,) = site.find_with("+net_admin,+sys_ptrace", f"*:{FRONT}/tcp")
        assert said.startswith(
            "unseen models: whether it can be reached by a Unix socket could not be told, as not"
        )
        assert site.find_with("+net_admin,+sys_ptrace,+dac_read_search", f"*:{FRONT}/tcp") == []


@pytest.mark.lab
def test_a_watch_that_is_asked_without_end_looks_now_and_then(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    monkeypatch.setattr(unixsockets, "_PAUSE_S", 3600.0)
    monkeypatch.setattr(unixsockets, "_named", lambda: looks.append(None) or ({}, {}))
    watch = bypass.Watch([endpoint([f"*:{FRONT}/tcp"])])
    with site.lab.inside("gateway"):
        for _ in range(9):
            watch.sample()
        assert len(looks) == 1
        watch.found()
        assert len(looks) == 2, "at the end it looks in any case"


@pytest.mark.lab
def test_a_watch_of_hostile_names_neither_fails_nor_grows_without_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unixsockets, "_MOST_FOUND", 3)
    paths = [str(site.lab.folder / f"\x1b[31m{n}.sock") for n in range(9)]
    with server(site, paths):
        found = site.find(endpoint([f"*:{FRONT}/tcp"]))
    assert len(found) == 3
    assert all(f.what.isprintable() for f in found)


def _seen(watch: bypass.Watch) -> bool:
    watch.sample()
    return bool(watch.found())


def _pids_of(title: str) -> set[int]:
    """The processes of this thread's network namespace whose command line begins like that."""
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text(errors="replace")
            if words.startswith(title) and (process / "ns/net").stat().st_ino == here:
                found.add(int(process.name))
    return found


def _inodes_of(title: str) -> set[int]:
    return {inode for pid in _pids_of(title) for inode in unixsockets._sockets_of(pid)}


def _connects(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, LIMIT_S).close()
    except OSError:
        return False
    return True
