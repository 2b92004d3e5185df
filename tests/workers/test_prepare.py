"""``pagefleet prepare``: the model is there before the first worker asks for it."""

from __future__ import annotations

from click.testing import CliRunner
from tiny_gguf import write_gguf

from pagefleet.api.cli.main import main
from pagefleet.engine.loading.model_cache import list_cached


def prepare(*arguments):
    return CliRunner().invoke(main, ["prepare", *map(str, arguments)])


def test_a_model_is_converted_once(tmp_path):
    file, cache = tmp_path / "tiny.gguf", tmp_path / "models"
    write_gguf(file)
    done = prepare("--model", file, "--cache-dir", cache)
    assert done.exit_code == 0, done.output
    (model,) = list_cached(cache)
    assert done.stdout == f"tiny is ready in {model.path}\n"
    before = (model.path / "config.json").stat().st_mtime_ns
    assert prepare("--model", file, "--cache-dir", cache).exit_code == 0
    assert (model.path / "config.json").stat().st_mtime_ns == before


def test_a_wrong_name_is_one_sentence_and_the_null_backend_needs_nothing(tmp_path, monkeypatch):
    done = prepare("--model", "nothing-of-the-kind", "--cache-dir", tmp_path)
    assert done.exit_code == 1
    assert "Error: Model 'nothing-of-the-kind' was not found" in done.output
    monkeypatch.setenv("PAGEFLEET_BACKEND", "null")
    assert prepare("--model", "null", "--cache-dir", tmp_path).exit_code == 0
    assert not list_cached(tmp_path)
