-- CLOSE (protocol line 9), last part: removes a final job from its ledgers, charges its API key and lets it expire. The
-- caller has written the result before.
-- KEYS: job hash, log, open ledger of its queue, Celery's result
-- ARGV: id, default TTL in ms, TTL in ms of a dead letter
-- -> 'closed' | 'missing' | 'open' (the job is not final; nothing was done)
local job = redis.call('HMGET', KEYS[1], 'state', 'ttl', 'tenant_ledger', 'charge', 'num_choices', 'num_prompt_tokens',
  'tenant', 'stored', 'request')
local state, ttl = job[1], job[2] or ARGV[2]
local num_choices = math.min(tonumber(job[5]) or 1, MAX_CHOICES)
if state and not is_final(state) then
  return 'open'
end
redis.call('ZREM', KEYS[3], ARGV[1])
-- The job was deleted: no result of it may remain, even one that was written late.
if not state or ttl == '0' then
  redis.call('DEL', KEYS[4])
end
if not state then
  return 'missing'
end
if job[3] and job[3] ~= '' then
  redis.call('ZREM', job[3], unpack(places_of(ARGV[1], num_choices)))
end
-- Replaces the reserved tokens of the API key by the tokens that were computed, once, for every way in which a job can
-- end. If the count cannot be read, the reserved tokens stay charged.
local function charge()
  local key_id, reserved, requests, tokens = string.match(job[4], '^(%S+) (%d+) (%S+) (%S+)$')
  local used = tonumber(job[6]) or 0
  for choice = 0, num_choices - 1 do
    used = used + (tonumber(redis.call('HGET', KEYS[1], 'n:' .. choice)) or 0)
  end
  take('pf:rate:' .. key_id, { tonumber(requests), tonumber(tokens) }, { 0, used - tonumber(reserved) }, true)
end
if job[4] and job[4] ~= '' then
  redis.call('HSET', KEYS[1], 'charge', '')
  pcall(charge)
end
if state == 'X' and ttl ~= '0' then
  ttl = ARGV[3]
end
-- Measures the tenant's bytes. The log contains the same text as Celery's result, plus a frame for each entry.
local ENTRY_BYTES = 64
local function measure()
  local result, num_entries = redis.call('GET', KEYS[4]) or '', redis.call('LLEN', KEYS[2])
  local bytes = math.max(1, #(job[9] or '') + 2 * #result + ENTRY_BYTES * num_entries)
  local ledger, sum = stored_keys(job[7])
  uncount_stored(ledger, sum, ARGV[1] .. ' ' .. job[8])
  if ttl ~= '0' then
    redis.call('HSET', KEYS[1], 'stored', bytes)
    -- One second later than the TTL, when the job is certainly gone.
    count_stored(ledger, sum, ARGV[1] .. ' ' .. bytes, now_ms() + tonumber(ttl) + 1000)
  end
end
if job[7] and job[8] then
  pcall(measure)
end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return 'closed'
