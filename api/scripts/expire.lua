-- SWEEP (protocol line 13), deadlines: a job that still waits when its time is up has ended.
-- KEYS: job hash          ARGV: id
-- -> 'ended' (the caller must CLOSE) | 'kept' | 'missing'
local job, now = redis.call('HMGET', KEYS[1], 'state', 'deadline'), now_ms()
if not job[1] then
  return 'missing'
end
if job[1] ~= 'Q' then
  return 'kept'
end
if job[2] and now > tonumber(job[2]) then
  end_job(KEYS[1], ARGV[1], 'F', 'deadline', '')
elseif not end_unstarted(KEYS[1], ARGV[1], now) then
  return 'kept'
end
publish_announced()
return 'ended'
