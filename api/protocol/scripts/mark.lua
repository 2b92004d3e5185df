-- MARK (protocol line 5): makes jobs suspects before their first prefill reaches the device.
-- KEYS: suspects of the worker, job hash, ...          ARGV: worker, then id, epoch, ... (for each job hash)
-- -> for each job 1, or 0: the fence failed, and the worker must drop the sequence
local SUSPECTS_TTL_MS = 86400000
if #ARGV ~= 1 + 2 * (#KEYS - 1) then
  return redis.error_reply('ERR mark: ARGV must have an id and an epoch for each job hash')
end
local replies = {}
for index = 2, #KEYS do
  local id, epoch = ARGV[2 * index - 2], ARGV[2 * index - 1]
  local job = redis.pcall('HMGET', KEYS[index], 'state', 'owner', 'epoch')
  if job[1] == 'R' and job[2] == ARGV[1] and job[3] == epoch then
    redis.call('HSET', KEYS[index], 'suspect', '1')
    redis.call('SADD', KEYS[1], id)
    redis.call('PEXPIRE', KEYS[1], SUSPECTS_TTL_MS)
    replies[#replies + 1] = 1
  else
    replies[#replies + 1] = 0
  end
end
return replies
