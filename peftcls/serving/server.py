"""Run a service on a port until SIGTERM or Ctrl-C; what is in work is finished first."""

import math
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

# Beyond a request's own time limit, for its last bytes.
EXTRA_SECONDS = 5


def open_socket(host: str, port: int) -> socket.socket:
    """Reserve a port; it takes connections only when the server runs.

    Args:
        host: the name or address of a network interface of this machine.
        port: 0 for any that is free.

    Raises:
        ValueError: the port is taken, or the host is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_serve(host, port, error) from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _cannot_serve(host, port, error) from None
    return opened


def _cannot_serve(host: str, port: int, error: OSError) -> ValueError:
    return ValueError(
        f"cannot serve at host={host!r}, port={port}: {error.strerror or error}; choose another "
        "port, or a host of this machine."
    )


def url_of(opened: socket.socket) -> str:
    """The address of a socket as a browser takes it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Says when it takes connections."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()


def run_server(
    app: FastAPI,
    opened: socket.socket,
    *,
    timeout_seconds: float,
    on_start: Callable[[], None],
) -> None:
    """Serve until a signal ends it. The signal is raised again when all is finished.

    Args:
        app: from `make_app`.
        opened: from `open_socket`.
        timeout_seconds: how long a request may take; an end waits no longer.
        on_start: called when the service takes connections.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(timeout_seconds) + EXTRA_SECONDS,
    )
    _Server(config, on_start).run(sockets=[opened])
