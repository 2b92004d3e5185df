-- SWEEP (protocol line 13), a job that was to begin later, or that was refused and has waited: from now on it is
-- one as any other, and is sent. Were its message lost, it would be found as any other's is.
-- KEYS: job hash          ARGV: 1: a worker has the weights that a refused job waits for, so it is due at once
-- -> 1: due, the caller sends it | 0
local job = redis.call('HMGET', KEYS[1], 'state', 'not_before', 'refused')
local not_before = tonumber(job[2])
if job[1] ~= 'Q' or not not_before then
  return 0
end
if now_ms() < not_before and not (ARGV[1] == '1' and job[3]) then
  return 0
end
redis.call('HDEL', KEYS[1], 'not_before')
return 1
