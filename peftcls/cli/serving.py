"""`peftcls serve`: answer requests over HTTP."""

import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path

from peftcls.training.signals import Signals


def serve_folders(
    *,
    directories: Sequence[Path],
    host: str,
    port: int,
    base: str | None,
    device: str | None,
    **limits: float | None,
) -> None:
    """Serve folders until a signal ends the program.

    Raises:
        ValueError: the packages are missing, a folder cannot be loaded, or the port is taken.
    """
    try:
        from peftcls.serving.app import make_app
        from peftcls.serving.limits import Limits
        from peftcls.serving.server import open_socket, run_server, url_of
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a service needs the package {error.name}. Install it: pip install 'peftcls[serve]'"
        ) from None
    chosen = Limits(**{name: value for name, value in limits.items() if value is not None})  # type: ignore[arg-type]
    with Signals().captured(), open_socket(host, port) as opened:
        app = make_app(list(directories), base=base, device=device, limits=chosen)
        names = ", ".join(map(repr, app.state.service.adapters))
        address = url_of(opened)
        _warn_of_strangers(opened.getsockname()[0])

        def say_address() -> None:
            print(f"{names} at {address}; Ctrl-C ends it.", flush=True)

        run_server(app, opened, timeout_seconds=chosen.timeout_seconds, on_start=say_address)


def _warn_of_strangers(address: str) -> None:
    if not ipaddress.ip_address(address).is_loopback:
        print(
            "note: everyone who reaches this machine can ask; the service has no password.",
            file=sys.stderr,
        )
