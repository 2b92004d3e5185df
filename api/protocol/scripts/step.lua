-- STEP (protocol line 6): appends the tokens of a worker's last steps to the logs of many jobs, publishes them, and ends
-- jobs whose last choice has ended.
-- KEYS: job hash and log of each item
-- ARGV: worker, then for each item: id, epoch, choice, base, count, entry (JSON or ''),
--       finish reason or '', num_prompt_tokens (only when the engine has just accepted the job) or '', num_cached_tokens
-- -> for each item {'ok', n} | {'cancel', n} | {'deadline', n} | {'behind', n} | {'fenced', 0} | {'gone', 0}
--    | {'unreadable', 0}
--    n is the number of tokens in the log. 'behind': the worker must send again from n.
local WIDTH = 9
local worker = ARGV[1]
if (#ARGV - 1) / WIDTH ~= #KEYS / 2 then
  return redis.error_reply('ERR step: each item needs two KEYS and ' .. WIDTH .. ' ARGV')
end
for index = 2, #ARGV, WIDTH do
  local count, entry, accepted = tonumber(ARGV[index + 4]), ARGV[index + 5], ARGV[index + 7]
  if not (tonumber(ARGV[index + 2]) and tonumber(ARGV[index + 3]) and count) then
    return redis.error_reply('ERR step: choice, base and count must be numbers')
  end
  if (count > 0 and entry == '') or (accepted ~= '' and not tonumber(accepted)) or not tonumber(ARGV[index + 8]) then
    return redis.error_reply('ERR step: tokens need an entry; num_prompt_tokens and num_cached_tokens must be numbers')
  end
end

local now = now_ms()

local function append(key, log, id, choice, base, count, entry, job)
  redis.call('RPUSH', log, entry)
  redis.call('HSET', key, 'n:' .. choice, base + count)
  if job[12] == '1' then
    clear_suspect(key, id, worker)
  end
  if job[13] and job[13] ~= '0' then
    redis.call('HSET', key, 'fruitless', '0')
  end
  if base == 0 then
    redis.call('HSETNX', key, 'first_token_at', now)
  end
  announce(id, 't', entry, job[6], job[7])
end

local function finish(key, id, choice, reason, job)
  local num_ended = redis.call('HGET', key, 'num_ended') or '0'
  if redis.call('HSETNX', key, 'fin:' .. choice, reason) == 1 then
    num_ended = redis.call('HINCRBY', key, 'num_ended', 1)
    if num_ended >= tonumber(job[8]) then
      clear_suspect(key, id, worker)
      end_job(key, id, 'D', '', '')
      return
    end
  end
  if tonumber(num_ended) < 1 or tonumber(num_ended) >= tonumber(job[8]) then
    error('the ends of its choices do not add up') -- another program wrote them; the job would never end
  end
end

local function apply(item)
  local key, log, at = KEYS[item * 2 - 1], KEYS[item * 2], 2 + (item - 1) * WIDTH
  local id, epoch, choice = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local base, count, entry = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), ARGV[at + 5]
  local reason, accepted, cached = ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  local job = redis.call('HMGET', key, 'state', 'owner', 'epoch', 'cancel', 'deadline', 'channel',
    'watched', 'num_choices', 'n:' .. choice, 'fin:' .. choice, 'attempts', 'suspect', 'fruitless')
  if not job[1] then
    return { 'gone', 0 }
  end
  local mine = job[2] == worker and job[3] == epoch
  local n = tonumber(job[9] or '0')
  if n < 0 or n ~= math.floor(n) then
    return { 'unreadable', 0 } -- would never agree with what the worker sends
  end
  if mine and is_final(job[1]) and reason ~= '' and job[10] == reason then
    return { 'ok', n } -- a retry: the reply to the first call was lost
  end
  if not mine or job[1] ~= 'R' then
    return { 'fenced', 0 }
  end
  if accepted ~= '' then
    redis.call('HSET', key, 'num_prompt_tokens', accepted)
    local body = '{"num_prompt_tokens":' .. accepted .. ',"attempt":' .. (tonumber(job[11]) or 0)
    if cached ~= '0' then
      redis.call('HSETNX', key, 'num_cached_tokens', cached)
      body = body .. ',"num_cached_tokens":' .. cached
    end
    announce(id, 'a', body .. '}', job[6], job[7])
  end
  if base > n or (base < n and base + count > n) then
    return { 'behind', n }
  end
  if base == n and count > 0 then
    append(key, log, id, choice, base, count, entry, job)
    n = base + count
  end
  if reason ~= '' and n == base + count then
    finish(key, id, choice, reason, job)
    return { 'ok', n }
  end
  if job[4] == '1' then
    return { 'cancel', n }
  end
  if job[5] and now > tonumber(job[5]) then
    return { 'deadline', n }
  end
  return { 'ok', n }
end

local replies = {}
for item = 1, #KEYS / 2 do
  -- An unreadable hash or log of one job must not stop the tokens of the others.
  local readable, reply = pcall(apply, item)
  if not readable then
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
