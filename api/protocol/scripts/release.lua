-- RELEASE (protocol line 8): puts a running job back into the queued state; any worker may continue it.
-- KEYS: job hash          ARGV: worker, epoch, id
-- -> 'released' | 'fenced' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'owner', 'epoch')
if not job[1] then
  return 'missing'
end
if job[2] ~= ARGV[1] or job[3] ~= ARGV[2] then
  return 'fenced'
end
if job[1] == 'Q' then
  return 'released' -- a retry: the reply to the first call was lost
end
if job[1] ~= 'R' then
  return 'fenced'
end
redis.call('HSET', KEYS[1], 'state', 'Q')
clear_suspect(KEYS[1], ARGV[3], ARGV[1])
return 'released'
