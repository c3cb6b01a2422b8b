"""`gatewatch kill-switch` with real packets: what stops, what goes on, what proves it, and what it survives."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from enforcer_rig import BACK, FRONT, GATEWAY, OTHER, RAILS, Rig, flows, stopped
from gatewatch.daemon.enforcer.kernel import killtable
from gatewatch.daemon.enforcer.rails import parse
from gatewatch.daemon.errors import EnforcerError
from lab.lab import HOSTS, Lab, wait_for

CLIENT = HOSTS["client"]
ATTACKER = HOSTS["attacker"].v4


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare) as rig:
        yield rig


def test_the_command_imports_nothing_heavy_before_it_asks() -> None:
    heavy = "argparse, json, re, enum, typing, pathlib, socket, logging, dataclasses, typer, pydantic, numpy, ctypes"
    program = (
        "import sys; from gatewatch.daemon.cli import main; from gatewatch.daemon.cli import kill_switch; "
        "from gatewatch.daemon.enforcer import client; "
        f"print([m for m in {heavy.split(', ')} if m in sys.modules])"
    )
    bare = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"]
    done = subprocess.run(bare, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engage"], "the reason is missing"),
        (["engage", "--reason", " "], "the reason is missing"),
        (["release", "--reason"], "--reason wants a value"),
        (["engage", "--reason", "major", "incident"], "one word too many"),
        (["destroy"], "engage, release, status, drill or verify"),
        (["status", "--now"], "no option --now"),
        (["engage", "models", "--reason", "x", "y"], "is it --endpoint models?"),
        (["drill", "--seconds", "0"], "from 1 to 3600"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words: list[str], said: str) -> None:
    start = "import sys; from gatewatch.daemon.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", start, "kill-switch", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.lab
@pytest.mark.parametrize("source", [CLIENT.v4, CLIENT.v6])
def test_a_running_answer_stops_and_everything_else_goes_on(rig: Rig, source: str) -> None:
    with rig.serving(FRONT), rig.serving(OTHER), rig.connect(FRONT, source) as answer:
        with rig.connect(OTHER, source) as other:
            assert flows(answer)
            code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
            assert code == 0
            assert receipt["proven"], receipt
            assert receipt["engaged"] == ["models"]
            assert (receipt["connections_before"], receipt["connections_after"]) == (1, 0)
            assert receipt["reason"] == "test"
            assert stopped(answer)
            assert rig.unreachable(FRONT, source)
            assert flows(other)
            assert rig.reaches(OTHER, source)
        code, said = rig.command("release", "--endpoint", "models", "--reason", "over")
        assert code == 0
        assert said["released"] == ["models"]
        assert rig.reaches(FRONT, source)


@pytest.mark.lab
def test_what_a_proxy_fetches_from_the_back_on_loopback_stops_as_well(rig: Rig) -> None:
    with rig.serving(BACK, "127.0.0.1"):
        with rig.lab.inside("gateway"):
            connection = socket.create_connection(("127.0.0.1", BACK), timeout=1)
        with connection:
            assert flows(connection)
            _, receipt = rig.command("engage", "--reason", "test")
            assert receipt["connections_before"] == 1
            assert stopped(connection)
        with rig.lab.inside("gateway"), pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", BACK), timeout=0.5)


@pytest.mark.lab
def test_hundreds_of_connections_end_at_once(rig: Rig) -> None:
    with contextlib.ExitStack() as stack:
        with rig.lab.inside("gateway"):
            listener = stack.enter_context(socket.create_server((GATEWAY.v4, FRONT), backlog=600))
        for _ in range(500):
            stack.enter_context(rig.connect(FRONT, limit_s=5))
            stack.enter_context(listener.accept()[0])
        code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
        assert (receipt["connections_before"], receipt["connections_after"]) == (500, 0)
        assert code == 0


@pytest.mark.lab
def test_connection_tracking_forgets_what_is_cut_off(rig: Rig) -> None:
    rig.nft("add table inet theirs")
    rig.nft("add chain inet theirs c { type filter hook input priority 0; }")
    rig.nft("add rule inet theirs c ct state new counter")

    def tracked() -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for line in rig.lab.run_in("gateway", ["conntrack", "-L"]).stdout.splitlines():
            words = dict(word.split("=") for word in line.split()[::-1] if "=" in word)
            found.setdefault(int(words["dport"]), set()).add(words["src"])
        return found

    with (
        rig.serving(FRONT),
        rig.serving(OTHER),
        rig.connect(FRONT),
        rig.connect(OTHER),
        rig.connect(OTHER, ATTACKER),
        rig.connect(OTHER, CLIENT.v6, 5),
    ):
        assert tracked() == {FRONT: {CLIENT.v4}, OTHER: {CLIENT.v4, CLIENT.v6, ATTACKER}}
        rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
        assert tracked() == {OTHER: {CLIENT.v4, CLIENT.v6, ATTACKER}}
        rig.enforcer().block(ATTACKER, ttl_s=60, reason="test")
        assert tracked() == {OTHER: {CLIENT.v4, CLIENT.v6}}
        rig.enforcer().block("198.51.100.0/24", ttl_s=60, reason="test")
        assert tracked() == {OTHER: {CLIENT.v6}}
        rig.enforcer().block("2001:db8:0:3::/64", ttl_s=60, reason="test")
        assert tracked() == {}


@pytest.mark.lab
def test_a_disk_that_takes_nothing_does_not_keep_it_from_working(rig: Rig) -> None:
    assert rig.process is not None
    with rig.serving(FRONT):
        resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (1, 1))
        code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
        assert code == 1
        assert "File too large" in receipt["not_proven"][0]
        assert rig.unreachable(FRONT)
        with pytest.raises(EnforcerError, match="File too large"):
            rig.enforcer().block(ATTACKER, ttl_s=60, reason="test")
        rig.stop(signal.SIGKILL)
        rig.start("prlimit", "--fsize=1")
        assert rig.unreachable(FRONT)
        assert rig.command("status")[1]["kills"][0]["kernel"] is True
        rig.stop(signal.SIGKILL)
        rig.start()
        rig.stop(signal.SIGKILL)
        rig.nft("flush ruleset")
        rig.start()
        assert rig.unreachable(FRONT), "once the disk takes it again, it is recorded"


@pytest.mark.lab
def test_quic_stops_as_well(rig: Rig) -> None:
    with rig.lab.inside("gateway"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((GATEWAY.v4, FRONT))
    with rig.lab.inside("client"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.settimeout(0.5)
        client.sendto(b"before", (GATEWAY.v4, FRONT))
        assert server.recv(10) == b"before"
        rig.command("engage", "--endpoint", "models", "--reason", "test")
        client.sendto(b"after", (GATEWAY.v4, FRONT))
        with pytest.raises(TimeoutError):
            server.recv(10)


@pytest.mark.lab
def test_connections_to_the_same_port_elsewhere_are_not_touched(rig: Rig) -> None:
    with rig.lab.inside("client"):
        listener = socket.create_server((CLIENT.v4, FRONT))
    with listener:
        with rig.lab.inside("gateway"):
            outgoing = socket.create_connection((CLIENT.v4, FRONT), timeout=1)
        peer, _ = listener.accept()
        with outgoing, peer:
            _, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
            assert receipt["connections_before"] == 0
            peer.sendall(b"still here")
            outgoing.settimeout(1)
            assert outgoing.recv(20) == b"still here"


@pytest.mark.lab
def test_all_endpoints_that_the_rails_allow_are_cut_off_where_none_is_named(rig: Rig) -> None:
    code, receipt = rig.command("engage", "--reason", "test")
    assert receipt["engaged"] == ["models", "automatic"]
    assert code == 1
    assert receipt["not_proven"] == ["door: *:22/tcp is the way in for management (sshd)"]


@pytest.mark.lab
def test_engaging_again_changes_nothing_and_keeps_who_was_first(rig: Rig) -> None:
    rig.command("engage", "--endpoint", "models", "--reason", "first")
    code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "second")
    assert code == 0
    assert receipt["already"] == ["models"]
    assert receipt["reason"] == "first"
    assert [e["do"] for e in rig.journal()] == ["rails", "start", "kill", "proof", "proof"]


@pytest.mark.lab
def test_a_reason_that_was_pasted_with_all_its_lines_does_not_stop_the_kill_switch(rig: Rig) -> None:
    code, receipt = rig.command(
        "engage", "--endpoint", "models", "--reason", "two\nlines \x1b[31m\udcff" + "x" * 2000
    )
    assert code == 0
    assert receipt["reason"].startswith("two?lines ?[31m?xxx")
    assert rig.command("release", "--reason", "tab\tstop")[0] == 0


@pytest.mark.lab
@pytest.mark.parametrize(
    ("endpoint", "said"), [("door", "(sshd)"), ("spared", "the rails"), ("none", "there are ")]
)
def test_what_the_rails_forbid_is_refused(rig: Rig, endpoint: str, said: str) -> None:
    done = rig.run(
        "kill-switch", "engage", "--endpoint", endpoint, "--reason", "x", "--state", str(rig.state)
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "gatewatch_kill" not in rig.nft("list tables")


@pytest.mark.lab
def test_a_port_where_sshd_listens_is_never_cut_off(bare: Lab) -> None:
    rails = RAILS.replace("*:22/tcp", "*:2022/tcp")
    key = bare.folder / "host_key"
    key.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    from lab.hosts import program

    sshd = program("sshd") or "sshd"
    daemon = bare.popen_in(
        "gateway", [sshd, "-D", "-f", "/dev/null", "-h", key, "-p", "2022", "-o", "PidFile=none"]
    )
    try:
        wait_for("sshd", lambda: ":2022" in bare.run_in("gateway", ["ss", "-Htln"]).stdout)
        with Rig(bare, rails) as rig:
            _, said = rig.command("engage", "--endpoint", "door", "--reason", "test")
            assert "*:2022/tcp is the way in for management" in said["stderr"]
    finally:
        daemon.terminate()
        daemon.wait()


@pytest.mark.lab
def test_it_stays_engaged_through_a_crash_a_restart_and_a_reboot(rig: Rig) -> None:
    with rig.serving(FRONT):
        rig.command("engage", "--endpoint", "models", "--reason", "test")
        rig.stop(signal.SIGKILL)
        assert rig.unreachable(FRONT)
        rig.nft("flush ruleset")
        assert rig.reaches(FRONT)
        rig.start()
        assert rig.unreachable(FRONT)
        _, status = rig.command("status")
        assert [k["endpoint"] for k in status["kills"]] == ["models"]
        assert status["differs"] == []


@pytest.mark.lab
def test_broken_rails_keep_the_enforcer_away_but_nothing_is_let_go(rig: Rig) -> None:
    with rig.serving(FRONT):
        rig.command("engage", "--endpoint", "models", "--reason", "test")
        rig.stop()
        rig.nft("flush ruleset")
        rig.rails.write_text("management = 7")
        with pytest.raises(AssertionError, match="key management"):
            rig.start()
        assert rig.unreachable(FRONT)
        rig.process = None


@pytest.mark.lab
def test_with_the_enforcer_dead_root_does_it_all(rig: Rig) -> None:
    rig.stop(signal.SIGKILL)
    with rig.serving(FRONT), rig.connect(FRONT) as answer:
        assert flows(answer)
        code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
        assert code == 0
        assert receipt["proven"]
        assert "did not answer" in receipt["enforcer"]
        assert stopped(answer)
        assert rig.command("status")[1]["kills"][0]["reason"] == "test"
        rig.start()
        assert rig.unreachable(FRONT)
        assert rig.command("status")[1]["kills"][0]["reason"] == "test"
        rig.stop(signal.SIGKILL)
        assert rig.command("release", "--reason", "over")[0] == 0
        assert rig.reaches(FRONT)


@pytest.mark.lab
def test_with_the_enforcer_hung_root_cuts_off_and_the_enforcer_takes_it_over(rig: Rig) -> None:
    assert rig.process is not None
    with rig.serving(FRONT):
        rig.process.send_signal(signal.SIGSTOP)
        code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
        assert rig.unreachable(FRONT)
        assert code == 1
        assert not receipt["proven"]
        assert "held by another process" in receipt["not_proven"][0]
        rig.process.send_signal(signal.SIGCONT)

        def taken_over() -> bool:
            return [k["endpoint"] for k in rig.enforcer().status()["kills"]] == ["models"]

        wait_for("the takeover", taken_over)
        rig.stop(signal.SIGKILL)
        rig.nft("flush ruleset")
        rig.start()
        assert rig.unreachable(FRONT)


@pytest.mark.lab
@pytest.mark.parametrize(
    "change",
    [
        "delete table inet gatewatch_kill",
        "flush chain inet gatewatch_kill prerouting",
        "insert rule inet gatewatch_kill endpoints accept",
        "insert rule inet gatewatch_kill input accept",
        "add table inet gatewatch_kill { flags dormant; }",
        "add table inet gatewatch_kill { flags dormant; }; add table inet others { flags dormant; }",
    ],
)
def test_what_others_do_to_its_table_is_mended(rig: Rig, change: str) -> None:
    with rig.serving(FRONT):
        rig.command("engage", "--endpoint", "models", "--reason", "test")
        rig.nft(change)
        wait_for("the mending", lambda: rig.enforcer().status()["differs"] == [])
        assert rig.unreachable(FRONT)


@pytest.mark.lab
def test_the_status_says_where_the_kernel_differs_from_the_journal(rig: Rig) -> None:
    rig.command("engage", "--endpoint", "models", "--reason", "test")
    rig.stop(signal.SIGKILL)
    rig.nft("delete table inet gatewatch_kill")
    code, status = rig.command("status")
    assert code == 1
    assert status["kills"][0]["kernel"] is False
    assert "missing in the kernel" in status["differs"][0]


@pytest.mark.lab
def test_new_ports_in_the_rails_are_cut_off_while_engaged(rig: Rig) -> None:
    assert rig.process is not None
    with rig.serving(8444):
        rig.command("engage", "--endpoint", "models", "--reason", "test")
        assert rig.reaches(8444)
        rig.rails.write_text(RAILS.replace(f'"*:{FRONT}/udp"', '"*:8444/tcp"'))
        rig.process.send_signal(signal.SIGHUP)
        wait_for("the new port", lambda: rig.unreachable(8444))
        rig.command("release", "--reason", "over")
        assert rig.reaches(8444)


@pytest.mark.lab
def test_the_break_glass_file_works_alone_and_is_reported_and_left_alone(rig: Rig) -> None:
    glass = rig.state / "enforcer" / "break-glass.nft"
    with rig.serving(FRONT), rig.serving(OTHER):
        rig.stop()
        assert rig.reaches(FRONT)
        rig.nft_file(glass)
        assert rig.unreachable(FRONT)
        assert rig.reaches(OTHER)
        rig.start()
        assert rig.command("status")[1]["break_glass"] == ["automatic", "models"]
        told = rig.run("kill-switch", "status", "--state", str(rig.state)).stdout
        assert told.startswith("BREAK-GLASS ENGAGED") and "automatic, models; undo: nft delete" in told
        assert "not engaged" not in told and "open    models" not in told
        code, said = rig.command("release", "--reason", "over")
        assert code == 1
        assert said["break_glass"] is True
        assert rig.unreachable(FRONT)
        undo = next(line for line in glass.read_text().splitlines() if "release:" in line)
        rig.nft(undo.partition("nft ")[2])
        assert rig.reaches(FRONT)


@contextlib.contextmanager
def asking(connection: socket.socket) -> Iterator[None]:
    """Requests again and again, whose answers are read."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            connection.recv(1 << 20)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.lab
def test_a_drill_counts_and_cuts_nothing(rig: Rig) -> None:
    with rig.serving(FRONT), rig.connect(FRONT) as answer, asking(answer):
        code, said = rig.command("drill", "--seconds", "1", "--endpoint", "models", "--endpoint", "automatic")
        assert flows(answer)
    seen = {e["endpoint"]: e["covered"] for e in said["drill"]}
    assert seen == {"models": True, "automatic": False}
    assert code == 1
    assert "gatewatch_drill" not in rig.nft("list tables")


@pytest.mark.lab
def test_people_get_a_receipt_in_words(rig: Rig) -> None:
    done = rig.run(
        "kill-switch", "engage", "--endpoint", "models", "--reason", "test", "--state", str(rig.state)
    )
    assert "KILL SWITCH ENGAGED  models" in done.stdout
    assert "yes: rules read back, " in done.stdout


@pytest.mark.lab
def test_a_user_without_authority_is_told_what_to_do(rig: Rig) -> None:
    rig.stop()
    (code, said) = _as_nobody(rig, ["kill-switch", "engage", "--reason", "x", "--state", str(rig.state)])
    assert code == 1
    assert "run this as root" in said
    assert "break-glass.nft" in said


def test_the_break_glass_file_names_every_service_and_its_undo() -> None:
    rails = parse(RAILS)
    endpoints = {e.name: e.services for e in rails.endpoints}
    text = killtable.break_glass(endpoints, "/state/break-glass.nft")
    for endpoint in rails.endpoints:
        for service in endpoint.services:
            assert f"{service.protocol} dport {service.port} " in text
            assert f"{service.protocol} sport {service.port} " in text
    assert "nft delete table inet gatewatch_break_glass" in text


def _as_nobody(rig: Rig, words: list[str]) -> tuple[int, str]:
    program = (
        "import os, sys; from gatewatch.daemon.cli import main, kill_switch, output; "
        "from gatewatch.daemon.enforcer import client; "
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); "
        f"sys.exit(main({json.dumps(words)}))"
    )
    done = rig.lab.run_in("gateway", [sys.executable, "-c", program], check=False)
    return done.returncode, done.stderr


@pytest.mark.lab
def test_what_reads_right_and_does_not_work_is_not_proven(rig: Rig) -> None:
    """Somebody's table that comes first leads the front's packets to another port, past rules that are all there."""
    with rig.serving(OTHER):
        rig.nft("add table inet theirs")
        rig.nft("add chain inet theirs first { type filter hook prerouting priority -400; }")
        rig.nft(f"add rule inet theirs first tcp dport {FRONT} tcp dport set {OTHER}")
        code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test")
    assert (code, receipt["proven"]) == (1, False)
    assert any("a probe reached" in why for why in receipt["not_proven"]), receipt
    said = rig.run(
        "kill-switch", "engage", "--endpoint", "models", "--reason", "test", "--state", str(rig.state)
    )
    assert "proven               NO\n" in said.stdout
