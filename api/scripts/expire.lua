-- SWEEP (protocol line 13), deadlines: a job that still waits when its time is up has ended.
-- KEYS: job hash          ARGV: id
-- -> 'ended' (the caller must CLOSE) | 'kept' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'deadline')
if not job[1] then
  return 'missing'
end
if job[1] ~= 'Q' or not job[2] or now_ms() <= tonumber(job[2]) then
  return 'kept'
end
end_job(KEYS[1], ARGV[1], 'F', 'deadline', '')
publish_announced()
return 'ended'
