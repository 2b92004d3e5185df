"""Put on a worker's path by test_poison.py: this prompt kills who computes it, as a bad kernel would."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys

POISON = b"poison"


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the null backend when it is imported."""

    def find_spec(self, name, path, target=None):
        if name != "pagefleet.engine.execution.null_executor":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            submit = module.NullExecutor.submit

            def poisoned(self, step):
                if POISON in bytes(token_id & 0xFF for token_id in step.token_ids.tolist()):
                    os._exit(1)
                return submit(self, step)

            module.NullExecutor.submit = poisoned

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
