-- SWEEP (protocol line 13): makes a scheduled or refused job an ordinary queued one when its time has come. The caller
-- sends its message; if that is lost, the sweeper sends a new one, as for every queued job.
-- KEYS: job hash          ARGV: '1': a worker has the weights that a refused job waits for, so it is due now
-- -> 1: the job is due, the caller sends it | 0: not due
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
