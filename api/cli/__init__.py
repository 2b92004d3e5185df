"""The commands that work without the engine: one module each, loaded by entry points ``pagefleet.commands``.

Does not know the engine or the workers.
"""
