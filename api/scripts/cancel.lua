-- CANCEL (protocol line 16): ends a job that nobody runs, flags one that a live worker runs.
-- KEYS: job hash          ARGV: id
-- -> 'ended' (the caller must CLOSE) | 'flagged' | 'final' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'owner')
if not job[1] then
  return 'missing'
end
if is_final(job[1]) then
  return 'final'
end
if job[1] == 'R' and lease_alive(job[2]) then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  return 'flagged'
end
end_job(KEYS[1], ARGV[1], 'C', 'cancelled', '')
publish_announced()
return 'ended'
