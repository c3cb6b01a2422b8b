"""`gatewatch config`: write the default files, check what is there, show what is in effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, PrivilegeError
from . import importing
from .options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from ...config.loader import Loaded
    from ..enforcer.rails import Rails

FILES = ("gatewatch.yaml", "rails.toml")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("init")(init)
    group.command("check")(check)
    group.command("show")(show)
    group.add_typer(
        importing.group(), name="import", help="Take over what fail2ban or CrowdSec block and ignore."
    )
    app.add_typer(group, name="config", help="Write, check and show the configuration.")


def init(
    directory: Annotated[
        Path, typer.Option("--directory", metavar="DIR", help="Where the files are written.")
    ] = Path("/etc/gatewatch"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write gatewatch.yaml and rails.toml with every option, its default and a comment."""
    from importlib.resources import files

    package = files("gatewatch.config")
    defaults = {name: package.joinpath(name) for name in FILES}
    there = [directory / name for name in defaults if (directory / name).exists()]
    if there and not force:
        raise ConfigError(
            f"{', '.join(map(str, there))}: exists already",
            remedy="--force replaces it, --directory writes elsewhere",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, source in defaults.items():
            write_whole(directory / name, source.read_text(encoding="utf-8"))
            print(f"wrote {directory / name}")
    except OSError as error:
        raise PrivilegeError(
            f"{error.filename or directory}: {error.strerror}",
            remedy="run as root, or write elsewhere with --directory",
        ) from None
    print(
        f"next: name your management networks in {directory / 'rails.toml'}, then run `gatewatch config check`"
    )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    import os
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The configuration; default: the one in use.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check the configuration, the rails file and the playbooks; exit code 2 where anything is wrong."""
    from ...config.loader import DEFAULT_FILE, load_with_origin

    path = file or config
    loaded = load_with_origin(path)
    wrong: list[str] = []
    for part in (_check_detectors, _check_places, _check_playbooks, _check_hooks, _check_rails, _check_authz):
        try:
            print(part(loaded))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    if loaded.document is None:
        print(
            f"{DEFAULT_FILE}: not there, so every option has its default; `gatewatch config init` writes it"
        )
    else:
        print(f"{path or DEFAULT_FILE}: ok, mode {loaded.config.mode}")


def _check_places(loaded: Loaded) -> str:
    from ..assembly import build_geography

    places = build_geography(loaded.config)
    return f"places: ok, {', '.join(map(str, places.built()))}" if places else "places: no database is named"


def _check_detectors(loaded: Loaded) -> str:
    from ..assembly import build_detection

    config = loaded.config
    try:
        build_detection(config, [], bytes(16))
    except ConfigError as error:
        named, _, problem = error.message.removeprefix("detectors: ").partition(": ")
        where = loaded.where("detectors", *named.split("."))
        raise ConfigError(f"{where}: detectors.{named}: {problem}", remedy=error.remedy) from None
    off = ", ".join(name for name, options in config.detectors.items() if not options.enabled)
    return f"detectors: ok, {f'not running: {off}' if off else 'all run'}"


def _check_playbooks(loaded: Loaded) -> str:
    from ...playbooks.loader import read_playbooks
    from ...playbooks.references import wrong_in_configuration

    config = loaded.config
    found = read_playbooks(config.playbooks.directories, shipped=config.playbooks.shipped)
    knows_systems = config.detection.geo.asn is not None
    wrong = [w for made, at in found for w in wrong_in_configuration(made, at, config.hooks, knows_systems)]
    if wrong:
        raise ConfigError("\n".join(wrong), remedy="correct the playbook, or add what it names")
    return f"playbooks: ok, {', '.join(p.name for p, _ in found) or 'none'}"


def _check_authz(loaded: Loaded) -> str:
    """The endpoints that it tells apart are those of the rails; wrong rails are said elsewhere."""
    from ..assembly import load_rails

    authz = loaded.config.authz
    try:
        rails = load_rails(loaded.config)
    except ConfigError:
        rails = None
    if rails is not None:
        known = [endpoint.name for endpoint in rails.endpoints]
        for name in authz.endpoints.keys() - known:
            raise ConfigError(
                f"{loaded.where('authz', 'endpoints', name)}: authz.endpoints.{name}: no endpoint of the rails",
                remedy=f"they name: {', '.join(known) or 'none'}",
            )
    return (
        f"authz: ok, on {', '.join(authz.listen)}" if authz.listen else "authz: off, as authz.listen is empty"
    )


def _check_hooks(loaded: Loaded) -> str:
    from ..sinks.hook_files import check_files

    for name, hook in loaded.config.hooks.items():
        try:
            check_files(name, hook.model_dump())
        except ConfigError as error:
            key = error.message.partition(":")[0].split(".")[-1]
            raise ConfigError(
                f"{loaded.where('hooks', name, key)}: {error.message}", remedy=error.remedy
            ) from None
    return f"hooks: ok, {', '.join(loaded.config.hooks)}" if loaded.config.hooks else "hooks: none"


def _check_rails(loaded: Loaded) -> str:
    from ..enforcer.rails import load as load_rails

    config = loaded.config
    if not Path(config.rails).exists() and config.mode == "observe":
        return f"rails {config.rails}: not there; enforce mode needs it; `gatewatch config init` writes it"
    rails = load_rails(config.rails)
    if config.mode == "enforce" and not rails.management:
        raise ConfigError(
            f"rails {config.rails}: management: names no network, and the mode is enforce",
            remedy="name the networks that operators come from, or set mode: observe",
        )
    _check_playbooks_by_rails(loaded, rails)
    endpoints = ", ".join(e.name for e in rails.endpoints) or "none"
    return f"rails {config.rails}: ok, {len(rails.management)} management networks, endpoints: {endpoints}"


def _check_playbooks_by_rails(loaded: Loaded, rails: Rails) -> None:
    from ...playbooks.loader import read_playbooks
    from ...playbooks.references import wrong_in_rails

    options = loaded.config.playbooks
    try:
        found = read_playbooks(options.directories, shipped=options.shipped)
    except ConfigError:  # that is said already
        return
    wrong = [w for made, at in found for w in wrong_in_rails(made, at, rails)]
    if wrong:
        raise ConfigError("\n".join(wrong), remedy="correct the playbook, or add what it names")


def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every option with its value and where the value comes from."""
    from json import dumps

    from ...config.loader import effective, load_with_origin
    from .output import emit

    loaded = load_with_origin(config)

    def rows() -> Any:
        for key, value in effective(loaded.config):
            text = value if json or isinstance(value, str) else dumps(value)
            yield {"option": ".".join(map(str, key)), "value": text, "from": loaded.origin(key)}

    emit(rows(), json, ("option", "value", "from"))
