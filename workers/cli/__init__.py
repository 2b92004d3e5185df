"""The commands that need the engine: one module each, found by the entry points ``pagefleet.commands``."""
