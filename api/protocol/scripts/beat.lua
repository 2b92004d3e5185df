-- BEAT (protocol line 10): the worker's engine loop is alive; its lease runs anew.
-- KEYS: lease, workers, card of its model          ARGV: worker, lease in ms, status (JSON)
-- -> 1, or 0 where the server has forgotten the card (it was restarted without its data)
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now_ms(), ARGV[1])
return redis.call('EXISTS', KEYS[3])
