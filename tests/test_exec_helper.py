"""The exec helper runs what the rails name as a user of its own, literally, bounded, and not twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exec_site import OWN, Helper, answers_of, ended, exec_helper
from gatewatch.daemon.commands.request import MOST_INPUT
from gatewatch.daemon.exec_link import ExecLink, FailedError
from lab.lab import wait_for

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def helper() -> Iterator[Helper]:
    with exec_helper() as helper:
        yield helper


def test_a_command_runs_as_a_user_of_its_own_without_privileges(helper: Helper) -> None:
    text = "echo $(id -u) $(id -G) $(pwd) $(umask) $(ulimit -c); grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status"
    helper.command("who", text)
    helper.start()
    answer = helper.ask("who")
    assert answer["ok"], answer
    words = answer["output"].split()
    assert words[:5] == [str(OWN), str(OWN), "/", "0077", "0"]
    assert words[words.index("NoNewPrivs:") + 1] == "1"
    assert int(words[words.index("CapEff:") + 1], 16) == 0
    assert int(words[words.index("CapBnd:") + 1], 16) == 0


def test_a_command_is_in_a_session_of_its_own(helper: Helper) -> None:
    helper.command("session", "cut -d' ' -f1,5,6 /proc/$$/stat")
    helper.start()
    pid, group, session = helper.ask("session")["output"].split()
    assert pid == group == session


def test_a_command_is_limited(helper: Helper) -> None:
    helper.command(
        "limits", "exec awk '/processes|open files|file size|core/ {print $(NF-1)}' /proc/self/limits"
    )
    helper.start()
    output = helper.ask("limits")["output"].split()
    assert sorted(output) == sorted([str(64 << 20), "0", "128", "256"])


def test_arguments_and_variables_stay_text(helper: Helper) -> None:
    strange = ("$(id)", "; touch owned", "*", "", "a b", "`id`", "${HOME}", "--")
    helper.command("literal", 'printf "<%s>" "$@" "$GATEWATCH_WHAT"', *strange)
    helper.start()
    what = "$(id); * `id` | tee x"
    answer = helper.ask("literal", environment={"GATEWATCH_WHAT": what})
    assert answer["output"] == "".join(f"<{word}>" for word in (*strange, what))


def test_the_environment_has_nothing_of_the_helpers(helper: Helper) -> None:
    helper.command("environment", "exec /usr/bin/env")
    os.environ["GATEWATCH_SECRET_OF_THE_SERVICE"] = "1"
    try:
        helper.start()
    finally:
        del os.environ["GATEWATCH_SECRET_OF_THE_SERVICE"]
    answer = helper.ask("environment", environment={"GATEWATCH_INCIDENT": "7"})
    names = {word.split("=")[0] for word in answer["output"].split() if "=" in word}
    assert names - {"PWD", "_", "OLDPWD", "SHLVL"} == {"PATH", "LANG", "HOME", "GATEWATCH_INCIDENT"}


def test_no_descriptor_of_the_helper_reaches_a_command(helper: Helper) -> None:
    helper.command("open", "exec ls /proc/self/fd")
    helper.start()
    assert helper.ask("open", input="x")["output"] == "0 1 2 3"  # 3: the folder that ls reads


def test_text_comes_on_the_input_whole(helper: Helper) -> None:
    helper.command("size", "wc -c")
    helper.command("lines", "cat")
    helper.start()
    assert helper.ask("size", input='"' * MOST_INPUT)["output"] == str(MOST_INPUT)
    assert helper.ask("size", "2", input="é" * MOST_INPUT)["output"] == str(MOST_INPUT)
    assert helper.ask("size", "3")["output"] == "0"
    assert helper.ask("lines", input="an\tescape \x1b[31m\nsecond")["output"] == "an escape ?[31m second"


def test_a_command_that_reads_nothing_of_its_input_succeeds(helper: Helper) -> None:
    helper.command("deaf", "exit 0")
    helper.start()
    assert helper.ask("deaf", input="x" * MOST_INPUT)["ok"]


def test_failures_say_the_exit_code_and_what_was_written(helper: Helper) -> None:
    helper.command("fails", "echo no route >&2; exit 3")
    helper.command("killed", "kill -9 $$")
    helper.start()
    answer = helper.ask("fails")
    assert (answer["ok"], answer["exit_code"], answer["output"]) == (False, 3, "no route")
    assert answer["error"] == "command fails: exit code 3"
    assert helper.ask("killed")["error"] == "command killed: killed by signal 9"


def test_at_its_limit_a_command_is_killed_with_what_it_started(helper: Helper) -> None:
    text = f"(sleep 1000 & echo $! >> {helper.started}; wait) & echo $! >> {helper.started}; wait"
    helper.command("slow", text, timeout_s=1)
    helper.start()
    answer = helper.ask("slow")
    assert answer["error"] == "command slow: not done within 1 s, and killed"
    pids = [int(word) for word in helper.started_lines()]
    assert len(pids) == 2
    for pid in pids:
        wait_for(f"the end of {pid}", lambda pid=pid: ended(pid))


def test_what_a_command_leaves_running_in_its_group_ends_with_it(helper: Helper) -> None:
    helper.command("leaves", "sleep 1000 & echo $!")
    helper.start()
    answer = helper.ask("leaves")
    assert answer["ok"]
    wait_for("the end of it", lambda: ended(int(answer["output"])))


def test_who_leaves_the_group_and_holds_the_output_open_is_not_waited_for(helper: Helper) -> None:
    helper.command("escapes", "setsid sleep 1000 & echo $!")
    helper.start()
    answer = helper.ask("escapes")
    assert answer["ok"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(answer["output"]), signal.SIGKILL)


def test_a_flood_of_output_is_ended_and_costs_no_memory(helper: Helper) -> None:
    helper.command("flood", "exec yes")
    helper.start()
    answer = helper.ask("flood")
    assert answer["error"] == "command flood: wrote more than 16 MiB"
    assert len(answer["output"]) == 500
    assert helper.process is not None
    status = Path(f"/proc/{helper.process.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 80_000  # KiB


def test_output_that_is_no_text_is_shown_as_text(helper: Helper) -> None:
    helper.command("noise", "printf '\\377\\033[2Jok\\000'")
    helper.start()
    output = helper.ask("noise")["output"]
    assert output.isprintable()
    assert "ok" in output


def test_what_succeeded_is_not_run_twice(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; echo paged", undo=f"echo undo >> {helper.started}")
    helper.start()
    first, second = helper.ask("page", "7"), helper.ask("page", "7")
    assert "already" not in first
    assert (second["ok"], second["already"], second["output"]) == (True, True, "paged")
    assert helper.ask("page", "7", undo=1)["ok"]
    assert helper.ask("page", "7", undo=1)["already"]
    assert "already" not in helper.ask("page", "8")
    assert helper.started_lines() == ["run", "undo", "run"]


def test_what_failed_is_run_again(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; [ $(wc -l < {helper.started}) = 2 ]")
    helper.start()
    assert not helper.ask("page")["ok"]
    assert helper.ask("page")["ok"]
    assert helper.started_lines() == ["run", "run"]


def test_after_its_hour_a_success_is_forgotten(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start("server.REMEMBERED_S = 0.0")
    helper.ask("page")
    assert "already" not in helper.ask("page")
    assert helper.started_lines() == ["run", "run"]


def test_whoever_asks_while_it_runs_waits_for_the_same_answer(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; {helper.wait}")
    helper.start()

    async def twice() -> list[Any]:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            asked = asyncio.ensure_future(answers_of(link, [{"run": "page", "id": 7}] * 2))
            await asyncio.to_thread(wait_for, "the command", helper.started_lines)
        return await asked

    answers = asyncio.run(twice())
    assert [a.get("already", False) for a in answers] == [False, True]
    assert helper.started_lines() == ["run"]


def test_no_more_than_four_run_and_no_more_than_thirty_two_wait(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; {helper.wait}")
    helper.start()

    async def many() -> list[Any]:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            asked = asyncio.ensure_future(answers_of(link, [{"run": "page", "id": i} for i in range(37)]))
            await asyncio.to_thread(wait_for, "four", lambda: len(helper.started_lines()) == 4)
            refused = helper.ask("page", "extra")
            assert refused["error"] == "command page: 32 wait already"
            assert len(helper.started_lines()) == 4
        return await asked

    answers = asyncio.run(many())
    assert [type(answer) for answer in answers] == [dict] * 36 + [FailedError]
    assert all(answer["ok"] for answer in answers[:36])
    assert len(helper.started_lines()) == 36


def test_undoing_waits_until_the_doing_is_done(helper: Helper) -> None:
    do = f"echo begins >> {helper.started}; {helper.wait}; echo ends >> {helper.started}"
    helper.command("page", do, undo=f"echo undone >> {helper.started}")
    helper.command("other", "true")
    helper.start()

    async def both() -> list[Any]:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            messages: list[dict[str, object]] = [{"run": "page", "id": 7, "undo": n} for n in (0, 1)]
            asked = asyncio.ensure_future(answers_of(link, messages))
            await asyncio.to_thread(wait_for, "the command", helper.started_lines)
            assert helper.ask("other")["ok"]
            assert helper.started_lines() == ["begins"]
        return await asked

    assert all(answer["ok"] for answer in asyncio.run(both()))
    assert helper.started_lines() == ["begins", "ends", "undone"]


def test_sixty_a_minute_are_run_and_a_repeated_one_is_not_counted(helper: Helper) -> None:
    helper.command("page", "exit 0")
    helper.start()
    for number in range(60):
        assert helper.ask("page", str(number))["ok"]
        assert helper.ask("page", str(number))["already"]
    assert helper.ask("page", "60")["error"] == "command page: 60 in a minute are enough"
    assert helper.ask("page", "59")["already"]


def test_after_a_minute_there_is_room_again(helper: Helper) -> None:
    helper.command("page", "exit 0")
    helper.start("server._MINUTE_S = 0.0; server.MOST_A_MINUTE = 1")
    assert helper.ask("page", "1")["ok"]
    assert helper.ask("page", "2")["ok"]
