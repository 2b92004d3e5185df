-- POP (protocol line 3) of several messages: takes messages from the first queue that has any and has room.
-- A worker leaves messages to the others: it takes at most 1 / (2 * workers) of a queue.
-- KEYS: workers (sorted set of their last beats), then lists of messages, the most urgent first
-- ARGV: lease of a worker in ms, then for each list how many messages may be taken
-- -> {list, message, ...}, the next message first | {} (there are none)
local lease_ms, limits = tonumber(ARGV[1]), {}
for index = 2, #KEYS do
  limits[index] = tonumber(ARGV[index])
  if not limits[index] then
    return redis.error_reply('ERR pop: ARGV must have a lease and a limit for each list')
  end
end
if not lease_ms or #KEYS < 2 or #ARGV ~= #KEYS then
  return redis.error_reply('ERR pop: ARGV must have a lease and a limit for each list')
end
local num_workers = redis.call('ZCOUNT', KEYS[1], now_ms() - lease_ms, '+inf')
local share = 2 * math.max(1, num_workers)
for index = 2, #KEYS do
  local waiting = redis.call('LLEN', KEYS[index])
  local count = math.min(limits[index], math.ceil(waiting / share))
  if count >= 1 then
    local messages = redis.call('RPOP', KEYS[index], count)
    table.insert(messages, 1, KEYS[index])
    return messages
  end
end
return {}
