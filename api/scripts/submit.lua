-- SUBMIT (protocol line 1): a new job becomes queued, unless its queue is too deep or it exists.
-- KEYS: job hash, open ledger of its queue
-- ARGV: id, max depth, deadline in ms from now or '', then field, value, ... of the hash
-- -> {'created'} | {'exists'} | {'full', depth}
local id, max_depth, deadline = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if not max_depth or (deadline ~= '' and not tonumber(deadline)) or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply('ERR submit: a depth, a deadline or none, and pairs of field and value')
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 'exists' }
end
local depth = redis.call('ZCARD', KEYS[2])
if depth >= max_depth then
  return { 'full', depth }
end
local now = now_ms()
redis.call('HSET', KEYS[1], 'state', 'Q', 'epoch', '0', 'attempts', '0', 'num_ended', '0',
  'enqueued_at', now, unpack(ARGV, 4))
if deadline ~= '' then
  redis.call('HSET', KEYS[1], 'deadline', now + tonumber(deadline))
end
redis.call('ZADD', KEYS[2], now, id)
return { 'created' }
