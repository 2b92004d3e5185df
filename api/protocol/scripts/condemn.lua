-- CONDEMN: turns a job whose hash or log cannot be read into a dead letter, repaired as far as possible.
-- KEYS: job hash, log, open ledger of its queue, dead letters
-- ARGV: id, error (JSON), TTL in ms of a dead letter, '1': only a job without a hash
-- -> 'dead' | 'missing' (no hash: removed from its ledger) | 'no-hash' (a key of another type: it will expire)
--    | 'known' (another caller did it, and counts it) | 'kept' (the job has a hash again)
local NUMBERS = { 'epoch', 'attempts', 'num_ended', 'deadline', 'ttl', 'num_prompt_tokens',
  'num_cached_tokens', 'n:0', 'enqueued_at',
  'claimed_at', 'first_token_at', 'ended_at', 'blame', 'fruitless', 'priority' }
local key, id = KEYS[1], ARGV[1]
if not pcall(cjson.decode, ARGV[2]) or not tonumber(ARGV[3]) then
  return redis.error_reply('ERR condemn: ARGV must have an error as JSON and a TTL')
end
local kind = redis.call('TYPE', key).ok
if ARGV[4] == '1' and kind == 'hash' and redis.call('HGET', key, 'state') then
  return 'kept' -- its client has submitted it again
end
local listed = redis.call('TYPE', KEYS[3]).ok == 'zset' and redis.call('ZREM', KEYS[3], id) == 1
if kind == 'none' then
  redis.call('DEL', KEYS[2])
  return listed and 'missing' or 'known'
end
redis.call('PEXPIRE', key, ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if kind ~= 'hash' then
  return listed and 'no-hash' or 'known'
end
if is_final(redis.call('HGET', key, 'state')) and redis.call('HGET', key, 'condemned') then
  return 'known'
end
for _, name in ipairs(NUMBERS) do
  local value = redis.call('HGET', key, name)
  if value and not string.match(value, '^%d%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?$') then
    redis.call('HDEL', key, name)
  end
end
-- Hash and log disagree about the tokens. A reader would wait for the missing ones, so all are dropped.
redis.call('DEL', KEYS[2])
redis.call('HDEL', key, 'fingerprints', 'fingerprint', 'fin:0', 'n:0')
-- The number of choices may be wrong, and CLOSE will see 1: the tenant's places of all choices are removed here.
local tenant_ledger = redis.call('HGET', key, 'tenant_ledger')
if tenant_ledger and tenant_ledger ~= '' then
  redis.pcall('ZREM', tenant_ledger, unpack(places_of(id, MAX_CHOICES)))
end
redis.call('HSET', key, 'num_choices', '1', 'condemned', '1', 'state', 'R')
redis.call('HSETNX', key, 'queue', string.sub(KEYS[3], string.len('pf:open:') + 1))
redis.call('HSETNX', key, 'request', '{}')
end_job(key, id, 'X', 'error', ARGV[2])
publish_announced()
redis.call('ZADD', KEYS[4], now_ms(), id)
return 'dead'
