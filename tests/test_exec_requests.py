"""The exec helper refuses whom it does not know and what is no request; rails and programs are checked."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exec_site import ANALYSER, OWN, STRANGER, Helper, exec_helper
from gatewatch.daemon.commands import safety
from gatewatch.daemon.commands.request import MOST_INPUT, MalformedError, encoded, parse
from gatewatch.daemon.enforcer.rails import Command, load
from gatewatch.daemon.enforcer.rails import parse as parse_rails
from gatewatch.daemon.errors import CommandError, ConfigError
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def helper() -> Iterator[Helper]:
    with exec_helper() as helper:
        yield helper


def test_strangers_cannot_ask_and_the_analyser_can(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start()
    assert helper.ask_as(STRANGER, "page")["error"] == "permission denied"
    assert helper.ask_as(OWN, "page")["error"] == "permission denied"
    helper.socket.chmod(0o666)
    assert helper.ask_as(STRANGER, "page")["error"] == f"uid {STRANGER} is neither root nor the analyser"
    assert helper.ask_as(OWN, "page")["error"] == f"uid {OWN} is neither root nor the analyser"
    assert helper.started_lines() == []
    assert helper.ask_as(ANALYSER, "page")["ok"]


BAD: dict[bytes, str] = {
    b"": "",
    b"\xff": "no JSON object",
    b"[]": "no JSON object",
    b"[" * 200_000: "no JSON object",
    b"{}": "field run",
    b'{"run": "page"}': "field id",
    b'{"run": "page", "id": 1}': "field id",
    b'{"run": "page", "id": "\\u001b"}': "field id",
    b'{"run": "page", "id": "1", "id": "2"}': "given twice",
    b'{"run": ["/bin/sh"], "id": "1"}': "field run",
    b'{"run": "page", "id": "1", "arguments": ["x"]}': "field 'arguments' is unknown",
    b'{"run": "page", "id": "1", "undo": 2}': "field undo",
    b'{"run": "page", "id": "1", "undo": 1.0}': "field undo",
    b'{"run": "page", "id": "1", "input": 1}': "field input",
    b'{"run": "page", "id": "1", "input": "' + b"x" * 65_537 + b'"}': "field input",
    b'{"run": "page", "id": "1", "environment": []}': "field environment",
    b'{"run": "page", "id": "1", "environment": {"PATH": "/tmp"}}': "'PATH' is no name",
    b'{"run": "page", "id": "1", "environment": {"LD_PRELOAD": "x"}}': "'LD_PRELOAD' is no name",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_x": "x"}}': "is no name",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A=B": "x"}}': "is no name",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": 1}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "a\\nb"}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "\\u0000"}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "\\ud800"}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "' + b"x" * 1025 + b'"}}': "GATEWATCH_A",
    json.dumps(
        {"run": "page", "id": "1", "environment": {f"GATEWATCH_{i}": "x" * 1000 for i in range(20)}}
    ).encode(): "more than 16384 bytes",
    b'{"run": "pages", "id": "1"}': "command pages: the rails name none of this name",
    b'{"run": "../page", "id": "1"}': "the rails name none of this name",
    b'{"run": "page", "id": "1", "undo": 1}': "command page: cannot be undone",
}


def test_what_is_no_request_is_said_and_runs_nothing(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start()
    for data, why in BAD.items():
        if not data:
            continue
        answer = helper.send(data)
        assert answer["ok"] is False
        assert why in answer["error"], (data[:80], answer)
    assert helper.started_lines() == []
    assert helper.ask("page")["ok"]


def test_who_says_nothing_or_hangs_up_keeps_nobody_out(helper: Helper) -> None:
    helper.command("page", "exit 0")
    helper.start("server.HEAR_S = 0.2")
    lines = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(70)]
    try:
        for line in lines:
            line.settimeout(30)
            line.connect(str(helper.socket))
        last = json.loads(lines[-1].recv(4096))
        assert last["error"] == "64 ask already"
        assert lines[0].recv(4096) == b""  # sent away after a while
        assert helper.ask("page")["ok"]
    finally:
        for line in lines:
            line.close()


def test_whoever_hangs_up_before_the_answer_finds_it_later(helper: Helper) -> None:
    helper.command("page", f"{helper.wait}; echo run >> {helper.started}")
    helper.start()
    with helper.closed_gate(), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(str(helper.socket))
        line.send(encoded({"run": "page", "id": "1"}))
    answer = helper.ask("page", "1")
    assert (answer["ok"], answer["already"]) == (True, True)
    assert helper.started_lines() == ["run"]


def test_the_helper_loads_nothing_heavy() -> None:
    code = (
        "import sys, gatewatch.daemon.commands.__main__; print(sorted(m for m in "
        "('numpy', 'pydantic', 'typer', 'asyncio', 'yaml', 'msgspec') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_way_to_a_program_is_roots_alone(helper: Helper) -> None:
    folder = helper.folder / "bin"
    folder.mkdir(0o755)
    program = folder / "page"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    safety.check(str(program))
    link = helper.folder / "link"
    link.symlink_to("bin/../bin/page")
    safety.check(str(link))

    def refused(path: Path, why: str) -> None:
        with pytest.raises(CommandError, match=why) as raised:
            safety.check(str(path))
        assert raised.value.remedy

    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    refused(link, f"link belongs to user {STRANGER}")
    program.chmod(0o775)
    refused(program, "page can be written by others")
    program.chmod(0o644)
    refused(program, "not executable")
    program.chmod(0o755)
    folder.chmod(0o777)
    refused(program, "bin can be written by others")
    folder.chmod(0o1777)
    safety.check(str(program))
    os.chown(program, STRANGER, STRANGER)
    refused(program, f"page belongs to user {STRANGER}")
    refused(folder, "no program but a folder")
    refused(folder / "missing", "No such file")
    refused(program / "below", "belongs to user")
    (helper.folder / "loop").symlink_to("loop")
    refused(helper.folder / "loop", "too many symbolic links")


def test_the_rails_name_commands() -> None:
    rails = parse_rails(
        '[[command]]\nname = "page"\nrun = ["/usr/local/sbin/page", "--now", ""]\nundo = ["/bin/true"]\n'
        '[[command]]\nname = "mail"\nrun = ["/usr/bin/mail"]\ntimeout_s = 300\n'
    )
    assert rails.commands == (
        Command("page", ("/usr/local/sbin/page", "--now", ""), ("/bin/true",), 10),
        Command("mail", ("/usr/bin/mail",), (), 300),
    )
    assert parse_rails("").commands == ()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('run = ["/bin/true"]', "command[0].name"),
        ('name = "a b"\nrun = ["/bin/true"]', "command[0].name"),
        ('name = "a"', "command[0].run"),
        ('name = "a"\nrun = []', "command[0].run"),
        ('name = "a"\nrun = "/bin/true"', "command[0].run"),
        ('name = "a"\nrun = ["true"]', "command[0].run"),
        ('name = "a"\nrun = ["/bin/true", 1]', "command[0].run"),
        ('name = "a"\nrun = ["/bin/true", "a\\u0007"]', "command[0].run"),
        (f'name = "a"\nrun = {json.dumps(["/bin/true"] * 33)}', "command[0].run"),
        ('name = "a"\nrun = ["/bin/true"]\nundo = []', "command[0].undo"),
        ('name = "a"\nrun = ["/bin/true"]\ntimeout_s = 0', "command[0].timeout_s"),
        ('name = "a"\nrun = ["/bin/true"]\ntimeout_s = 301', "command[0].timeout_s"),
        ('name = "a"\nrun = ["/bin/true"]\nshell = true', "command[0].shell"),
        ('name = "a"\nrun = ["/bin/true"]\n[[command]]\nname = "a"\nrun = ["/bin/true"]', "key command"),
    ],
)
def test_rails_with_a_wrong_command_name_file_and_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_rails(f"[[command]]\n{text}\n", "/etc/gatewatch/rails.toml")
    assert "/etc/gatewatch/rails.toml" in raised.value.message
    assert key in raised.value.message


def test_the_example_in_the_shipped_rails_is_right(repository: Path, tmp_path: Path) -> None:
    shipped = (repository / "config" / "rails.toml").read_text()
    lines = shipped[shipped.index("# [[command]]") :].splitlines()
    example = "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    path = tmp_path / "rails.toml"
    path.write_text(example)
    path.chmod(0o644)
    (command,) = load(path).commands
    assert (command.name, command.timeout_s) == ("page", 10)
    assert load(repository / "config" / "rails.toml").commands == ()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@given(
    st.dictionaries(st.from_regex(r"GATEWATCH_[A-Z0-9_]{1,20}", fullmatch=True), st.text(), max_size=8),
    st.text(),
)
def test_what_an_attacker_wrote_keeps_no_request_from_being_taken(
    environment: dict[str, str], text: str
) -> None:
    request = parse(encoded({"run": "page", "id": 7, "environment": environment, "input": text}))
    assert request.environment.keys() == environment.keys()
    assert len(request.input) <= MOST_INPUT


def test_no_line_of_the_input_is_a_command_to_a_mail_program() -> None:
    said = "~!touch /tmp/x\na ~ b\n~r /etc/passwd\n\n~~\n"
    request = parse(json.dumps({"run": "mail", "id": "1", "input": said}).encode())
    assert request.input == b"?!touch /tmp/x\na ~ b\n?r /etc/passwd\n\n?~\n"


def test_long_text_is_cut_and_fits_the_line() -> None:
    data = encoded(
        {"run": "page", "id": "1", "environment": {"GATEWATCH_A": "é" * 5000}, "input": "é\n" * 90_000}
    )
    request = parse(data)
    assert len(request.environment["GATEWATCH_A"].encode()) == 1024
    assert MOST_INPUT - 2 <= len(request.input) <= MOST_INPUT
    assert len(encoded({"run": "page", "id": "1", "input": '"' * 90_000})) < 200_000
