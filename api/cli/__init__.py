"""The commands that need no engine: one module each, found through the entry points ``pagefleet.commands``.

Does not know the engine or the workers.
"""
