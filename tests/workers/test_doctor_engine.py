"""The engine's checks of `pagefleet doctor`: processor, limits of a container, torch, model, memory."""

from __future__ import annotations

import json

import pytest

from pagefleet.api import FleetSettings
from pagefleet.api.operate.doctor.finding import Target
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.errors import UnknownModelError
from pagefleet.engine.loading.checkpoint import locate
from pagefleet.engine.loading.model_size import model_size
from pagefleet.workers.doctor import device, model, processor
from pagefleet.workers.doctor.cgroup import cpu_quota, memory_limit
from pagefleet.workers.doctor.group import ENGINE

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_size": 64, "intermediate_size": 64, "vocab_size": 97, "max_position_embeddings": 128,
    "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def target():
    settings = FleetSettings()
    return lambda name=None: Target(settings, JobStore(settings), name)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "a-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(b"x" * 2**20)
    return folder


def by_check(check, target):
    return {finding.check: finding for finding in check(target)}


def test_on_this_machine_every_check_has_something_to_say(target):
    found = [finding for check in ENGINE.checks for finding in check(target())]
    assert {
        "processor",
        "threads",
        "OMP_WAIT_POLICY",
        "torch",
        "CUDA",
        "triton",
        "model files",
        "memory",
    } <= {finding.check for finding in found}
    assert all(finding.fix for finding in found if finding.level in ("warning", "error"))


class TestTheProcessor:
    def test_flags_of_both_kinds(self, tmp_path):
        for line, flag in (("flags\t\t: fpu avx2 amx_bf16", "amx_bf16"), ("Features\t: asimd sve", "sve")):
            (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\nflags\t: none\n")
            assert flag in processor.cpu_flags(tmp_path / "cpuinfo")
        assert processor.cpu_flags(tmp_path / "none") == frozenset()

    @pytest.mark.parametrize(
        ("flags", "level"),
        [
            ({"avx2", "avx512f", "amx_bf16"}, "ok"),
            ({"avx2"}, "warning"),
            ({"sse4_2"}, "warning"),
            ((), "skipped"),
        ],
    )
    def test_without_bf16_or_avx2_it_says_what_that_means(self, target, monkeypatch, flags, level):
        monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
        assert by_check(processor.features, target())["processor"].level == level

    def test_more_threads_than_the_container_gets(self, target, monkeypatch):
        monkeypatch.setattr(processor, "cpu_quota", lambda: 1.5)
        monkeypatch.setattr(processor.os, "sched_getaffinity", lambda _pid: set(range(16)))
        monkeypatch.setenv("PAGEFLEET_NUM_THREADS", "16")
        finding = by_check(processor.threads, target())["threads"]
        assert (finding.level, finding.message) == (
            "warning",
            "16 threads on 16 cores; the container may use 1.5",
        )
        assert finding.fix.startswith("set PAGEFLEET_NUM_THREADS=1,")

    def test_spinning_threads(self, target, monkeypatch):
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        assert by_check(processor.threads, target())["OMP_WAIT_POLICY"].fix == "set OMP_WAIT_POLICY=passive"


class TestAContainer:
    def test_version_2_the_tightest_of_all_above(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "membership").write_text("0::/a/b\n")
        (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
        (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
        (tmp_path / "a" / "memory.max").write_text("max\n")
        (tmp_path / "a" / "b" / "memory.max").write_text("1000\n")
        (tmp_path / "a" / "b" / "memory.current").write_text("400\n")
        assert cpu_quota(tmp_path, tmp_path / "membership") == 1.5
        assert memory_limit(tmp_path, tmp_path / "membership") == 600

    def test_version_1(self, tmp_path):
        (tmp_path / "cpu,cpuacct" / "a").mkdir(parents=True)
        (tmp_path / "memory" / "a").mkdir(parents=True)
        (tmp_path / "membership").write_text("5:memory:/a\n2:cpu,cpuacct:/a\n1:name=systemd:/\n")
        (tmp_path / "cpu,cpuacct" / "a" / "cpu.cfs_quota_us").write_text("200000\n")
        (tmp_path / "cpu,cpuacct" / "a" / "cpu.cfs_period_us").write_text("100000\n")
        (tmp_path / "memory" / "a" / "memory.limit_in_bytes").write_text("5000\n")
        (tmp_path / "memory" / "a" / "memory.usage_in_bytes").write_text("1000\n")
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000\n")
        assert cpu_quota(tmp_path, tmp_path / "membership") == 2
        assert memory_limit(tmp_path, tmp_path / "membership") == 4000

    def test_none(self, tmp_path):
        assert cpu_quota(tmp_path, tmp_path / "none") is None
        assert memory_limit(tmp_path, tmp_path / "none") is None


class TestTheDevice:
    def test_cuda_that_is_asked_for_and_not_there(self, target, monkeypatch):
        import torch

        monkeypatch.setenv("PAGEFLEET_DEVICE", "cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert by_check(device.cuda, target())["CUDA"].level == "error"

    def test_the_triton_that_torch_names(self, target, monkeypatch):
        requirements = ["sympy>=1.13.3", 'triton==3.4.0; platform_system == "Linux"']
        assert device.triton_for(requirements) == "3.4.0"
        assert device.triton_for(["numpy"]) is None
        monkeypatch.setattr(device.importlib.metadata, "requires", lambda _name: ["triton==0.0.1"])
        finding = by_check(device.triton, target())["triton"]
        assert (finding.level, finding.fix) == ("error", "pip install triton==0.0.1")


class TestTheModel:
    def test_a_folder_is_ready_and_measured(self, target, checkpoint):
        assert by_check(model.model_files, target(str(checkpoint)))["model files"].level == "ok"
        size = model_size(checkpoint)
        # 2 (key and value) x 2 layers x 2 heads x 16 elements x 2 bytes
        assert (size.weight_bytes, size.kv_bytes_per_token, size.max_model_len) == (2**20, 256, 128)
        assert model_size(checkpoint, "float32").weight_bytes == 2**21
        windows = {"model_type": "ministral", "head_dim": 16, "sliding_window": 32}
        windows["layer_types"] = ["full_attention", "sliding_attention"]
        (checkpoint / "config.json").write_text(json.dumps(CONFIG | windows))
        assert model_size(checkpoint).kv_bytes_per_token == 128, "of the layer without a window"
        (checkpoint / "config.json").write_text(json.dumps(CONFIG))
        assert by_check(model.memory, target(str(checkpoint)))["memory"].level == "ok"

    def test_a_name_that_nothing_has(self, target):
        finding = by_check(model.model_files, target("nobody"))["model files"]
        assert (finding.level, finding.fix) == ("error", "pagefleet prepare --model nobody")

    def test_a_hub_id_is_looked_for_but_not_fetched(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UnknownModelError, match="has not been downloaded"):
            locate("an-owner/never-fetched")

    def test_a_gguf_file_that_is_not_converted(self, target, tmp_path, monkeypatch):
        file = tmp_path / "a.gguf"
        file.write_bytes(b"GGUF" + b"x" * 1000)
        monkeypatch.setenv("PAGEFLEET_CACHE_DIR", str(tmp_path / "cache" / "deep"))
        found = by_check(model.model_files, target(str(file)))
        assert found["model files"].level == "warning"
        assert found["model cache"].level == "ok"
        monkeypatch.setattr(model.shutil, "disk_usage", lambda _path: type("Disk", (), {"free": 10}))
        assert by_check(model.model_files, target(str(file)))["model cache"].level == "error"

    @pytest.mark.parametrize(
        ("limit", "level"), [(2**19, "error"), (2**20 + 2**12, "warning"), (2**30, "ok")]
    )
    def test_memory_that_a_container_leaves(self, target, checkpoint, monkeypatch, limit, level):
        monkeypatch.setattr(model, "memory_limit", lambda: limit)
        assert by_check(model.memory, target(str(checkpoint)))["memory"].level == level

    def test_a_kv_cache_that_settings_make_too_large(self, target, checkpoint, monkeypatch):
        monkeypatch.setenv("PAGEFLEET_KV_MEMORY", str(2**60))
        assert by_check(model.memory, target(str(checkpoint)))["memory"].level == "error"


def test_a_variable_that_no_setting_is_called(target, monkeypatch):
    for name in (
        "PAGEFLEET_MODLE",
        "PAGEFLEET_QUITE_ANOTHER_THING",
        "PAGEFLEET_TAG",
        "PAGEFLEET_FLOWER_PORT",
        "PAGEFLEET_GATEWAY_PORT",
    ):
        monkeypatch.setenv(name, "1")
    first, second = model.settings(target())
    assert (first.message, first.fix) == ("PAGEFLEET_MODLE is not a setting", "did you mean PAGEFLEET_MODEL?")
    assert (second.message, second.level) == ("PAGEFLEET_QUITE_ANOTHER_THING is not a setting", "warning")
