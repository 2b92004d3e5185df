-- WATCH, for ATTACH (protocol line 15): makes the job publish on its own channel too, and adds a client to its readers.
-- KEYS: job hash          ARGV: id of the client that reads it
-- -> 1 | 0: the job does not exist
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local clients = redis.call('HGET', KEYS[1], 'clients') or ''
redis.call('HSET', KEYS[1], 'watched', '1')
-- A job that is not detached is cancelled when all its readers are gone.
if clients ~= '' and ARGV[1] ~= '' then
  local alive = { ARGV[1] }
  for client in string.gmatch(clients, '%S+') do
    if client ~= ARGV[1] and redis.call('EXISTS', 'pf:client:' .. client) == 1 then
      alive[#alive + 1] = client
    end
  end
  redis.call('HSET', KEYS[1], 'clients', table.concat(alive, ' '))
end
return 1
