"""What TAB offers, through typer's own completion, and that it agrees with the parsers that read the arguments."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
from rl_zoo3.utils import ALGOS
from typer._completion_classes import BashComplete
from typer.main import get_command

from persist_sb3 import completion, zoo
from persist_sb3.__main__ import app

#: A parser's actions without values, and the most that each of the others takes.
MOST = {0: 0, None: 1, "+": sys.maxsize, "*": sys.maxsize}


def completed(typed: str) -> list[str]:
    """
    :param typed: after ``persist-sb3``, the last word incomplete
    :return: what is offered
    """
    *words, incomplete = typed.split(" ")
    shell = BashComplete(get_command(app), {}, "persist-sb3", "_PERSIST_SB3_COMPLETE")
    return [item.value for item in shell.get_completions(words, incomplete)]


class Caught(Exception):
    """Carries a parser out of the function that made it."""


def parser_in(command: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """
    :param command: makes a parser, and has it read the command line
    :param monkeypatch: of the test
    :return: the parser
    """

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", caught)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", caught)
    with pytest.raises(Caught) as error:
        command()
    parser: argparse.ArgumentParser = error.value.args[0]
    return parser


OWN = [f"persist_sb3.{name}" for name in ("train", "enjoy", "report", "explain", "demonstrate")]


@pytest.mark.parametrize("module", [*OWN, "rl_zoo3.train", "rl_zoo3.enjoy"])
def test_what_is_read_off_the_source_is_what_the_parser_has(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["persist-sb3"])
    # enjoy leaves marks on rl-zoo3.
    monkeypatch.setattr("rl_zoo3.enjoy.create_test_env", None)
    monkeypatch.setitem(ALGOS, zoo.MASKED, None)
    command = getattr(importlib.import_module(module), module.rpartition(".")[2])
    actions = parser_in(command, monkeypatch)._actions
    expected = {tuple(action.option_strings): action for action in actions if action.option_strings}
    read = {option.names: option for option in completion.options(module)}
    assert {completion.HELP.names, *read} == set(expected)
    for names, option in read.items():
        action = expected[names]
        assert option.most == MOST[action.nargs], names
        assert set(option.choices) <= set(action.choices or ())
        assert (action.help or "").startswith(option.help)


def test_the_algorithms_are_those_of_rl_zoo3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGOS, zoo.MASKED, None)
    assert completion.algorithms() == sorted(ALGOS)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("train --a", ["--algo"]),
        ("train --algo pp", ["ppo", "ppo_lstm", "ppo_mask"]),
        ("train --env GridLifeSeas", ["GridLifeSeason-v0"]),
        ("train --env = GridLifeSeas", ["GridLifeSeason-v0"]),
        ("train --seed 3 --tr", ["--trained-agent", "--truncate-last-trajectory", "--trial-id", "--track"]),
        ("train --vec-env ", ["dummy", "subproc"]),
        ("train --persist ", []),
        ("train --env GridLife-v0 --sh", ["--shield"]),
        ("train --gym-packages one two", []),
        ("enjoy --algo sa", ["sac"]),
        ("enjoy --load-b", ["--load-best"]),
        ("report --sp", ["--split"]),
        ("report --split v", ["validation"]),
        ("explain --m", ["--most"]),
        ("demonstrate --env GridLifeScent-", ["GridLifeScent-v0"]),
        ("demonstrate --agent o", ["oracle"]),
        ("doctor --gym", ["--gym-packages"]),
        ("init Acro", ["Acrobot-v1"]),
    ],
)
def test_words_are_completed(typed: str, expected: list[str]) -> None:
    assert completed(typed) == expected


def test_every_registered_environment_is_offered() -> None:
    assert completed("train --env ") == sorted(gym.registry)


def test_options_come_with_their_help() -> None:
    offers = dict(completion.offered("report", [], "--ep"))  # type: ignore[arg-type]
    assert offers == {"--episodes": "to evaluate"}


def test_a_command_that_takes_nothing_else_offers_its_options() -> None:
    assert {"--algo", "--env", "--shield", "--progress", "--track", "--help"} <= set(completed("train "))


def test_run_folders_where_one_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs" / "ppo" / "GridLife-v0_1" / "GridLife-v0").mkdir(parents=True)
    (tmp_path / "logs" / "ppo" / "GridLife-v0_1" / "GridLife-v0" / "args.yml").touch()
    monkeypatch.chdir(tmp_path)
    run = ["logs/ppo/GridLife-v0_1"]
    for typed in ("report l", "report --labels a l", "report --stochastic l", "enjoy ", "demonstrate --agent l"):
        assert completed(typed) == run, typed
    for typed in ("report --output l", "report --seed ", "demonstrate --output l", "train -i l"):
        assert completed(typed) == [], typed


@pytest.mark.parametrize("typed", ["train --a", "train --algo p", "train --env Grid", "enjoy ", "report --s"])
def test_nothing_slow_is_imported(typed: str) -> None:
    code = (
        f"import os, sys; os.environ.update(_PERSIST_SB3_COMPLETE='complete_bash', "
        f"COMP_WORDS='persist-sb3 {typed}', COMP_CWORD='{len(typed.split(' '))}'); sys.argv = ['persist-sb3']\n"
        "from persist_sb3.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print({'torch', 'stable_baselines3', 'rl_zoo3', 'matplotlib'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "set()", printed
