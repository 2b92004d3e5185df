"""The group of checks that ``pagefleet doctor`` loads through its entry point."""

from __future__ import annotations

from typing import Final

from pagefleet.api.operate.doctor.finding import CheckGroup
from pagefleet.workers.doctor import device, model, processor

ENGINE: Final = CheckGroup(
    (
        model.settings,
        processor.features,
        processor.threads,
        device.cuda,
        device.triton,
        model.model_files,
        model.memory,
    )
)
