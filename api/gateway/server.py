"""The process: uvicorn around the application, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from pagefleet.api.config.event_loop import loop_factory
from pagefleet.api.config.log_format import log_loop_fault
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.gateway.app import make_app
from pagefleet.api.gateway.http.http_protocol import guarded
from pagefleet.api.gateway.http.local_only import is_local

_BACKLOG = 2048
_AFTER_DRAIN_S = 5


def serve(settings: GatewaySettings, on_started: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        on_started: is told the address.

    Raises:
        ConfigurationError: the address cannot be had, the keys cannot be read, or strangers could come in.
    """
    _check_exposure(settings)
    with _listen(settings) as listener, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, listener, on_started))


class GatewayServer(uvicorn.Server):
    """On SIGTERM nothing new is taken; what runs gets ``drain_s`` to end, and what streams on is then cut off
    without an end: its client goes on at another replica. A second signal does not wait."""

    def __init__(self, config: uvicorn.Config, leaving: asyncio.Future[None], drain_s: float) -> None:
        super().__init__(config)
        self._leaving = leaving
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's: it raises the signal again at the end, and a drained process has not failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._go)
        yield

    def _go(self) -> None:
        asyncio.get_running_loop().call_later(0 if self.should_exit else self._drain_s, self._leave)
        self.should_exit = True

    def _leave(self) -> None:
        if not self._leaving.done():
            self._leaving.set_result(None)


async def _serve(
    settings: GatewaySettings, listener: socket.socket, on_started: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_fault)
    leaving = loop.create_future()
    config = uvicorn.Config(
        make_app(settings, leaving),
        http=guarded(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.gateway_idle_timeout_s),
        timeout_graceful_shutdown=int(settings.gateway_drain_s) + _AFTER_DRAIN_S,
    )
    server = GatewayServer(config, leaving, settings.gateway_drain_s)
    announce = asyncio.ensure_future(_announce(server, listener, on_started))
    await server.serve([listener])
    announce.cancel()


async def _announce(
    server: uvicorn.Server, listener: socket.socket, on_started: Callable[[str], None]
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    # What is there now stays: a collection need not look at it each time, while streams wait.
    gc.collect()
    gc.freeze()
    host, port = listener.getsockname()[:2]
    on_started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _listen(settings: GatewaySettings) -> socket.socket:
    host, port = settings.gateway_host, settings.gateway_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"gateway_port: {host}:{port} cannot be had ({error.strerror}).") from error


def _check_exposure(settings: GatewaySettings) -> None:
    has_keys = settings.gateway_keys_redis or settings.gateway_keys_file is not None
    if settings.gateway_keys_redis and settings.gateway_keys_file is not None:
        raise ConfigurationError(
            "gateway_keys_redis: there is a gateway_keys_file too; keys stand in one place."
        )
    if not has_keys and not settings.gateway_open and not is_local(settings.gateway_host):
        raise ConfigurationError(
            f"gateway_host: {settings.gateway_host} can be reached by others, and there are no keys: name a "
            "gateway_keys_file or set gateway_keys_redis (`pagefleet keys add` writes either), or set "
            "gateway_open."
        )
