"""From the configuration to the parts: what `run` and `replay` build alike.

A configuration of None stands for the defaults where no file exists: `replay` then starts without loading the
schema, which takes longer than reading a hundred thousand lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import FOLDER
from ..detectors.network.allowlist import AllowRule
from .collectors.parsers.registry import ParserOptions
from .detection import Detection, DetectionSettings, criticality_of, criticality_of_endpoints
from .errors import ConfigError
from .events import Provenance
from .incidents import DEFAULT_GAP_S, Correlator
from .ranking import PRIVILEGED

if TYPE_CHECKING:
    from ..config.schema import AllowRule as AllowOption
    from ..config.schema import Config
    from .enforcer import rails as rails_file
    from .geography import Geography


def load_rails(config: Config | None) -> rails_file.Rails | None:
    """The rails file that the configuration names; None where there is no such file."""
    path = Path(config.rails if config is not None else Path(FOLDER, "rails.toml"))
    if not path.exists():
        return None
    from .enforcer import rails as rails_file

    return rails_file.load(path)


def trusted_proxies(config: Config | None, rails: rails_file.Rails | None) -> tuple[str, ...]:
    """The load balancers whose forwarding headers count: those of the rails and of the configuration."""
    own = [str(network) for network in config.network.trusted_proxies] if config is not None else []
    return tuple(dict.fromkeys([*own, *(str(n) for n in rails.proxies)] if rails else own))


def authz_settings(config: Config, rails: rails_file.Rails | None, own: Sequence[str] = ()) -> dict[str, Any]:
    """What the authorisation endpoint is told, as plain values (`daemon.authz.decision.Settings`).

    `own`: this machine's addresses.
    """
    options = config.authz
    never = [str(network) for network, _ in rails.never()] if rails else []
    return {
        "when_unknown": options.when_unknown,
        "endpoints": {name: {"when_unknown": own.when_unknown} for name, own in options.endpoints.items()},
        "proxies": list(trusted_proxies(config, rails)),
        "never": [*never, *own],
        "own": ["127.0.0.0/8", "::1/128", *own],
        "headers": options.headers.model_dump(),
    }


def parser_options(
    config: Config | None, rails: rails_file.Rails | None, hash_key: bytes, **more: Any
) -> ParserOptions:
    return ParserOptions(hash_key=hash_key, trusted_proxies=trusted_proxies(config, rails), **more)


def provenance_of(trusted: bool) -> Provenance:
    return Provenance.DECLARED if trusted else Provenance.FILE


def allow_rules(options: list[AllowOption] | None) -> list[AllowRule] | None:
    """The detector's rules from the configuration's; None where the direction is not checked."""
    if options is None:
        return None
    return [
        AllowRule(
            networks=tuple(str(n) for n in option.networks),
            ports=tuple(option.port_ranges()),
            protocols=tuple(option.protocols),
        )
        for option in options
    ]


def detector_options(config: Config) -> dict[str, Mapping[str, Any]]:
    """Constructor options by detector."""
    return {str(name): option.options() for name, option in config.detectors.items()}


def detection_settings(
    config: Config | None, local: Sequence[str], ssh_ports: Sequence[int] = (22,)
) -> DetectionSettings:
    """Thresholds, allow-lists, own networks and where sshd listens."""
    if config is None:
        return DetectionSettings(local=local, ssh_ports=tuple(ssh_ports))
    return DetectionSettings(
        detectors=detector_options(config),
        disabled=frozenset(str(name) for name, option in config.detectors.items() if not option.enabled),
        ingress=allow_rules(config.allowlist.ingress),
        egress=allow_rules(config.allowlist.egress),
        local=local,
        future_skew_s=config.detection.future_skew_s,
        ssh_ports=tuple(ssh_ports),
    )


def build_geography(
    config: Config | None, *, patient: bool = False, index_systems: bool = False
) -> Geography | None:
    """The databases of places; None where none is configured. Raises ConfigError naming the file, unless `patient`:
    then the first `refresh` reads them, or says what is wrong. `index_systems`: see Geography.
    """
    if config is None or not (config.detection.geo.city or config.detection.geo.asn):
        return None
    from .geography import Geography

    city, asn = config.detection.geo.city, config.detection.geo.asn
    files = (Path(city) if city else None, Path(asn) if asn else None)
    return Geography(*files, patient=patient, index_systems=index_systems)


def build_detection(
    config: Config | None,
    local: Sequence[str],
    hash_key: bytes,
    geography: Geography | None = None,
    ssh_ports: Sequence[int] = (22,),
) -> Detection:
    """All detectors with the configured thresholds. Raises ConfigError naming an unknown option."""
    try:
        return Detection(detection_settings(config, local, ssh_ports), hash_key, geography)
    except ValueError as error:
        raise ConfigError(f"detectors: {error}", remedy="see docs/detection.md for the options") from error


def build_correlator(config: Config | None, rails: rails_file.Rails | None) -> Correlator:
    factors = criticality_of_endpoints(rails.endpoints if rails else ())
    gap_s = config.detection.incident_gap_s if config is not None else DEFAULT_GAP_S
    privileged = config.detection.privileged_users if config is not None else PRIVILEGED
    return Correlator(gap_s, partial(criticality_of, factors), privileged=privileged)
