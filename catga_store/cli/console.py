"""The command `console`: serve the console of one store."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated

import typer

from catga_store.cli.doctor_by_scheme import doctor_of
from catga_store.cli.exit_codes import UNAVAILABLE
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import say
from catga_store.cli.store_options import StoreArgument
from catga_store.cli.store_options import checked
from catga_store.cli.store_options import open_existing
from catga_store.cli.stuck import types_in
from catga_store.opening.url_codecs import bare
from catga_store.stores.findings import Finding

__all__ = ["console"]

_GRACE = 1
"""Seconds that open requests get when the console ends; an open page is one that never ends by itself."""


@guarded
def console(
    store: StoreArgument = None,
    *,
    write: Annotated[
        bool, typer.Option("--write", help="Allow actions that change flows.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on; the default is reachable only from this machine."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 chooses a free port.")
    ] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="CATGA_CONSOLE_TOKEN",
            help=(
                "The token in the address, at least 16 characters long; by default, a random "
                "token is created at each start."
            ),
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--types",
            metavar="MODULE",
            help="Check edited states against the types in this module, such as myapp.flows.",
        ),
    ] = None,
) -> None:
    """Serve a store's console until Ctrl-C or SIGTERM, and print the address of the console.

    The console shows flows, their states and history, wait conditions and problems in a browser. The address
    contains a token, without which there is no access. Without `--write`, the console changes nothing. It uses
    plain HTTP; to make it available to other machines, put it behind a TLS proxy. Needs the `console` extra.
    """
    import uvicorn  # noqa: PLC0415  an extra

    from catga_store.console import app  # noqa: PLC0415  as above

    url = checked(store, "catga-store console sqlite:///flows.db")
    known = [kind for name in types or () for kind in types_in(name)]

    def doctors() -> Iterable[Finding]:
        store_doctor = doctor_of(url)
        return () if store_doctor is None else store_doctor.examine(bare(url))

    with open_existing(url) as opened, _listening(host, port) as listening:
        application = app(
            opened,
            write=write,
            token=token or secrets.token_urlsafe(32),
            doctors=doctors,
            types=known,
        )
        place = f"[{host}]" if ":" in host else host
        number = listening.getsockname()[1]
        say(f"The console is at http://{place}:{number}/?token={application.token}")
        sys.stdout.flush()
        config = uvicorn.Config(
            application,
            access_log=False,  # it would hold the token
            lifespan="on",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        with suppress(
            KeyboardInterrupt, SystemExit
        ):  # uvicorn repeats the signal that has ended it
            uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        leave(f"cannot listen on {host}:{port}: {error.strerror}", UNAVAILABLE)
