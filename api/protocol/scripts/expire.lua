-- SWEEP (protocol line 13): ends a queued job that is past its deadline or its start_by. A refused job becomes a dead
-- letter instead, at its deadline or when it has waited too long for its weights.
-- KEYS: job hash, dead letters          ARGV: id
-- -> 'ended' (the caller must CLOSE) | 'kept' | 'missing'
local job, now = redis.call('HMGET', KEYS[1], 'state', 'deadline', 'refused', 'refused_until'), now_ms()
if not job[1] then
  return 'missing'
end
if job[1] ~= 'Q' then
  return 'kept'
end
local is_late = job[2] and now > tonumber(job[2])
if job[3] and (is_late or now > (tonumber(job[4]) or math.huge)) then
  end_refused(KEYS[1], ARGV[1], KEYS[2], now)
elseif is_late then
  end_job(KEYS[1], ARGV[1], 'F', 'deadline', '')
elseif not end_unstarted(KEYS[1], ARGV[1], now) then
  return 'kept'
end
publish_announced()
return 'ended'
