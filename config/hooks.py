"""The options of hooks: where an action goes that another system carries out, or that tells people of an incident.

A secret never stands in the configuration, only the name of the file that holds it. Nothing here reads a file or
imports an HTTP library.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from .values import RelativePath

PrincipalKind = Literal["account", "key", "subject", "certificate", "any"]
HookDo = Literal["block_user", "unblock_user", "notify"]


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{value!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{value!r} is no URL such as https://hooks.example.org/gatewatch")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or a password; put the secret into a file of its own")
    if parts.fragment or not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError("must be printable ASCII without spaces and without #")
    return value


Url = Annotated[str, AfterValidator(_url)]


def is_loopback(host: str) -> bool:
    """Whether a host name or address of a URL never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Hook(BaseModel):
    """What all hooks share."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    does: ClassVar[frozenset[HookDo]]
    """What an action may ask of a hook of this template."""

    type: Literal["webhook"] = Field(default="webhook", description="The kind of the hook.")
    url: Url = Field(description="Where it goes: https, or http on this machine.")
    secret_file: RelativePath = Field(
        description="The file with the secret; root or the user that starts Gatewatch owns it, and others cannot "
        "read it.",
    )
    insecure: bool = Field(
        default=False,
        description="true = http to another machine is permitted: whoever is on the way reads and changes what is "
        "sent, the secrets of an identity provider too.",
    )
    ca_file: RelativePath | None = Field(
        default=None,
        description="Certificates (PEM) of the authorities that may vouch for the server; null = those of the "
        "system.",
    )
    client_certificate: RelativePath | None = Field(
        default=None,
        description="A certificate (PEM) to show to the server; its key is in the same file or in client_key.",
    )
    client_key: RelativePath | None = Field(default=None, description="The key of client_certificate (PEM).")
    timeout_s: int = Field(
        default=10, ge=1, le=120, description="Seconds that one request may take, its answer included."
    )
    give_up_s: int = Field(
        default=86_400,
        ge=60,
        le=2_592_000,
        description="A document that could not be delivered for so many seconds is put aside, and its action has "
        "failed.",
    )

    @model_validator(mode="after")
    def _safe(self) -> Hook:
        for key in ("url", "token_url"):
            value = getattr(self, key, None)
            parts = urlsplit(value) if value else None
            if (
                parts
                and parts.scheme == "http"
                and not self.insecure
                and not is_loopback(parts.hostname or "")
            ):
                raise ValueError(f"{key}: must be https; `insecure: true` permits http")
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key: needs client_certificate")
        return self


class GenericHook(Hook):
    """The document is sent as it is, signed as the Standard Webhooks specification says."""

    does: ClassVar[frozenset[HookDo]] = frozenset({"block_user", "unblock_user", "notify"})

    template: Literal["generic"] = Field(default="generic", description="What is sent.")
    kinds: list[PrincipalKind] = Field(
        default=["account", "key", "subject", "certificate", "any"],
        min_length=1,
        description="Which kinds of user it is told of.",
    )


class KeycloakHook(Hook):
    """Users are disabled and logged out by Keycloak's admin API."""

    does: ClassVar[frozenset[HookDo]] = frozenset({"block_user", "unblock_user"})

    template: Literal["keycloak"] = Field(description="What is sent.")
    kinds: list[Literal["account", "subject", "any"]] = Field(
        default=["subject"],
        min_length=1,
        description="Which kinds of user are users of the realm. account = Unix accounts have the same names there.",
    )
    realm: str = Field(
        min_length=1, max_length=255, pattern=r"^[^/\\%?#.\s][^/\\%?#\s]*$", description="The realm."
    )
    client_id: str = Field(
        min_length=1,
        max_length=255,
        description="The confidential client whose service account has the role manage-users of realm-management.",
    )
    token_url: Url | None = Field(
        default=None, description="Where tokens are had; null = the realm's own token endpoint."
    )
    subject_is: Literal["id", "username"] = Field(
        default="id",
        description="What names of the kind subject are: the user's id (Keycloak's `sub`), or name.",
    )


class ScimHook(Hook):
    """Users are deactivated by SCIM 2.0 (RFC 7644)."""

    does: ClassVar[frozenset[HookDo]] = frozenset({"block_user", "unblock_user"})

    template: Literal["scim"] = Field(description="What is sent.")
    kinds: list[Literal["account", "subject", "any"]] = Field(
        default=["subject"],
        min_length=1,
        description="Which kinds of user are users of the service. account = Unix accounts have the same names there.",
    )
    subject_is: Literal["id", "username", "external_id"] = Field(
        default="username",
        description="What names of the kind subject are: `id`, `userName` or `externalId`.",
    )
    token_url: Url | None = Field(
        default=None,
        description="Where a token is had with client_id and the secret (OAuth 2.0 client credentials); null = the "
        "secret itself is the token.",
    )
    client_id: str | None = Field(
        default=None, max_length=255, description="The client, where token_url is given."
    )

    @model_validator(mode="after")
    def _both(self) -> ScimHook:
        if (self.token_url is None) != (self.client_id is None):
            raise ValueError("token_url: and client_id belong together")
        return self


def _template(value: Any) -> str:
    if isinstance(value, dict):
        given = value.get("template", "generic")
        return given if isinstance(given, str) else repr(given)
    return str(getattr(value, "template", "generic"))


AnyHook = Annotated[
    Annotated[GenericHook, Tag("generic")]
    | Annotated[KeycloakHook, Tag("keycloak")]
    | Annotated[ScimHook, Tag("scim")],
    Discriminator(_template),
]
"""A hook by its `template`."""
