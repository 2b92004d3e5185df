"""The worker's commands: one file each, found through the entry points ``pagefleet.commands``."""
