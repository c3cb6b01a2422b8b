"""The command line: exit codes, one clear line for each error, and nothing loaded that is not needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.cli import main
from gatewatch.daemon.cli.app import COMMANDS, modules_for
from gatewatch.daemon.cli.output import cell, emit, json_line, printable
from gatewatch.daemon.errors import EnforcerError
from hypothesis import given
from hypothesis import strategies as st

RUN = "import sys; from gatewatch.daemon.cli import main; sys.exit(main(sys.argv[1:]))"
SSHD = (
    "Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user webmaster from 173.234.31.186\n"
    "this is no log line\n"
    "Dec 10 06:55:48 LabSZ sshd[24200]: Failed password for invalid user webmaster from 173.234.31.186 port 38926 "
    "ssh2\n"
)


def gatewatch(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration whose state folder is empty."""
    (tmp_path / "gatewatch.yaml").write_text("state: state\n")
    monkeypatch.setenv("GATEWATCH_CONFIG", str(tmp_path / "gatewatch.yaml"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_version_is_shown(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gatewatch 0.")


def test_no_command_shows_the_commands_and_is_wrong_usage(capsys) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert "kill-switch" in said.out + said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["blok"],
        ["config", "chek"],
        ["config", "show", "--jsn"],
        ["parse"],
        ["playbook", "test", "x"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys) -> None:
    assert main(arguments) == 2
    assert "Error:" in capsys.readouterr().err


def test_every_command_of_the_table_is_registered_and_explains_itself(capsys) -> None:
    for commands in COMMANDS.values():
        for command in commands:
            assert main([command, "--help"]) == 0, command
            assert command in capsys.readouterr().out


def test_a_command_loads_the_module_of_its_group_alone() -> None:
    assert modules_for(["block", "ip", "192.0.2.1"]) == ["blocks"]
    assert modules_for(["--help"]) == list(COMMANDS)
    assert modules_for([]) == list(COMMANDS)


@pytest.mark.parametrize("command", ["blocks", "config", "playbook", "doctor", "audit"])
def test_help_of_a_small_command_does_not_load_numpy(command: str) -> None:
    code = f"import sys; from gatewatch.daemon.cli import main; main([{command!r}, '-h']); "
    code += "sys.exit(', '.join(sorted({'numpy', 'yaml', 'rich.table'} & set(sys.modules))) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def test_a_configuration_is_checked_without_loading_numpy_for_playbooks(configured: Path) -> None:
    code = "import sys; from gatewatch.daemon.cli import main; code = main(['playbook', 'check']); "
    code += "sys.exit('numpy' in sys.modules or code)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode
        == 0
    )


def test_the_kill_switch_is_dispatched_before_typer_is_loaded() -> None:
    code = "import sys; from gatewatch.daemon.cli import main; main(['kill-switch', '--help']); "
    code += (
        "sys.exit(', '.join(sorted({'typer', 'rich', 'pydantic', 'numpy', 'yaml'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def test_a_wrong_configuration_is_one_line_with_file_line_and_key(configured: Path, capsys) -> None:
    path = configured / "gatewatch.yaml"
    path.write_text("mode: observe\nstor: {}\n")
    assert main(["config", "check"]) == 2
    said = capsys.readouterr()
    assert said.err == f"gatewatch: {path}:2: stor: unknown key; did you mean 'store'?\n"
    assert said.out == ""


def test_an_unexpected_failure_is_one_line_and_no_traceback(monkeypatch, capsys) -> None:
    def fail(arguments: list[str]) -> int:
        raise KeyError("surprise\x1b[2J")

    monkeypatch.setattr("gatewatch.daemon.cli.app.run", fail)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("gatewatch: internal error (KeyError: ")
    assert said.count("\n") == 1
    assert "\x1b" not in said
    monkeypatch.setenv("GATEWATCH_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["doctor"])


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (EnforcerError("no", remedy="try again"), 1, "gatewatch: no; try again\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "gatewatch: /x: Permission denied\n"),
    ],
)
def test_every_end_has_its_exit_code(raised: BaseException, code: int, said: str, monkeypatch, capfd) -> None:
    def end(arguments: list[str]) -> int:
        raise raised

    monkeypatch.setattr("gatewatch.daemon.cli.app.run", end)
    monkeypatch.setattr("gatewatch.daemon.cli._drop_output", lambda: None)
    assert main(["doctor"]) == code
    assert capfd.readouterr().err == said


def test_a_reader_that_goes_away_is_no_error(configured: Path) -> None:
    log = configured / "auth.log"
    log.write_text(SSHD * 20_000)
    command = [sys.executable, "-c", RUN, "parse", "--json", "--year", "2020", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) in (0, 1)


def test_default_files_are_written_once_and_are_in_order(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "etc"
    assert main(["config", "init", "--directory", str(folder)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["gatewatch.yaml", "rails.toml"]
    assert main(["config", "check", str(folder / "gatewatch.yaml")]) == 0
    (folder / "gatewatch.yaml").write_text("mode: observe # mine\n")
    assert main(["config", "init", "--directory", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "gatewatch.yaml").read_text() == "mode: observe # mine\n"
    assert main(["config", "init", "--directory", str(folder), "--force"]) == 0
    assert "mine" not in (folder / "gatewatch.yaml").read_text()


def test_enforce_mode_without_management_networks_fails_the_check(tmp_path: Path, capsys) -> None:
    assert main(["config", "init", "--directory", str(tmp_path)]) == 0
    path = tmp_path / "gatewatch.yaml"
    path.write_text(path.read_text().replace("mode: observe\n", "mode: enforce\n"))
    assert main(["config", "check", str(path)]) == 2
    assert "management" in capsys.readouterr().err


def test_an_unknown_detector_option_fails_the_check(configured: Path, capsys) -> None:
    (configured / "gatewatch.yaml").write_text("state: state\ndetectors:\n  brute_force:\n    treshold: 3\n")
    assert main(["config", "check"]) == 2
    said = capsys.readouterr().err
    assert "gatewatch.yaml:4: detectors.brute_force.treshold: no such option" in said


def test_the_effective_configuration_says_where_each_value_comes_from(configured: Path, capsys) -> None:
    path = configured / "gatewatch.yaml"
    path.write_text("store:\n  snapshot_s: 5\n")
    assert main(["config", "show", "--json"]) == 0
    rows = {r["option"]: r for r in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["store.snapshot_s"] == {"option": "store.snapshot_s", "value": 5, "from": f"{path}:2"}
    assert rows["store.retention_days"] == {"option": "store.retention_days", "value": 90, "from": "default"}


def test_a_log_is_parsed_line_by_line(configured: Path, capsys) -> None:
    log = configured / "auth.log"
    log.write_text(SSHD)
    assert main(["parse", str(log), "--json", "--year", "2020"]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["outcome"] == "invalid_user"
    assert second == {"line": 2, "unparsed": True}
    assert (third["source"], third["user"], third["line"]) == ("173.234.31.186", "webmaster", 3)
    assert {"time", "outcome", "source", "user", "service", "method", "line"} <= third.keys()
    assert third["time"].startswith("2020-12-")


def test_a_log_on_standard_input_gives_the_same(configured: Path) -> None:
    log = configured / "auth.log"
    log.write_text(SSHD)
    by_name = gatewatch("parse", str(log), "--json", "--year", "2020")
    by_stream = gatewatch("parse", "-", "--json", "--year", "2020", input=SSHD)
    assert by_name.stdout == by_stream.stdout != ""


def test_parsed_lines_for_people_tell_how_many_were_not_understood(configured: Path, capsys) -> None:
    log = configured / "auth.log"
    log.write_text(SSHD)
    assert main(["parse", str(log), "--year", "2020"]) == 0
    said = capsys.readouterr()
    assert "not understood" in said.out.splitlines()[1]
    assert said.err == "3 lines, 1 not understood\n"


def test_what_an_attacker_wrote_into_a_log_cannot_reach_the_terminal(configured: Path, capsys) -> None:
    log = configured / "auth.log"
    log.write_text(
        "Dec 10 06:55:46 h sshd[1]: Invalid user a\x1b]0;owned\x07\u202eb from 192.0.2.1 port 2\n" * 2
    )
    assert main(["parse", str(log), "--year", "2020", "--format", "sshd"]) == 0
    assert main(["parse", str(log), "--year", "2020", "--format", "sshd", "--json"]) == 0
    said = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(said)
    assert "owned" in said


@pytest.mark.parametrize("arguments", [[], ["--format", "sshd"]])
def test_a_binary_file_is_refused_with_its_offset(configured: Path, arguments: list[str], capsys) -> None:
    file = configured / "x.bin"
    file.write_bytes(b"ELF" + bytes(range(32)) * 200)
    assert main(["parse", str(file), *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"gatewatch: {file}: offset 3: byte 0x00: a binary file")
    assert said.err.count("\n") == 1


def test_zeros_that_a_power_cut_left_at_the_end_do_not_make_a_log_binary(configured: Path, capsys) -> None:
    log = configured / "auth.log"
    log.write_bytes(SSHD.encode() * 10 + bytes(5000))
    assert main(["parse", str(log), "--year", "2020"]) == 0
    assert "31 lines, 11 not understood" in capsys.readouterr().err


def test_an_empty_log_holds_nothing_and_is_no_error(configured: Path, capsys) -> None:
    log = configured / "empty.log"
    log.touch()
    assert main(["parse", str(log)]) == 0
    assert capsys.readouterr().err == "0 lines, 0 not understood\n"


@pytest.mark.parametrize("what", ["missing", "folder", "unknown"])
def test_what_cannot_be_parsed_is_one_line_and_exit_code_1(configured: Path, what: str, capsys) -> None:
    (configured / "folder").mkdir()
    (configured / "unknown").write_text("nothing that any parser knows\n" * 3)
    assert main(["parse", str(configured / what)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"gatewatch: {configured / what}: ")
    assert said.count("\n") == 1


def test_an_unknown_format_is_wrong_usage_and_names_the_known_ones(configured: Path, capsys) -> None:
    log = configured / "auth.log"
    log.write_text(SSHD)
    assert main(["parse", str(log), "--format", "sshhd"]) == 2
    assert "sshd" in capsys.readouterr().err


def test_a_capture_is_shown_frame_by_frame(configured: Path, data: Path, capsys) -> None:
    capture = data / "pcap" / "decode-teredo-01__input.pcap"
    if not capture.exists():
        pytest.skip("no captures and logs of others: this one is missing")
    assert main(["parse", "--json", str(capture)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["frame"], first["source"], first["protocol"]) == (1, "192.168.2.16", "udp")
    assert main(["parse", str(capture)]) == 0


def test_a_capture_that_is_cut_short_is_shown_as_far_as_it_goes(configured: Path, capsys) -> None:
    header = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000")
    frame = bytes(12) + bytes.fromhex("0800") + bytes.fromhex("45000014000000004001000001020304c0000201")
    record = (1).to_bytes(4, "little") + bytes(4) + 2 * len(frame).to_bytes(4, "little") + frame
    capture = configured / "cut.pcap"
    capture.write_bytes(header + record + record[:20])
    assert main(["parse", "--json", str(capture)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["source"] == "1.2.3.4"
    assert said.err.startswith(f"gatewatch: {capture}: offset {24 + len(record)}: ")
    assert said.err.count("\n") == 1


def test_explain_says_what_could_not_be_asked(configured: Path, capsys) -> None:
    assert main(["explain", "::ffff:192.0.2.1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["subject"] == "192.0.2.1"
    assert found["blocked"] is None
    assert len(found["unknown"]) == 3


@given(st.text())
def test_what_is_printed_holds_no_control_or_format_character(text: str) -> None:
    shown = printable(text)
    assert not any(
        ord(c) < 32 or 0x7F <= ord(c) <= 0x9F or c in "\u202e\u2066\u200f\u2028\ufeff" for c in shown
    )
    assert printable(shown) == shown
    shown.encode()


@given(
    st.dictionaries(
        st.text(), st.text() | st.lists(st.text()) | st.integers() | st.none() | st.floats(allow_nan=False)
    )
)
def test_a_json_line_is_one_line_that_reads_back(row: dict[str, Any]) -> None:
    line = json_line(row)
    assert printable(line) == line
    assert json.loads(line) == row


def test_a_table_shows_lists_and_gaps_and_no_markup(capsys) -> None:
    rows = [{"a": ["x", "y"], "b": "[red]not markup[/red] :smile:"}, {"b": True, "a": None}]
    assert emit(rows, False, ("a", "b")) == 2
    said = capsys.readouterr().out
    assert "x, y" in said
    assert "[red]not markup[/red] :smile:" in said
    assert emit([], False, ("a",)) == 0
    assert cell({"k\x1b": 1}) == "k\\x1b=1"


def test_the_reference_pages_are_what_the_code_says(repository: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(repository / "docs" / "generate_reference.py"), "--check"],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert made.stderr == ""
    assert made.returncode == 0


def test_a_locale_that_lacks_a_character_is_no_reason_to_fail(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_text(SSHD.replace("webmaster", "größe中"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = gatewatch("parse", str(log), "--year", "2020", env=environment)
    assert done.returncode == 0
    assert "\\u4e2d" in done.stdout


def test_default_files_that_cannot_be_written_name_the_remedy(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["config", "init", "--directory", str(tmp_path / "file" / "etc")]) == 1
    assert "--directory" in capsys.readouterr().err
