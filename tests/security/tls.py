"""Certificates, and TLS in front of a real Valkey: the embedded one is built without it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from datetime import UTC, datetime

import trustme

BEGINS, ENDS = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


class Authority:
    """A certificate authority whose files stand in a folder of its own."""

    def __init__(self, folder):
        folder.mkdir()
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name, host="127.0.0.1", begins=BEGINS, ends=ENDS):
        """A certificate for ``host``; returns the paths of certificate and key."""
        leaf = self._authority.issue_cert(host, not_before=begins, not_after=ends)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        leaf.cert_chain_pems[0].write_to_path(certificate)
        leaf.private_key_pem.write_to_path(key)
        return certificate, key


class TlsFront:
    """Listens with TLS on 127.0.0.1 and hands the plain bytes to ``port``.

    Args:
        client_ca: only clients with a certificate of this authority come in.
    """

    def __init__(self, port, certificate, key, client_ca=None):
        self._target = port
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads = []
        self.url = f"rediss://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._spawn(self._accept)

    def _spawn(self, call, *args):
        thread = threading.Thread(target=call, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(self._serve, plain)

    def _serve(self, plain):
        """Both directions in one thread: an SSLSocket is not to be read and written from two."""
        with (
            contextlib.suppress(OSError),
            plain,
            socket.create_connection(("127.0.0.1", self._target)) as server,
        ):
            plain.settimeout(30)
            with self._context.wrap_socket(plain, server_side=True) as client:
                self._sockets += [client, server]
                self._pump(client, server)

    def _pump(self, client, server):
        # A part of a TLS record must not keep the other direction waiting.
        for each in (client, server):
            each.settimeout(0.05)
        while True:
            ready = [client] if client.pending() else select.select([client, server], [], [])[0]
            for source, target in ((client, server), (server, client)):
                if source not in ready:
                    continue
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    return
                target.settimeout(30)
                target.sendall(data)
                target.settimeout(0.05)

    def close(self):
        # A thread that waits for a socket wakes when it is shut down, not when another thread closes it.
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.close()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
