"""Calls of the clients for mypy (`make check`), not to be run: an ignored error that is gone is an error."""

from __future__ import annotations

from pagefleet.api import AsyncFleetClient, ChatMessage, FleetClient
from pagefleet.api.testing import InMemoryFleet

TOOLS = [{"type": "function", "function": {"name": "add"}}]
MESSAGES = [{"role": "user", "content": "Hello"}]


def synchronous(fleet: FleetClient, fake: InMemoryFleet) -> None:
    fleet.generate("Hello", lane="batch", max_tokens=3, stop="\n", structured_outputs={"regex": "a+"})
    fleet.generate(prompt_token_ids=[1, 2], job_id="a", tenant=None)
    fleet.chat(MESSAGES, model="tiny", seed=7, deadline_s=2.5)
    fleet.chat([*MESSAGES, ChatMessage(role="assistant", content="Hi")], tools=TOOLS, tool_choice="auto")
    fleet.generate("Hello", tools=TOOLS)  # type: ignore[call-arg]
    fleet.chat(MESSAGES, tool_choice=1)  # type: ignore[arg-type]
    fleet.generate("Hello", max_token=3)  # type: ignore[call-arg]
    fleet.generate("Hello", lane="bulk")  # type: ignore[arg-type]
    fleet.generate("Hello", temperature="hot")  # type: ignore[arg-type]
    fleet.chat(MESSAGES, prompt_token_ids=[1])  # type: ignore[call-arg]
    fleet.submit_many(["Hello", {"messages": MESSAGES}], lane="batch", max_tokens=3)
    fleet.submit_many(["Hello"], max_token=3)  # type: ignore[call-arg]
    fake.chat(MESSAGES, priority="high")  # type: ignore[arg-type]


async def asynchronous(fleet: AsyncFleetClient) -> None:
    await fleet.generate("Hello", priority=9, logprobs=2)
    await fleet.chat(MESSAGES, cache_salt="s", prefix_cache=False)
    await fleet.generate("Hello", max_token=3)  # type: ignore[call-arg]
    await fleet.chat(MESSAGES, detached="yes")  # type: ignore[arg-type]
