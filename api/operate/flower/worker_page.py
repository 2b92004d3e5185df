"""WorkerPage: Flower's page of a worker with current figures."""

from __future__ import annotations

from flower.views.workers import WorkerView


class WorkerPage(WorkerView):  # type: ignore[misc]
    """Requests the worker's statistics before it shows them.

    Flower shows those of the last visit and requests new ones for the next, but the number of running
    sequences is outdated by then.
    """

    async def get(self, name: str) -> None:
        self.application.workers.get(name, {}).pop("stats", None)
        await super().get(name)
