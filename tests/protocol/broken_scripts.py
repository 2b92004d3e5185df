"""Faults put into the scripts on their way to the server, each with the scenario that must notice it."""

from __future__ import annotations

from typing import NamedTuple

from protocol.scenarios import Scenario, begun, begun_pair, mixed, unattended
from protocol.script_server import FAR, Broken


class Mistake(NamedTuple):
    what: str
    broken: tuple[Broken, ...]
    scenario: Scenario
    finds: str
    """Part of what the checker says."""


MISTAKES = [
    Mistake(
        "SUBMIT does not list the job as one of its tenant's newest",
        (Broken("submit", "redis.call('ZADD', KEYS[4], now, id)", ""),),
        unattended(),
        "is not among its tenant's newest",
    ),
    Mistake(
        "SUBMIT does not count the job's bytes",
        (Broken("submit", "count_stored(KEYS[8], KEYS[9], id .. ' ' .. ARGV[9], now + LOOK_AGAIN_MS)", ""),),
        unattended(),
        "what counts for a tenant is not what its jobs take",
    ),
    Mistake(
        "CLOSE counts what was reserved and what is stored",
        (Broken("close", "uncount_stored(ledger, sum, ARGV[1] .. ' ' .. job[8])", ""),),
        unattended(),
        "what counts for a tenant is not what its jobs take",
    ),
    Mistake(
        "CLOSE of a deleted job leaves its bytes",
        (Broken("close", "if job[7] and job[8] then", "if job[7] and job[8] and ttl ~= '0' then"),),
        unattended("delete"),
        "what counts for a tenant is not what its jobs take",
    ),
    Mistake(
        "DELETE leaves the job's bytes",
        (Broken("delete", "uncount_stored(ledger, sum, ARGV[1] .. ' ' .. job[3])", ""),),
        unattended("delete"),
        "what counts for a tenant is not what its jobs take",
    ),
    Mistake(
        "DELETE leaves the job among its tenant's newest",
        (Broken("delete", "recent_jobs(job[2])", "'pf:recent:'"),),
        unattended("delete"),
        "although it was deleted",
    ),
    Mistake(
        "SUBMIT sends a deleted job again",
        (Broken("submit", "if again == '1' and", "if false and"),),
        Scenario(("client drop", "delete")),
        "a deleted job is computed again",
    ),
    Mistake(
        "DELETE leaves no tombstone",
        (Broken("delete", "redis.call('SET', KEYS[6], '1', 'PX',", "tostring("),),
        unattended("delete"),
        "left no tombstone",
    ),
    Mistake(
        "SUBMIT keeps the list of a tenant's newest jobs for ever",
        (Broken("submit", "redis.call('PEXPIRE', KEYS[4], RECENT_MS)", ""),),
        unattended(),
        "newest jobs never expires",
    ),
    Mistake(
        "STEP asks for the epoch alone: after a rollback two workers have the same one",
        (Broken("step", "job[2] == worker and job[3] ==", "job[3] =="),),
        unattended("rollback"),
        "two workers pass the fence",
    ),
    Mistake(
        "STEP does not look whether the job has ended",
        (Broken("step", "if not mine or job[1] ~= 'R' then", "if not mine then"),),
        begun("pause", "cancel"),
        "tokens were logged after the end",
    ),
    Mistake(
        "STEP has no fence at all",
        (Broken("step", "local mine = job[2] == worker and", "local mine = true or"),),
        unattended("pause"),
        "two workers pass the fence",
    ),
    Mistake(
        "CLAIM takes a job without a lease of its own",
        (Broken("claim", "if redis.call('EXISTS', KEYS[2]) == 0 then", "if false then"),),
        unattended("pause"),
        "a worker claimed without a lease",
    ),
    Mistake(
        "CLAIM takes a living worker's job",
        (Broken("claim", "owner ~= worker and lease_alive(owner)", "false"),),
        unattended("duplicate"),
        "a death was counted where nobody died",
    ),
    Mistake(
        "CLAIM goes on with an ended job",
        (
            Broken("claim", "if is_final(state) then", "if false then"),
            Broken("claim", "if num_ended >= num_choices or", "if false and"),
        ),
        unattended("duplicate"),
        "a final state changed",
    ),
    Mistake(
        "CLAIM takes a job before its time",
        (Broken("claim", "if state == 'Q' and now_ms() < not_before and", "if false and"),),
        unattended("duplicate", not_before=FAR),
        "a job was claimed before its time",
    ),
    Mistake(
        "CLAIM goes on with other weights",
        (Broken("claim", "if num_tokens > 0 and was_of_another_model() then", "if false then"),),
        mixed("drain"),
        "a job went on with other weights",
    ),
    Mistake(
        "CLAIM refuses a job that is sent again at once",
        (Broken("claim", "'backoff', backoff, 'not_before', now + wait)", "'backoff', backoff)"),),
        mixed("drain"),
        "a job was refused and does not wait",
    ),
    Mistake(
        "EXPIRE fails a job that was refused until its deadline",
        (Broken("expire", "if job[3] and (is_late or", "if job[3] and not is_late and ("),),
        mixed("drain", "deadline"),
        "a job that was refused failed",
    ),
    Mistake(
        "CLAIM stores STARTED over a final result",
        (Broken("claim", "if has_final_result(key) then", "if false then"),),
        unattended("foreign revoke"),
        "the result went from REVOKED to STARTED",
    ),
    Mistake(
        "CLAIM stores STARTED before it looks whether the job is there",
        (Broken("claim", "local key, dead_letters = KEYS[1], KEYS[3]",
                "local key, dead_letters = KEYS[1], KEYS[3]\nstore_result(KEYS[4], started, ttl)"),),
        unattended("delete"),
        "a job that has ended or is gone became STARTED",
    ),
    Mistake(
        "CLOSE of a deleted job leaves its result",
        (Broken("close", "redis.call('DEL', KEYS[4])", ""),),
        unattended("delete"),
        "a job that is gone is STARTED for ever",
    ),
    Mistake(
        "MARK makes no suspect",
        (Broken("mark", "redis.call('HSET', KEYS[index], 'suspect', '1')", ""),),
        begun(),
        "a first prefill reached the device without a mark",
    ),
    Mistake(
        "MARK does not list the suspect",
        (Broken("mark", "redis.call('SADD', KEYS[1], id)", ""),),
        begun(),
        "a suspect is missing from its worker's list",
    ),
    Mistake(
        "MARK has no fence",
        (Broken("mark", "if job[1] == 'R' and job[2] == ARGV[1] and job[3] == epoch then", "if true then"),),
        begun("pause"),
        "a suspect is missing from its worker's list",
    ),
    Mistake(
        "STEP does not clear the suspicion with the first token",
        (Broken("step", "if job[9] == '1' then", "if false then"),),
        unattended(),
        "a job is suspect although its first prefill is over",
    ),
    Mistake(
        "CLAIM blames whoever was there",
        (Broken("claim", "if job[7] == '1' then", "if true then"),),
        unattended("death"),
        "a bystander was blamed",
    ),
    Mistake(
        "CLAIM does not ask who else was suspect",
        (Broken("claim", "redis.call('SCARD', suspects_of(owner)) <= 1", "true"),),
        begun_pair("death"),
        "one of several suspects was blamed",
    ),
    Mistake(
        "A cancelled suspect is taken off a dead worker's list",
        (Broken("cancel", "end_job(key, id, 'C', 'cancelled', '')",
                "clear_suspect(key, id, job[2])\n  end_job(key, id, 'C', 'cancelled', '')"),),
        begun_pair("death", "cancel"),
        "one of several suspects was blamed",
    ),
    Mistake(
        "CLAIM never gives a job up",
        (Broken("claim", "if num_blamed >= MAX_BLAME then", "if false then"),),
        unattended("death", solo="1", blame="2"),
        "a job above its cap of deaths was not given up",
    ),
    Mistake(
        "A job that was given up is no dead letter",
        (Broken("claim", "redis.call('ZADD', dead_letters, now, id)", ""),),
        unattended("death", solo="1", blame="2"),
        "is no dead letter",
    ),
    Mistake(
        "STEP applies what it has again",
        (Broken("step", "if base == n and count > 0 then", "if count > 0 then"),
         Broken("step", "redis.call('HSET', key, count_of[choice], num_tokens)",
                "redis.call('HINCRBY', key, count_of[choice], 1)")),
        unattended("lost reply"),
        "the log holds the tokens",
    ),
    Mistake(
        "STEP ends a job as soon as a reason comes, counted or not",
        (Broken("step", "if base > n or (base < n and base + count > n) then", "if false then"),
         Broken("step", "if reason and n == base + count then", "if reason then")),
        unattended("rollback"),
        "D with",
    ),
    Mistake(
        "CLOSE leaves the job in its ledger",
        (Broken("close", "redis.call('ZREM', KEYS[3], ARGV[1])", ""),),
        unattended(),
        "differ",
    ),
    Mistake(
        "CLOSE charges a job each time",
        (Broken("close", "redis.call('HSET', KEYS[1], 'charge', '')", ""),),
        unattended("lost reply"),
        "tokens were charged where",
    ),
    Mistake(
        "CLOSE gives back what was reserved and charges nothing",
        (Broken("close", "{ 0, used - tonumber(reserved) }", "{ 0, - tonumber(reserved) }"),),
        unattended(),
        "tokens were charged where",
    ),
    Mistake(
        "CLOSE does not charge what is deleted",
        (Broken("close", "if job[4] and job[4] ~= '' then",
                "if job[4] and job[4] ~= '' and ttl ~= '0' then"),),
        unattended("delete"),
        "tokens were charged where",
    ),
    Mistake(
        "CLOSE forgets the tenant's ledger",
        (Broken("close", "redis.call('ZREM', job[3], unpack(places_of(ARGV[1], num_choices)))", ""),),
        unattended(),
        "differ",
    ),
    Mistake(
        "CLOSE keeps the log for ever",
        (Broken("close", "redis.call('PEXPIRE', KEYS[2], ttl)", ""),),
        unattended(),
        "never expires",
    ),
    Mistake(
        "RELEASE leaves the job running: its owner is gone, and nobody is told",
        (Broken("release", "redis.call('HSET', KEYS[1], 'state', 'Q')", ""),),
        unattended("drain"),
        "a death was counted where nobody died",
    ),
    Mistake(
        "CANCEL does not look whether the job has ended",
        (Broken("cancel", "if is_final(job[1]) then", "if false then"),),
        unattended("cancel"),
        "a final state changed",
    ),
    Mistake(
        "CANCEL of what is queued does not look whether it is",
        (Broken("cancel", "if ARGV[2] == '1' and", "if false and"),),
        unattended("revoke"),
        "a revoke met a job that runs",
    ),
]  # fmt: skip
