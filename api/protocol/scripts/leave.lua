-- LEAVE (protocol lines 15 and 16): removes a client from a job's readers, and cancels the job if it was the last one
-- alive. A detached job is not cancelled.
-- KEYS: job hash          ARGV: id, client that leaves
-- -> 'read' (other readers are alive, or the job is detached) | the reply of CANCEL
local clients = redis.call('HGET', KEYS[1], 'clients') or ''
if clients == '' then
  return redis.call('EXISTS', KEYS[1]) == 1 and 'read' or 'missing'
end
local others, is_read = {}, false
for client in string.gmatch(clients, '%S+') do
  if client ~= ARGV[2] then
    others[#others + 1] = client
    is_read = is_read or redis.call('EXISTS', 'pf:client:' .. client) == 1
  end
end
if is_read then
  redis.call('HSET', KEYS[1], 'clients', table.concat(others, ' '))
  return 'read'
end
local verdict = cancel_job(KEYS[1], ARGV[1])
publish_announced()
return verdict
