"""The gateway process: uvicorn with the application, and its graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn

from pagefleet.api.config.event_loop import loop_factory
from pagefleet.api.config.log_format import log_loop_fault
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.gateway.app import make_app
from pagefleet.api.gateway.http.http_protocol import protocol_class
from pagefleet.api.gateway.http.local_only import is_local

_BACKLOG: Final = 2048
_AFTER_DRAIN_S: Final = 5


def serve(settings: GatewaySettings, on_started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        on_started: called with the URL of the gateway when it accepts connections.

    Raises:
        ConfigurationError: the address, the API keys or the certificate cannot be used, or the gateway would
            be open to other hosts without keys.
    """
    _check_exposure(settings)
    with _listen(settings) as listener, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, listener, on_started))


class GatewayServer(uvicorn.Server):
    """On SIGTERM it accepts no further connections and gives running requests ``drain_s`` to finish. Then it
    closes open streams without an end, so that their clients continue at another gateway. A second signal
    skips the wait."""

    def __init__(self, config: uvicorn.Config, leaving: asyncio.Future[None], drain_s: float) -> None:
        super().__init__(config)
        self._leaving = leaving
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, it does not raise the signal again at the end: a drained process exits with 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._exit)
        yield

    def _exit(self) -> None:
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
        http=protocol_class(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.gateway_idle_timeout_s),
        timeout_graceful_shutdown=int(settings.gateway_drain_s) + _AFTER_DRAIN_S,
        **_tls(settings),
    )
    _load(config, settings)
    server = GatewayServer(config, leaving, settings.gateway_drain_s)
    announce = asyncio.ensure_future(_announce(server, listener, on_started))
    await server.serve([listener])
    announce.cancel()


async def _announce(
    server: uvicorn.Server, listener: socket.socket, on_started: Callable[[str], None]
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    # The objects that exist now live as long as the process: without them, a collection pauses streams less.
    gc.collect()
    gc.freeze()
    scheme = "https" if server.config.is_ssl else "http"
    host, port = listener.getsockname()[:2]
    on_started(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")


def _listen(settings: GatewaySettings) -> socket.socket:
    host, port = settings.gateway_host, settings.gateway_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"gateway_port: cannot listen on {host}:{port} ({error.strerror})."
        ) from error


def _tls(settings: GatewaySettings) -> dict[str, Any]:
    """Return uvicorn's TLS options; empty without TLS."""
    if settings.gateway_tls_cert is None:
        return {}
    options: dict[str, Any] = {
        "ssl_certfile": settings.gateway_tls_cert,
        "ssl_keyfile": settings.gateway_tls_key,
        # OpenSSL would ask for a missing password on the terminal.
        "ssl_keyfile_password": " ",
    }
    if settings.gateway_tls_key_password_file is not None:
        options["ssl_keyfile_password"] = _read_password(settings.gateway_tls_key_password_file)
    if settings.gateway_tls_client_ca is not None:
        options |= {"ssl_ca_certs": settings.gateway_tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def _read_password(file: Path) -> str:
    """Raises: ConfigurationError: the file cannot be read or is empty."""
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"gateway_tls_key_password_file: {file}: {error}.") from None
    if not password:
        # uvicorn takes an empty password for none, and OpenSSL would ask for it on the terminal.
        raise ConfigurationError(
            f"gateway_tls_key_password_file: {file} is empty; write the password of the private key to it."
        )
    return password


def _load(config: uvicorn.Config, settings: GatewaySettings) -> None:
    """Raises: ConfigurationError: a certificate or key cannot be read."""
    try:
        config.load()
    except (OSError, ValueError) as error:
        # OpenSSL's errors are OSErrors; a password that is too long is a ValueError.
        reason = str(error) or type(error).__name__
        raise ConfigurationError(
            f"gateway_tls_cert: the certificate {settings.gateway_tls_cert}, its key or "
            f"gateway_tls_client_ca cannot be loaded ({reason}); check the files and the key's password."
        ) from None


def _check_exposure(settings: GatewaySettings) -> None:
    has_file = settings.gateway_keys_file is not None
    if settings.gateway_keys_redis and has_file:
        raise ConfigurationError("gateway_keys_redis: gateway_keys_file is set too; choose one key store.")
    has_keys = settings.gateway_keys_redis or has_file
    if not has_keys and not settings.gateway_open and not is_local(settings.gateway_host):
        raise ConfigurationError(
            f"gateway_host: other hosts can reach {settings.gateway_host}, and no API keys are configured. "
            "Create keys with `pagefleet keys add` and set gateway_keys_redis or gateway_keys_file, or set "
            "gateway_open to serve without keys."
        )
