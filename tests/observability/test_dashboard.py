"""Every query of the dashboard returns data, from a real Prometheus that watched a real fleet at work."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from documented import METRICS_DOC, documented_metrics
from fleet_under_watch import FleetUnderWatch

from pagefleet.workers.threads.polling import wait_until

GRAFANA = Path(__file__).parents[2] / "ops" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "pagefleet.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = GRAFANA.parent / "prometheus"


@pytest.fixture(scope="module")
def watched(prometheus, server_binary, own_environment, tmp_path_factory):
    with FleetUnderWatch(prometheus, tmp_path_factory.mktemp("watched")) as fleet:
        fleet.work()
        yield fleet


def as_asked(expression):
    """With Grafana's variables filled in."""
    filled = expression.replace("$__rate_interval", "1m").replace("$model", ".*")
    assert "$" not in filled, filled
    return filled


class TestOnARealFleet:
    @pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
    def test_each_query_of_a_panel_has_data(self, watched, panel):
        for target in panel["targets"]:
            expression = as_asked(target["expr"])
            # The next scrapes bring what is missing.
            assert wait_until(lambda e=expression: has_data(watched.query(e)), 60, 0.2), expression

    def test_each_recorded_series_has_data(self, watched):
        groups = yaml.safe_load((RULES / "recording.rules.yml").read_text())["groups"]
        for name in [rule["record"] for group in groups for rule in group["rules"]]:
            assert wait_until(lambda n=name: has_data(watched.query(n)), 60, 0.2), name

    def test_what_happened_is_seen(self, watched):
        """The survivor took jobs over, all of them ended, and one was cancelled."""
        for expression, expected in (
            ("sum(pagefleet_takeovers_total) > bool 0", 1),
            ('sum(pagefleet_request_success_total{finished_reason="cancelled"})', 1),
            ("sum(pagefleet_fleet_open_jobs)", 0),
            ("pagefleet_fleet_workers", 1),
            ('up{job="pagefleet-worker"} == 0', 0),
        ):
            assert wait_until(lambda e=expression, v=expected: watched.query(e) == [v], 60, 0.2), expression

    def test_the_takeover_raises_its_alert(self, watched):
        fires = 'ALERTS{alertname="PagefleetTakeovers", alertstate="firing"}'
        assert wait_until(lambda: watched.query(fires) == [1.0], 60, 0.2)

    def test_the_model_can_be_chosen(self, watched):
        assert watched.query("count by (model) (pagefleet_fleet_workers)")


def has_data(values):
    return any(math.isfinite(value) for value in values)


class TestAsCode:
    def test_it_asks_for_metrics_that_exist(self):
        known = {*documented_metrics(METRICS_DOC.read_text())}
        for panel in PANELS:
            for target in panel["targets"]:
                asked = {
                    re.sub(r"_(bucket|sum|count)$", "", word)
                    for word in re.findall(r"pagefleet_\w+", target["expr"])
                }
                assert asked <= known, panel["title"]

    def test_every_metric_of_the_table_is_shown_or_left_out_on_purpose(self):
        shown = json.dumps(DASHBOARD)
        left_out = {"pagefleet_worker_info", "pagefleet_num_kv_blocks", "pagefleet_fleet_source_read_seconds"}
        known = {*documented_metrics(METRICS_DOC.read_text())}
        assert {name for name in known if name not in shown} == left_out

    def test_panels_have_ids_of_their_own_and_do_not_overlap(self):
        panels = DASHBOARD["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in panels)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24

    def test_each_panel_says_what_it_shows(self):
        for panel in PANELS:
            assert panel["description"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}

    def test_what_provisions_it(self):
        folder = GRAFANA / "provisioning"
        (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
        assert source["type"] == "prometheus"
        (provider,) = yaml.safe_load((folder / "dashboards/pagefleet.yml").read_text())["providers"]
        assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
