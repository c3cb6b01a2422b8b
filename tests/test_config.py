"""The configuration: what a file may say, and what is said about a file that says something else."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from gatewatch.config.document import MOST_BYTES, parse_document, validated
from gatewatch.config.loader import defaults, effective, load, load_with_origin
from gatewatch.config.schema import Config
from gatewatch.config.values import duration_text, parse_duration, parse_network, port_range
from gatewatch.daemon.cli import main
from gatewatch.daemon.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

SHIPPED = Path(__file__).parent.parent / "config" / "gatewatch.yaml"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "gatewatch.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path}:", "").split("\n")


def test_the_shipped_file_says_exactly_the_defaults() -> None:
    shipped, default = load(SHIPPED), defaults()
    assert shipped.model_copy(update={"rails": ""}) == default.model_copy(update={"rails": ""})
    assert shipped.rails == str(SHIPPED.parent / "rails.toml")


def test_the_shipped_file_names_every_option_of_the_schema() -> None:
    named = {key for key in load_with_origin(SHIPPED).document.lines if key}  # type: ignore[union-attr]
    assert {key for key, _ in effective(load(SHIPPED))} <= named


def test_an_empty_file_gives_the_defaults(write) -> None:
    assert load(write("")).mode == "observe"
    assert load(write("# nothing but a comment\n")).collectors.packets.sample == 64


def test_a_missing_file_names_itself_and_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file; .*config init"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_key(write) -> None:
    path = write("mode: observe\ncollectors:\n  logs:\n    - path: x.log\n      fromat: sshd\n")
    assert problems(path) == ["5: collectors.logs.0.fromat: unknown key; did you mean 'format'?"]


def test_every_problem_is_told_in_the_order_of_the_file(write) -> None:
    path = write(
        "mode: enforc\n"
        "store: {retention_days: soon}\n"
        "network: {local: [10.0.0.1/8]}\n"
        "detectors: {bruteforce: {}}\n"
        "allowlist: {ingress: [{networks: [x], ports: [0], protocols: [tpc]}], egress: [{}]}\n"
        "sinks: {alerts: {type: mqtt}}\n"
        "colectors: {}\n"
    )
    assert problems(path) == [
        "1: mode: must be one of observe, enforce, not 'enforc'",
        "2: store.retention_days: must be a whole number, not 'soon'",
        "3: network.local.0: '10.0.0.1/8' has host bits; did you mean '10.0.0.0/8'?",
        "4: detectors.bruteforce: unknown name; did you mean 'brute_force'?",
        "5: allowlist.egress.0.networks: is missing",
        "5: allowlist.ingress.0.networks.0: 'x' is no address and no CIDR network",
        "5: allowlist.ingress.0.ports.0: 0 is no port; ports go from 1 to 65535, the lower one first",
        "5: allowlist.ingress.0.protocols.0: must be one of tcp, udp, sctp, icmp, icmpv6, not 'tpc'",
        "6: sinks.alerts.type: must be one of jsonl, not 'mqtt'",
        "7: colectors: unknown key; did you mean 'collectors'?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store: 3", "1: store: must be keys with values, not 3"),
        (
            "collectors: {logs: authlog}",
            "1: collectors.logs: must be auto or a value of its kind, not 'authlog'",
        ),
        (
            "collectors: {packets: {enabled: 1}}",
            "1: collectors.packets.enabled: must be true or false, not 1",
        ),
        ("store: {retention_days: true}", "1: store.retention_days: must be a whole number, not True"),
        ("store: {snapshot_s: 0}", "1: store.snapshot_s: must be 1 or more, not 0"),
        ("rails: null", "1: rails: must be text, not null"),
        (
            "detectors: {brute_force: {enabled: maybe}}",
            "1: detectors.brute_force.enabled: must be true or false",
        ),
        (
            "collectors: {logs: [{path: x, timezone: Mars}]}",
            "1: collectors.logs.0.timezone: 'Mars' is no time zone",
        ),
        (
            "collectors: {logs: [{path: x, timezone: ../etc}]}",
            "1: collectors.logs.0.timezone: '../etc' is no time",
        ),
        (
            "collectors: {packets: {interfaces: ['a b']}}",
            "1: collectors.packets.interfaces.0: must be a name of letters",
        ),
    ],
)
def test_a_wrong_value_is_explained(write, text: str, problem: str) -> None:
    (said,) = problems(write(text))
    assert said.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x 1\nb: *x\n", "2: YAML aliases are not allowed"),
        ("mode: observe\nmode: enforce\n", "2: mode: appears twice (first in line 1)"),
        ("mode: [\n", "2: not valid YAML"),
        ("mode:\n\t- x\n", "2: not valid YAML"),
        ("- mode\n", "1: the file must hold keys with values"),
        ("mode: !!python/object:os.system x\n", "1: not valid YAML"),
        ("mode: observe\n? [1, 2]\n: 3\n", "2: a key must be a single word"),
        ("---\nmode: observe\n---\nmode: observe\n", "3: not valid YAML"),
        ("mode: \x07", "1: the character U+0007 is not allowed"),
        ("a: " + "[" * 40 + "]" * 40, "1: nested more than 32 deep"),
        ("a: [" + "1," * 100_001 + "]", "1: more than 100000 values"),
        (b"mode: observe\n# caf\xe9\n", "2: not UTF-8 at byte 19"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused_with_its_line(
    write, text: str | bytes, problem: str
) -> None:
    (said,) = problems(write(text))
    assert said.startswith(problem)


def test_an_endless_file_is_refused_without_reading_it_whole(write) -> None:
    assert "larger than 1 MiB" in problems(write(b"#" * (MOST_BYTES + 1)))[0]
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load("/dev/zero")


def test_relative_paths_are_taken_from_the_folder_of_the_file(write, tmp_path: Path, monkeypatch) -> None:
    path = write(
        "rails: r.toml\nstate: s\ncollectors: {logs: [{path: ../a.log}]}\nplaybooks: {directories: [p, /q]}\n"
        "sinks: {alerts: {path: out.jsonl}}\n"
    )
    monkeypatch.chdir(tmp_path)
    for given_path in (path, Path("gatewatch.yaml")):
        config = load(given_path)
        assert config.rails == str(tmp_path / "r.toml")
        assert config.state_folder() == tmp_path / "s"
        assert isinstance(config.collectors.logs, list)
        assert config.collectors.logs[0].path == str(tmp_path / "../a.log")
        assert config.playbooks.directories == [str(tmp_path / "p"), "/q"]
        assert config.sink_path("alerts") == tmp_path / "out.jsonl"


def test_a_sink_without_a_path_writes_into_the_state_folder(write) -> None:
    config = load(write("state: /x\nsinks: {mine: {}}\n"))
    assert config.sink_path("mine") == Path("/x/sinks/mine.jsonl")


def test_the_origin_of_a_value_is_its_line_or_the_default(write) -> None:
    path = write("mode: observe\nstore:\n  snapshot_s: 5\n")
    loaded = load_with_origin(path)
    assert loaded.origin(("store", "snapshot_s")) == f"{path}:3"
    assert loaded.origin(("store", "retention_days")) == "default"


def test_detector_options_are_kept_as_they_stand(write) -> None:
    config = load(write("detectors: {brute_force: {threshold: 7, enabled: false}}\n"))
    assert config.detector("brute_force").options() == {"threshold": 7}
    assert not config.detector("brute_force").enabled
    assert config.detector("port_scan").enabled


def test_an_allow_rule_gives_port_ranges_and_protocol_numbers(write) -> None:
    path = write(
        'allowlist: {egress: [{networks: [192.0.2.1, "2001:db8::/32"], ports: [443, "1-9"], protocols: [udp]}]}'
    )
    (rule,) = load(path).allowlist.egress or []
    assert [str(n) for n in rule.networks] == ["192.0.2.1/32", "2001:db8::/32"]
    assert rule.port_ranges() == [(443, 443), (1, 9)]
    assert rule.protocol_numbers() == [17]


@given(st.text(alphabet=string.printable, max_size=200))
def test_any_text_is_either_a_configuration_or_one_clear_error(text: str) -> None:
    try:
        validated(Config, parse_document(text, "x.yaml"))
    except ConfigError as error:
        assert all(line.startswith("x.yaml") for line in str(error).split("\n"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(sorted(Config.model_fields)) | st.text(max_size=8), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_value_is_either_a_configuration_or_one_clear_error(value: object) -> None:
    import yaml

    try:
        validated(Config, parse_document(yaml.safe_dump(value), "x.yaml"))
    except ConfigError as error:
        assert all(line.startswith("x.yaml") for line in str(error).split("\n"))


@given(st.integers(0, 10**8))
def test_a_duration_survives_being_written_and_read(seconds: int) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize(
    "wrong", ["", "1", "1 h", "h", "-1h", "1.5h", "1w", "٣h", None, 60, True, "9999999999s"]
)
def test_what_is_no_duration_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="30s"):
        parse_duration(wrong)


@pytest.mark.parametrize("wrong", ["0", "1-", "-1", "5-4", "1-65536", "a", "", "1-2-3", "²"])
def test_what_is_no_port_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no port"):
        port_range(wrong)


@pytest.mark.parametrize(
    "wrong", ["fe80::1%eth0", "::ffff:192.0.2.1", "192.0.2.300", "192.0.2.1/33", "", 5, None]
)
def test_what_is_no_network_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(wrong)


def test_the_schema_names_the_formats_and_detectors_that_there_are() -> None:
    from typing import get_args

    from gatewatch.config.schema import DetectorName, LogFormat
    from gatewatch.daemon.collectors.parsers.registry import FORMATS
    from gatewatch.detectors import registry

    assert set(get_args(LogFormat)) == set(FORMATS)
    known = {name for table in ("AUTH_DETECTORS", "FLOW_DETECTORS") for name in getattr(registry, table)}
    assert set(get_args(DetectorName)) == known | {"allowlist"}


def test_an_allow_list_is_off_where_it_is_null_and_allows_nobody_where_it_is_empty(write) -> None:
    allowlist = load(write("allowlist: {ingress: []}\n")).allowlist
    assert (allowlist.ingress, allowlist.egress) == ([], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("authz: {listen: ['127.0.0.1:9180', '127.0.0.1:9180']}", "names a place twice"),
        ("authz: {listen: ['localhost:9180']}", "an address is wanted, such as 127.0.0.1:9180"),
        (
            "hooks: {a: {type: webhook, template: keyclok, url: 'https://a.example', secret_file: /s}}",
            "unknown template 'keyclok'; did you mean 'keycloak'?",
        ),
    ],
)
def test_a_wrong_place_or_template_is_said_in_the_words_of_the_file(write, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(write(text))


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("block_user, hooks: [nosuch]", "no hook 'nosuch'"),
        ("notify, commands: [nosuch]", "no command 'nosuch'"),
        ("exec, command: nosuch", "no command 'nosuch'"),
    ],
)
def test_what_a_playbook_names_and_nothing_defines_is_said(
    tmp_path: Path, capsys, action: str, said: str
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    text = f"name: x\nwhen: {{kinds: [brute_force]}}\nthen: [{{action: {action}}}]\n"
    (folder / "x.yaml").write_text(text)
    (tmp_path / "rails.toml").write_text('management = ["192.0.2.0/24"]\n')
    (tmp_path / "gatewatch.yaml").write_text("playbooks: {directories: [own]}\n")
    assert main(["config", "check", str(tmp_path / "gatewatch.yaml")]) == 2
    assert said in capsys.readouterr().err


def test_an_authorised_endpoint_is_one_of_the_rails(tmp_path: Path, capsys) -> None:
    (tmp_path / "rails.toml").write_text('[[endpoint]]\nname = "chat"\nfronts = ["*:80/tcp"]\n')
    file = tmp_path / "gatewatch.yaml"
    file.write_text("authz: {endpoints: {caht: {when_unknown: closed}}}\n")
    assert main(["config", "check", str(file)]) == 2
    assert (
        "gatewatch.yaml:1: authz.endpoints.caht: no endpoint of the rails; they name: chat"
        in capsys.readouterr().err
    )
