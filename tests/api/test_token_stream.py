"""What a stream does when its connection comes back, with a source that is driven by hand."""

from __future__ import annotations

from pagefleet.api.client.asynchronous.token_stream import AsyncSource, AsyncTokenStream
from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.synchronous.token_stream import Source, TokenStream
from pagefleet.api.contract.messages import EndedEvent, JobState
from pagefleet.api.protocol.job_record import JobRecord

RUNNING = JobRecord("a", {"state": "R", "num_choices": "1", "attempts": "1"})
ENDED = LiveEvent(
    "e",
    EndedEvent(state=JobState.CANCELLED, num_tokens=[0], finish_reasons=["cancelled"]).model_dump_json(),
)


class Script(Source):
    """Gives out the events it was made with; counts the cancels."""

    def __init__(self, *events):
        self.events = list(events)
        self.num_cancels = 0

    def wait(self, timeout_s):
        return self.events.pop(0)

    def read(self, position):
        return RUNNING

    def resubmit(self):
        return False

    def expire(self):
        pass

    def cancel(self):
        self.num_cancels += 1

    def delete(self):
        pass

    def keep_running(self, keep):
        pass

    def leave(self, after_s=0.0):
        pass

    def close(self):
        pass


class AsyncScript(AsyncSource):
    def __init__(self, *events):
        self.script = Script(*events)

    async def wait(self, timeout_s):
        return self.script.wait(timeout_s)

    async def read(self, position):
        return self.script.read(position)

    async def resubmit(self):
        return False

    async def expire(self):
        pass

    async def cancel(self):
        self.script.cancel()

    async def delete(self):
        pass

    def keep_running(self, keep):
        pass

    async def leave(self, after_s=0.0):
        pass

    async def close(self):
        pass


def test_a_cancel_is_sent_again_after_a_reconnect():
    """Protocol line 15: a server restarted from its last second but one may have forgotten it."""
    source = Script(Resync(), ENDED)
    stream = TokenStream(StreamState("a"), source, "m", 5)
    stream.cancel()
    assert stream.result().finish_reason == "cancelled"
    assert source.num_cancels == 2


def test_a_reconnect_alone_cancels_nothing():
    source = Script(Resync(), ENDED)
    assert TokenStream(StreamState("a"), source, "m", 5).result().finish_reason == "cancelled"
    assert source.num_cancels == 0


async def test_the_async_stream_sends_its_cancel_again():
    source = AsyncScript(Resync(), ENDED)
    stream = AsyncTokenStream(StreamState("a"), source, "m", 5)
    await stream.cancel()
    assert (await stream.result()).finish_reason == "cancelled"
    assert source.script.num_cancels == 2
