-- BEAT (protocol line 10): renews the lease of a worker whose engine loop is alive, and stores its status.
-- KEYS: lease, workers, card of its model          ARGV: worker, lease in ms, status (JSON)
-- -> 1 | 0: the model card is missing, because the server restarted without its data
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now_ms(), ARGV[1])
return redis.call('EXISTS', KEYS[3])
