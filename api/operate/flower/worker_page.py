"""WorkerPage: a worker as it is now."""

from __future__ import annotations

from flower.views.workers import WorkerView


class WorkerPage(WorkerView):  # type: ignore[misc]
    """Flower shows what it heard of a worker when the page was last opened, and asks for the next time. How
    many sequences run is old by then: this page asks first."""

    async def get(self, name: str) -> None:
        self.application.workers.get(name, {}).pop("stats", None)
        await super().get(name)
