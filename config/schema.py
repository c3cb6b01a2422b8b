"""The schema of `gatewatch.yaml`: every option with its type, default, unit and meaning.

`docs/configuration.md` is generated from the descriptions here. Values are checked, never guessed: an unknown
key, a number in quotes or a network with host bits is an error. Nothing here reads a file other than through
`loader.load`, and nothing here may import NumPy: the command line loads it for the smallest command.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from .hooks import AnyHook
from .values import (
    AUTO,
    AutoOr,
    HeaderName,
    IPNetwork,
    ListenPlace,
    Name,
    Network,
    Number,
    PortRange,
    RelativePath,
    Timezone,
    port_range,
)

Mode = Literal["observe", "enforce"]
LogFormat = Literal["sshd", "nginx"]
DetectorName = Literal[
    "brute_force",
    "password_spray",
    "rotation",
    "distributed_brute_force",
    "credential_stuffing",
    "mfa_fatigue",
    "compromise",
    "new_access",
    "impossible_travel",
    "control_endpoint",
    "allowlist",
    "port_scan",
]
TransportProtocol = Literal["tcp", "udp", "sctp", "icmp", "icmpv6"]

PROTOCOL_NUMBERS: dict[TransportProtocol, int] = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
"""IANA protocol numbers (https://www.iana.org/assignments/protocol-numbers)."""

STATE_OF_ROOT = Path("/var/lib/gatewatch")
STATE_OF_USER = Path(".local/state/gatewatch")


class Options(BaseModel):
    """What all parts share: unknown keys and wrong types are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LogFile(Options):
    """One log file that is followed."""

    path: RelativePath = Field(description="The file to follow, relative to the configuration file.")
    format: LogFormat | None = Field(default=None, description="The format of its lines; null = detect it.")
    trusted: bool = Field(
        default=False,
        description="true = only root can have written its lines (no syslog socket feeds it): a block need not "
        "wait for a handshake that the packet collector saw.",
    )
    verified_users: bool = Field(
        default=False,
        description="Of an access log: true = every server and location that writes it checks the user's password "
        "(auth_basic), so that no request can claim to be somebody; only then are its users ever blocked. API keys "
        "need no such promise.",
    )
    timezone: Timezone = Field(
        default="local",
        description="The zone of times that name none: local, UTC, an IANA name (Europe/Berlin) or an offset "
        "(+02:00).",
    )
    year: int | None = Field(
        default=None,
        ge=1970,
        le=2200,
        description="The year of times that name none; null = the year that fits now.",
    )


class Journal(Options):
    """The systemd journal."""

    enabled: AutoOr[bool] = Field(
        default=AUTO, description="auto = where no authentication log exists and journalctl works."
    )
    units: list[Name] = Field(
        default=["ssh.service", "sshd.service"],
        min_length=1,
        description="The units whose messages are read.",
    )


class Packets(Options):
    """The live packet collector."""

    enabled: AutoOr[bool] = Field(
        default=AUTO, description="auto = where the process may open a packet socket."
    )
    interfaces: AutoOr[list[Name]] = Field(
        default=AUTO, description="The interfaces to watch; auto = the interface of the default route."
    )
    sample: int = Field(
        default=64,
        ge=1,
        le=1_000_000,
        description="1 in how many of the packets that open, close and identify nothing is passed; 1 = all.",
    )
    ring_frames: int = Field(
        default=8192,
        ge=64,
        le=1_048_576,
        description="Frames that the ring holds, an interface (memory: 512 bytes each).",
    )


class Collectors(Options):
    """Where events come from."""

    logs: AutoOr[list[LogFile]] = Field(
        default=AUTO,
        description="The log files; auto = /var/log/auth.log, /var/log/secure and /var/log/nginx/access.log "
        "where they exist.",
    )
    journal: Journal = Field(default=Journal(), description="The systemd journal.")
    packets: Packets = Field(default=Packets(), description="Packets as they pass.")


class OwnNetwork(Options):
    """What belongs to this gateway."""

    local: AutoOr[list[Network]] = Field(
        default=AUTO,
        description="The gateway's own networks: inbound and outbound are seen from them, and they are never "
        "blocked; auto = the addresses of the interfaces.",
    )
    trusted_proxies: list[Network] = Field(
        default=[],
        description="Load balancers and proxies before this gateway, in addition to `proxies` of the rails file: "
        "only what they say in X-Forwarded-For is believed.",
    )
    ssh_ports: AutoOr[list[Annotated[int, Field(ge=1, le=65_535)]]] = Field(
        default=AUTO,
        description="The ports at which clients reach sshd: a block for failed logins that only a log tells of waits "
        "for connections to these; auto = those of /etc/ssh/sshd_config, else 22.",
    )
    ssh_tries: AutoOr[Annotated[int, Field(ge=1, le=1000)]] = Field(
        default=AUTO,
        description="MaxAuthTries of sshd: for how many failed logins one connection accounts; auto = that of "
        "/etc/ssh/sshd_config, else 6.",
    )


class AllowRule(Options):
    """One permitted peer: every part that is given must fit."""

    networks: list[Network] = Field(min_length=1, description="Addresses or CIDR networks of the other side.")
    ports: list[PortRange] = Field(
        default=[],
        description='Ports of the side that accepts: numbers or ranges such as "8000-8010"; empty = all.',
    )
    protocols: list[TransportProtocol] = Field(default=[], description="Transport protocols; empty = all.")
    note: str = Field(default="", max_length=200, description="Why it is permitted, for people.")

    def port_ranges(self) -> list[tuple[int, int]]:
        """First and last port of each range, both included."""
        return [port_range(p) for p in self.ports]

    def protocol_numbers(self) -> list[int]:
        """IANA protocol numbers."""
        return [PROTOCOL_NUMBERS[p] for p in self.protocols]


class Allowlist(Options):
    """Which traffic is expected; anything else is an off-allowlist incident."""

    ingress: list[AllowRule] | None = Field(
        default=None, description="Who may connect to the gateway; null = not checked, [] = nobody may."
    )
    egress: list[AllowRule] | None = Field(
        default=None, description="Where the gateway may connect to; null = not checked, [] = nowhere."
    )


class DetectorOptions(BaseModel):
    """Options of one detector; which there are stands in the detector's page."""

    model_config = ConfigDict(extra="allow", frozen=True)

    enabled: Annotated[bool, Strict()] = Field(
        default=True, description="false = this detector does not run."
    )

    def options(self) -> dict[str, Any]:
        """The detector's own parameters, as they stand in the file."""
        return dict(self.model_extra or {})


class Playbooks(Options):
    """The responses."""

    directories: list[RelativePath] = Field(
        default=[],
        description="Folders whose *.yaml files are playbooks. One that has the name of a shipped playbook "
        "replaces it.",
    )
    shipped: bool = Field(
        default=True, description="Whether the playbooks that come with Gatewatch are used."
    )


class Breaker(Options):
    """When automatic blocks stop, and a person is asked: they would hit too many who lately succeeded."""

    share: Number = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Of the clients (and of the users) that succeeded within a day, the most that blocks may hit.",
    )
    spared: int = Field(
        default=1, ge=0, le=10_000, description="So many may be hit whatever their share, on a small site."
    )


class Response(Options):
    """What all playbooks share."""

    breaker: Breaker = Field(default=Breaker(), description="The circuit breaker.")


class JsonlSink(Options):
    """Alerts as JSON, one object a line, appended to a file."""

    type: Literal["jsonl"] = Field(default="jsonl", description="The kind of the sink.")
    path: RelativePath | None = Field(
        default=None, description="The file; null = sinks/NAME.jsonl in the state folder."
    )


class Store(Options):
    """The database."""

    retention_days: int = Field(
        default=90,
        ge=1,
        le=36_500,
        description="Incidents, actions and delivered alerts are kept for so many days after they last changed.",
    )
    snapshot_s: int = Field(
        default=30, ge=1, le=3600, description="Seconds between two snapshots of what the detectors remember."
    )


class Geo(Options):
    """Databases in MaxMind's format (.mmdb) that say where addresses are; without them no place is judged."""

    city: RelativePath | None = Field(
        default=None,
        description="Countries and places: GeoLite2 City, or one of its kind. A country database has no places. "
        "A replaced file is taken within a minute.",
    )
    asn: RelativePath | None = Field(
        default=None, description="Autonomous systems: GeoLite2 ASN, or one of its kind."
    )


class Detection(Options):
    """What all detectors share: time, and where addresses are."""

    future_skew_s: int = Field(
        default=300,
        ge=0,
        le=86_400,
        description="An event that claims to be more than so many seconds ahead of its receipt counts as "
        "received then.",
    )
    incident_gap_s: int = Field(
        default=86_400,
        ge=1,
        le=604_800,
        description="A finding about the same source that is raised so many seconds after the last one begins a "
        "new incident.",
    )
    max_action_age_s: int = Field(
        default=600,
        ge=1,
        le=604_800,
        description="Nothing is done about an incident whose last event is older, in seconds.",
    )
    privileged_users: list[str] = Field(
        default=["root"],
        max_length=1000,
        description="Incidents that are aimed at one of these come before others: root, and whoever may become root "
        "(the members of `sudo` or `wheel`).",
    )
    geo: Geo = Field(default=Geo(), description="Where addresses are.")


WhenUnknown = Literal["open", "closed"]


class AuthzEndpoint(Options):
    """What differs for one endpoint."""

    when_unknown: WhenUnknown = Field(
        description="open = requests pass while the deny list is unknown; closed = they are refused."
    )


class AuthzHeaders(Options):
    """Which headers of the gateway's question name whom; an empty list: not looked at."""

    key: list[HeaderName] = Field(
        default=["Authorization", "X-API-Key", "api-key"],
        description="Where the API key stands, with or without the word Bearer. Name the one that your models read: of "
        "several in a request each must pass, and the first gives the key id.",
    )
    subject: list[HeaderName] = Field(
        default=["X-Gatewatch-Subject"], description="The user that the gateway has verified (JWT `sub`)."
    )
    certificate: list[HeaderName] = Field(
        default=["X-Gatewatch-Certificate"],
        description="The client certificate that the gateway has verified: fingerprint or name.",
    )
    client: list[HeaderName] = Field(
        default=["X-Gatewatch-Client"],
        description="The address that the request came from; of a trusted proxy, the forwarding chain is followed.",
    )
    forwarded: list[HeaderName] = Field(
        default=["X-Forwarded-For"], description="The forwarding chain, read from the right."
    )
    key_id: HeaderName = Field(
        default="X-Gatewatch-Key-Id",
        description="The answer's header with the key id; `-` where there is no key.",
    )
    reason: HeaderName | Literal[""] = Field(
        default="X-Gatewatch-Reason",
        description='The answer\'s header that says why; "" = none, for gateways that hand it on to clients.',
    )


class Authz(Options):
    """The authorisation endpoint, which gateways ask on every request."""

    listen: list[ListenPlace] = Field(
        default=[],
        description="Where it listens: 127.0.0.1:9180, [::1]:9180 or unix:/run/gatewatch/authz.sock; empty = it does "
        "not run. API keys pass here unencrypted: loopback or a Unix socket.",
    )
    when_unknown: WhenUnknown = Field(
        default="open",
        description="What requests get while the deny list is unknown (the enforcer has not written it since boot, or "
        "it cannot be believed): open = whatever was last known holds, others pass; closed = all are refused.",
    )
    endpoints: dict[Name, AuthzEndpoint] = Field(
        default={}, description="What differs, by the name of an endpoint in the rails file."
    )
    headers: AuthzHeaders = Field(default=AuthzHeaders(), description="The names of headers.")
    connections: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="The most connections at once; a further one takes the place of that which is silent for longest.",
    )

    @field_validator("listen")
    @classmethod
    def _once_each(cls, places: list[str]) -> list[str]:
        if len(set(places)) < len(places):
            raise ValueError("names a place twice")
        return places


class Config(Options):
    """The configuration of Gatewatch."""

    mode: Mode = Field(
        default="observe",
        description="observe = record what would have been done; enforce = do it (needs management networks in "
        "the rails file).",
    )
    rails: RelativePath = Field(
        default="rails.toml",
        validate_default=True,
        description="The root-owned file with endpoints, management networks and limits, relative to this "
        "file.",
    )
    state: RelativePath | None = Field(
        default=None,
        description="The folder of everything that Gatewatch writes; null = /var/lib/gatewatch for root, "
        "else ~/.local/state/gatewatch.",
    )
    collectors: Collectors = Field(default=Collectors(), description="Where events come from.")
    network: OwnNetwork = Field(default=OwnNetwork(), description="What belongs to this gateway.")
    allowlist: Allowlist = Field(default=Allowlist(), description="Which traffic is expected.")
    detectors: dict[DetectorName, DetectorOptions] = Field(
        default={},
        description="Options of detectors, by the detector's name; one that is not named runs with its "
        "defaults.",
    )
    playbooks: Playbooks = Field(default=Playbooks(), description="The responses.")
    response: Response = Field(default=Response(), description="What all playbooks share.")
    sinks: dict[Name, JsonlSink] = Field(
        {"alerts": JsonlSink()}, description="Where alerts go, by a name of your choice."
    )
    hooks: dict[Name, AnyHook] = Field(
        default={},
        max_length=32,
        description="Other systems that carry actions out or tell people of them, by a name of your choice that no "
        "sink has.",
    )
    authz: Authz = Field(
        default=Authz(), description="The authorisation endpoint, which gateways ask on every request."
    )
    store: Store = Field(default=Store(), description="The database.")
    detection: Detection = Field(
        default=Detection(), description="Time, as detection sees it, and where addresses are."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        for name in self.hooks.keys() & self.sinks.keys():
            raise ValueError(f"hooks.{name}: a sink has this name; choose another")
        return self

    def state_folder(self) -> Path:
        """Where this process keeps its state; the folder need not exist."""
        if self.state is not None:
            return Path(self.state)
        return STATE_OF_ROOT if os.geteuid() == 0 else Path.home() / STATE_OF_USER

    def sink_path(self, name: str) -> Path:
        """The file of a JSON-lines sink."""
        path = self.sinks[name].path
        return Path(path) if path is not None else self.state_folder() / "sinks" / f"{name}.jsonl"

    def hook_options(self, name: str, protected: tuple[str, ...] = ()) -> dict[str, Any]:
        """What the hook's class is made with; `protected` are the users that it never blocks, as KIND:NAME."""
        options = self.hooks[name].model_dump()
        options.pop("insecure")
        options["protected"] = protected
        if options["template"] != "generic":
            options["holds"] = str(self.state_folder() / "sinks" / f"{name}.holds.json")
        return options

    def detector(self, name: DetectorName) -> DetectorOptions:
        return self.detectors.get(name, DetectorOptions())


__all__ = ["AllowRule", "Allowlist", "Config", "DetectorOptions", "IPNetwork", "LogFile", "Options"]
