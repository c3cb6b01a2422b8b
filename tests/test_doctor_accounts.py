"""The doctor on Unix accounts: whether PAM asks the file, and what is wrong with it, each with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gatewatch.daemon.doctor import Check
from gatewatch.daemon.doctor_accounts import account_checks
from gatewatch.daemon.enforcer.pamstack import rule


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "denied-accounts"
        self.file.write_text("alice\n")
        self.file.chmod(0o644)
        self.status = folder / "accounts.json"
        self.say()
        self.pam(*(rule(stack, str(self.file)) for stack in ("auth", "account")))
        (folder / "sshd_config").write_text("UsePAM yes\n")

    def say(self, *problems: str) -> None:
        said = {"denied": ["alice"], "refused": {"root": "it is uid 0"}, "problems": problems}
        self.status.write_text(json.dumps(said))

    def pam(self, *lines: str) -> None:
        (self.folder / "sshd").write_text("\n".join(lines) + "\n")

    def checks(self, *, wanted: bool = True) -> dict[str, Check]:
        pam, sshd = str(self.folder), str(self.folder / "sshd_config")
        found = list(account_checks(self.status, str(self.file), wanted=wanted, pam=pam, sshd=sshd))
        assert all(check.remedy for check in found if check.state != "ok"), found
        return {check.check: check for check in found}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_site_in_order_has_nothing_to_mend(site: Site) -> None:
    found = site.checks()
    assert {check.state for check in found.values()} == {"ok"}
    assert list(found) == ["PAM of sshd", "denied accounts", "accounts helper"]
    assert found["accounts helper"].detail == "1 denied, 1 asked for and never denied"


def test_a_stack_that_does_not_ask_is_a_failure_with_the_line_to_add(site: Site) -> None:
    site.pam(rule("auth", str(site.file)))
    check = site.checks()["PAM of sshd"]
    assert check.state == "fail" and "account stack" in check.detail
    assert rule("account", str(site.file)) in check.remedy


def test_a_console_that_does_not_ask_is_a_warning_as_it_may_be_the_last_way_in(site: Site) -> None:
    (site.folder / "login").write_text("auth required pam_unix.so\n")
    assert site.checks()["PAM of login"].state == "warn"


def test_sshd_without_pam_is_a_failure(site: Site) -> None:
    (site.folder / "sshd_config").write_text("")
    assert site.checks()["sshd"].state == "fail"


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_file_that_others_may_write_is_a_failure(site: Site, mode: int) -> None:
    site.file.chmod(mode)
    assert site.checks()["denied accounts"].state == "fail"


def test_a_link_in_its_place_is_a_failure_and_a_missing_file_a_warning(site: Site) -> None:
    site.file.rename(site.folder / "other")
    assert site.checks()["denied accounts"].state == "warn"
    site.file.symlink_to(site.folder / "other")
    assert site.checks()["denied accounts"].state == "fail"


def test_what_the_helper_says_is_passed_on(site: Site) -> None:
    site.say("the list is of another boot")
    assert "another boot" in site.checks()["accounts helper"].detail
    for text in ("", "[]", "{}", "\x00"):
        site.status.write_text(text)
        assert site.checks()["accounts helper"].state == "warn"
    site.status.unlink()
    assert site.checks()["accounts helper"].state == "warn"


def test_names_that_nobody_will_take_out_are_pointed_out_when_the_helper_is_off(site: Site) -> None:
    check = site.checks(wanted=False)["denied accounts"]
    assert check.state == "warn" and "alice" in check.detail and f"rm {site.file}" in check.remedy
    site.file.write_text("")
    assert site.checks(wanted=False) == {}
    site.file.unlink()
    assert site.checks(wanted=False) == {}
