-- DELETE: removes the prompt, the log and the outcome of a job. A job that has not ended is cancelled (protocol line
-- 16), and CLOSE then removes it. A tombstone without content remains as long as the result would have, at most a day,
-- so that a reader that missed the end does not submit the job again.
-- KEYS: job hash, log, open ledger of its queue, dead letters, Celery's result, tombstone
-- ARGV: id, default TTL in ms
-- -> 'deleted' | 'ended' (the caller must CLOSE) | 'flagged' (its worker will end it) | 'missing'
local MAX_TOMBSTONE_MS = 86400000
local key, default_ttl = KEYS[1], tonumber(ARGV[2])
if not default_ttl then
  return redis.error_reply('ERR delete: the TTL must be a number')
end
local job = redis.call('HMGET', key, 'state', 'tenant', 'stored')
local state = job[1]
if not state then
  return 'missing'
end
local ttl = tonumber(redis.call('HGET', key, 'ttl') or '')
ttl = ttl and ttl >= 1 and ttl or default_ttl
redis.call('SET', KEYS[6], '1', 'PX', string.format('%.0f', math.min(ttl, MAX_TOMBSTONE_MS)), 'NX')
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', recent_jobs(job[2]), ARGV[1])
if is_final(state) and not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  if job[2] and job[3] then
    local ledger, sum = stored_keys(job[2])
    uncount_stored(ledger, sum, ARGV[1] .. ' ' .. job[3])
  end
  redis.call('DEL', key, KEYS[2], KEYS[5])
  return 'deleted'
end
redis.call('HSET', key, 'ttl', '0')
local verdict = cancel_job(key, ARGV[1])
publish_announced()
return verdict == 'final' and 'ended' or verdict
