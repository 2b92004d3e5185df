-- ATTACH (protocol line 15): from now on the job publishes on its own channel too.
-- KEYS: job hash          -> 1, or 0 where there is no such job
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'watched', '1')
return 1
