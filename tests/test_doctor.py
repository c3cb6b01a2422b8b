"""The doctor: each thing that is missing is named with its remedy, and looking never fails."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pytest
from gatewatch.config.schema import Config
from gatewatch.daemon import doctor
from gatewatch.daemon.cli import main
from gatewatch.daemon.doctor import Check, examine


def checks(tmp_path: Path, **options: Any) -> dict[str, Check]:
    document = {"state": str(tmp_path / "state"), "rails": str(tmp_path / "rails.toml")} | options
    found = list(examine(Config.model_validate(document), socket=tmp_path / "enforcer.sock"))
    return {check.check: check for check in found}


def test_every_check_that_is_not_in_order_says_how_to_mend_it(tmp_path: Path) -> None:
    for check in checks(tmp_path).values():
        assert check.state == "ok" or check.remedy, check


def test_a_missing_enforcer_is_a_warning_in_observe_mode_and_a_failure_in_enforce_mode(
    tmp_path: Path,
) -> None:
    assert checks(tmp_path)["enforcer"].state == "warn"
    found = checks(tmp_path, mode="enforce")
    assert found["enforcer"].state == "fail"
    assert found["rails"].state == "fail"


def test_rails_without_management_networks_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "rails.toml").write_text("management = []\n")
    (tmp_path / "rails.toml").chmod(0o644)
    assert checks(tmp_path)["rails"].state == "warn"
    assert checks(tmp_path, mode="enforce")["rails"].state == "fail"
    (tmp_path / "rails.toml").write_text('management = ["192.0.2.0/24"]\n')
    found = checks(tmp_path, mode="enforce")
    assert (found["rails"].state, found["rails"].detail) == ("ok", "management: 192.0.2.0/24")
    assert found["endpoints"].state == "warn"


def test_rails_that_are_wrong_name_the_key(tmp_path: Path) -> None:
    (tmp_path / "rails.toml").write_text('managment = ["192.0.2.0/24"]\n')
    (tmp_path / "rails.toml").chmod(0o644)
    found = checks(tmp_path)["rails"]
    assert found.state == "fail"
    assert "managment" in found.detail


def test_a_configured_log_that_is_missing_fails(tmp_path: Path) -> None:
    found = checks(
        tmp_path, collectors={"logs": [{"path": str(tmp_path / "no.log")}, {"path": str(tmp_path)}]}
    )
    assert found[f"log {tmp_path / 'no.log'}"].state == "fail"
    assert found[f"log {tmp_path}"].detail == "is a folder"


def test_a_log_that_is_there_is_in_order(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.touch()
    assert checks(tmp_path, collectors={"logs": [{"path": str(log)}]})[f"log {log}"].state == "ok"


def test_a_log_that_this_user_may_not_read_names_the_group(tmp_path: Path, monkeypatch) -> None:
    log = tmp_path / "auth.log"
    log.touch()

    def refuse(path: Any, *arguments: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setitem(doctor.__dict__, "open", refuse)
    found = checks(tmp_path, collectors={"logs": [{"path": str(log)}]})[f"log {log}"]
    assert (found.state, found.detail) == ("fail", "not readable by this user")
    assert "adm" in found.remedy


def test_an_unknown_interface_fails_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    found = checks(tmp_path, collectors={"packets": {"interfaces": ["nosuch0"]}})["interface nosuch0"]
    assert found.state == "fail"
    assert "lo" in found.remedy


def test_a_state_folder_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert checks(tmp_path, state=str(tmp_path / "file" / "state"))["state folder"].state == "fail"
    assert checks(tmp_path)["state folder"].state == "ok"


@pytest.mark.parametrize(("free", "state"), [(1 << 20, "fail"), (200 << 20, "warn"), (1 << 40, "ok")])
def test_little_disk_space_is_pointed_out(tmp_path: Path, free: int, state: str, monkeypatch) -> None:
    class Usage:
        pass

    usage = Usage()
    usage.free = free  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert checks(tmp_path)["disk space"].state == state


def test_missing_privileges_matter_in_enforce_mode(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "capabilities", lambda: 0)
    found = checks(tmp_path)
    assert (found["CAP_NET_ADMIN"].state, found["CAP_NET_RAW"].state) == ("warn", "warn")
    found = checks(tmp_path, mode="enforce", collectors={"packets": {"enabled": True}})
    assert (found["CAP_NET_ADMIN"].state, found["CAP_NET_RAW"].state) == ("fail", "fail")


def test_root_holds_the_capabilities_that_it_is_said_to_hold() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert doctor.capabilities() >> doctor.CAP_NET_ADMIN & 1


def test_a_library_that_is_missing_or_old_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("numpy", "nosuchlibrary"))
    monkeypatch.setattr(doctor, "_lower_bounds", lambda: {"numpy": "999.0"})
    found = checks(tmp_path)["libraries"]
    assert found.state == "fail"
    assert "nosuchlibrary is missing" in found.detail
    assert "is older than 999.0" in found.detail


def test_the_clock_of_the_kernel_is_asked() -> None:
    assert doctor.clock_synchronised() in (True, False, None)


def test_a_check_that_cannot_be_made_does_not_stop_the_others(tmp_path: Path, monkeypatch) -> None:
    def fail() -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "clock_synchronised", fail)
    found = checks(tmp_path)
    assert "could not be made" in found["examination"].detail
    assert "enforcer" in found


def test_a_wrong_configuration_is_a_failed_check_and_the_rest_is_still_examined(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    path = tmp_path / "gatewatch.yaml"
    path.write_text("mod: observe\n")
    assert main(["doctor", "--config", str(path), "--state", str(tmp_path / "s"), "--json"]) == 1
    found = {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["configuration"]["state"] == "fail"
    assert f"{path}:1: mod: unknown key" in found["configuration"]["detail"]
    assert found["state folder"]["detail"].startswith(str(tmp_path / "s"))
    assert all(set(row) == {"check", "state", "detail", "remedy"} for row in found.values())


def test_nothing_is_changed_by_looking(tmp_path: Path) -> None:
    checks(tmp_path, mode="enforce")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_others_may_write_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.yaml"
    path.touch()
    for mode, expected in ((0o644, False), (0o664, True), (0o646, True)):
        path.chmod(mode)
        found = examine(Config(state=str(tmp_path)), socket=tmp_path / "enforcer.sock", file=path)
        assert ("configuration file" in [check.check for check in found]) is expected


def test_a_missing_libnftables_names_its_package(tmp_path: Path, monkeypatch) -> None:
    load = ctypes.CDLL

    def missing(name: str | None, **options: Any) -> Any:
        if name is None:
            return load(None, **options)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("gatewatch.daemon.enforcer.kernel.nft.ctypes.CDLL", missing)
    found = checks(tmp_path, mode="enforce")
    assert (found["libnftables"].state, found["libnftables"].remedy) == ("fail", "apt install libnftables1")


def test_a_hook_whose_secret_is_missing_and_an_endpoint_that_is_down_are_named(tmp_path: Path) -> None:
    hook = {"type": "webhook", "url": "https://hooks.example.org", "secret_file": str(tmp_path / "none")}
    place = f"unix:{tmp_path}/authz.sock"
    found = checks(tmp_path, hooks={"pager": hook}, authz={"listen": [place]})
    assert found["hook pager"].state == "fail"
    assert "mode 0600" in found["hook pager"].remedy
    assert (found["authorisation"].state, bool(found["authorisation"].remedy)) == ("warn", True)


def test_wrong_rails_are_said_once(tmp_path: Path) -> None:
    (tmp_path / "rails.toml").write_text("alowed = []\n")
    found = checks(tmp_path)
    assert found["rails"].state == "fail"
    assert "examination" not in found
