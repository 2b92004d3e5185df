-- CLAIM (protocol line 4): gives a job to a worker that received its message, with a new epoch. A job whose owner died
-- is taken over, and one whose tokens come from other weights is refused.
-- KEYS: job hash, lease of the claiming worker, dead letters, Celery's result
-- ARGV: id, worker, fingerprint (JSON), Celery's result STARTED (JSON) or '', default TTL in ms,
--       ms after its first refusal at which a job becomes a dead letter
-- -> {'missing'} | {'unreadable'} | {'final'} | {'early'} | {'no-lease'} | {'elsewhere'} | {'ended'}
--    | {'refused', reason, ms until it is sent again}
--    | {'claimed', epoch, attempts, solo, taken over from a dead worker (1 or 0), ms since enqueued, request,
--       num_choices, n:0, n:1, ...}
local MAX_BLAME, MAX_FRUITLESS = 3, 10
-- A job may run for longer than its result is kept, so STARTED, which has no content of the job, is kept for a day.
local MIN_STARTED_MS = 86400000
local FIRST_WAIT_MS, MAX_WAIT_MS = 1000, 60000
local id, worker, fingerprint, started, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local refused_ttl = tonumber(ARGV[6])
local readable, mine = pcall(cjson.decode, fingerprint)
if not readable or type(mine) ~= 'table' or not ttl or not refused_ttl then
  return redis.error_reply('ERR claim: ARGV must have a fingerprint as JSON and two TTLs')
end
local key, dead_letters = KEYS[1], KEYS[3]
local job = redis.call('HMGET', key, 'state', 'owner', 'cancel', 'deadline', 'request', 'num_choices',
  'suspect', 'fingerprint', 'fingerprints', 'enqueued_at', 'not_before', 'refused')
local state, owner = job[1], job[2]
if not state then
  return { 'missing' }
end
if is_final(state) then
  return { 'final' }
end
-- Counts must be integers: a log of 0.5 tokens would never agree with what a worker sends.
local function count_in(text)
  local count = tonumber(text)
  return count and count >= 0 and count < 2 ^ 53 and count == math.floor(count) and count or nil
end

local num_choices = count_in(job[6])
if not job[5] or not num_choices or num_choices < 1 or num_choices > 128 then
  return { 'unreadable' }
end
local not_before = count_in(job[11] or '0')
if not not_before then
  return { 'unreadable' }
end

local function was_of_another_model()
  local theirs = job[8] and cjson.decode(job[8])
  return theirs and (theirs.weights ~= mine.weights or theirs.tokenizer ~= mine.tokenizer)
end

-- When the job is due, the sweeper removes not_before and sends a message. Earlier messages are duplicates. If one
-- brings a refused job to a worker with the right weights, that worker takes the job.
if state == 'Q' and now_ms() < not_before and (not job[12] or was_of_another_model()) then
  return { 'early' }
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return { 'no-lease' }
end
if state == 'R' and owner ~= worker and lease_alive(owner) then
  return { 'elsewhere' }
end

local function ended(final, reason, error)
  end_job(key, id, final, reason, error)
  publish_announced()
  return { 'ended' }
end

-- BLAME (protocol line 12): the owner died. A job that was in its first prefill may be the cause. If it was the only
-- one, it is blamed; if there were several, each is run again alone. Returns why the job is given up, or nil.
local function blame()
  local num_fruitless = redis.call('HINCRBY', key, 'fruitless', 1)
  if job[7] == '1' then
    if redis.call('HGET', key, 'solo') == '1' or redis.call('SCARD', suspects_of(owner)) <= 1 then
      local num_blamed = redis.call('HINCRBY', key, 'blame', 1)
      if num_blamed >= MAX_BLAME then
        return num_blamed .. ' workers died while they began this job'
      end
    else
      redis.call('HSET', key, 'solo', '1')
    end
  end
  if num_fruitless >= MAX_FRUITLESS then
    return num_fruitless .. ' workers in a row died with this job before it got another token'
  elseif num_fruitless == MAX_FRUITLESS - 1 then
    redis.call('HSET', key, 'solo', '1')
  end
end

local now = now_ms()

local function refused_for_good()
  end_refused(key, id, dead_letters, now)
  publish_announced()
  return { 'ended' }
end

if job[3] == '1' then
  return ended('C', 'cancelled', '')
end
if job[4] and now > tonumber(job[4]) then
  return job[12] and refused_for_good() or ended('F', 'deadline', '')
end
if end_unstarted(key, id, now) then
  publish_announced()
  return { 'ended' }
end
local taken_over = state == 'R' and owner ~= worker
if taken_over then
  local reason = blame()
  if reason then
    redis.call('ZADD', dead_letters, now, id)
    return ended('X', 'error', cjson.encode({ code = 'job_dead', message = 'The job was given up: ' .. reason .. '.' }))
  end
end

local counts, num_tokens, num_ended = {}, 0, 0
for choice = 0, num_choices - 1 do
  local count = count_in(redis.call('HGET', key, 'n:' .. choice) or '0')
  if not count then
    return { 'unreadable' }
  end
  counts[#counts + 1] = count
  num_tokens = num_tokens + count
  num_ended = num_ended + (redis.call('HGET', key, 'fin:' .. choice) and 1 or 0)
end
-- STEP ends a job when it ends the last choice. A queued job whose choices have all ended would never end.
if num_ended >= num_choices or num_ended ~= count_in(redis.call('HGET', key, 'num_ended') or '0') then
  return { 'unreadable' }
end

-- REFUSE: the job is queued again and waits, twice as long each time, without a worker. Its message can be
-- acknowledged, because the sweeper sends a new one when the job is due. The wait varies by up to a quarter from job
-- to job, so that jobs which were refused together are not always sent together.
local function refuse()
  local known = redis.call('HMGET', key, 'backoff', 'refused_until')
  local refused_until = tonumber(known[2]) or now + refused_ttl
  local reason = 'begun with other weights or another tokenizer; it waits for a worker that has them'
  redis.call('HSET', key, 'state', 'Q', 'suspect', '0', 'refused', reason, 'refused_until', refused_until)
  if now > refused_until then
    return refused_for_good()
  end
  local backoff = math.min(MAX_WAIT_MS, 2 * (tonumber(known[1]) or FIRST_WAIT_MS / 2))
  local spread = tonumber(string.sub(redis.sha1hex(id .. backoff), 1, 4), 16) / 0xffff
  local wait = math.floor(backoff * (1 + spread / 4))
  redis.call('HSET', key, 'backoff', backoff, 'not_before', now + wait)
  return { 'refused', reason, wait }
end

-- An answer never contains tokens of two models. A job without tokens may start with any weights.
if num_tokens > 0 and was_of_another_model() then
  return refuse()
end
local all = job[9] and cjson.decode(job[9]) or {}
if job[8] ~= fingerprint then
  all[#all + 1] = mine
  redis.call('HSET', key, 'fingerprints', cjson.encode(all))
end
local epoch = redis.call('HINCRBY', key, 'epoch', 1)
local attempts = redis.call('HINCRBY', key, 'attempts', 1)
redis.call('HSET', key, 'state', 'R', 'owner', worker, 'claimed_at', now, 'suspect', '0',
  'fingerprint', fingerprint)
redis.call('HDEL', key, 'refused', 'refused_until', 'backoff', 'not_before')
if started ~= '' then
  store_result(KEYS[4], started, math.max(tonumber(redis.call('HGET', key, 'ttl')) or ttl, MIN_STARTED_MS))
end
local waited = now - (tonumber(job[10]) or now)
return { 'claimed', epoch, attempts, redis.call('HGET', key, 'solo') == '1' and 1 or 0, taken_over and 1 or 0, waited,
  job[5], #counts, unpack(counts) }
