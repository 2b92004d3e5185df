"""The fakes are fleets: the tests run against them and against the real one."""

from __future__ import annotations

import inspect
import uuid

import pytest

from pagefleet.api import (
    AsyncFleetClient,
    ContextTooLong,
    Fleet,
    FleetClient,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    JobState,
    QueueFull,
    StreamTimeout,
    UnknownModel,
    UnknownParameter,
)
from pagefleet.api.client.asynchronous.fleet import AsyncFleet
from pagefleet.api.testing import AsyncInMemoryFleet, InMemoryFleet, fake_card


def reply(request):
    """Forty words, another set for each seed; as a worker, it refuses a text that is too long."""
    if request.prompt is not None and len(request.prompt) >= 4096:
        raise ContextTooLong("prompt: 5001 tokens do not fit the context of null.", param="prompt")
    return " ".join(f"w{request.sampling.seed}.{index}" for index in range(4096))


@pytest.fixture(params=["fake", "asynchronous fake", "real"])
def any_fleet(request, blocking):
    """A fleet of one model with a worker."""
    if request.param == "fake":
        return InMemoryFleet(reply, models=[fake_card("null")])
    if request.param == "asynchronous fake":
        return blocking(AsyncInMemoryFleet(reply, models=[fake_card("null")]))
    return request.getfixturevalue("fleet")


@pytest.fixture(params=["fake", "asynchronous fake", "real"])
def waiting_fleet(request, blocking):
    """A fleet whose model ``ghost``, with room for three jobs, has no worker."""
    ghosts = [fake_card("ghost", max_queue_depth=3)]
    if request.param == "fake":
        return InMemoryFleet(reply, models=ghosts, paused=True)
    if request.param == "asynchronous fake":
        return blocking(AsyncInMemoryFleet(reply, models=ghosts, paused=True))
    request.getfixturevalue("ghost")
    return request.getfixturevalue("fleet")


class TestAnswers:
    def test_choices_with_logprobs_after_the_prompt(self, any_fleet):
        options = {"n": 3, "max_tokens": 5, "seed": 7, "logprobs": 0, "echo": True}
        stream = any_fleet.generate("Hello there", **options)
        chunks = list(stream)
        result = stream.result()
        assert [choice.index for choice in result.choices] == [0, 1, 2]
        for choice in result.choices:
            mine = [chunk for chunk in chunks if chunk.choice == choice.index]
            assert [token for chunk in mine for token in chunk.token_ids] == choice.token_ids
            assert len(choice.token_ids) == len(choice.logprobs) == 5
            assert [each.token_id for each in choice.logprobs] == choice.token_ids
            assert "".join(chunk.text for chunk in mine) == choice.text
            assert choice.text.startswith("Hello there")
            assert choice.finish_reason == "length"

    def test_the_prompts_logprobs(self, any_fleet):
        result = any_fleet.generate("Hello there", max_tokens=2, logprobs=1, prompt_logprobs=1).result()
        assert len(result.prompt_logprobs) == result.num_prompt_tokens - 1
        assert all(len(each.top) == 1 for each in result.prompt_logprobs + result.choices[0].logprobs)

    def test_a_long_echo_is_refused(self, any_fleet):
        with pytest.raises(InvalidRequest, match="n=128 choices would echo more than 1,000,000"):
            any_fleet.generate("x" * 10_000, n=128, echo=True)

    def test_messages_are_not_echoed(self, any_fleet):
        with pytest.raises(InvalidRequest, match="echo: not supported with messages"):
            any_fleet._start(None, {"messages": [{"role": "user", "content": "x"}], "echo": True}, 1.0)

    def test_a_stream(self, any_fleet):
        stream = any_fleet.generate("Hello there", max_tokens=8, seed=7)
        chunks = list(stream)
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        assert len(tokens) == 8
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
        assert chunks[-1].finish_reason == "length"
        assert stream.num_prompt_tokens >= 2
        assert list(stream) == []
        result = stream.result()
        assert (result.token_ids, result.text) == (tokens, "".join(chunk.text for chunk in chunks))
        assert (result.state, result.finish_reason, result.attempts) == (JobState.DONE, "length", 1)
        assert (result.model, stream.model, result.job_id) == ("null", "null", stream.job_id)
        assert result.num_prompt_tokens == stream.num_prompt_tokens

    def test_a_chat_and_token_ids(self, any_fleet):
        assert (
            any_fleet.chat([{"role": "user", "content": "Hi"}], max_tokens=3).result().num_prompt_tokens >= 1
        )
        result = any_fleet.generate(prompt_token_ids=[1, 2, 3], max_tokens=3).result()
        assert (result.num_prompt_tokens, len(result.token_ids)) == (3, 3)

    def test_seeds(self, any_fleet):
        texts = [
            any_fleet.generate("Hello", max_tokens=8, seed=seed).text() for seed in (7, 7, 8, None, None)
        ]
        assert texts[0] == texts[1]
        assert len(set(texts)) == 4

    @pytest.mark.parametrize("after", [0, 3, 8, 20])
    def test_attach_after_the_end(self, any_fleet, after):
        stream = any_fleet.generate("Hello", max_tokens=8)
        tokens = stream.result().token_ids
        attached = any_fleet.attach(stream.job_id, after=after)
        assert [token for chunk in attached for token in chunk.token_ids] == tokens[after:]
        assert attached.num_prompt_tokens == stream.num_prompt_tokens

    def test_the_same_id_is_the_same_job(self, any_fleet):
        job_id = f"test-{uuid.uuid4().hex}"
        first = any_fleet.generate("Hello", max_tokens=8, seed=1, job_id=job_id)
        again = any_fleet.generate("Hello", max_tokens=8, seed=1, job_id=job_id)
        assert first.text() == again.text()
        assert first.job_id == again.job_id == job_id

    def test_polling_and_reading_on_by_choice(self, any_fleet):
        stream = any_fleet.generate("Hello", n=2, max_tokens=4)
        chunks = []
        while not stream.has_ended:
            chunks.append(stream.poll(10))
        tokens = [token for chunk in chunks if chunk is not None for token in chunk.token_ids]
        assert len(tokens) == stream.num_tokens == 8
        record = any_fleet.job(stream.job_id)
        assert (record.num_tokens, record.has_whole_log) == ([4, 4], True)
        assert list(any_fleet.job(stream.job_id, with_log=False).entries) == []
        rest = list(any_fleet.attach(stream.job_id, after=[4, 1]))
        assert (rest[0].choice, rest[0].offset) == (1, 1)
        assert sum(len(chunk.token_ids) for chunk in rest) == 3

    def test_cancelling_an_ended_job(self, any_fleet):
        stream = any_fleet.generate("Hello", max_tokens=4)
        stream.result()
        assert any_fleet.cancel(stream.job_id) is False
        assert any_fleet.attach(stream.job_id).result().state is JobState.DONE

    def test_what_is_not_there(self, any_fleet):
        for call in (any_fleet.attach, any_fleet.cancel):
            with pytest.raises(JobNotFound) as raised:
                call("nothing")
            assert raised.value.job_id == "nothing"

    def test_models_and_status(self, any_fleet):
        assert [card.name for card in any_fleet.models()] == ["null"]
        status = any_fleet.status()
        assert [queue.name for queue in status.queues] == [
            "pagefleet.null.interactive",
            "pagefleet.null.batch",
        ]
        assert status.models == any_fleet.models()


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "error", "param"),
        [
            ({"model": "nobody"}, UnknownModel, "model"),
            ({"prompt": ""}, InvalidRequest, "prompt"),
            ({"max_token": 1}, UnknownParameter, "max_token"),
            ({"max_tokens": 4097}, InvalidRequest, "max_tokens"),
            ({"prompt": None, "prompt_token_ids": [1] * 4096}, ContextTooLong, "prompt_token_ids"),
            ({"job_id": "a b"}, InvalidRequest, "job_id"),
        ],
    )
    def test_here_and_now(self, any_fleet, fields, error, param):
        with pytest.raises(error) as raised:
            any_fleet.generate(**{"prompt": "Hello", **fields})
        assert (type(raised.value), raised.value.param) == (error, param)

    def test_by_the_worker(self, any_fleet):
        stream = any_fleet.generate("x" * 5000)
        for _ in range(2):
            with pytest.raises(ContextTooLong, match="5001 tokens") as raised:
                stream.text()
            assert (raised.value.param, raised.value.job_id) == ("prompt", stream.job_id)


class TestWaiting:
    def test_the_old_name_of_idle_timeout_is_refused(self, any_fleet):
        with pytest.raises(UnknownParameter, match="timeout: unknown parameter; use idle_timeout"):
            any_fleet.generate("Hello", timeout=5)

    def test_a_timeout_and_the_job_stays_queued(self, waiting_fleet):
        stream = waiting_fleet.generate("Hello", model="ghost", idle_timeout=0.2)
        with pytest.raises(StreamTimeout) as raised:
            next(stream)
        assert raised.value.job_id == stream.job_id
        (queue,) = [
            queue for queue in waiting_fleet.status().queues if queue.name == "pagefleet.ghost.interactive"
        ]
        assert (queue.num_queued, queue.num_open) == (1, 1)

    def test_a_cancel_reaches_every_reader(self, waiting_fleet):
        stream = waiting_fleet.generate("Hello", model="ghost", idle_timeout=10)
        attached = waiting_fleet.attach(stream.job_id, idle_timeout=10)
        assert waiting_fleet.cancel(stream.job_id) is True
        for reader in (stream, attached):
            result = reader.result()
            assert (result.state, result.finish_reason) == (JobState.CANCELLED, "cancelled")
            assert result.token_ids == []

    def test_a_full_queue(self, waiting_fleet):
        jobs = [waiting_fleet.generate("Hello", model="ghost") for _ in range(3)]
        with pytest.raises(QueueFull, match="holds 3 jobs") as raised:
            waiting_fleet.generate("Hello", model="ghost", job_id="one-too-many")
        assert raised.value.job_id == "one-too-many"
        with pytest.raises(JobNotFound):
            waiting_fleet.attach("one-too-many")
        waiting_fleet.cancel(jobs[0].job_id)
        waiting_fleet.generate("Hello", model="ghost")


class TestTheFakeAlone:
    def test_a_tenants_choices_and_bytes_are_limited(self):
        limits = {"max_tenant_depth": 2, "max_tenant_bytes": 2000}
        fleet = InMemoryFleet(models=[fake_card().model_copy(update=limits)], paused=True)
        fields = {"tenant": "a", "max_tokens": 5}
        first = fleet.generate("x", **fields)
        with pytest.raises(QueueFull, match="holds 1 choices of the tenant 'a', and this job has 2"):
            fleet.generate("x", n=2, **fields)
        fleet.run()
        first.result()
        fleet.generate("x", n=2, **fields).result()
        with pytest.raises(QueueFull, match="the limit is 2000") as raised:
            fleet.generate("x", **fields)
        assert raised.value.param == "tenant_bytes"
        with pytest.raises(InvalidRequest, match="max_tokens: this job may take"):
            fleet.generate("x", tenant="b", max_tokens=20)
        fleet.generate("x", max_tokens=20)

    def test_it_answers_what_it_is_told(self):
        fleet = InMemoryFleet(lambda request: f"You said {request.prompt}")
        chunks = list(fleet.generate("hello"))
        assert [chunk.text for chunk in chunks] == ["You", " said", " hello"]
        assert chunks[-1].finish_reason == "stop"

    def test_a_paused_fleet_answers_when_it_is_run(self):
        fleet = InMemoryFleet(lambda request: request.prompt, paused=True)
        streams = [fleet.generate(text, idle_timeout=1) for text in ("one", "two")]
        fleet.run()
        assert [stream.text() for stream in streams] == ["one", "two"]
        assert fleet.generate("three").text() == "three"

    def test_a_word_is_a_token(self):
        fleet = InMemoryFleet()
        found = fleet.tokenize("one two one two", return_token_strs=True)
        assert (found.count, found.token_strs) == (4, ["one", " two", " one", " two"])
        assert fleet.detokenize(found.token_ids) == "one two one two"
        assert fleet.tokenize(messages=[{"role": "user", "content": "one"}]).token_ids == found.token_ids[:1]

    def test_an_empty_reply_is_an_answer(self):
        result = InMemoryFleet(lambda request: "").generate("hello").result()
        assert (result.text, result.state, result.finish_reason) == ("", JobState.DONE, "stop")

    def test_a_failure_is_raised_at_the_end(self):
        def fail(request):
            raise JobFailed("The device is on fire.")

        with pytest.raises(JobFailed, match="on fire"):
            InMemoryFleet(fail).generate("hello").result()

    @pytest.mark.parametrize(
        ("fake", "real", "base"),
        [
            (InMemoryFleet, FleetClient, Fleet),
            (AsyncInMemoryFleet, AsyncFleetClient, AsyncFleet),
        ],
    )
    def test_it_has_the_calls_of_the_real_client(self, fake, real, base):
        names = [name for name in dir(base) if not name.startswith("_")]
        assert {"generate", "chat", "attach", "job", "cancel", "delete", "tokenize", "workers"} <= {*names}
        for name in names:
            assert inspect.signature(getattr(fake, name)) == inspect.signature(getattr(real, name)), name
        assert issubclass(fake, base)
        assert issubclass(real, base)
