-- RELEASE (protocol line 8): a worker gives a job back; any worker may go on with it.
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
  return 'released' -- the reply to this very call was lost
end
if job[1] ~= 'R' then
  return 'fenced'
end
redis.call('HSET', KEYS[1], 'state', 'Q')
clear_suspect(KEYS[1], ARGV[3], ARGV[1])
return 'released'
