"""A TCP proxy between a worker and Valkey that can stop forwarding, in one or both directions."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final, Self

from pagefleet.workers.local.ports import free_port

_CHUNK: Final = 65536


class Proxy:
    """Forwards ``port`` to ``target_port`` on 127.0.0.1, in its own thread.

    A cut looks like lost packets: connections stay open, nothing passes, and the kernel accepts new
    connections that are never answered. :meth:`heal` either delivers what was held back (as TCP's
    retransmission would) or resets every connection.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._to_server = asyncio.Event()
        self._to_client = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"proxy-{self.port}")

    @property
    def num_connections(self) -> int:
        return len(self._writers) // 2

    def start(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self, *, to_server: bool, to_client: bool) -> None:
        """Stop forwarding in the given directions."""

        def close_gates() -> None:
            if to_server:
                self._to_server.clear()
            if to_client:
                self._to_client.clear()

        self._loop.call_soon_threadsafe(close_gates)

    def heal(self, *, reset: bool) -> None:
        """Forward again.

        Args:
            reset: break all existing connections and drop what was held back in them.
        """

        def open_gates() -> None:
            for writer in list(self._writers) if reset else []:
                writer.transport.abort()
            self._to_server.set()
            self._to_client.set()

        self._loop.call_soon_threadsafe(open_gates)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._to_server.set()
        self._to_client.set()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        server = self._loop.run_until_complete(listening)
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        for writer in list(self._writers):
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            to_client.transport.abort()
            return
        pair = {to_client, to_server}
        self._writers |= pair
        try:
            # The side that ends first ends both.
            copies = [
                asyncio.create_task(self._copy(from_client, to_server, self._to_server)),
                asyncio.create_task(self._copy(from_server, to_client, self._to_client)),
            ]
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for copy in copies:
                copy.cancel()
        finally:
            self._writers -= pair
            for writer in pair:
                writer.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await gate.wait()
                writer.write(data)
                await writer.drain()
            # The end of a connection is held back too.
            await gate.wait()
