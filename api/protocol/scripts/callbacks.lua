-- CLOSE (protocol line 9), the marker: one caller may run the job's links and chain.
-- KEYS: job hash          -> 1 for that caller, else 0 (also where there is no such job)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
return redis.call('HSETNX', KEYS[1], 'callbacks', '1')
