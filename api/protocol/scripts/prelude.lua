-- Shared by all scripts: the loader prepends this text to each.
--
-- Scripts do not roll back: each checks all of its arguments before its first write.
-- KEYS does not list the lease of a job's owner, whose name is read from the hash. Redis Cluster, which would need that,
-- is not supported anyway (one STEP writes many jobs).
--
-- Fields of pf:job:<id>
--   state       Q queued, R running; final: D done, F failed, C cancelled, X dead-lettered
--   owner       worker process (unique per start) that runs it    epoch     number of the attempt
--   attempts    number of claims                                  suspect   1: in its first prefill
--   blame       worker deaths blamed on it                        fruitless worker deaths since its last token
--   solo        1: prefill it alone                               stored    bytes that count for its tenant: reserved
--                                                                           by SUBMIT, measured by CLOSE
--   asked       hash of the caller's request: a SUBMIT with the same id and another hash is not an attach
--   request     JSON of the request                               queue, priority  where to send it again
--   channel     reply channel of its client                       watched   1: publish on its own channel too
--   clients     ids of its readers, '' if detached: it is         tenant, tenant_ledger, ttl (ms, from its end)
--               cancelled when none of them is alive
--   num_choices, num_ended, and for each choice c:  n:c tokens logged, fin:c finish reason
--   cancel      1: its owner must cancel it                       deadline  ms, Redis clock
--   not_before  ms: no claim before; removed when it is due       start_by  ms: cancelled if not claimed until then
--   canvas      JSON: the Celery callbacks of a bare message      expired   1: cancelled because of start_by
--   fingerprint of the last claim, fingerprints (JSON, all distinct ones)
--   refused     why workers refuse it; CLAIM removes it, backoff and refused_until
--   backoff     ms of its last wait, without the variation        refused_until  ms: then it becomes a dead letter
--   resumed     id of the dead letter whose tokens it continues
--   num_prompt_tokens, num_cached_tokens, error (JSON), callbacks (marker)
--   charge      API key that pays, tokens reserved, its limits of requests and tokens; '' when CLOSE has charged it
--   enqueued_at (with not_before: when it is due), claimed_at, first_token_at, ended_at      ms, Redis clock

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The id of the job with this hash.
local function job_of(key)
  return string.sub(key, 8) -- after 'pf:job:'
end

local function is_final(state)
  return state == 'D' or state == 'F' or state == 'C' or state == 'X'
end

local function lease_alive(worker)
  return worker and worker ~= '' and redis.call('EXISTS', 'pf:lease:' .. worker) == 1
end

-- Set of a worker's jobs that are in their first prefill. If the worker dies, one of them may be the cause.
local function suspects_of(worker)
  return 'pf:suspects:' .. worker
end

-- The sorted set to which SUBMIT added the job.
local function recent_jobs(tenant)
  return 'pf:recent:' .. (tenant or '')
end

-- The bytes that a tenant has stored: a sorted set with a member 'id bytes' for each job, scored by the time (ms) at
-- which the next SUBMIT checks whether the job still exists, and a hash with the sum. Both expire after the last job.
local LOOK_AGAIN_MS = 3600000

local function stored_keys(tenant)
  return 'pf:stored:' .. tenant, 'pf:stored-bytes:' .. tenant
end

local function count_stored(ledger, sum, place, look_at)
  if not redis.call('ZSCORE', ledger, place) then
    redis.call('HINCRBY', sum, 'total', string.match(place, '%d+$'))
  end
  redis.call('ZADD', ledger, look_at, place)
  local last = redis.call('ZRANGE', ledger, -1, -1, 'WITHSCORES')[2]
  local ttl = string.format('%.0f', math.max(0, last - now_ms()) + LOOK_AGAIN_MS)
  redis.call('PEXPIRE', ledger, ttl)
  redis.call('PEXPIRE', sum, ttl)
end

local function uncount_stored(ledger, sum, place)
  if not redis.call('ZSCORE', ledger, place) then
    return
  end
  -- The sum comes first: Redis does not apply the memory limit to a script whose first write is a deletion.
  redis.call('HINCRBY', sum, 'total', '-' .. string.match(place, '%d+$'))
  redis.call('ZREM', ledger, place)
  if redis.call('EXISTS', ledger) == 0 then
    redis.call('DEL', sum)
  end
end

-- Stores and publishes Celery's state of a job, in the format of its Redis backend, unless a final state is stored.
-- A value that cannot be read belongs to another program and is not overwritten. Returns whether it was stored.
local FINAL_RESULTS = { SUCCESS = true, FAILURE = true, REVOKED = true }

local function has_final_result(key)
  local stored = redis.pcall('GET', key)
  if not stored then
    return false
  end
  local readable, meta = pcall(cjson.decode, stored)
  return not readable or type(meta) ~= 'table' or FINAL_RESULTS[meta.status] or false
end

local function store_result(key, meta, ttl)
  if has_final_result(key) then
    return false
  end
  redis.call('SET', key, meta, 'PX', ttl)
  redis.call('PUBLISH', key, meta)
  return true
end

local function clear_suspect(key, id, owner)
  redis.call('HSET', key, 'suspect', '0')
  redis.call('SREM', suspects_of(owner), id)
end

-- The members of a job in its tenant's ledger, one for each choice: its id, 'id 1', 'id 2' and so on (an id contains no
-- spaces). The size of the ledger is the number of choices.
local MAX_CHOICES = 128

local function places_of(id, num_choices)
  local places = { id }
  for choice = 1, num_choices - 1 do
    places[#places + 1] = id .. ' ' .. choice
  end
  return places
end

local function job_at(place)
  return string.match(place, '^[^ ]*')
end

-- Events are collected, and published with one PUBLISH for each channel at the end of the script.
local lines_by_channel, channels = {}, {}

local function announce_on(channel, line)
  local lines = lines_by_channel[channel]
  if not lines then
    lines = {}
    lines_by_channel[channel] = lines
    channels[#channels + 1] = channel
  end
  lines[#lines + 1] = line
end

local function announce(id, kind, body, channel, watched)
  local line = id .. ' ' .. kind .. ' ' .. body
  if channel and channel ~= '' then
    announce_on(channel, line)
  end
  if watched == '1' then
    announce_on('pf:job-events:' .. id, line)
  end
end

local function publish_announced()
  for _, channel in ipairs(channels) do
    redis.call('PUBLISH', channel, table.concat(lines_by_channel[channel], '\n'))
  end
end

-- END (protocol line 7): puts a job into a final state. It stays in its open ledger until CLOSE.
-- `reason` becomes the finish reason of every choice that has none; `error` is JSON or ''.
-- Does not change the owner's set of suspects; a living owner calls clear_suspect too. The set of a dead owner must stay
-- as it was at its death: without a cancelled suspect, the remaining one would look like the only one and be blamed.
local function end_job(key, id, state, reason, error)
  local job = redis.call('HMGET', key, 'channel', 'watched', 'num_choices')
  local counts, reasons = {}, {}
  for choice = 0, math.min(tonumber(job[3]), MAX_CHOICES) - 1 do
    if reason ~= '' then
      redis.call('HSETNX', key, 'fin:' .. choice, reason)
    end
    local ended = redis.call('HMGET', key, 'n:' .. choice, 'fin:' .. choice)
    counts[#counts + 1] = ended[1] or '0'
    reasons[#reasons + 1] = ended[2] and cjson.encode(ended[2]) or 'null'
  end
  redis.call('HSET', key, 'state', state, 'ended_at', now_ms(), 'suspect', '0')
  local body = '{"state":"' .. state .. '","num_tokens":[' .. table.concat(counts, ',')
    .. '],"finish_reasons":[' .. table.concat(reasons, ',') .. ']'
  if error ~= '' then
    redis.call('HSET', key, 'error', error)
    body = body .. ',"error":' .. error
  end
  announce(id, 'e', body .. '}', job[1], job[2])
end

-- Celery's `expires`: cancels a job that was not claimed before start_by. The caller publishes.
local function end_unstarted(key, id, now)
  local job = redis.call('HMGET', key, 'start_by', 'attempts')
  local start_by = tonumber(job[1])
  if not start_by or now <= start_by or job[2] ~= '0' then
    return false
  end
  local reason = 'cancelled'
  redis.call('HSET', key, 'expired', '1')
  end_job(key, id, 'C', reason, '')
  return true
end

-- A job that was refused until its deadline, or for too long, becomes a dead letter, not a failure: its tokens are kept,
-- and an operator can requeue it. The caller publishes.
local function end_refused(key, id, letters, now)
  local deadline = tonumber(redis.call('HGET', key, 'deadline') or '')
  local limit = deadline and now > deadline and 'before its deadline' or 'in time'
  local message = 'The job was given up: it was begun with other weights or another tokenizer, and a worker that has '
    .. 'them did not take it ' .. limit .. '.'
  redis.call('ZADD', letters, now, id)
  end_job(key, id, 'X', 'error', cjson.encode({ code = 'job_dead', message = message }))
end

-- CANCEL (protocol line 16). The caller publishes.
local function cancel_job(key, id)
  local job = redis.call('HMGET', key, 'state', 'owner')
  if not job[1] then
    return 'missing'
  end
  if is_final(job[1]) then
    return 'final'
  end
  if job[1] == 'R' and lease_alive(job[2]) then
    redis.call('HSET', key, 'cancel', '1')
    return 'flagged'
  end
  end_job(key, id, 'C', 'cancelled', '')
  return 'ended'
end

-- Takes from the two token buckets of an API key, `requests` and `tokens`. They refill continuously, up to the amount of
-- one minute. `limits` are amounts per minute, nil for no limit. If there is not enough, nothing is taken, except with
-- `anyway`: usage above what was reserved may take a bucket below zero.
-- -> {1, requests left, tokens left} (-1: no limit) | {0, 'requests' or 'tokens', ms until there are enough}
local function take(key, limits, wanted, anyway)
  local names = { 'requests', 'tokens' }
  local found = redis.call('HMGET', key, 'requests', 'tokens', 'at')
  local now = now_ms()
  local passed = math.max(0, now - (tonumber(found[3]) or now))
  local left = { -1, -1 }
  for index = 1, 2 do
    local full = limits[index]
    if full then
      local filled = math.min(full, (tonumber(found[index]) or full) + passed * full / 60000)
      -- A request for more than a full bucket takes the full bucket; otherwise it could never succeed.
      local takes = math.min(wanted[index], full)
      if not anyway and filled < takes then
        return { 0, names[index], math.ceil((takes - filled) * 60000 / full) }
      end
      left[index] = filled - (anyway and wanted[index] or takes)
    end
  end
  -- Keep the key until both buckets are full again: a new key starts with full ones.
  local keep_ms = 3600000
  for index, name in ipairs(names) do
    if limits[index] then
      redis.call('HSET', key, name, tostring(math.min(left[index], limits[index])))
      keep_ms = math.max(keep_ms, math.ceil((limits[index] - left[index]) * 60000 / limits[index]))
    end
  end
  redis.call('HSET', key, 'at', now)
  redis.call('PEXPIRE', key, string.format('%.0f', keep_ms))
  return { 1, math.floor(left[1]), math.floor(left[2]) }
end
