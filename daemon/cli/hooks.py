"""`gatewatch hooks`: where actions go that other systems carry out, and whether they can be reached."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, store_path
from .output import emit, json_line, printable

if TYPE_CHECKING:
    from ...config.schema import Config
    from ..sinks.http import Answer

COLUMNS = ("name", "template", "url", "waiting", "problem", "failed")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("list")(list_)
    group.command("test")(test)
    app.add_typer(group, name="hooks", help="Webhooks and identity providers.")


def list_(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """List the hooks: how many documents wait for each, what hinders them now, and what was refused last."""
    settings = load_config(config, state)
    if not emit(_rows(settings), as_json, COLUMNS) and not as_json:
        print("no hook is configured; docs/hooks.md says how")


def _rows(settings: Config) -> Any:
    from ..control import ask
    from ..errors import GatewatchError
    from ..events import rfc3339
    from ..store import Store

    problems: dict[str, str] = {}
    lags: dict[str, int] = {}
    last: dict[str, str] = {}
    with contextlib.suppress(GatewatchError):
        problems = ask(settings.state_folder() / "run" / "analyser.sock", {"do": "health"}).get(
            "problems", {}
        )
    if settings.hooks and store_path(settings).exists():
        store = Store.open_readonly(store_path(settings))
        store.hooks = frozenset(settings.hooks)
        lags = store.lags(settings.hooks)
        for name in settings.hooks:
            for time_ns, reason in store.dead_letters(name, 1):
                last[name] = f"{rfc3339(time_ns)}: {reason}"
        store.close()
    for name, hook in settings.hooks.items():
        yield {
            "name": name,
            "template": hook.template,
            "url": hook.url,
            "kinds": hook.kinds,
            "waiting": lags.get(name),
            "problem": problems.get(name, ""),
            "failed": last.get(name, ""),
        }


def test(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The hook.")],
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a hook for something that changes nothing; exit code 1 where it is not taken.

    A generic hook is sent a signed document whose `do` is `test`; of an identity provider users are read.
    """
    from ..errors import UsageError

    settings = load_config(config, state)
    if name not in settings.hooks:
        known = ", ".join(settings.hooks) or "none is configured"
        raise UsageError(f"{name}: no hook has this name", remedy=f"known: {known}")
    answer = _ask(settings, name)
    good = 200 <= answer.status < 300
    if as_json:
        found = {"name": name, "ok": good, "status": answer.status, "answer": answer.text(2000)}
        print(json_line(found))
    else:
        text = answer.text(500)
        print(
            printable(
                f"{name}: {'taken' if good else 'refused'}, {answer.status}{f': {text}' if text else ''}"
            )
        )
    if not good:
        raise typer.Exit(1)


def _ask(settings: Config, name: str) -> Answer:
    import asyncio

    from ..errors import GatewatchError
    from ..sinks.http import Refused
    from ..sinks.registry import make_hook

    hook = make_hook(name, settings.hook_options(name))

    async def once() -> Answer:
        try:
            return await hook.test()
        finally:
            await hook.close()

    try:
        return asyncio.run(once())
    except Refused as refused:
        raise GatewatchError(f"{name}: {refused}") from None
