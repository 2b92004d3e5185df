-- MARK (protocol line 5): before a job's first prefill reaches the device, it becomes a suspect.
-- KEYS: job hash, ...          ARGV: worker, then epoch, ... (one for each key)
-- -> for each key 1, or 0 where the fence failed and the worker must drop the sequence
local replies = {}
for index, key in ipairs(KEYS) do
  local job = redis.call('HMGET', key, 'state', 'owner', 'epoch')
  if job[1] == 'R' and job[2] == ARGV[1] and job[3] == ARGV[index + 1] then
    redis.call('HSET', key, 'suspect', '1')
    replies[index] = 1
  else
    replies[index] = 0
  end
end
return replies
