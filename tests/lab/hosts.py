"""The lab's hosts with their addresses, and what a machine needs for the lab."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace: its first address of each family, the router's, and further IPv4 addresses."""

    v4: str
    v4_router: str
    v4_length: int
    v6: str
    v6_router: str
    more: tuple[str, ...] = ()


HOSTS = {
    "gateway": Host("192.0.2.2", "192.0.2.1", 26, "2001:db8:0:1::2", "2001:db8:0:1::1"),
    "management": Host("192.0.2.130", "192.0.2.129", 26, "2001:db8:0:2::130", "2001:db8:0:2::1"),
    "client": Host(
        "198.51.100.20", "198.51.100.1", 25, "2001:db8:0:3::20", "2001:db8:0:3::1", ("198.51.100.21",)
    ),
    "balancer": Host("198.51.100.140", "198.51.100.129", 25, "2001:db8:0:4::140", "2001:db8:0:4::1"),
    "attacker": Host(
        "203.0.113.66",
        "203.0.113.1",
        25,
        "2001:db8:0:5::66",
        "2001:db8:0:5::1",
        tuple(f"203.0.113.{n}" for n in range(67, 127)),
    ),
    "outside": Host("203.0.113.200", "203.0.113.129", 25, "2001:db8:0:6::200", "2001:db8:0:6::1"),
}

TOOLS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "hostname": "hostname",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "openssl": "openssl",
    "nginx": "nginx",
    "rsyslogd": "rsyslog",
    "nft": "nftables",
    "hydra": "hydra",
    "curl": "curl",
}
"""Programs that the lab needs, and the Debian package of each."""


def program(name: str) -> str | None:
    """The path of a program; administrators' folders are searched as well."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")


def missing(*also: str) -> list[str]:
    """The Debian packages that the lab lacks here; `also` names packages by a program of the same name."""
    wanted = {**TOOLS, **{name: name for name in also}}
    return sorted({package for name, package in wanted.items() if program(name) is None})


def unmet() -> str:
    """Why the lab cannot be built here, in one line with the remedy; `""` where it can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces, nftables and packet sockets; run it with sudo"
    packages = missing()
    if packages:
        return f"needs {', '.join(packages)}: apt-get install --no-install-recommends {' '.join(packages)}"
    return ""
