-- SUBMIT (protocol line 1): a new job becomes queued, unless its queue is too deep or it exists.
-- KEYS: job hash, log, open ledger of its queue, the newest jobs of its tenant (or of nobody's), tombstone, then the
--       ledger of its tenant if it has one
-- ARGV: id, max depth, max depth of one tenant, deadline in ms from now or '', '1': sends a lost job again,
--       hash of what its caller asked for or '', then field, value, ... of the hash
-- -> {'created'} | {'exists'} | {'other'} (the id is that of another request) | {'deleted'} | {'full', depth}
--    | {'tenant-full', depth}
local RECENT_JOBS, RECENT_MS = 500, 86400000
local id, max_depth, max_tenant_depth, deadline = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local again, asked = ARGV[5], ARGV[6]
if not max_depth or not max_tenant_depth or (deadline ~= '' and not tonumber(deadline)) or #ARGV < 8
  or #ARGV % 2 == 1 then
  return redis.error_reply('ERR submit: two depths, a deadline or none, a flag, a hash, and pairs of field and value')
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- A job without a hash of its request was written by an older version: it is read as it always was.
  local theirs = redis.pcall('HGET', KEYS[1], 'asked')
  local is_other = asked ~= '' and type(theirs) == 'string' and theirs ~= asked
  return { is_other and 'other' or 'exists' }
end
if again == '1' and redis.call('EXISTS', KEYS[5]) == 1 then
  return { 'deleted' }
end
local depth = redis.call('ZCARD', KEYS[3])
if depth >= max_depth then
  return { 'full', depth }
end

local now = now_ms()

-- A tenant's ledger has nobody who sweeps it: whoever finds it full takes out what has gone. It looks at a
-- hundred somewhere: were it the oldest, a hundred jobs that run for hours would hide the others as long.
local LOOKED_AT = 100
local function tenant_depth(ledger)
  local count = redis.call('ZCARD', ledger)
  if count >= max_tenant_depth then
    local first = now % math.max(1, count - LOOKED_AT + 1)
    for _, other in ipairs(redis.call('ZRANGE', ledger, first, first + LOOKED_AT - 1)) do
      local state = redis.call('HGET', 'pf:job:' .. other, 'state')
      if not state or is_final(state) then
        redis.call('ZREM', ledger, other)
      end
    end
  end
  return redis.call('ZCARD', ledger)
end

if KEYS[6] then
  local num_of_tenant = tenant_depth(KEYS[6])
  if num_of_tenant >= max_tenant_depth then
    return { 'tenant-full', num_of_tenant }
  end
  redis.call('ZADD', KEYS[6], now, id)
end
redis.call('HSET', KEYS[1], 'state', 'Q', 'epoch', '0', 'attempts', '0', 'num_ended', '0',
  'tenant_ledger', KEYS[6] or '', unpack(ARGV, 7))
if asked ~= '' then
  redis.call('HSET', KEYS[1], 'asked', asked)
end
-- One that is to begin later counts as enqueued then: its deadline, its age and its place in the ledger.
local not_before, enqueued_at = tonumber(redis.call('HGET', KEYS[1], 'not_before')), now
if not_before and not_before > now then
  enqueued_at = not_before
elseif not_before then
  redis.call('HDEL', KEYS[1], 'not_before')
end
redis.call('HSET', KEYS[1], 'enqueued_at', enqueued_at)
if deadline ~= '' then
  redis.call('HSET', KEYS[1], 'deadline', enqueued_at + tonumber(deadline))
end
redis.call('ZADD', KEYS[3], enqueued_at, id)
-- What a tenant asked for last, ended or not: a list to look at, nothing depends on it.
redis.call('ZADD', KEYS[4], now, id)
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - RECENT_JOBS)
redis.call('PEXPIRE', KEYS[4], RECENT_MS)
-- Last: a script whose first write is a deletion is not stopped at the memory limit.
-- The log of a job whose hash was deleted: its tokens would be counted twice. The tombstone was the former job's.
redis.call('DEL', KEYS[2], KEYS[5])
return { 'created' }
