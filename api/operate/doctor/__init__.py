"""``pagefleet doctor``: what can be wrong around a fleet, each in a small function that says how to mend it.

Here is what a producer can see: its process, the server, the fleet on it. Checks of the engine are in
``pagefleet.workers.doctor``; both are found through the entry points ``pagefleet.doctor``.
"""
