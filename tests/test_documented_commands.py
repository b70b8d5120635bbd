"""Each command that README and docs show: it is one, it takes these options, and the files that it names are there."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import pytest
import rl_zoo3.enjoy as zoo_enjoy
import rl_zoo3.train as zoo_train
import typer
import wandb
import yaml
from packaging.requirements import Requirement
from rl_zoo3.utils import ALGOS
from tensorboard import default, program  # type: ignore[import-untyped]
from wandb.cli.cli import cli as wandb_command

from persist_sb3 import dashboards, demonstrate, enjoy, explain, hub, hyperparams, report, train
from persist_sb3.__main__ import app
from tests import hub as fake_hub
from tests.documents import PAGES, ROOT, blocks, name_of

INLINE = re.compile(r"(?<!`)`((?:persist-sb3|python|make) [^`]+)`(?!`)")
#: Words that stand for what the reader has.
PLACEHOLDERS = {
    "RUN_DIR": "logs/ppo/GridLifeScent-v0_1",
    "RUN_A": "logs/ppo/CartPole-v1_1",
    "RUN_B": "logs/ppo/CartPole-v1_2",
    "ZIP": "logs/ppo/GridLife-v0_1/GridLife-v0.zip",
    "FILE": "examples/cartpole.yml",
    "ENV_ID": "CartPole-v1",
    "MyEnv-v0": "CartPole-v1",
    "NAME.yml": "examples/cartpole.yml",
}
#: What a command of the page, or the reader by its advice, has written.
WRITTEN = {"cartpole.yml": "examples/cartpole.yml", "rover.yml": "examples/cartpole.yml"}
RUN = re.compile(r"logs/(\w+)/([\w-]+)_(\d+)")


class Command(NamedTuple):
    """
    A line of a page.

    :param where: page and line
    :param words: of the command
    """

    where: str
    words: tuple[str, ...]


#: Of rl-zoo3, and said to be so.
BROKEN: dict[str, type[Exception]] = {"rl_zoo3.push_to_hub": ImportError}


class Parsed(Exception):
    """What a command was given is what it takes; it need not run."""


def lines(text: str) -> Iterator[str]:
    """
    :param text: of a shell
    :return: its commands
    """
    for line in text.replace("\\\n", " ").splitlines():
        yield from line.split(" && ")


def words(line: str) -> tuple[str, ...]:
    """
    :param line: a command
    :return: its words, without what is set for it and without a comment
    """
    found = shlex.split(line, comments=True)
    while found and re.match(r"[A-Z_]+=", found[0]):
        del found[0]
    return tuple(PLACEHOLDERS.get(word, word) for word in found)


def commands(page: Path) -> list[Command]:
    """
    :param page: of the documentation
    :return: the commands in its blocks, and those within its prose that have arguments
    """
    found = [Command(block.where, words(line)) for block in blocks(page, "bash") for line in lines(block.text)]
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    # What is still being typed is no command yet.
    prose = re.sub(r"^\| TAB after .*?\n\n", "", prose, flags=re.DOTALL | re.MULTILINE)
    found += [Command(name_of(page), words(match[1])) for match in INLINE.finditer(prose)]
    return [each for each in found if each.words and "COMMAND" not in each.words]


COMMANDS = list(dict.fromkeys(each for page in PAGES for each in commands(page)))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the reader has it: what is in the repository, and what the pages told to write."""
    for entry in ("examples", "benchmarks", "persist_sb3", "constraints.txt", "Makefile"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    for file, like in WRITTEN.items():
        (tmp_path / file).write_bytes((ROOT / like).read_bytes())
    rover = blocks(ROOT / "docs" / "start" / "own_environment.md", "python")[0]
    (tmp_path / "rover.py").write_text(rover.text)
    monkeypatch.chdir(tmp_path)
    # What commands change in rl-zoo3 and in this process ends with the test.
    monkeypatch.setattr(zoo_enjoy, "create_test_env", zoo_enjoy.create_test_env)
    monkeypatch.setitem(ALGOS, "ppo_mask", ALGOS.get("ppo_mask"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "rover", raising=False)
    monkeypatch.delitem(gym.registry, "Rover-v0", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command come further than its parser."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
        raise Parsed(parse(self, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def main_of(command: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """
    :param command: words of one that is not this package's own
    :param monkeypatch: gives it its arguments
    :return: what ``python`` would run
    """
    monkeypatch.setattr(sys, "argv", list(command[1:]))
    script = command[1]
    if script == "-m":
        module, arguments = command[2], list(command[3:])
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        mains: dict[str, Callable[[], object]] = {
            "rl_zoo3.train": zoo_train.train,
            "rl_zoo3.enjoy": zoo_enjoy.enjoy,
            "persist_sb3.dashboards": lambda: dashboards.main(arguments),
            "persist_sb3.hub": lambda: hub.main(arguments),
        }
        return mains.get(module, lambda: runpy.run_module(module, run_name="__main__", alter_sys=False))
    return lambda: runpy.run_path(script, run_name="__main__")


#: This package's commands that read their arguments themselves.
OWN: dict[str, Callable[[list[str]], object]] = {
    "train": train.train,
    "enjoy": enjoy.enjoy,
    "report": report.report,
    "explain": explain.explain,
    "demonstrate": demonstrate.demonstrate,
}


def own(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """
    :param command: words
    :return: name and arguments of a command of this package, if it is one
    """
    name, *arguments = command
    if name == "persist-sb3":
        return arguments[0], arguments[1:]
    if name == "python" and arguments[0] in ("train.py", "enjoy.py"):
        assert (ROOT / arguments[0]).is_file()
        return arguments[0].removesuffix(".py"), arguments[1:]
    if arguments[:1] == ["-m"] and arguments[1].removeprefix("persist_sb3.") in OWN:
        return arguments[1].removeprefix("persist_sb3."), arguments[2:]
    return None


def check_files(command: Sequence[str], folder: Path) -> None:
    """
    Runs are the reader's: they get what their folders must have. Everything else that looks like a file is to be there.

    :param command: words
    :param folder: of the reader
    """
    if "enjoy.py" in command or "rl_zoo3.enjoy" in command:
        algo, env_id, logs = (command[command.index(option) + 1] for option in ("--algo", "--env", "-f"))
        command = [*command, f"{logs}/{algo}/{env_id}_1"]
    for word in command:
        if match := RUN.match(word):
            algo, env_id, _ = match.groups()
            assert algo in ALGOS or algo == "ppo_mask", f"there is no algorithm {algo}"
            parameters = folder / match[0] / env_id
            parameters.mkdir(parents=True, exist_ok=True)
            (parameters / "args.yml").write_text(yaml.safe_dump({"algo": algo, "env": env_id}))
            (parameters / "config.yml").write_text("{}")
            (folder / match[0] / f"{env_id}.zip").touch()
            assert word in (match[0], f"{match[0]}/{env_id}.zip")
            if any(each.endswith("explain") for each in command):
                entry = hyperparams.load(algo).get(env_id, "ActionShield, since it is the reader's own")
                assert "ActionShield" in str(entry), f"{word} has no shield to explain"
        elif re.search(r"\.(yml|py|txt)$", word) and word not in ("train.py", "enjoy.py"):
            assert (folder / word).is_file(), f"there is no {word}"


def check_others(command: Sequence[str]) -> bool:
    """
    :param command: words
    :return: whether it is no command of Python's, and what it is is right
    """
    name, *arguments = command
    if name == "make":
        dry = subprocess.run(["make", "--dry-run", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr
    elif name == "pip":
        assert arguments[0] == "install"
        _, extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")
        options = {"-c": 1, "--no-deps": 0, "-e": 0}
        rest = iter(arguments[1:])
        for word in rest:
            if word in options:
                for _ in range(options[word]):
                    assert (ROOT / next(rest)).is_file()
            elif word != ".":
                requirement = Requirement(word)
                assert requirement.name != "persist-sb3" or all(
                    f"\n{extra} = [" in extras for extra in requirement.extras
                )
    elif name == "tensorboard":
        with pytest.raises(Parsed):
            program.TensorBoard(default.get_plugins()).configure(["tensorboard", *arguments])
    elif name == "wandb":
        assert arguments[0] in wandb_command.commands
    elif name == "export":
        variable, _, value = arguments[0].partition("=")
        assert variable.startswith("WANDB_")
        setattr(wandb.Settings(), variable.removeprefix("WANDB_").lower(), value)
    elif command in (("python", "-m", "venv", ".venv"), ("source", ".venv/bin/activate")):
        pass
    else:
        return False
    return True


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: f"{each.where} {' '.join(each.words)}"[:90])
@pytest.mark.usefixtures("parse_only")
def test_a_command_is_one(command: Command, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "..." in command.words:
        command = command._replace(words=command.words[: command.words.index("--only")])
    check_files(command.words, reader)
    if check_others(command.words):
        return
    for module in re.findall(r"--gym-packages (examples\.\w+)", " ".join(command.words)):
        pytest.importorskip(module, exc_type=ImportError)
    named = own(command.words)
    if named is None:
        assert command.words[0] == "python", f"{command.where}: nobody looks at {command.words[0]}"
        with pytest.raises(next((BROKEN[word] for word in command.words if word in BROKEN), Parsed)):
            main_of(command.words, monkeypatch)()
        return
    name, arguments = named
    group: Any = typer.main.get_command(app)
    if not arguments:
        assert name in group.commands or any(name in parameter.opts for parameter in group.params)
    elif name in OWN:
        monkeypatch.setattr(sys, "argv", ["persist-sb3"])
        with pytest.raises(Parsed):
            OWN[name](arguments)
    else:
        group.commands[name].make_context(name, arguments)


#: Less of what takes long.
LESS = {
    "doctor": ["--episodes", "2"],
    "init": ["--episodes", "2"],
    "train": ["-n", "64", "--eval-freq", "-1", "--device", "cpu", "--verbose", "0"],
    "enjoy": ["--no-render", "-n", "20", "--device", "cpu"],
    "report": ["--episodes", "2", "--video", "none"],
    "explain": ["--episodes", "1"],
    "demonstrate": ["--episodes", "1"],
    "push": ["--episodes", "1"],
}
SMALL = ["-params", "n_envs:2", "n_steps:16", "batch_size:16", "n_epochs:1"]


def brief(name: str, arguments: list[str]) -> list[str]:
    """
    :param name: of a command of this package
    :param arguments: of it
    :return: the same for less
    """
    given = [word for word in arguments if word not in ("--progress", "--track")]
    return given + LESS.get(name, []) + (SMALL if name == "train" and "-params" not in given else [])


def execute(command: Command, monkeypatch: pytest.MonkeyPatch) -> bool:
    """
    :param command: of a page
    :param monkeypatch: gives it its arguments
    :return: whether it is one of this package's, and now done
    """
    monkeypatch.setattr(sys, "argv", ["persist-sb3"])
    if command.words[:3] == ("python", "-m", "persist_sb3.hub"):
        kind, *arguments = command.words[3:]
        assert hub.main([kind, *arguments, *LESS.get(kind, [])]) == 0
        return True
    named = own(command.words)
    if named is None:
        return False
    name, arguments = named
    if name in OWN:
        assert not OWN[name](brief(name, arguments))
    else:
        with pytest.raises(SystemExit) as left:
            app([name, *brief(name, arguments)])
        assert not left.value.code, " ".join(command.words)
    return True


@pytest.fixture
def with_hub(reader: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder and a Hub."""
    fake_hub.install(monkeypatch, reader / "hub")
    return reader


def test_the_first_commands_of_a_newcomer_do_what_they_say(with_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "start" / "quickstart.md"
    (with_hub / "cartpole.yml").unlink()
    first = [each for each in commands(page) if "cartpole.yml" in each.words or "CartPole-v1" in each.words]
    assert [own(each.words)[0] for each in first] == ["doctor", "init", "doctor", "train"]  # type: ignore[index]
    for each in first:
        assert execute(each, monkeypatch)
    assert (with_hub / "train_cartpole.py").is_file()
    assert (with_hub / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()


#: Their own environments are in examples/, and trained in test_problems.py.
ELSEWHERE = {"docs/problems.md"}
TO_RUN = [
    page
    for page in PAGES
    if name_of(page) not in ELSEWHERE
    and any(own(each.words) or "persist_sb3.hub" in each.words for each in commands(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=name_of)
def test_every_command_of_a_page_runs(page: Path, with_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other; runs that another page told to train are trained first."""
    to_run = [Command(block.where, words(line)) for block in blocks(page, "bash") for line in lines(block.text)]
    # An agent that was not trained has no safe episode to show, and nobody has written those modules.
    to_run = [each for each in to_run if each.words and not {"my_envs", "--drop-unsafe"} & set(each.words)]
    if any(own(each.words) == ("init", ["CartPole-v1"]) for each in to_run):
        (with_hub / "cartpole.yml").unlink()
    for needed in dict.fromkeys(match for each in to_run for match in RUN.findall(" ".join(each.words))):
        algo, env_id, number = needed
        written = [each for each in to_run if own(each.words) == ("train", ["--persist", "cartpole.yml"])]
        trained = [each for each in to_run if {"train", algo, env_id} <= set(each.words) and "-i" not in each.words]
        if not written and not trained:
            rover = ["--persist", "rover.yml", "--gym-packages", "rover"]
            how = rover if env_id == "Rover-v0" else ["--algo", algo, "--env", env_id]
            (with_hub / "rover.yml").write_text(ROVER)
            for _ in range(int(number)):
                assert execute(Command("before", ("persist-sb3", "train", *how)), monkeypatch)
    done = [execute(each, monkeypatch) for each in to_run]
    assert any(done)


ROVER = """
env: {name: Rover-v0}
internal_state: {dims: [charge], mu: [0.8], source: {charge: "obs[0]"}, low: [0.0], high: [1.0]}
viability: {constraints: ["charge >= 0.15"], shield: {}}
"""
