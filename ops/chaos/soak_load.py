"""A steady load of everything that clients do: read, cancel, revoke, let expire, delete."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any, Final

from pagefleet.api import FleetClient, FleetError, FleetSettings
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.client.synchronous.token_stream import TokenStream
from pagefleet.api.contract.keys import LANES, Lane
from pagefleet.engine.execution.null_executor import null_token

RESULT_TTL_S: Final = 15
"""Short, so that results leave as fast as they come and the server's memory can be flat."""
_TIMEOUT_S: Final = 60.0


class Load:
    """``num_threads`` clients of one process; each sends its next job when the one before is over."""

    def __init__(self, redis_url: str, num_threads: int, seed: int) -> None:
        self._fleet = FleetClient(redis_url=redis_url)
        self._app: Any = make_celery(FleetSettings(redis_url=redis_url))
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}/{number}"),), daemon=True)
            for number in range(num_threads)
        ]
        self._lock = threading.Lock()
        self.num_jobs: Counter[str] = Counter()
        self.faults: list[str] = []

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every client finish the job that it is at."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._fleet.close()
        self._app.close()

    def _run(self, rng: random.Random) -> None:
        kinds = [self._read] * 14 + [self._cancel, self._cancel, self._revoke, self._expire, self._expire]
        kinds += [self._delete, self._delete_running, self._leave]
        while not self._stopping.is_set():
            kind = rng.choice(kinds)
            try:
                fault = kind(rng)
            except FleetError as error:
                fault = repr(error)
            with self._lock:
                self.num_jobs[kind.__name__.strip("_")] += 1
                if fault:
                    self.faults.append(f"{kind.__name__.strip('_')}: {fault}")

    def _send(self, rng: random.Random, max_tokens: int, **fields: Any) -> TokenStream:
        prompt = [rng.randrange(32, 127) for _ in range(rng.randint(32, 256))]
        lane: Lane = rng.choice(LANES)
        return self._fleet.generate(
            prompt_token_ids=prompt, max_tokens=max_tokens, lane=lane, result_ttl_s=RESULT_TTL_S,
            idle_timeout=_TIMEOUT_S, **fields,
        )  # fmt: skip

    def _read(self, rng: random.Random) -> str | None:
        seed, max_tokens = rng.randrange(2**32), rng.randint(10, 120)
        result = self._send(rng, max_tokens, seed=seed).result()
        if result.token_ids != [null_token(seed, 0, position) for position in range(max_tokens)]:
            return f"job {result.job_id}: {len(result.token_ids)} of {max_tokens} tokens, or wrong ones"
        return None

    def _cancel(self, rng: random.Random) -> str | None:
        stream = self._send(rng, 2000)
        next(stream)
        stream.cancel()
        return _ended(stream, "cancelled")

    def _revoke(self, rng: random.Random) -> str | None:
        stream = self._send(rng, 2000)
        if rng.random() < 0.5:
            next(stream)
        self._app.control.revoke(stream.job_id, terminate=True)
        return _ended(stream, "cancelled")

    def _expire(self, rng: random.Random) -> str | None:
        return _ended(self._send(rng, 2000, deadline_s=rng.uniform(0.05, 0.5)), "deadline")

    def _delete(self, rng: random.Random) -> str | None:
        stream = self._send(rng, rng.randint(1, 40))
        stream.result()
        stream.delete()
        return None

    def _delete_running(self, rng: random.Random) -> str | None:
        stream = self._send(rng, 2000)
        next(stream)
        stream.delete()
        return None

    def _leave(self, rng: random.Random) -> str | None:
        """The caller drops the stream half way: the job ends, unless it is one of the batch lane."""
        next(self._send(rng, rng.randint(10, 120)))
        return None


def _ended(stream: TokenStream, reason: str) -> str | None:
    result = stream.result()
    return None if result.finish_reason == reason else f"ended with {result.finish_reason}, not {reason}"
