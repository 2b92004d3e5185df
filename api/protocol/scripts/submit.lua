-- SUBMIT (protocol line 1): creates a queued job, unless its id exists or a limit is reached: the depth of its queue, or
-- the choices or bytes of its tenant. With a message also ENQUEUE (line 2): a job that is created has its message.
-- KEYS: job hash, log, open ledger of its queue, newest jobs of its tenant (or of all jobs without a tenant), tombstone,
--       list of its message;
--       with a tenant also: the tenant's ledger in this queue, its stored jobs, the sum of their bytes
-- ARGV: id, max depth, max choices of the tenant's jobs, deadline in ms from now or '', '1': submits a lost job again,
--       hash of the caller's request or '', number of choices, max bytes of the tenant, bytes of this job,
--       message or '', channel of its event, event,
--       then field, value, ... of the hash
-- -> {'created'} | {'exists'} | {'other'} (the id belongs to another request) | {'deleted'} | {'full', depth}
--    | {'tenant-full', open choices} | {'tenant-bytes', stored bytes}
local RECENT_JOBS, RECENT_MS = 500, 86400000
local id, max_depth, max_tenant_choices, deadline = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local again, asked, num_choices = ARGV[5], ARGV[6], tonumber(ARGV[7])
local max_bytes, bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
if not max_depth or not max_tenant_choices or (deadline ~= '' and not tonumber(deadline)) or #ARGV < 14
  or #ARGV % 2 ~= 0 then
  return redis.error_reply(
    'ERR submit: ARGV must have an id, two depths, a deadline, a flag, a hash, three counts, a message, then fields and values')
end
if not num_choices or num_choices < 1 or num_choices > MAX_CHOICES or num_choices % 1 ~= 0
  or not max_bytes or not string.match(ARGV[9], '^%d+$') then
  return redis.error_reply('ERR submit: ARGV must have 1 to ' .. MAX_CHOICES .. ' choices and two numbers of bytes')
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- A job without `asked` was written by an older version, which did not compare requests.
  local theirs = redis.pcall('HGET', KEYS[1], 'asked')
  local is_other = asked ~= '' and type(theirs) == 'string' and theirs ~= asked
  return { is_other and 'other' or 'exists' }
end
if again == '1' and redis.call('EXISTS', KEYS[5]) == 1 then
  return { 'deleted' }
end
local depth = redis.call('ZCARD', KEYS[3])
if ARGV[10] ~= '' then
  redis.call('LLEN', KEYS[6]) -- a list? An error must come before the first write
end
if depth >= max_depth then
  return { 'full', depth }
end

local now = now_ms()

-- The sweeper does not clean a tenant's ledger: a SUBMIT that finds it full removes jobs that are gone. It checks a
-- hundred entries at a changing position, because the oldest hundred may be jobs that run for hours.
local LOOKED_AT = 100
local function open_choices(ledger)
  local count = redis.call('ZCARD', ledger)
  if count + num_choices > max_tenant_choices then
    local first = now % math.max(1, count - LOOKED_AT + 1)
    for _, place in ipairs(redis.call('ZRANGE', ledger, first, first + LOOKED_AT - 1)) do
      local state = redis.call('HGET', 'pf:job:' .. job_at(place), 'state')
      if not state or is_final(state) then
        redis.call('ZREM', ledger, place)
      end
    end
  end
  return redis.call('ZCARD', ledger)
end

-- Checks entries that are overdue: most are of jobs that are gone, but a job may also wait or run for long, or have been
-- closed by an older version.
local function stored_bytes(ledger, sum)
  for _, place in ipairs(redis.call('ZRANGE', ledger, '-inf', now, 'BYSCORE', 'LIMIT', 0, LOOKED_AT)) do
    local job = redis.call('HMGET', 'pf:job:' .. job_at(place), 'state', 'stored')
    if job[1] and job_at(place) .. ' ' .. (job[2] or '') == place then
      redis.call('ZADD', ledger, now + LOOK_AGAIN_MS, place)
    else
      uncount_stored(ledger, sum, place)
    end
  end
  return tonumber(redis.call('HGET', sum, 'total')) or 0
end

if KEYS[7] then
  local num_of_tenant = open_choices(KEYS[7])
  if num_of_tenant + num_choices > max_tenant_choices then
    return { 'tenant-full', num_of_tenant }
  end
  local num_stored = stored_bytes(KEYS[8], KEYS[9])
  if num_stored + bytes > max_bytes then
    return { 'tenant-bytes', num_stored }
  end
  local scored = {}
  for _, place in ipairs(places_of(id, num_choices)) do
    scored[#scored + 1] = now
    scored[#scored + 1] = place
  end
  redis.call('ZADD', KEYS[7], unpack(scored))
  count_stored(KEYS[8], KEYS[9], id .. ' ' .. ARGV[9], now + LOOK_AGAIN_MS)
end
redis.call('HSET', KEYS[1], 'state', 'Q', 'epoch', '0', 'attempts', '0', 'num_ended', '0',
  'num_choices', num_choices, 'tenant_ledger', KEYS[7] or '', unpack(ARGV, 13))
if KEYS[7] then
  redis.call('HSET', KEYS[1], 'stored', ARGV[9])
end
if asked ~= '' then
  redis.call('HSET', KEYS[1], 'asked', asked)
end
-- A scheduled job counts as enqueued when it is due: for its deadline, its age and its place in the ledger.
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
-- The tenant's newest jobs, open and ended, for display only.
redis.call('ZADD', KEYS[4], now, id)
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - RECENT_JOBS)
redis.call('PEXPIRE', KEYS[4], RECENT_MS)
-- DEL comes last: Redis does not apply the memory limit to a script whose first write is a deletion.
-- A log that remained from a deleted hash would count tokens twice, and the tombstone belongs to the former job.
redis.call('DEL', KEYS[2], KEYS[5])
-- The fields that a job takes from the dead letter that it resumes, in addition to the counts and ends of its choices.
local KEPT = { fingerprint = true, fingerprints = true, num_prompt_tokens = true, num_cached_tokens = true }
local resumed = redis.call('HGET', KEYS[1], 'resumed')
if resumed then
  local fields, num_ended = redis.call('HGETALL', 'pf:job:' .. resumed), 0
  for index = 1, #fields, 2 do
    local field, value = fields[index], fields[index + 1]
    -- END gave unfinished choices the reason 'error'; these continue.
    local is_end = string.match(field, '^fin:%d+$') and value ~= 'error'
    if is_end or KEPT[field] or string.match(field, '^n:%d+$') then
      redis.call('HSET', KEYS[1], field, value)
      num_ended = num_ended + (is_end and 1 or 0)
    end
  end
  redis.call('HSET', KEYS[1], 'num_ended', num_ended)
  for _, entry in ipairs(redis.call('LRANGE', 'pf:log:' .. resumed, 0, -1)) do
    redis.call('RPUSH', KEYS[2], entry)
  end
end
if ARGV[10] ~= '' then
  redis.call('LPUSH', KEYS[6], ARGV[10])
  redis.pcall('PUBLISH', ARGV[11], ARGV[12])
end
return { 'created' }
