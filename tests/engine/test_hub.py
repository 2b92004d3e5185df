"""What is fetched of a model on the hub, by the real huggingface_hub from a hub on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO, Any

from fake_hub import FakeHub, HubFile, fake_hub

from pagefleet.engine.loading.download_progress import DownloadProgress
from pagefleet.workers.threads.polling import wait_until

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
CODE = {"auto_map": {"AutoModelForCausalLM": "m.M"}}
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
SHARDS = {name: name.encode() for name in INDEX["weight_map"].values()}


def files(config: dict[str, Any], **more: bytes) -> dict[str, bytes]:
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", "README.md": b"#", **more}


MODELS = {
    "o/whole": files(LLAMA)
    | {"model.safetensors": b"w", "consolidated.safetensors": b"x", "pytorch_model.bin": b"y"},
    "o/sharded": files(LLAMA)
    | SHARDS
    | {"model.safetensors.index.json": json.dumps(INDEX).encode(), "old.safetensors": b"x"},
    "o/single": files(LLAMA) | {"weights.safetensors": b"w"},
    "o/several": files(LLAMA) | {"a.safetensors": b"w", "b.safetensors": b"w"},
    "o/foreign": files({"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    | {"model.safetensors": b"w"},
    "o/quantised": files(LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}})
    | {"model.safetensors": b"w"},
    "o/own-code": files(LLAMA | CODE) | {"model.safetensors": b"w", "m.py": b"raise SystemExit"},
    "o/only-code": files({"architectures": ["MyModel"], "model_type": "mine"} | CODE)
    | {"model.safetensors": b"w"},
    "o/empty": {"README.md": b"#"},
}
SCRIPT = """
import json, sys
from pagefleet.engine.errors import EngineError
from pagefleet.engine.loading.checkpoint import locate, resolve
found = []
for name in sys.argv[1:]:
    model, _, revision = name.partition("@")
    try:
        folder = resolve(model, None, revision or None).folder
        assert locate(model, None, revision or None).folder == folder
        found.append([str(path) for path in sorted(folder.iterdir())])
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
        try:
            found[-1] = str(locate(model, None, revision or None))
        except EngineError:
            pass  # What cannot be resolved is not located either.
print(json.dumps(found))
"""
NUM_MEGABYTES = 24
LARGE = HubFile("model.safetensors", random.Random(0).randbytes(NUM_MEGABYTES * 10**6))


def resolved(names: list[str], home: Path, **env: str) -> list[Any]:
    """Return the paths of each model's files, or the error. A name can end in @ and a revision.

    In a process of its own: huggingface_hub reads its environment when it is imported.
    """
    given = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | env
    command = [sys.executable, "-c", SCRIPT, *names]
    result = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(result.stdout)
    return found


def file_names(names: list[str], home: Path, **env: str) -> dict[str, Any]:
    results = resolved(names, home, **env)
    return {
        name: each if isinstance(each, str) else [Path(path).name for path in each]
        for name, each in zip(names, results, strict=True)
    }


def blobs(home: Path, model: str) -> Path:
    return home / "hub" / f"models--{model.replace('/', '--')}" / "blobs"


def test_a_model_is_checked_before_its_weights_are_fetched_and_only_what_is_needed_is(tmp_path):
    with fake_hub(MODELS) as hub:
        found = file_names(list(MODELS), tmp_path, HF_ENDPOINT=hub.address)
        weights = {name for name in hub.fetched if not name.endswith(("json", "md"))}
    small = ["config.json", "tokenizer.json"]
    assert found["o/whole"] == sorted([*small, "model.safetensors"])
    assert found["o/sharded"] == sorted([*small, *SHARDS, "model.safetensors.index.json"])
    assert found["o/single"] == [*small, "weights.safetensors"]
    assert "several weight files" in found["o/several"]
    assert (
        "'MambaForCausalLM' is not supported: it has layers of the kind linear_attention"
        in found["o/foreign"]
    )
    assert "quantization_config with the method 'bitsandbytes' is not" in found["o/quantised"]
    assert found["o/own-code"] == sorted([*small, "model.safetensors"])
    assert found["o/only-code"].startswith("UnsafeCheckpointError: o/only-code: ")
    assert "'MyModel'" in found["o/only-code"]
    assert "no config.json" in found["o/empty"]
    assert weights == {
        "o/whole/model.safetensors",
        "o/single/weights.safetensors",
        "o/own-code/model.safetensors",
        *(f"o/sharded/{name}" for name in SHARDS),
    }
    assert hub.fetched.count("o/whole/config.json") == 1

    # What was fetched is found again where the hub cannot be reached.
    known = ["o/whole", "o/sharded", "o/single"]
    again = file_names(known, tmp_path, HF_ENDPOINT=hub.address)
    assert [again[name] for name in known] == [found[name] for name in known]
    [weights_of_single] = tmp_path.rglob("weights.safetensors")
    weights_of_single.unlink()
    offline = file_names([*known, "o/never"], tmp_path, HF_HUB_OFFLINE="1")
    assert [offline[name] for name in known[:2]] == [found[name] for name in known[:2]]
    reason = ", and the hub cannot be reached: check the network and HF_HUB_OFFLINE."
    assert offline["o/single"] == f"UnknownModelError: o/single has not been downloaded completely{reason}"
    assert offline["o/never"] == f"UnknownModelError: o/never has not been downloaded{reason}"


def test_a_revision_selects_branch_tag_or_commit(tmp_path):
    models = {
        "o/model": files(LLAMA) | {"model.safetensors": b"main"},
        "o/model@v2": files(LLAMA) | {"model.safetensors": b"second"},
        "o/huge": files(LLAMA) | {"model.safetensors": HubFile("model.safetensors", b"w", 10**15)},
    }
    found = ["o/model", "o/model@v2", f"o/model@{2:040x}"]
    refused = ["o/model@v3", "o/gated", "o/other", f"{tmp_path}@v2", "o/huge"]
    with fake_hub(models, gated="o/gated") as hub:
        first, second, same, *errors = resolved([*found, *refused], tmp_path, HF_ENDPOINT=hub.address)
    assert Path(first[1]).read_bytes() == b"main"
    assert Path(second[1]).read_bytes() == b"second"
    assert same == second
    assert "o/huge/model.safetensors" not in hub.fetched, "it does not fit the disk"
    free = re.compile("has [0-9.]+ GB free")
    assert [free.sub("has N GB free", error) for error in errors] == [
        "UnknownModelError: o/model has no revision 'v3': give a branch, tag or commit of its repository.",
        "UnknownModelError: o/gated is gated: accept its terms on its page on the hub, and set HF_TOKEN.",
        "UnknownModelError: o/other is not on the hub, or it is private: check the name, or set HF_TOKEN.",
        f"ConfigError: revision 'v2' is given, but {tmp_path} is not a model on the hub; remove it.",
        f"ModelLoadError: o/huge needs 1000000.0 GB more in {tmp_path}/hub, which has N GB free: free disk "
        "space, or set HF_HOME to a directory on a larger disk.",
    ]


def test_a_continued_download_is_compared_with_its_checksum(tmp_path):
    content = LARGE.content[:100]
    partial = {
        "o/whole": content,
        "o/wrong": b"x" * 50,
        "o/long": content + b"x",
        "o/again": b"x" * 50,
    }
    served = {name: files(LLAMA) | {"model.safetensors": content} for name in partial}
    for name, found in partial.items():
        etag = HubFile("model.safetensors", content).etag
        blobs(tmp_path, name).mkdir(parents=True)
        (blobs(tmp_path, name) / f"{etag}.pagefleet.incomplete").write_bytes(found)
    with fake_hub(served) as hub:
        hub.ignores_ranges_of = "o/again/model.safetensors"
        names = ["o/wrong", "o/wrong", "o/whole", "o/long", "o/again"]
        error, *complete = resolved(names, tmp_path, HF_ENDPOINT=hub.address)
    assert error == (
        "ModelLoadError: o/wrong: the continued download of model.safetensors does not match its "
        "checksum and is deleted; start again to download the file anew."
    )
    assert [Path(found[1]).read_bytes() for found in complete] == [content] * 4
    ranges = [each for name, each in zip(hub.fetched, hub.ranges, strict=True) if name.endswith("tensors")]
    assert ranges == ["bytes=50-", None, None, "bytes=50-"], "o/whole needs no request"


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    home = tmp_path / "file" / "home"
    home.parent.write_bytes(b"not a directory")
    with fake_hub(MODELS) as hub:
        [error] = resolved(["o/whole"], home, HF_ENDPOINT=hub.address)
    assert error.startswith(f"ModelLoadError: o/whole cannot be downloaded to {home}/hub ([Errno 20]")
    assert error.endswith("set HF_HOME to a directory that this user can write to, and check the network.")


# -- a download that is killed -------------------------------------------------------------------------


def prepare(hub: FakeHub, home: Path, stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pagefleet.api.cli.main", "prepare", "--model", "o/large", "--revision", "v2"],
        env=os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": hub.address},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def read_terminal(terminal: int) -> str:
    """Return what was written until the last process closed it."""
    found = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            found += part
    os.close(terminal)
    return found.decode()


def test_a_killed_download_continues_where_it_stopped(tmp_path):
    """The first process shows a bar on a terminal and is killed. Of two that follow, one continues and logs;
    the other one waits for it."""
    models = {"o/large@v2": files(LLAMA) | {LARGE.name: LARGE}}
    partial = blobs(tmp_path, "o/large") / f"{LARGE.etag}.pagefleet.incomplete"
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    with fake_hub(models) as hub, contextlib.ExitStack() as stack:
        hub.hold_after = 15 * 10**6
        terminal, stderr = os.openpty()
        termios.tcsetwinsize(terminal, (24, 100))
        killed = stack.enter_context(prepare(hub, tmp_path, stderr))
        os.close(stderr)
        assert wait_until(lambda: partial.exists() and partial.stat().st_size > 10**7, 60)
        killed.kill()
        assert re.search(r"o/large: +0%\|.*\| 0\.00/24\.0M ", read_terminal(terminal))
        kept = partial.stat().st_size
        hub.hold_after = 5 * 10**6
        streams = [stack.enter_context(log.open("wb")) for log in logs]
        followers = [stack.enter_context(prepare(hub, tmp_path, stream)) for stream in streams]
        assert wait_until(lambda: any("waiting for another" in log.read_text() for log in logs), 60)
        hub.released.set()
        assert [follower.wait(60) for follower in followers] == [0, 0]
    assert hub.ranges[hub.fetched.index("o/large/model.safetensors") :].count(f"bytes={kept}-") == 1
    assert hub.fetched.count("o/large/model.safetensors") == 2
    [found] = (tmp_path / "hub").glob(f"models--o--large/snapshots/*/{LARGE.name}")
    assert found.read_bytes() == LARGE.content
    assert not partial.exists()
    [log] = [text for log in logs if "waiting" not in (text := log.read_text())]
    assert "o/large: downloading 24.0 MB" in log
    assert re.search(r"o/large: 24\.0 MB of 24\.0 MB downloaded, [\d.]+ MB/s\n", log)


def test_a_download_without_a_terminal_logs_its_state_again_and_again(caplog):
    caplog.set_level(logging.INFO)
    with DownloadProgress("o/model", 3 * 10**9, log_interval_s=0.02) as progress:
        with progress.meter(initial=10**9) as meter:
            meter.update(5 * 10**8)
        line = r"o/model: 1\.50 GB of 3\.00 GB downloaded, [\d.]+ GB/s, \d+ s left"
        assert wait_until(lambda: len(re.findall(line, caplog.text)) > 2, 10), caplog.text
