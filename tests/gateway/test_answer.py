"""Answer: several jobs fail as one."""

from __future__ import annotations

import asyncio

import pytest

from pagefleet.api.errors import InvalidRequest
from pagefleet.api.gateway.answer import Answer


class Waiting:
    has_ended = False

    async def accepted(self, timeout_s):
        await asyncio.Event().wait()

    async def result(self):
        await asyncio.Event().wait()

    async def cancel(self):
        pass


class Refused(Waiting):
    async def accepted(self, timeout_s):
        raise InvalidRequest("no")

    async def result(self):
        raise InvalidRequest("no")


@pytest.mark.parametrize("wait", [Answer.accepted, Answer._results])
def test_nobody_waits_on_when_one_of_several_is_refused(wait):
    async def left_over():
        answer = Answer(None, "id", [Waiting(), Refused()], 1, background=False)
        with pytest.raises(InvalidRequest):
            await wait(answer)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(left_over())
