"""The formats of quantised weights, one file each, and the config.json entries that select them.

Does not know files, models or backends.
"""
