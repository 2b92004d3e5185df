"""Names on the server: reversible, safe in a queue's name, and pinned, because other versions read them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.api import InvalidRequest, queue_name
from pagefleet.api.contract import keys

ROOT = Path(__file__).parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def test_every_name_on_the_server_is_what_the_protocol_says():
    assert keys.job("j") == "pf:job:j"
    assert keys.log("j") == "pf:log:j"
    assert keys.open_jobs("m.batch") == "pf:open:m.batch"
    assert keys.model("m") == "pf:model:m"
    assert keys.lease("w") == "pf:lease:w"
    assert keys.reply_channel("c") == "pf:reply:c"
    assert keys.job_channel("j") == "pf:job-events:j"
    assert keys.recent_jobs("t") == "pf:recent:t"
    assert keys.recent_jobs(None) == "pf:recent:"
    assert keys.questions("A") == "pf:questions:_41"
    assert keys.question("q") == "pf:question:q"
    assert keys.answer("q") == "pf:answer:q"
    assert keys.MODELS == "pf:models"
    assert keys.WORKERS == "pf:workers"
    assert keys.GENERATE_TASK == "pagefleet.generate"
    assert keys.LANES == ("interactive", "batch")


def test_a_celery_service_gets_the_name_of_a_queue():
    assert queue_name("smollm2") == "pagefleet.smollm2.interactive"
    assert queue_name("org/name", "batch") == "pagefleet.org%2Fname.batch"
    with pytest.raises(InvalidRequest, match="lane: 'fast' does not exist; use one of interactive, batch"):
        queue_name("smollm2", "fast")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("Qwen/Qwen3-0.6B", "_51wen_2f_51wen3-0.6_42"),
        ("a_b", "a_5fb"),
        ("modèle", "mod_c3_a8le"),
        ("a b\n", "a_20b_0a"),
    ],
)
def test_a_slug_spells_every_unusual_byte(name, slug):
    assert keys.slug(name) == slug
    assert keys.unslug(slug) == name


@settings(deadline=None)
@given(TEXT)
def test_a_slug_is_reversible_and_safe_in_a_name(name):
    slug = keys.slug(name)
    assert re.fullmatch(r"[a-z0-9._-]*", slug)
    assert keys.unslug(slug) == name


@settings(deadline=None)
@given(TEXT, TEXT)
def test_two_models_never_share_a_queue(one, other):
    for lane in keys.LANES:
        assert (keys.queue(one, lane) == keys.queue(other, lane)) == (one == other)
    assert keys.queue(one, "interactive") != keys.queue(other, "batch")


def test_a_queue_names_its_model_and_its_lane():
    assert keys.queue("org/Model.v1", "batch") == "pagefleet.org%2FModel.v1.batch"
    assert keys.parse_queue("pagefleet.org%2FModel.v1.batch") == ("org/Model.v1", "batch")
    assert keys.parse_queue("org_2f_4dodel.v1.batch") == ("org/Model.v1", "batch"), "of the version before"


@settings(deadline=None)
@given(TEXT, st.sampled_from(keys.LANES))
def test_every_name_of_a_lane_leads_back_to_its_model(model, lane):
    assert {keys.parse_queue(name) for name in keys.queues(model, lane)} == {(model, lane)}
    assert keys.queues(model, lane)[0] == keys.queue(model, lane)


def test_a_models_old_name_is_never_another_models_queue():
    assert keys.queues("m", "batch") == ("pagefleet.m.batch", "m.batch")
    assert keys.queues("pagefleet.m", "batch") == ("pagefleet.pagefleet.m.batch",)


def test_each_worker_has_its_own_ledger_of_unacknowledged_messages():
    assert keys.unacked("w1") == {
        "unacked_key": "pf:unacked:w1",
        "unacked_index_key": "pf:unacked-index:w1",
        "unacked_mutex_key": "pf:unacked-mutex:w1",
    }
    assert not set(keys.unacked("w1").values()) & set(keys.unacked("w2").values())


def test_no_other_module_spells_a_name():
    """The Lua scripts cannot import: they may only name families of keys that exist."""
    own = ROOT / "api" / "contract" / "keys.py"
    for path in [each for folder in ("api", "workers") for each in (ROOT / folder).rglob("*.py")]:
        found = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        spelled = [text for text in found if re.match(r"pf:[a-z-]*:?\Z|pf:[a-z-]+:?[^\s]*\Z", text)]
        assert not spelled or path == own, (path, spelled)
    families = set(re.findall(r"\{PREFIX\}([a-z-]+:)", own.read_text()))
    for path in (ROOT / "api" / "protocol" / "scripts").glob("*.lua"):
        assert set(re.findall(r"'pf:([a-z-]+:)", path.read_text())) <= families, path
