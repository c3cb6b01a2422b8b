"""Incidents in words: their titles and the names of techniques. A title says who, what, from where, at what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..detectors.finding import Finding

TITLES = {
    "brute_force": "Password guessing",
    "password_spray": "Password spraying",
    "distributed_brute_force": "Distributed guessing of one account",
    "credential_stuffing": "Credential stuffing",
    "account_compromise": "Account compromised: login succeeded after guessing",
    "new_access": "Login unlike earlier ones",
    "impossible_travel": "Impossible travel",
    "mfa_fatigue": "Second factor asked for again and again",
    "control_endpoint_access": "Control endpoint of a model server requested",
    "off_allowlist_ingress": "Connection from outside the allow-list",
    "off_allowlist_egress": "Connection to an address off the allow-list",
    "port_scan": "Port scan",
    "host_sweep": "Host sweep",
    "circuit_breaker": "Blocks were stopped: they would hit clients that lately succeeded",
}
OF_A_USER = frozenset({"account_compromise", "new_access", "impossible_travel", "mfa_fatigue"})
"""Kinds that are about users, whom the title names."""

TECHNIQUES = {
    "T1021": "Remote Services",
    "T1021.004": "Remote Services: SSH",
    "T1046": "Network Service Discovery",
    "T1048": "Exfiltration Over Alternative Protocol",
    "T1071": "Application Layer Protocol",
    "T1078": "Valid Accounts",
    "T1078.001": "Valid Accounts: Default Accounts",
    "T1078.002": "Valid Accounts: Domain Accounts",
    "T1078.003": "Valid Accounts: Local Accounts",
    "T1078.004": "Valid Accounts: Cloud Accounts",
    "T1090": "Proxy",
    "T1098": "Account Manipulation",
    "T1110": "Brute Force",
    "T1110.001": "Brute Force: Password Guessing",
    "T1110.002": "Brute Force: Password Cracking",
    "T1110.003": "Brute Force: Password Spraying",
    "T1110.004": "Brute Force: Credential Stuffing",
    "T1111": "Multi-Factor Authentication Interception",
    "T1133": "External Remote Services",
    "T1190": "Exploit Public-Facing Application",
    "T1499": "Endpoint Denial of Service",
    "T1556": "Modify Authentication Process",
    "T1571": "Non-Standard Port",
    "T1595": "Active Scanning",
    "T1595.001": "Active Scanning: Scanning IP Blocks",
    "T1621": "Multi-Factor Authentication Request Generation",
    "AML.T0018": "Manipulate AI Model",
    "AML.T0029": "Denial of AI Service",
    "AML.T0049": "Exploit Public-Facing Application",
}
"""Names of MITRE ATT&CK techniques (Enterprise, version 15), and of ATLAS (`AML.`, data version 5.6.0)."""


def technique(name: str) -> str:
    """`T1110.001 Brute Force: Password Guessing`; the id alone where its name is not known."""
    return f"{name} {TECHNIQUES[name]}" if name in TECHNIQUES else name


def title(lead: Finding, sources: Sequence[str], users: Sequence[str], targets: Sequence[str]) -> str:
    """The title of an incident, by the finding that names it and what all of its findings list; `users` as they
    may be shown, those of `lead` first."""
    parts = [TITLES.get(lead.kind, lead.kind.replace("_", " ").capitalize())]
    figures = lead.figures
    if users and lead.kind == "distributed_brute_force":
        parts[0] += f": {listed(users)}"
    elif users and lead.kind in OF_A_USER:
        parts.append(f"{'for' if lead.kind == 'mfa_fatigue' else 'of'} {listed(users)}")
    elif lead.kind == "control_endpoint_access" and lead.entity_type == "user":
        parts.append(f"by {listed(users)}")
    elif lead.kind == "credential_stuffing":
        many = _count(figures.get("distinct_users"), len(users))
        if many:
            parts.append(f"for {many} {'user' if many == 1 else 'users'}")
    if lead.kind in OF_A_USER and lead.sources:
        sources = sorted(lead.sources)  # whence the login came, not all who guessed
    if sources:
        many = _count(figures.get("distinct_sources"), len(sources))
        parts.append(f"from {listed(sources, many=many)}")
    distinct = figures.get("distinct_targets")
    if distinct and lead.kind == "host_sweep":
        parts.append(f"at port {figures.get('port')} of {distinct} addresses")
    elif distinct and lead.kind == "port_scan":
        hosts = {target.rpartition(":")[0] for target in targets}
        parts.append(f"at {distinct} ports of {listed(sorted(hosts))}")
    elif targets:
        parts.append(
            f"to {listed(targets)}" if lead.entity_type == "destination" else f"at {listed(targets)}"
        )
    return " ".join(parts)


def listed(names: Iterable[str], most: int = 2, many: int = 0) -> str:
    """`a, b and 3 more`; `many` is how many there are, where not all are in `names`."""
    all_names = list(names)
    shown = ", ".join(all_names[:most])
    more = max(many, len(all_names)) - min(most, len(all_names))
    return f"{shown} and {more} more" if more else shown


def _count(figure: object, least: int) -> int:
    return max(figure, least) if isinstance(figure, int) else least
