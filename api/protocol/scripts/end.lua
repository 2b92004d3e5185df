-- END and FAIL by the owner (protocol lines 7 and 8): puts the job into a final state other than D.
-- KEYS: job hash
-- ARGV: id, worker, epoch, state, finish reason, error (JSON or '')
-- -> 'ended' | 'fenced' | 'missing'
local id, worker, epoch, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not is_final(state) then
  return redis.error_reply('ERR end: the state must be final, not ' .. state)
end
if ARGV[6] ~= '' and not pcall(cjson.decode, ARGV[6]) then
  return redis.error_reply('ERR end: the error must be JSON')
end
local job = redis.call('HMGET', KEYS[1], 'state', 'owner', 'epoch')
if not job[1] then
  return 'missing'
end
if job[2] ~= worker or job[3] ~= epoch then
  return 'fenced'
end
if job[1] == state then
  return 'ended' -- a retry: the reply to the first call was lost
end
if job[1] ~= 'R' then
  return 'fenced'
end
clear_suspect(KEYS[1], id, worker)
end_job(KEYS[1], id, state, ARGV[5], ARGV[6])
publish_announced()
return 'ended'
