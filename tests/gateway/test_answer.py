"""Answer: several jobs fail as one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from pagefleet.api.contract.errors import InvalidRequest
from pagefleet.api.gateway.answers.answer import Answer


class Waiting:
    has_ended = False
    job_id = "waiting"

    async def accepted(self, timeout_s):
        await asyncio.Event().wait()

    async def result(self):
        await asyncio.Event().wait()

    async def cancel(self):
        pass


class Refused(Waiting):
    has_ended = True

    async def accepted(self, timeout_s):
        raise InvalidRequest("no")

    async def result(self):
        raise InvalidRequest("no")


@pytest.mark.parametrize(("wait", "ended"), [(Answer.accepted, []), (Answer._results, ["waiting"])])
def test_nobody_waits_on_when_one_of_several_is_refused(wait, ended):
    discarded = []

    async def left_over():
        gateway = SimpleNamespace(fleet=SimpleNamespace(discard=discarded.append))
        answer = Answer(gateway, "id", [Waiting(), Refused()], 1, background=False)
        with pytest.raises(InvalidRequest):
            await wait(answer)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(left_over())
    assert discarded == ended
