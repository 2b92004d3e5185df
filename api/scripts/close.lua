-- CLOSE (protocol line 9), last part: the result is written, the job leaves its ledgers and may expire.
-- KEYS: job hash, log, open ledger of its queue, Celery's result
-- ARGV: id, ttl in ms where the job has none of its own, ttl in ms of a dead letter
-- -> 'closed' | 'missing' | 'open' (not final: nothing was done)
local job = redis.call('HMGET', KEYS[1], 'state', 'ttl', 'tenant_ledger')
local state, ttl = job[1], job[2] or ARGV[2]
if state and not is_final(state) then
  return 'open'
end
redis.call('ZREM', KEYS[3], ARGV[1])
-- Deleted: the result must not outlive it, whoever wrote it last.
if not state or ttl == '0' then
  redis.call('DEL', KEYS[4])
end
if not state then
  return 'missing'
end
if job[3] and job[3] ~= '' then
  redis.call('ZREM', job[3], ARGV[1])
end
if state == 'X' and ttl ~= '0' then
  ttl = ARGV[3]
end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return 'closed'
