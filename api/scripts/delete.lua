-- DELETE: prompt, log and outcome are removed. What has not ended is cancelled first (protocol line 16), and
-- CLOSE then removes it in place of keeping it for a while.
-- KEYS: job hash, log, open ledger of its queue, dead letters, Celery's result          ARGV: id
-- -> 'deleted' | 'ended' (the caller must CLOSE) | 'flagged' (its worker will) | 'missing'
local key = KEYS[1]
local state = redis.call('HGET', key, 'state')
if not state then
  return 'missing'
end
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', recent_jobs(redis.call('HGET', key, 'tenant')), ARGV[1])
if is_final(state) and not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  redis.call('DEL', key, KEYS[2], KEYS[5])
  return 'deleted'
end
redis.call('HSET', key, 'ttl', '0')
local verdict = cancel_job(key, ARGV[1])
publish_announced()
return verdict == 'final' and 'ended' or verdict
