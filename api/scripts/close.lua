-- CLOSE (protocol line 9), last part: the result is written, the job leaves its ledger and may expire.
-- KEYS: job hash, log, open ledger of its queue          ARGV: id, ttl in ms
-- -> 'closed' | 'missing' | 'open' (not final: nothing was done)
local state = redis.call('HGET', KEYS[1], 'state')
if state and not is_final(state) then
  return 'open'
end
redis.call('ZREM', KEYS[3], ARGV[1])
if not state then
  return 'missing'
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 'closed'
