"""``pagefleet top``: a fleet as it is now, read from Redis with a monitor's rights, and drawn."""
