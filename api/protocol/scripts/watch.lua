-- ATTACH (protocol line 15): from now on the job publishes on its own channel too.
-- KEYS: job hash          ARGV: id of the client that reads it from now on
-- -> 1, or 0 where there is no such job
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local clients = redis.call('HGET', KEYS[1], 'clients') or ''
redis.call('HSET', KEYS[1], 'watched', '1')
-- A job that is not detached lives as long as one of its readers does.
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
