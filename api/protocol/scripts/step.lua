-- STEP (protocol line 6): appends the tokens of a worker's last steps to the logs of many jobs, publishes them, and ends
-- jobs whose last choice has ended.
-- KEYS: job hash and log of each item
-- ARGV: worker, columns (JSON), then for each item its entry (JSON or '')
--       columns.epochs, .choices, .bases, .counts: a number for each item
--       columns.reasons: {item, finish reason}, of items that end their choice
--       columns.accepted: {item, num_prompt_tokens, num_cached_tokens}, of items whose job the engine has just accepted
-- -> for each item n if it was applied, or {'cancel', n} | {'deadline', n} | {'behind', n} | {'fenced', 0} | {'gone', 0}
--    | {'unreadable', 0}
--    n is the number of tokens in the log. 'behind': the worker must send again from n.
local worker, num_items = ARGV[1], #KEYS / 2
local readable, columns = pcall(cjson.decode, ARGV[2] or '')
if not readable or #ARGV ~= num_items + 2 then
  return redis.error_reply('ERR step: each item needs two KEYS and one ARGV after the columns')
end
local epochs, choices, bases, counts = columns.epochs, columns.choices, columns.bases, columns.counts
local reasons, accepted = {}, {}
local valid = pcall(function()
  for item = 1, num_items do
    -- The epoch comes from the hash, where a stranger may have written a number below zero.
    local least = math.min(choices[item], bases[item], counts[item])
    if least < 0 or type(epochs[item]) ~= 'number' or (counts[item] > 0 and ARGV[item + 2] == '') then
      error('a number below zero, or tokens without an entry')
    end
  end
  for _, pair in ipairs(columns.reasons) do
    reasons[pair[1]] = pair[2] .. ''
  end
  for _, found in ipairs(columns.accepted) do
    accepted[found[1]] = { string.format('%d', found[2]), string.format('%d', found[3]) }
  end
end)
if not valid then
  return redis.error_reply('ERR step: epochs, choices, bases and counts must be numbers, and tokens need an entry')
end

local now = now_ms()

-- The names of a choice's fields. Joining them anew for each item would cost as much as a command.
local count_of, end_of = {}, {}
for item = 1, num_items do
  local choice = choices[item]
  if not count_of[choice] then
    count_of[choice], end_of[choice] = 'n:' .. choice, 'fin:' .. choice
  end
end

local function append(key, log, choice, num_tokens, entry, job)
  redis.call('RPUSH', log, entry)
  redis.call('HSET', key, count_of[choice], num_tokens)
  if job[9] == '1' then
    clear_suspect(key, job_of(key), worker)
  end
  if job[10] and job[10] ~= '0' then
    redis.call('HSET', key, 'fruitless', '0')
  end
end

local function finish(key, choice, reason)
  local num_ended, num_choices = unpack(redis.call('HMGET', key, 'num_ended', 'num_choices'))
  num_ended, num_choices = num_ended or '0', tonumber(num_choices)
  if redis.call('HSETNX', key, end_of[choice], reason) == 1 then
    num_ended = redis.call('HINCRBY', key, 'num_ended', 1)
    if num_ended >= num_choices then
      clear_suspect(key, job_of(key), worker)
      end_job(key, job_of(key), 'D', '', '')
      return
    end
  end
  if tonumber(num_ended) < 1 or tonumber(num_ended) >= num_choices then
    error('the ends of its choices do not add up') -- another program wrote them; the job would never end
  end
end

local function accept(key, num_prompt_tokens, num_cached_tokens, job)
  redis.call('HSET', key, 'num_prompt_tokens', num_prompt_tokens)
  local attempt = tonumber(redis.call('HGET', key, 'attempts') or '') or 0
  local body = '{"num_prompt_tokens":' .. num_prompt_tokens .. ',"attempt":' .. attempt
  if num_cached_tokens ~= '0' then
    redis.call('HSETNX', key, 'num_cached_tokens', num_cached_tokens)
    body = body .. ',"num_cached_tokens":' .. num_cached_tokens
  end
  announce(job_of(key), 'a', body .. '}', job[6], job[7])
end

local function apply(item)
  local key, choice, base, count = KEYS[item * 2 - 1], choices[item], bases[item], counts[item]
  local reason = reasons[item]
  local job = redis.call('HMGET', key, 'state', 'owner', 'epoch', 'cancel', 'deadline', 'channel',
    'watched', count_of[choice], 'suspect', 'fruitless')
  if not job[1] then
    return { 'gone', 0 }
  end
  -- As texts, as in MARK: two numbers beyond 2^53, which only a stranger writes, may round to the same one.
  local mine = job[2] == worker and job[3] == string.format('%d', epochs[item])
  local n = tonumber(job[8] or '0')
  if n < 0 or n ~= math.floor(n) then
    return { 'unreadable', 0 } -- would never agree with what the worker sends
  end
  if mine and is_final(job[1]) and reason and redis.call('HGET', key, end_of[choice]) == reason then
    return n -- a retry: the reply to the first call was lost
  end
  if not mine or job[1] ~= 'R' then
    return { 'fenced', 0 }
  end
  if accepted[item] then
    accept(key, accepted[item][1], accepted[item][2], job)
  end
  if base > n or (base < n and base + count > n) then
    return { 'behind', n }
  end
  if base == n and count > 0 then
    n = base + count
    append(key, KEYS[item * 2], choice, n, ARGV[item + 2], job)
    if base == 0 then
      redis.call('HSETNX', key, 'first_token_at', now)
    end
    announce(job_of(key), 't', ARGV[item + 2], job[6], job[7])
  end
  if reason and n == base + count then
    finish(key, choice, reason)
    return n
  end
  if job[4] == '1' then
    return { 'cancel', n }
  end
  if job[5] and now > tonumber(job[5]) then
    return { 'deadline', n }
  end
  return n
end

local replies = {}
for item = 1, num_items do
  -- An unreadable hash or log of one job must not stop the tokens of the others.
  local applied, reply = pcall(apply, item)
  if not applied then
    local why = type(reply) == 'table' and reply.err or tostring(reply)
    if not (string.find(why, '^WRONGTYPE') or string.find(why, '^ERR') or string.find(why, 'user_script:%d+: ')) then
      return redis.error_reply(why) -- a fault of the server (memory limit, ACL), not of this job
    end
    reply = { 'unreadable', 0 }
  end
  replies[item] = reply
end
publish_announced()
return replies
