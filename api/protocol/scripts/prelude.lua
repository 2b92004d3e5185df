-- Shared by every script; the loader puts this text in front of each.
--
-- Scripts do not roll back: each checks all of its arguments before its first write.
-- The lease of a job's owner is looked up by a name read from the hash, so it cannot stand in KEYS;
-- Redis Cluster is not supported anyway (one STEP writes many jobs).
--
-- Fields of pf:job:<id>
--   state       Q queued, R running; final: D done, F failed, C cancelled, X dead-lettered
--   owner       worker process (unique per start) that holds it   epoch  number of the attempt
--   attempts    how many claims                                   suspect  1: first prefill under way
--   blame, fruitless   deaths blamed on it, deaths since its last token      solo  1: prefill it alone
--   stored      bytes that count for its tenant: reserved by SUBMIT, measured by CLOSE
--   asked       hash of what the caller asked for: another request with the same id is no attach
--   request     JSON of the request                               queue, priority  where to send it again
--   channel     reply channel of its client                       watched  1: publish on its own channel too
--   clients     ids of those who must live for it, '' if detached tenant, tenant_ledger, ttl (ms, once ended)
--   num_choices, num_ended, and for each choice c:  n:c tokens logged, fin:c finish reason
--   cancel      1: to be cancelled by its owner                   deadline  ms, Redis clock
--   not_before  ms: no claim before that, gone once it is due     start_by  ms: cancelled if no claim comes before
--   canvas      JSON: the Celery callbacks of a bare message      expired   1: cancelled because of start_by
--   fingerprint of the last claim, fingerprints (JSON, all different ones)
--   refused     why workers do not take it; a claim removes it with:  backoff  ms of its last wait, without the spread
--   refused_until  ms: a dead letter from then on                 resumed   id of the dead letter that it goes on with
--   num_prompt_tokens, num_cached_tokens, error (JSON), callbacks (marker)
--   charge      API key that pays, tokens reserved, its limits of requests and tokens; '' once CLOSE has charged it
--   enqueued_at (of a job with not_before the time at which it is due), claimed_at, first_token_at, ended_at
--                                                                 ms, Redis clock

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_final(state)
  return state == 'D' or state == 'F' or state == 'C' or state == 'X'
end

local function lease_alive(worker)
  return worker and worker ~= '' and redis.call('EXISTS', 'pf:lease:' .. worker) == 1
end

-- Jobs of a worker whose first prefill is under way. What is in it when the worker dies did it, or one of them.
local function suspects_of(worker)
  return 'pf:suspects:' .. worker
end

-- The list in which SUBMIT wrote a job down.
local function recent_jobs(tenant)
  return 'pf:recent:' .. (tenant or '')
end

-- What a tenant has stored. A sorted set has a member 'id bytes' for each of its jobs, with the time (ms) at which the
-- next SUBMIT looks whether the job is still there; a hash has the sum of the bytes. Both are gone after the last job.
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
  -- The sum first: a script whose first write is a deletion is not stopped at the memory limit.
  redis.call('HINCRBY', sum, 'total', '-' .. string.match(place, '%d+$'))
  redis.call('ZREM', ledger, place)
  if redis.call('EXISTS', ledger) == 0 then
    redis.call('DEL', sum)
  end
end

-- Celery's state of a job, in the form of its Redis backend: stored and published, never over a final state.
-- What cannot be read was written by another program and stays. Returns whether it was stored.
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

-- What a job takes in its tenant's ledger: a member for each choice, its id, 'id 1', 'id 2' and so on. An id has no
-- blank. The ledger's size is the number of choices.
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

-- One PUBLISH for each channel and script call, however many jobs it speaks of.
local lines_by_channel, channels = {}, {}

local function announce(id, kind, body, channel, watched)
  local line = id .. ' ' .. kind .. ' ' .. body
  local targets = { channel or '', watched == '1' and 'pf:job-events:' .. id or '' }
  for _, target in ipairs(targets) do
    if target ~= '' then
      if not lines_by_channel[target] then
        lines_by_channel[target] = {}
        channels[#channels + 1] = target
      end
      table.insert(lines_by_channel[target], line)
    end
  end
end

local function publish_announced()
  for _, channel in ipairs(channels) do
    redis.call('PUBLISH', channel, table.concat(lines_by_channel[channel], '\n'))
  end
end

-- END (protocol line 7): a final state, once. The job stays in its open ledger until CLOSE.
-- `reason` becomes the finish reason of every choice that has none; `error` is JSON or ''.
-- A living owner takes the job off its list of suspects too. A dead one's list stays as it was at its death:
-- were a cancelled suspect taken off, the next one would look like the only one and be blamed.
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

-- Celery's `expires`: a job that nobody took up in time is not begun any more. The caller publishes.
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

-- A job that was refused until its deadline, or for too long: a dead letter, never a failure. Its tokens stay: an
-- operator can send it again. The caller publishes.
local function end_refused(key, id, letters, now)
  local deadline = tonumber(redis.call('HGET', key, 'deadline') or '')
  local limit = deadline and now > deadline and 'before its deadline' or 'in time'
  local message = 'The job was given up: it was begun with other weights or another tokenizer, and a worker that has '
    .. 'them did not take it ' .. limit .. '.'
  redis.call('ZADD', letters, now, id)
  end_job(key, id, 'X', 'error', cjson.encode({ code = 'job_dead', message = message }))
end

-- CANCEL (protocol line 16); the caller publishes.
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

-- Takes from the two buckets of an API key, `requests` and `tokens`, that fill continuously, up to one minute's
-- worth each. `limits` are those of a minute, nil for none. Where there is not enough nothing is taken, but
-- `anyway`: what was used more than was reserved may empty them below zero.
-- -> {1, requests left, tokens left} | {0, 'requests' or 'tokens', ms until there is enough}; -1 left: no limit
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
      -- More than a minute's worth takes all of it, or it would never be had.
      local takes = math.min(wanted[index], full)
      if not anyway and filled < takes then
        return { 0, names[index], math.ceil((takes - filled) * 60000 / full) }
      end
      left[index] = filled - (anyway and wanted[index] or takes)
    end
  end
  -- Not forgotten before both are full again: until then it says less than a new one would.
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
