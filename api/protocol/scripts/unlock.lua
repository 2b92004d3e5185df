-- UNLOCK (protocol lines 11 and 13): releases a lock if it still has the caller's token.
-- KEYS: lock          ARGV: token
-- -> 1: released | 0: it has expired, or another caller holds it
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
