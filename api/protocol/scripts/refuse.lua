-- REFUSE: stores a failed Celery result for a message that cannot become a job, or for a follow-up that will not be
-- sent. Stores nothing if a job or a final result has this id, because a wrong message must not affect it.
-- KEYS: job hash, Celery's result          ARGV: result (JSON), TTL in ms
-- -> 1: stored | 0: nothing was stored
if not tonumber(ARGV[2]) or redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
return store_result(KEYS[2], ARGV[1], ARGV[2]) and 1 or 0
