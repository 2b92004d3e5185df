"""The table of ``docs/metrics.md``, and the metrics that there are, in the same form."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

METRICS_DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


class Row(NamedTuple):
    kind: str
    labels: str
    vllm: str
    meaning: str


def documented_metrics(text):
    """By name, every row of every table whose first column is a metric."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `pagefleet_"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = Row(*cells)
    return rows


def existing_metrics(registry):
    """By the name that a scrape shows; what prometheus-client itself tells of the process is left out."""
    rows = {}
    for family in registry.collect():
        if family.name.startswith("pagefleet_"):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown = ", ".join(f"`{label}`" for label in sorted(labels))
            rows[family.name + suffix] = Row(family.type, shown, "", family.documentation)
    return rows
