"""The groups of checks that every installation has."""

from __future__ import annotations

from typing import Final

from pagefleet.api.operate.doctor import fleet, process, rights, server
from pagefleet.api.operate.doctor.finding import CheckGroup

PROCESS: Final = CheckGroup((process.package, process.open_files))
REACH: Final = CheckGroup((server.reach,), limit_s=4.0)
SERVER: Final = CheckGroup((server.configuration, server.clock, rights.rights), needs_redis=True, limit_s=5.0)
FLEET: Final = CheckGroup(
    (fleet.scripts, fleet.protocol_version, fleet.workers, fleet.waiting_jobs, fleet.dead_letters),
    needs_redis=True,
    limit_s=5.0,
)
