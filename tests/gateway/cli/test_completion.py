"""Completion in the shell: bash itself completes by our script; zsh and fish get what they ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PROGRAMS = {"seqroute": "_SEQROUTE_COMPLETE", "seqroute-train": "_SEQROUTE_TRAIN_COMPLETE"}
FOLDER = Path(sys.executable).parent
COMMANDS = {"seqroute": {"policies"}, "seqroute-train": {"pretrain"}}
"""What `p` completes to."""
REGISTERED = {
    "bash": "complete -o default -F _{name}_completion {program}",
    "zsh": "#compdef {program}",
    "fish": "complete --command {program} --no-files",
}


def ask(program: str, variables: Mapping[str, str]) -> str:
    done = subprocess.run(
        [FOLDER / program], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", REGISTERED)
@pytest.mark.parametrize("program", PROGRAMS)
def test_each_shell_gets_a_script_that_registers_the_program(program: str, shell: str) -> None:
    script = ask(program, {PROGRAMS[program]: f"source_{shell}"})
    assert REGISTERED[shell].format(program=program, name=program.replace("-", "_")) in script
    assert f"{PROGRAMS[program]}=complete_{shell}" in script


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_shell_that_runs_the_program_is_recognized(program: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{FOLDER / program} --show-completion; true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ask(program, {PROGRAMS[program]: "source_bash"}).strip()


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("seqroute", ["po"], ["policies"]),
        ("seqroute", ["tenants", ""], ["list", "create", "show", "change", "grant"]),
        ("seqroute", ["serve", "--log-"], ["--log-level", "--log-format"]),
        ("seqroute-train", ["night"], ["nightly"]),
        ("seqroute-train", ["nightly", "--js"], ["--json"]),
    ],
)
def test_bash_offers_commands_and_options(program: str, words: list[str], offered: list[str]) -> None:
    function = f"_{program.replace('-', '_')}_completion"
    typed = " ".join(f'"{word}"' for word in (program, *words))
    script = (
        f'export PATH="{FOLDER}:$PATH"; eval "$({PROGRAMS[program]}=source_bash {program})"\n'
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; {function} {program}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert set(offered) <= set(done.stdout.split()), done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_and_fish_are_offered_commands_with_their_meaning(program: str) -> None:
    variable, typed = PROGRAMS[program], {"_TYPER_COMPLETE_ARGS": f"{program} p"}
    zsh = ask(program, typed | {variable: "complete_zsh"})
    fish = ask(program, typed | {variable: "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    for command in COMMANDS[program]:
        assert f'"{command}":"' in zsh
        assert command in {line.partition("\t")[0] for line in fish.splitlines()}
        assert all(line.partition("\t")[2] for line in fish.splitlines())
