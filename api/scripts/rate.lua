-- RATE: what an API key has left of its minute; no part of the jobs' protocol. Two buckets that fill
-- continuously, up to one minute's worth; what was used more than was reserved may empty them below zero.
-- KEYS: hash of the key {requests, tokens, at}
-- ARGV: requests and tokens per minute ('' is no limit), requests and tokens to take, '1' to take them anyway
-- -> {1, requests left, tokens left} | {0, 'requests' or 'tokens', ms until there is enough}; -1 left: no limit
local limits = { tonumber(ARGV[1]), tonumber(ARGV[2]) }
local wanted = { tonumber(ARGV[3]), tonumber(ARGV[4]) }
if not wanted[1] or not wanted[2] or #ARGV < 5 then
  return redis.error_reply('ERR rate: two limits, two numbers and a flag')
end
local names = { 'requests', 'tokens' }
local found = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local now = now_ms()
local passed = math.max(0, now - (tonumber(found[3]) or now))
local left = { -1, -1 }
for index, limit in ipairs({ ARGV[1], ARGV[2] }) do
  if limit ~= '' then
    local full = limits[index]
    local filled = math.min(full, (tonumber(found[index]) or full) + passed * full / 60000)
    -- More than a minute's worth takes all of it, or it would never be had.
    local takes = math.min(wanted[index], full)
    if ARGV[5] ~= '1' and filled < takes then
      return { 0, names[index], math.ceil((takes - filled) * 60000 / full) }
    end
    left[index] = filled - (ARGV[5] == '1' and wanted[index] or takes)
  end
end
-- Not forgotten before both are full again: until then it says less than a new one would.
local keep_ms = 3600000
for index, name in ipairs(names) do
  if limits[index] then
    redis.call('HSET', KEYS[1], name, tostring(math.min(left[index], limits[index])))
    keep_ms = math.max(keep_ms, math.ceil((limits[index] - left[index]) * 60000 / limits[index]))
  end
end
redis.call('HSET', KEYS[1], 'at', now)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_ms))
return { 1, math.floor(left[1]), math.floor(left[2]) }
