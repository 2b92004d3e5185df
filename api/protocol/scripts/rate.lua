-- RATE: takes requests and tokens from the rate limits of an API key. Not a part of the job protocol. See `take` in the
-- prelude.
-- KEYS: hash of the key {requests, tokens, at}
-- ARGV: requests and tokens per minute ('': no limit), requests and tokens to take, '1': take them even below zero
-- -> {1, requests left, tokens left} (-1: no limit) | {0, 'requests' or 'tokens', ms until there are enough}
local limits = { tonumber(ARGV[1]), tonumber(ARGV[2]) }
local wanted = { tonumber(ARGV[3]), tonumber(ARGV[4]) }
if not wanted[1] or not wanted[2] or #ARGV < 5 then
  return redis.error_reply('ERR rate: ARGV must have two limits, two numbers and a flag')
end
return take(KEYS[1], limits, wanted, ARGV[5] == '1')
