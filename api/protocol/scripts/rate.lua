-- RATE: takes from what an API key has left of its minute; no part of the jobs' protocol. See `take` in the prelude.
-- KEYS: hash of the key {requests, tokens, at}
-- ARGV: requests and tokens per minute ('' is no limit), requests and tokens to take, '1' to take them anyway
-- -> {1, requests left, tokens left} | {0, 'requests' or 'tokens', ms until there is enough}; -1 left: no limit
local limits = { tonumber(ARGV[1]), tonumber(ARGV[2]) }
local wanted = { tonumber(ARGV[3]), tonumber(ARGV[4]) }
if not wanted[1] or not wanted[2] or #ARGV < 5 then
  return redis.error_reply('ERR rate: two limits, two numbers and a flag')
end
return take(KEYS[1], limits, wanted, ARGV[5] == '1')
