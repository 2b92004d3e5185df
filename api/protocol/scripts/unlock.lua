-- Gives a lock back, but only the one that was taken.
-- KEYS: lock          ARGV: token          -> 1 | 0 (it had expired, or is another's by now)
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
