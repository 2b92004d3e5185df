"""Completion in a real bash: commands, options, and the models that Redis knows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pagefleet.api.cli.main import main

PRESS_TAB = """
COMP_WORDS=({words}) COMP_CWORD={index}
_pagefleet_completion pagefleet
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
SCRIPT = CliRunner().invoke(main, ["completion", "bash"]).output


def complete(*words, **environment):
    """What bash offers for the last word."""
    program = SCRIPT + PRESS_TAB.format(words=" ".join(f"'{word}'" for word in words), index=len(words) - 1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True, text=True, timeout=60, env=os.environ | {"PATH": path} | environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
class TestBash:
    def test_commands_and_options(self):
        assert complete("pagefleet", "gen") == ["generate"]
        assert complete("pagefleet", "models", "re") == ["remove"]
        assert "--max-tokens" in complete("pagefleet", "generate", "--max")
        assert complete("pagefleet", "generate", "--lane", "b") == ["batch"]

    def test_models_and_aliases_from_redis(self, null_stack, ghost):
        url = {"REDIS_URL": null_stack.redis_url}
        assert complete("pagefleet", "generate", "--model", "gh", **url) == ["ghost"]
        assert complete("pagefleet", "models", "remove", "sp", **url) == ["spirit"]

    def test_no_redis_no_names_and_no_noise(self):
        assert complete("pagefleet", "generate", "--model", "", REDIS_URL="redis://127.0.0.1:1/0") == []


@pytest.mark.parametrize(("shell", "word"), [("zsh", "#compdef pagefleet"), ("fish", "complete --no-files")])
def test_the_other_shells_have_scripts_of_their_own(shell, word):
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert word in done.output
    assert "_PAGEFLEET_COMPLETE" in done.output


def test_an_unknown_shell_is_a_usage_error():
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2
