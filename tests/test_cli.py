"""The command line: what it shows, what it costs, and that what ``init`` writes runs as it is."""

import argparse
import contextlib
import importlib
import os
import pty
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import rl_zoo3.enjoy as zoo_enjoy
import stable_baselines3.common.callbacks as sb3_callbacks
import yaml
from rl_zoo3.utils import ALGOS
from sb3_contrib import MaskablePPO
from stable_baselines3.common.monitor import load_results
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from persist_sb3.__main__ import app
from persist_sb3.completion import BEHIND, options
from persist_sb3.config import PersistConfig
from persist_sb3.enjoy import enjoy
from persist_sb3.train import train
from persist_sb3.zoo import MASKED, show_progress

ROOT = Path(__file__).parent.parent
COMMANDS = ("train", "enjoy", "report", "explain", "demonstrate", "doctor", "init")
runner = CliRunner()


def python(code: str, folder: Path | None = None, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return finished.stdout


def test_help_names_every_command_and_does_not_import_torch() -> None:
    code = """
import sys
sys.argv = ["persist-sb3", "--help"]
from persist_sb3.__main__ import main
try:
    main()
finally:
    print("torch" in sys.modules, "stable_baselines3" in sys.modules, "matplotlib" in sys.modules)
"""
    printed = python(code, TERM="dumb")
    assert all(command in printed for command in COMMANDS)
    assert printed.splitlines()[-1] == "False False False"


def completed(words: str, folder: Path | None = None) -> list[str]:
    """
    :param words: what was typed, the last of them incomplete
    :param folder: where it was typed
    :return: what bash offers
    """
    code = "import sys; sys.argv = ['persist-sb3']; from persist_sb3.__main__ import main; main()"
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return python(code, folder, _PERSIST_SB3_COMPLETE="complete_bash", **variables).split()


def test_tab_completes_commands_options_and_environments() -> None:
    assert completed("persist-sb3 d") == ["demonstrate", "doctor"]
    assert "--persist" in completed("persist-sb3 doctor --p")
    assert "GridLifeScent-v0" in completed("persist-sb3 doctor GridLifeS")


def test_tab_completes_the_folders_of_runs(tmp_path: Path) -> None:
    for run in ("ppo/GridLife-v0_1", "ppo/GridLife-v0_2", "sac/Pendulum-v1_1"):
        (tmp_path / "logs" / run / "Env-v0").mkdir(parents=True)
        (tmp_path / "logs" / run / "Env-v0" / "args.yml").touch()
    (tmp_path / "logs" / "ppo" / "notes_1").mkdir()
    expected = ["logs/ppo/GridLife-v0_1", "logs/ppo/GridLife-v0_2"]
    assert completed("persist-sb3 report logs/p", tmp_path) == expected
    assert completed("persist-sb3 report logs/ppo/GridLife-v0_2 logs/s", tmp_path) == ["logs/sac/Pendulum-v1_1"]
    assert completed("persist-sb3 explain logs/ppo/GridLife-v0_2", tmp_path) == expected[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_of_what_the_command_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command in ("doctor", "init"):
        monkeypatch.setenv("COLUMNS", "200")
        printed = runner.invoke(app, [command, "--help"]).output
        refused = _refused_by_typer
    else:
        parser = importlib.import_module(f"persist_sb3.{command}")._parser()
        parser.prog = f"persist-sb3 {command}"
        printed = parser.format_help()
        refused = partial(_refused_by, parser)
    _, _, examples = printed.partition("examples:")
    # What an example is for stands behind it, after a gap.
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in examples.splitlines()]
    lines = [line for line in lines if line.startswith("persist-sb3 ")]
    assert len(lines) >= 2
    for line in lines:
        _, named, *arguments = shlex.split(line)
        assert named == command
        assert not refused(command, arguments), line


def _refused_by(parser: argparse.ArgumentParser, command: str, arguments: list[str]) -> list[str]:
    if command == "enjoy" and arguments and not arguments[0].startswith("-"):
        arguments = arguments[1:]
    _, others = parser.parse_known_args(arguments)
    known = [name for module in BEHIND.get(command, []) for option in options(module) for name in option.names]
    return [other for other in others if other.startswith("-") and other not in known]


def _refused_by_typer(command: str, arguments: list[str]) -> list[str]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    # Where it cannot be read, an exception says so.
    group.commands[command].make_context(command, [*arguments])
    return []


def test_bars_are_drawn_on_stderr_alone_and_only_on_a_terminal() -> None:
    code = """
import time
from persist_sb3.progress import bar, waiting
with bar() as progress:
    task = progress.add_task("recording", total=3)
    progress.update(task, completed=2)
    time.sleep(0.3)
    print("what is printed meanwhile")
with waiting("loading"):
    time.sleep(0.3)
"""
    assert _on_terminal(code, stderr=False) == ("what is printed meanwhile\n", "")
    printed, drawn = _on_terminal(code, stderr=True)
    assert printed == "what is printed meanwhile\n"
    assert "recording" in drawn and "2/3" in drawn and "loading" in drawn


def _on_terminal(code: str, *, stderr: bool) -> tuple[str, str]:
    """
    :param code: to be run, with stdout a pipe
    :param stderr: is a terminal, or else a pipe
    :return: what was written to both
    """
    keep = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    environment = {**keep, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    ours, theirs = pty.openpty() if stderr else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        written = []
        # The end of a terminal that nobody has open any more is an error, not an empty read.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 4096):
                written.append(chunk)
        os.close(ours)
        assert process.stdout is not None
        return process.stdout.read(), b"".join(written).decode()


@pytest.mark.parametrize(
    ("terminal", "given", "shown"),
    [(True, [], True), (True, ["--no-progress"], False), (False, [], False), (False, ["-P"], True)],
)
def test_train_and_enjoy_show_a_bar_where_somebody_watches(
    terminal: bool, given: list[str], shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Sequence[str]] = []
    monkeypatch.setattr("persist_sb3.zoo.run", lambda main, arguments: taken.append(arguments))
    monkeypatch.setattr("rl_zoo3.enjoy.create_test_env", None)
    monkeypatch.setitem(ALGOS, MASKED, MaskablePPO)
    run = tmp_path / "ppo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    (run / "CartPole-v1" / "args.yml").write_text("{algo: ppo, env: CartPole-v1}")
    for module in ("train", "enjoy"):
        monkeypatch.setattr(f"persist_sb3.{module}.watched", lambda: terminal)
    train(["--algo", "ppo", "--env", "CartPole-v1", *given])
    enjoy([str(run), *given])
    assert len(taken) == 2
    for arguments in taken:
        assert bool({"--progress", "-P"} & set(arguments)) == shown
        assert "--no-progress" not in arguments


def test_rl_zoo3_draws_its_bars_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    before = sb3_callbacks.tqdm
    with show_progress():
        for module in (sb3_callbacks, zoo_enjoy):
            with vars(module)["tqdm"](total=3) as counted:
                counted.update(3)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("3/3") == 2
    assert sb3_callbacks.tqdm is zoo_enjoy.tqdm is before


def test_an_unknown_command_is_refused() -> None:
    result = runner.invoke(app, ["trian"])
    assert result.exit_code == 2
    assert "trian" in result.output
    assert "train" in result.output.replace("trian", "")


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["doctor", "CartPole-v1", "--episodes", "3"], 0, "CartPole-v1: no problems"),
        (["doctor", "NoSuchEnv-v0"], 1, "NoSuchEnv"),
        (["doctor"], 1, "name an environment"),
        (["doctor", "CartPole-v1", "--gym-packages", "no_such_module"], 1, "no_such_module"),
        (["doctor", "--persist", "no_such_file.yml"], 1, "no_such_file.yml"),
        (["init", "NoSuchEnv-v0"], 1, "NoSuchEnv"),
        (["init", "CartPole-v1", "--algo", "SAC"], 1, "sac needs Box actions"),
        (["init", "CartPole-v1", "--algo", "PPPO"], 1, "algo=PPPO"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_status(
    arguments: list[str], status: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert text in result.output
    assert result.exit_code == status
    assert not list(tmp_path.iterdir())


def test_doctor_tells_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "cart.yml").write_text(
        """
        env: {name: CartPole-v1}
        internal_state: {dims: [theta], mu: [0.0], source: {theta: "obs[2]"}}
        viability: {constraints: ["abs(theta) <= 0.2"]}
        rewards: {alive_bonus: 0.0, death_penalty: 0.0}
        """
    )
    picture = tmp_path / "survival.png"
    result = runner.invoke(app, ["doctor", "--persist", str(tmp_path / "cart.yml"), "--output", str(picture)])
    assert result.exit_code == 1
    assert "pay the agent to die" in " ".join(result.output.split())
    assert "CartPole-v1: 1 problem" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


WRITTEN = [
    ("CartPole-v1", "A2C"),
    ("Pendulum-v1", "SAC"),
    ("GridLife-v0", "A2C"),
    ("MountainCar-v0", "DQN"),
    ("Blackjack-v1", "A2C"),
    ("Taxi-v4", "A2C"),
    pytest.param("CartPole-v1", "PPO", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("env_id", "algo"), WRITTEN)
def test_what_init_writes_runs_as_it_is(
    env_id: str, algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = runner.invoke(app, ["init", env_id, "--algo", algo, "--folder", str(tmp_path), "--episodes", "8"])
    assert result.exit_code == 0, result.output
    (config,), (script,) = tmp_path.glob("*.yml"), tmp_path.glob("train_*.py")
    assert "EDIT" in config.read_text()
    assert PersistConfig.from_yaml(config).algo == algo.lower()
    monkeypatch.setattr(sys, "argv", [str(script), "--timesteps", "150"])
    runpy.run_path(str(script), run_name="__main__")
    (run_folder,) = tmp_path.glob("*_run")
    assert (run_folder / "persist.jsonl").is_file()
    assert len(list(run_folder.glob("*.zip"))) == 1
    load_results(str(run_folder))
    assert runner.invoke(app, ["doctor", "--persist", str(config), "--episodes", "5"]).exit_code == 0


def test_what_init_writes_can_be_trained_with_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.invoke(app, ["init", "CartPole-v1", "--folder", str(tmp_path)]).exit_code == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    small = ["-n", "64", "--eval-freq", "-1", "--device", "cpu", "-params", "n_envs:1", "n_steps:64", "batch_size:64"]
    train(["--persist", "cartpole.yml", *small])
    assert (tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()


def test_init_writes_over_nothing_unless_told_to(tmp_path: Path) -> None:
    arguments = ["init", "CartPole-v1", "--folder", str(tmp_path), "--episodes", "3"]
    (tmp_path / "cartpole.yml").write_text("mine")
    assert runner.invoke(app, arguments).exit_code == 1
    assert (tmp_path / "cartpole.yml").read_text() == "mine"
    assert runner.invoke(app, [*arguments, "--force"]).exit_code == 0
    assert yaml.safe_load((tmp_path / "cartpole.yml").read_text())["env"] == {"name": "CartPole-v1"}
