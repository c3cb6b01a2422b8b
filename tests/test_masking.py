"""Typed passwords in place of user names: which are seen, which names are left alone, and what is shown instead."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from gatewatch.daemon.incidents import Correlator, Incident
from gatewatch.daemon.masking import BLIND, OPEN, Mask, looks_like_password
from gatewatch.detectors.finding import Finding, finding_id
from hypothesis import given
from hypothesis import strategies as st

PASSWORDS = """
P@ssw0rd P@ssw0rd123! Summer2026! Summer2026 Winter23 hunter2! S3cr3t! Tr0ub4dor&3 Passw0rd Passw0rd1 password
password1 Password123 passw0rd pa$$word qwerty123 letmein1 Welcome1 Welcome2026! changeme123 iloveyou2 trustno1
Admin@123 admin@123 Root#2024 kX9vQ2mLp7 aB3dE6gH9j Xy7!kLm2 Str0ngPass Adm1nUser #Secure99 My!Dog$Name7 Company*2025
Zaq12wsx!QAZ 1qaz@WSX Sommer#24 Gr8&Better L0ngSecret T0morrow qW3eR4tY5 7Heaven$now (Hidden)99 Cisco?123
""".split()  # noqa: SIM905

NAMES = """
root admin administrator Administrator user1 test test123 guest oracle oracle11g oracle19c postgres postgres15 mysql
www-data ec2-user ubuntu debian centos7 jenkins gitlab-runner git ansible deploy deploy01 backup svc-backup
svc_sql01 SVC-SQL01 svcBackup01 k8s k8s-admin kube-proxy nginx apache2 tomcat9 hadoop spark spark3 kafka zookeeper
elastic es7 logstash kibana grafana prometheus nagios zabbix icinga2 munin sensu consul vault nomad minio redis6
jsmith jsmith2 j.smith john.smith john_smith john-smith John.Smith JSmith JSmith01 JohnSmith JohnSmith2 SmithJ
SmithJohn01 smithj4 anna.mueller anna.müller jörg.weiß françois.dupont o'brien O'Brien mary-jane.o'neil
ana.garcía zoë.smith björn åsa.lund søren.kjær łukasz.kowalski владимир 山田太郎 yamada.taro li.wei nguyen.van.an
a123456 A1234567 X123456 EMP00123 emp00123 e10234 u1234567 s1234567 ab12cd34 abc1234 c0123456 CN12345 0123456
1000423 20210455 stud2024 student2024 class2025a lab04 pc-lab-07 room101 kiosk3 pos12 cam07 printer2 scanner1
DOMAIN\\jsmith CORP\\john.smith CORP\\JSmith01 EXAMPLE\\Administrator corp\\svc-sql01 AD01\\J.Doe2
jsmith@example.org John.Smith@Example.COM j.smith+ssh@mail.example.co.uk jsmith01@corp.example root@gateway
root@gw1 admin@192.0.2.1 backup@host-01 jsmith@EXAMPLE JSmith@CORP.EXAMPLE host/gw1.example.org@EXAMPLE.ORG
nfs/storage01.example.org ldap/dc1.example.org@AD.EXAMPLE.ORG GATEWAY01$ WS-0423$ gmsa-web01$ sql$ SQL01$
6ba7b810-9dad-11d1-80b4-00c04fd430c8 6BA7B810-9DAD-11D1-80B4-00C04FD430C8 d41d8cd98f00b204e9800998ecf8427e
da39a3ee5e6b4b0d3255bfef95601890afd80709 9f86d081884c7d65 gw1.example.org build-07.ci.example.org mail.example.com
192.0.2.17 i-0abcd1234ef567890 ip-10-0-0-12 ubuntu-22-04 vm-web-01 node1 node-2 worker03 gpu-node-17 tpu4 dgx2
modelsync model-sync trainer01 inference-gw llm vllm ollama triton24 huggingface openai-proxy litellm mlflow2
DevOps DevOps2 devops-eu1 QA1 QaUser UATUser3 TestUser TestUser1 Test.User AppServer AppServer2 WebAdmin WebAdmin01
DBAdmin DBA2 SysAdmin SysOp NetOps NetOps24 BackupExec SQLServer SQLAgent2019 IISUser MacBookPro iMac27 iPhone12
OfficeJet4500 HelpDesk HelpDesk2 ServiceDesk FrontDesk Reception1 Accounting HR hr2 Marketing marketing07 Sales
sales-de mario luigi peach max1990 maria1985 tom88 anna2001 Maria1985 Tom88 Kim2 LeeAnn McDonald MacLeod DeVries2
VanDyke_1 Jean-Luc Jean_Luc2 Mary.Ann3 spring summer autumn may.li april june.park welcome welcome.desk qwerty
""".split()  # noqa: SIM905


def test_there_are_two_hundred_names_to_try() -> None:
    assert len(set(NAMES)) >= 200


@pytest.mark.parametrize("name", PASSWORDS)
def test_a_password_is_seen(name: str) -> None:
    assert looks_like_password(name)


def test_no_ordinary_name_is_taken_for_a_password() -> None:
    assert [name for name in NAMES if looks_like_password(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "root from 192.0.2.1 port 4242 ssh2: RSA SHA256:x",
        "${jndi:ldap://192.0.2.1/A1}",
        "GET / HTTP/1.1",
        "../../etc/passwd",
        "$(reboot)",
        "\x1b]0;Own3d!\x07",
        "' OR 1=1 --",
        "a" * 120,
        "",
    ],
)
def test_what_is_written_to_attack_the_reader_stays_to_be_read(name: str) -> None:
    assert not looks_like_password(name)


@given(st.text())
def test_any_text_can_be_judged_and_masked(text: str) -> None:
    assert Mask(b"k")(text) == (text if not looks_like_password(text) else Mask(b"k")(text))
    assert isinstance(BLIND.text(text, [text]), str)


def test_a_mask_tells_neither_characters_nor_length_and_is_the_same_everywhere() -> None:
    mask = Mask(b"secret of the site")
    masked = mask("P@ssw0rd123!")
    assert re.fullmatch(r"\[masked:[0-9a-f]{8}\]", masked)
    assert mask("P@ssw0rd123!") == masked != mask("P@ssw0rd124!")
    assert Mask(b"another site")("P@ssw0rd123!") != masked
    assert len(mask("S3cr3t!")) == len(masked)
    assert not looks_like_password(masked)


def test_without_a_secret_nothing_of_the_name_is_left() -> None:
    assert BLIND("P@ssw0rd123!") == BLIND("Summer2026!") == "[masked]"


def test_a_name_by_which_somebody_has_logged_in_is_shown() -> None:
    mask = Mask(b"k", known=lambda name: name == "kX9vQ2mLp7")
    assert mask("kX9vQ2mLp7") == "kX9vQ2mLp7"
    assert mask("kX9vQ2mLp8").startswith("[masked:")


@pytest.mark.parametrize(
    "line",
    [
        "Nov 24 08:00:00 gw sshd[1]: Invalid user P@ssw0rd123! from 192.0.2.1 port 22",
        "Nov 24 08:00:00 gw sshd[1]: Failed password for invalid user P@ssw0rd123! from 192.0.2.1 port 22 ssh2",
        "Nov 24 08:00:00 gw sshd[1]: Failed password for P@ssw0rd123! from 192.0.2.1 port 22 ssh2",
        "pam_unix(sshd:auth): authentication failure; rhost=192.0.2.1  user=P@ssw0rd123!",
    ],
)
def test_a_line_hides_it_where_it_names_the_user_even_unasked(line: str) -> None:
    shown = BLIND.text(line, ())
    assert "P@ss" not in shown
    assert shown == line.replace("P@ssw0rd123!", "[masked]")


def finding(user: str) -> Finding:
    return Finding(
        finding_id("d", user), "d", "distributed_brute_force", "user", user, 10**18, 10**18, 10**18, 70, 0.9,
        ("192.0.2.1",), (user,), ("sshd@gw",), {"attempts": 20, "named": f"as {user}"}, f"20 for {user}",
        f"{user} is new", ("T1110",), (1,), (f"Failed password for {user} from 192.0.2.1",),
    )  # fmt: skip


def test_no_part_of_an_incident_that_is_shown_or_sent_has_the_password_and_its_state_has() -> None:
    correlator = Correlator()
    correlator.mask = Mask(b"k")
    [change] = correlator.apply([finding("Winter#26 is cold")])
    shown = json.dumps(change.incident.document()) + change.incident.title()
    assert "Winter" not in shown
    assert correlator.mask("Winter#26 is cold") in change.incident.title()
    again = Incident.from_state(json.loads(json.dumps(change.incident.state())))
    again.mask = OPEN
    assert again.document()["users"] == ["Winter#26 is cold"]
    assert again.title().count("Winter#26 is cold") == 1


def test_a_name_too_long_to_be_kept_whole_is_hidden_whole() -> None:
    name = "Geheim#12" + "x" * 80
    shown = BLIND.text(f"Failed password for {name} from 192.0.2.1", [name[:62] + "…"])
    assert shown == "Failed password for [masked] from 192.0.2.1"


def test_the_id_of_a_key_that_a_gateway_logs_is_no_password_and_what_a_person_types_there_is() -> None:
    mask = BLIND.for_targets(["nginx@gw1", "nginx"])
    assert mask("ak_7Gh2Kd9xQ4") == "ak_7Gh2Kd9xQ4"
    assert mask("P@ssw0rd123!") == "[masked]"
    for targets in ([], ["sshd@gw"], ["nginx@gw", "sshd@gw"]):
        assert BLIND.for_targets(targets)("ak_7Gh2Kd9xQ4") == "[masked]"
    correlator = Correlator()
    [change] = correlator.apply([dataclasses.replace(finding("ak_7Gh2Kd9xQ4"), targets=("nginx@gw",))])
    assert "masked" not in json.dumps(change.incident.document())
