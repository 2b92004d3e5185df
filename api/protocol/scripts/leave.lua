-- CANCEL by the last reader (protocol lines 15 and 16): a job that is not detached lives as long as one of its
-- clients does. Who leaves is no client of it any more, so that the sweeper need not wait for the end of it.
-- KEYS: job hash          ARGV: id, client that has left
-- -> 'read', where it is nobody's to end | what CANCEL says
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
