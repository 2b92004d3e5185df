-- CLAIM (protocol line 4): a worker takes a job that its queue gave it, with a new epoch.
-- KEYS: job hash, lease of the claiming worker
-- ARGV: id, worker, fingerprint (JSON)
-- -> {'missing'} | {'final'} | {'no-lease'} | {'elsewhere'} | {'ended'}
--    | {'claimed', epoch, attempts, request, num_choices, n:0, n:1, ...}
local id, worker, fingerprint = ARGV[1], ARGV[2], ARGV[3]
local job = redis.call('HMGET', KEYS[1], 'state', 'owner', 'cancel', 'deadline', 'request', 'num_choices')
local state, owner = job[1], job[2]
if not state then
  return { 'missing' }
end
if is_final(state) then
  return { 'final' }
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return { 'no-lease' }
end
if state == 'R' and owner ~= worker and lease_alive(owner) then
  return { 'elsewhere' }
end
local now = now_ms()
if job[3] == '1' then
  end_job(KEYS[1], id, 'C', 'cancelled', '')
  publish_announced()
  return { 'ended' }
end
if job[4] and now > tonumber(job[4]) then
  end_job(KEYS[1], id, 'F', 'deadline', '')
  publish_announced()
  return { 'ended' }
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
local attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'state', 'R', 'owner', worker, 'claimed_at', now, 'suspect', '0',
  'fingerprint', fingerprint)
local reply = { 'claimed', epoch, attempts, job[5], tonumber(job[6]) }
for choice = 0, tonumber(job[6]) - 1 do
  reply[#reply + 1] = tonumber(redis.call('HGET', KEYS[1], 'n:' .. choice) or '0')
end
return reply
