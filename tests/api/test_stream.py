"""StreamState: whatever a channel does to the events, the reader sees every token once, then the end.

The channel may lose, double, delay and reorder; a replay may come at any moment; a worker that took over
may cut the same tokens into other entries. Only the log tells the truth.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.api.client.stream import StreamState
from pagefleet.api.contract.errors import ContextTooLong, JobDead, JobFailed, ProtocolError
from pagefleet.api.contract.messages import AcceptedEvent, EndedEvent, ErrorInfo, JobState, LogEntry
from pagefleet.api.protocol.job_record import JobRecord

REQUEST = '{"model":"m","prompt":"Hello"}'


def entry(offset, num_tokens, choice=0, **fields):
    """Token i of choice c has the id 1000 c + i, so that a token says where it belongs."""
    ids = [1000 * choice + offset + index for index in range(num_tokens)]
    return LogEntry(
        choice=choice, offset=offset, token_ids=ids, texts=[f"<{token_id}>" for token_id in ids], **fields
    )


def record(entries, state=JobState.RUNNING, reasons=(), error=None, num_choices=1):
    counts = [sum(len(e.token_ids) for e in entries if e.choice == c) for c in range(num_choices)]
    fields = {"state": state.value, "request": REQUEST, "num_choices": str(num_choices), "attempts": "1"}
    fields |= {f"n:{c}": str(count) for c, count in enumerate(counts)}
    fields |= {f"fin:{c}": reason for c, reason in enumerate(reasons)}
    if error is not None:
        fields["error"] = error.model_dump_json()
    return JobRecord("j", fields, list(entries))


def pop_all(state):
    chunks = []
    while (chunk := state.pop()) is not None:
        chunks.append(chunk)
    return chunks


class TestThePositionInTheLog:
    """A reader that waits does not ask for what it has."""

    def rest(self, state, *entries):
        now = record(list(entries), num_choices=state.position.num_choices)
        return dataclasses.replace(now, entries=entries[state.position.num_entries :], after=state.position)

    def test_an_event_is_an_item_of_the_log(self):
        state, log = StreamState("j"), [entry(0, 2), entry(2, 3), entry(5, 1)]
        for each in log[:2]:
            state.feed(each)
        assert state.position.num_entries == 2
        state.feed_record(self.rest(state, *log))
        assert (state.num_tokens, state.position.num_entries, state.wants_replay) == (6, 3, False)
        state.feed(log[1])
        assert state.position.num_entries == 3, "one that came twice is one item"

    def test_a_log_that_was_compacted_is_read_as_a_whole(self):
        state = StreamState("j")
        for offset in range(4):
            state.feed(entry(offset, 1))
        compacted = entry(0, 6)
        state.feed_record(self.rest(state, compacted))
        assert (state.num_tokens, state.position.num_entries, state.wants_replay) == (4, 0, True)
        state.feed_record(self.rest(state, compacted))
        assert (state.num_tokens, state.position.num_entries, state.wants_replay) == (6, 1, False)

    def test_more_choices_than_it_knew_of(self):
        state, log = StreamState("j"), [entry(0, 1), entry(0, 2, choice=1)]
        now = dataclasses.replace(record(log, num_choices=2), after=state.position)
        state.feed_record(now)
        assert (state.num_tokens, state.position.num_choices, state.wants_replay) == (0, 2, True)
        state.feed_record(self.rest(state, *log))
        assert (state.num_tokens, state.wants_replay) == (3, False)


class TestInOrder:
    def test_tokens_then_the_end(self):
        state = StreamState("j")
        state.feed(AcceptedEvent(num_prompt_tokens=5, attempt=1))
        state.feed(entry(0, 2))
        state.feed(entry(2, 1, finish_reason="stop", stop_reason="\n"))
        assert not state.ended
        state.feed(EndedEvent(state=JobState.DONE, num_tokens=[3], finish_reasons=["stop"]))
        assert state.ended
        assert not state.wants_replay

        first, second = pop_all(state)
        assert (first.offset, first.token_ids, first.text, first.finish_reason) == (0, [0, 1], "<0><1>", None)
        assert (second.offset, second.token_ids, second.text) == (2, [2], "<2>")
        assert second.finish_reason == "stop"
        result = state.result("m")
        assert (result.token_ids, result.text, result.finish_reason) == ([0, 1, 2], "<0><1><2>", "stop")
        assert (result.choices[0].stop_reason, result.num_prompt_tokens) == ("\n", 5)
        assert (result.state, result.attempts) == (JobState.DONE, 1)

    def test_a_gap_asks_for_the_log_and_gives_nothing(self):
        state = StreamState("j")
        state.feed(entry(0, 1))
        state.feed(entry(2, 1))
        assert state.wants_replay
        assert [chunk.offset for chunk in pop_all(state)] == [0]
        state.feed_record(record([entry(0, 1), entry(1, 1), entry(2, 1)]))
        assert not state.wants_replay
        assert [chunk.token_ids for chunk in pop_all(state)] == [[1], [2]]

    def test_a_log_with_a_gap_is_not_read_again_at_once(self):
        """It would be the same log: a reader would ask the server without end."""
        state = StreamState("j")
        state.feed_record(record([entry(0, 1), entry(2, 1)]))
        assert not state.wants_replay
        assert [chunk.token_ids for chunk in pop_all(state)] == [[0]]

    def test_an_end_before_its_tokens_asks_for_the_log(self):
        state = StreamState("j")
        state.feed(EndedEvent(state=JobState.DONE, num_tokens=[2], finish_reasons=["length"]))
        assert state.wants_replay
        assert not state.ended
        state.feed_record(record([entry(0, 2)], JobState.DONE, ["length"]))
        assert state.ended

    def test_a_later_end_cannot_change_the_first(self):
        state = StreamState("j")
        state.feed(EndedEvent(state=JobState.CANCELLED, num_tokens=[0], finish_reasons=["cancelled"]))
        state.feed(EndedEvent(state=JobState.DONE, num_tokens=[0], finish_reasons=["stop"]))
        assert state.result("m").state is JobState.CANCELLED

    def test_the_part_of_an_entry_that_is_new_is_given(self):
        state = StreamState("j")
        state.feed(entry(0, 3))
        state.feed(entry(1, 4))
        first, second = pop_all(state)
        assert (first.token_ids, second.offset, second.token_ids) == ([0, 1, 2], 3, [3, 4])
        assert second.text == "<3><4>"


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 6, 100])
@pytest.mark.parametrize("live", [True, False])
def test_a_reader_that_has_n_tokens_gets_the_others(after, live):
    entries = [entry(0, 2), entry(2, 3), entry(5, 1, finish_reason="stop")]
    state = StreamState("j", after=after)
    if live:
        for each in entries:
            state.feed(each)
        state.feed(EndedEvent(state=JobState.DONE, num_tokens=[6], finish_reasons=["stop"]))
    else:
        state.feed_record(record(entries, JobState.DONE, ["stop"]))
    chunks = pop_all(state)
    assert [token for chunk in chunks for token in chunk.token_ids] == list(range(6))[after:]
    assert "".join(chunk.text for chunk in chunks) == "".join(f"<{i}>" for i in range(after, 6))
    assert [chunk.offset for chunk in chunks][:1] == list(range(6))[after : after + 1]
    assert state.ended
    assert state.result("m").token_ids == list(range(6))


class TestHowItEnds:
    def end(self, state, reason, error=None):
        stream = StreamState("j")
        stream.feed(EndedEvent(state=state, num_tokens=[0], finish_reasons=[reason], error=error))
        return stream

    def test_done_and_cancelled_are_answers(self):
        assert self.end(JobState.DONE, "stop").error is None
        assert self.end(JobState.CANCELLED, "cancelled").error is None

    def test_a_deadline_is_an_answer_with_what_there_was(self):
        stream = self.end(JobState.FAILED, "deadline")
        assert stream.error is None
        assert (stream.result("m").state, stream.result("m").finish_reason) == (JobState.FAILED, "deadline")

    def test_a_rejection_is_the_error_that_the_producer_would_have_raised(self):
        error = ErrorInfo(code="context_too_long", message="Too long.", param="prompt")
        raised = self.end(JobState.FAILED, "error", error).error
        assert type(raised) is ContextTooLong
        assert (raised.message, raised.param, raised.job_id) == ("Too long.", "prompt", "j")

    def test_a_failure_without_a_reason_is_still_one(self):
        assert type(self.end(JobState.FAILED, None).error) is JobFailed
        assert type(self.end(JobState.DEAD, None).error) is JobDead

    def test_an_error_is_found_in_the_log_too(self):
        error = ErrorInfo(code="job_dead", message="Three deaths.")
        state = StreamState("j")
        state.feed_record(record([entry(0, 1)], JobState.DEAD, ["error"], error))
        assert state.ended
        assert type(state.error) is JobDead
        assert [chunk.token_ids for chunk in pop_all(state)] == [[0]]

    def test_an_unreadable_event_is_a_protocol_error_that_names_the_job(self):
        with pytest.raises(ProtocolError, match="Job j sent an event that cannot be read") as raised:
            StreamState("j").feed_line("t", '{"offset":"zero"}')
        assert raised.value.job_id == "j"


# The hostile channel. A program is what happens between the server and the reader, in order.

MOVES = st.sampled_from(
    ["publish", "publish", "lose", "hold", "double", "replay", "recut", "silence", "compact"]
)


@st.composite
def jobs(draw):
    """The entries of a job, each choice's in order, choices interleaved; and how it ended."""
    num_choices = draw(st.integers(1, 3))
    sizes = [draw(st.lists(st.integers(1, 4), max_size=5)) for _ in range(num_choices)]
    turns = draw(st.permutations([choice for choice, own in enumerate(sizes) for _ in own]))
    offsets, entries = [0] * num_choices, []
    waiting = [iter(own) for own in sizes]
    for choice in turns:
        size = next(waiting[choice])
        entries.append(entry(offsets[choice], size, choice))
        offsets[choice] += size
    state, reason = draw(
        st.sampled_from(
            [
                (JobState.DONE, "stop"),
                (JobState.DONE, "length"),
                (JobState.CANCELLED, "cancelled"),
                (JobState.FAILED, "error"),
                (JobState.DEAD, "error"),
            ]
        )
    )
    return entries, offsets, state, reason


class HostileChannel:
    """A server that goes on, a channel that misbehaves, and the reader between them."""

    def __init__(self, entries, counts, state, reason, after):
        error = ErrorInfo(code="job_failed", message="It failed.") if reason == "error" else None
        self.end = EndedEvent(
            state=state, num_tokens=counts, finish_reasons=[reason] * len(counts), error=error
        )
        self.entries, self.counts, self.after = entries, counts, after
        self.reader = StreamState("j", after=after)
        self.models_reader = StreamState("j", after=after)
        """Gets the same events as models; the reader gets them as lines."""
        self.num_logged, self.held, self.seen = 0, [], []
        self.num_compacted = 0
        self.chunks = []

    @property
    def logged(self):
        return self.entries[: self.num_logged]

    @property
    def is_over(self):
        return self.num_logged > len(self.entries)

    def move(self, move, data):
        if move in ("publish", "lose", "hold") and not self.is_over:
            event = [*self.entries, self.end][self.num_logged]
            self.num_logged += 1
            if move == "publish":
                self.feed(event)
            elif move == "hold":
                self.held.append(event)
        elif move == "double" and self.held + self.seen:
            self.feed(data.draw(st.sampled_from(self.held + self.seen)))
        elif move == "replay" or (move == "silence" and self.reader.wants_replay):
            self.replay()
        elif move == "compact":
            self.num_compacted = len(self.logged)
        elif move == "recut" and self.logged:
            whole = data.draw(st.sampled_from(self.logged))
            start = data.draw(st.integers(0, len(whole.token_ids) - 1))
            stop = data.draw(st.integers(start + 1, len(whole.token_ids)))
            self.feed(entry(whole.offset + start, stop - start, whole.choice))
        self.look()

    def feed(self, event):
        self.seen.append(event)
        self.deliver(event)

    def deliver(self, event):
        kind = "t" if isinstance(event, LogEntry) else "e"
        body = event.to_json() if kind == "t" else event.model_dump_json(exclude_defaults=True)
        self.reader.feed_line(kind, body)
        self.models_reader.feed(event)

    def log(self):
        """Its oldest items may have become one for each choice."""
        old, new = self.logged[: self.num_compacted], self.logged[self.num_compacted :]
        lengths = (sum(len(e.token_ids) for e in old if e.choice == c) for c in range(len(self.counts)))
        return [entry(0, length, choice) for choice, length in enumerate(lengths) if length] + new

    def replay(self):
        """As the server answers: the rest of the log, behind what the reader says that it has."""
        entries = self.log()
        if self.is_over:
            now = record(entries, self.end.state, self.end.finish_reasons, self.end.error, len(self.counts))
        else:
            now = record(entries, num_choices=len(self.counts))
        for _ in range(3):
            position = self.reader.position
            rest = entries[position.num_entries :]
            for reader in (self.reader, self.models_reader):
                reader.feed_record(dataclasses.replace(now, entries=rest, after=position))
            if not self.reader.wants_replay:
                return
        raise AssertionError("it never has enough")

    def look(self):
        found = pop_all(self.reader)
        assert found == pop_all(self.models_reader)
        assert self.reader.position == self.models_reader.position
        assert self.reader.wants_replay == self.models_reader.wants_replay
        self.chunks += found
        for choice, count in enumerate(self.counts):
            given = [token for chunk in self.chunks if chunk.choice == choice for token in chunk.token_ids]
            first = 1000 * choice + self.after
            assert given == list(range(first, first + len(given))), "every token once and in order"
            if self.reader.ended:
                assert len(given) == max(0, count - self.after), "no end before the last token"
        if self.reader.ended:
            assert self.is_over, "no end before the job's"

    def finish(self):
        """The rest is lost; after the silence, the reader looks into the log."""
        self.num_logged = len(self.entries) + 1
        if not self.reader.ended:
            self.replay()
        self.look()


@settings(deadline=None, max_examples=300)
@given(jobs(), st.integers(0, 8), st.lists(MOVES, max_size=30), st.data())
def test_every_token_once_in_order_and_one_end(job, after, moves, data):
    entries, counts, state, reason = job
    channel = HostileChannel(entries, counts, state, reason, after)
    for move in moves:
        channel.move(move, data)
    channel.finish()

    reader = channel.reader
    assert reader.ended
    result = reader.result("m")
    assert [choice.token_ids for choice in result.choices] == [
        [1000 * index + i for i in range(count)] for index, count in enumerate(counts)
    ]
    assert result.state is state
    assert [choice.finish_reason for choice in result.choices] == [reason] * len(counts)
    assert (reader.error is not None) == (reason == "error")

    # And nothing that comes late changes anything.
    for late in channel.held + channel.seen:
        reader.feed(late)
    assert pop_all(reader) == []
    assert reader.result("m") == result


@settings(deadline=None, max_examples=100)
@given(jobs(), st.data())
def test_any_order_of_all_events_is_enough_where_one_replay_follows(job, data):
    entries, counts, state, reason = job
    channel = HostileChannel(entries, counts, state, reason, 0)
    for event in data.draw(st.permutations([*entries, channel.end])):
        channel.deliver(event)
    channel.finish()
    assert channel.reader.ended
