-- CONDEMN: a job that cannot be read by anybody becomes a dead letter, readable again as far as possible.
-- KEYS: job hash, log, open ledger of its queue, dead letters
-- ARGV: id, error (JSON), ttl in ms of a dead letter
-- -> 'dead' | 'missing' | 'final' | 'no-hash' (a key of another type: left to expire)
local NUMBERS = { 'epoch', 'attempts', 'num_ended', 'deadline', 'ttl', 'num_prompt_tokens', 'n:0', 'enqueued_at',
  'claimed_at', 'first_token_at', 'ended_at', 'blame', 'fruitless', 'priority' }
local key, id = KEYS[1], ARGV[1]
if not pcall(cjson.decode, ARGV[2]) or not tonumber(ARGV[3]) then
  return redis.error_reply('ERR condemn: an error as JSON and a number')
end
if redis.call('TYPE', KEYS[3]).ok == 'zset' then
  redis.call('ZREM', KEYS[3], id)
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
local kind = redis.call('TYPE', key).ok
if kind == 'none' then
  return 'missing'
end
redis.call('PEXPIRE', key, ARGV[3])
if kind ~= 'hash' then
  return 'no-hash'
end
if is_final(redis.call('HGET', key, 'state')) and redis.call('HGET', key, 'condemned') then
  return 'final'
end
for _, name in ipairs(NUMBERS) do
  local value = redis.call('HGET', key, name)
  if value and not string.match(value, '^%d%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?%d?$') then
    redis.call('HDEL', key, name)
  end
end
redis.call('HDEL', key, 'fingerprints', 'fingerprint', 'fin:0')
redis.call('HSET', key, 'num_choices', '1', 'condemned', '1', 'state', 'R')
redis.call('HSETNX', key, 'queue', string.sub(KEYS[3], string.len('pf:open:') + 1))
end_job(key, id, 'X', 'error', ARGV[2])
publish_announced()
redis.call('ZADD', KEYS[4], now_ms(), id)
return 'dead'
