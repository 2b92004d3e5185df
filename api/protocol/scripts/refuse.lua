-- REFUSE: a message that no job can be made of, or a follow-up that will never be sent, gets a failed result. Never
-- where there is such a job or a final result: a wrong message must not speak for another one's id.
-- KEYS: job hash, Celery's result          ARGV: result (JSON), ttl in ms
-- -> 1 | 0: nothing was stored
if not tonumber(ARGV[2]) or redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
return store_result(KEYS[2], ARGV[1], ARGV[2]) and 1 or 0
