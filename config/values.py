"""The types of single values in configuration and playbook files: networks, ports, durations, names, paths.

Each turns the text of a file into a checked value and explains what is wrong in words that make sense without
knowing the schema library.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationInfo,
)

from ..daemon.authz.listening import place_of

AUTO: Final = "auto"
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")


def parse_network(value: object) -> IPNetwork:
    """A network from "203.0.113.0/24", or from an address, which stands for itself alone.

    Raises ValueError for host bits (203.0.113.7/24), zones (fe80::1%eth0) and IPv4-mapped IPv6.
    """
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError('must be text such as "203.0.113.0/24"')
    if "%" in value:
        raise ValueError(f"{value!r} names an interface; give the address alone")
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        try:
            wider = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f"{value!r} is no address and no CIDR network") from None
        raise ValueError(f"{value!r} has host bits; did you mean {str(wider)!r}?") from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{value!r} is an IPv4-mapped address; write it as IPv4")
    return network


def port_range(value: int | str) -> tuple[int, int]:
    """First and last port, both included, of 443 or "8000-8010". Raises ValueError."""
    first, dash, last = str(value).partition("-")
    if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
        raise ValueError(f'{value!r} is no port; write 443 or "8000-8010"')
    low, high = int(first), int(last) if dash else int(first)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{value!r} is no port; ports go from 1 to 65535, the lower one first")
    return low, high


def _port(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('must be a port such as 443 or a range such as "8000-8010"')
    port_range(value)
    return value


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(value: object) -> int:
    """Seconds from 30s, 10m, 1h or 7d. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit; write 30s, 10m, 1h or 7d")
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no duration; write 30s, 10m, 1h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def duration_text(seconds: int) -> str:
    """The shortest text that `parse_duration` turns into `seconds`: 3600 is "1h"."""
    for unit, size in reversed(_UNITS.items()):
        if seconds % size == 0 and (seconds or unit == "s"):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _timezone(value: str) -> str:
    if value == "local" or re.fullmatch(r"[+-](0[0-9]|1[0-4]):?[0-5][0-9]", value):
        return value
    try:
        ZoneInfo(value)
    except (ValueError, OSError, LookupError):
        raise ValueError(
            f"{value!r} is no time zone; write local, UTC, an IANA name or an offset such as +02:00"
        ) from None
    return value


def _resolve(value: str, info: ValidationInfo) -> str:
    if not value or "\0" in value:
        raise ValueError("must be the name of a file or folder")
    base = (info.context or {}).get("base")
    path = Path(value).expanduser()
    return str(Path(base) / path) if base is not None else str(path)


def _listen_place(value: str) -> str:
    place_of(value)
    return value


def _shape(value: Any) -> str:
    return "auto" if isinstance(value, str) else "given"


AutoOr = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[T, Tag("given")],
    Discriminator(_shape),
]
"""The word `auto`, or a value that is no text."""


def _number(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_number)]
Network = Annotated[IPNetwork, PlainValidator(parse_network), PlainSerializer(str, return_type=str)]
PortRange = Annotated[int | str, PlainValidator(_port)]
Duration = Annotated[int, BeforeValidator(parse_duration), PlainSerializer(duration_text, return_type=str)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@:\\-]*$")]
HeaderName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
"""A field name of HTTP (RFC 9110, 5.1)."""
ListenPlace = Annotated[str, AfterValidator(_listen_place)]
Timezone = Annotated[str, AfterValidator(_timezone)]
RelativePath = Annotated[str, AfterValidator(_resolve)]
"""A path as text; a relative one is taken from the folder of the file that names it (`context["base"]`)."""
