"""The whole check: scenarios that can be searched as a whole, and many random walks through the others.

python tests/protocol/check.py [part of a scenario's name ...]
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from protocol.explorer import Explorer, World, walk
from protocol.scenarios import CAPS, LONG, MIXED, ONE_FAULT, SAMPLED, SCHEDULED, Scenario, begun_pair
from protocol.script_server import ScriptServer

from pagefleet.workers.local.redis_server import RedisServer

_NUM_WALKS = 300
_SEED = 7


def main(names: list[str]) -> int:
    num_bad = 0
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis") as server:
        scripts = ScriptServer(server.url)
        world = World(scripts)
        for scenario in [*ONE_FAULT, *CAPS, *SCHEDULED, *MIXED, begun_pair("death"), *LONG]:
            if _is_wanted(scenario, names):
                num_bad += not _search(world, scenario)
        for scenario in SAMPLED:
            if _is_wanted(scenario, names):
                num_bad += not _sample(world, scenario)
        _say(f"{scripts.num_calls} different calls of scripts")
        scripts.disconnect()
    _say(f"{num_bad} scenarios with something wrong" if num_bad else "nothing wrong")
    return 1 if num_bad else 0


def _is_wanted(scenario: Scenario, names: list[str]) -> bool:
    return not names or any(name in str(scenario) for name in names)


def _search(world: World, scenario: Scenario) -> bool:
    report = Explorer(world).explore(scenario.first_state(world.server))
    _say(f"all of [{scenario}]: {report}")
    return report.is_complete and bool(report.num_goals) and not report.violations and not report.stuck


def _sample(world: World, scenario: Scenario) -> bool:
    begun_at = time.monotonic()
    dice = random.Random(_SEED)
    for _ in range(_NUM_WALKS):
        for wrong in walk(
            world, scenario.first_state(world.server), dice.choice, lambda: dice.random() < 0.1
        ):
            _say(f"some of [{scenario}]: WRONG: {wrong}")
            return False
    _say(f"some of [{scenario}]: {_NUM_WALKS} walks, {time.monotonic() - begun_at:.1f} s")
    return True


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
