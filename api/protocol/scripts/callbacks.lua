-- CLOSE (protocol line 9), the marker: lets exactly one caller run the job's Celery links and chain.
-- KEYS: job hash
-- -> 1: this caller runs them | 0: another caller does, or the job does not exist
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
return redis.call('HSETNX', KEYS[1], 'callbacks', '1')
