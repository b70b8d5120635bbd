"""The commands, run as a user runs them: rl-zoo3's own and this package's, on small budgets."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from persist_sb3.__main__ import main
from persist_sb3.enjoy import enjoy
from persist_sb3.train import train

ROOT = Path(__file__).parent.parent
TRAIN = (str(ROOT / "train.py"),)
ENJOY = (str(ROOT / "enjoy.py"),)
ZOO_TRAIN = ("-m", "rl_zoo3.train", "--gym-packages", "persist_sb3")
ZOO_ENJOY = ("-m", "rl_zoo3.enjoy", "--gym-packages", "persist_sb3")
SMALL_PPO = ("-params", "n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:1")
COMMON = ("--device", "cpu", "--seed", "1", "--eval-episodes", "1")


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """
    :param folder: where to run, and where the logs go
    :param arguments: of ``python``
    :param environment: added to the process's own
    :return: what it printed
    """
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    return finished.stdout


def config_of(run_folder: Path) -> dict[str, object]:
    """
    :param run_folder: of an rl-zoo3 run
    :return: the hyperparameters that the run saved
    """
    (path,) = run_folder.glob("*/config.yml")
    text = path.read_text().replace("!!python/object/apply:collections.OrderedDict", "")
    return {key: value for pairs in yaml.safe_load(text) for key, value in pairs}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which rl-zoo3's own command has trained PPO on GridLife."""
    folder = tmp_path_factory.mktemp("stock")
    conf = str(ROOT / "hyperparams" / "ppo.yml")
    arguments = ("--algo", "ppo", "--env", "GridLife-v0", "-conf", conf, "-n", "512", "--eval-freq", "256")
    run(folder, *ZOO_TRAIN, *arguments, "--save-freq", "256", *COMMON, *SMALL_PPO)
    return folder


def test_stock_train_runs_the_layers(stock: Path) -> None:
    run_folder = stock / "logs" / "ppo" / "GridLife-v0_1"
    model = PPO.load(run_folder / "GridLife-v0.zip", device="cpu")
    assert model.num_timesteps == 512
    assert (run_folder / "rl_model_256_steps.zip").is_file()
    assert (run_folder / "evaluations.npz").is_file()
    layers = config_of(run_folder)["vec_env_wrapper"]
    assert layers[:2] == ["persist_sb3.wrappers.VecSpatialMemory", "persist_sb3.wrappers.VecInternalState"]  # type: ignore[index]


def test_stock_enjoy_replays_it(stock: Path) -> None:
    printed = run(
        stock, *ZOO_ENJOY, "-f", "logs", "--env", "GridLife-v0", "--no-render", "-n", "300", "--device", "cpu"
    )
    assert "Episode Reward" in printed


def test_enjoy_finds_the_newest_run(stock: Path) -> None:
    printed = run(stock, *ENJOY, "--no-render", "-n", "300", "--device", "cpu", "--load-checkpoint", "256")
    assert "GridLife-v0_1/rl_model_256_steps.zip" in printed
    assert "Episode Reward" in printed


@pytest.fixture(scope="module")
def resumed(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which ``train.py`` went on with that agent, tracked offline; and what it printed."""
    folder = tmp_path_factory.mktemp("resumed")
    trained = stock / "logs" / "ppo" / "GridLife-v0_1" / "GridLife-v0.zip"
    arguments = ("-i", str(trained), "-n", "1280", "--eval-freq", "640", "--track", "--progress")
    return folder, run(folder, *TRAIN, *arguments, *COMMON, *SMALL_PPO, WANDB_MODE="offline")


def test_resume_goes_on_with_the_counters(stock: Path, resumed: tuple[Path, str]) -> None:
    before, after = (folder / "logs" / "ppo" / "GridLife-v0_1" for folder in (stock, resumed[0]))
    written = [len((run_folder / "persist.jsonl").read_text().splitlines()) for run_folder in (before, after)]
    counted = [
        vars(PPO.load(run_folder / "GridLife-v0.zip", device="cpu"))["persist"].pending["metrics"]["episodes"]
        for run_folder in (before, after)
    ]
    assert min(written) > 0
    assert counted == [written[0], written[0] + written[1]]


def test_progress_shows_a_bar(resumed: tuple[Path, str]) -> None:
    assert "1,280/1,280" in resumed[1]


def test_track_writes_the_metrics_offline(resumed: tuple[Path, str]) -> None:
    (run_folder,) = (resumed[0] / "wandb").glob("offline-run-*")
    inspected = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", run_folder],
        capture_output=True,
        check=True,
        text=True,
    )
    record = json.loads(inspected.stdout)
    assert record["exit_code"] == 0
    assert record["config"]["algo"] == "ppo"
    assert any(key.startswith("persist/") for key in record["summary"])
    assert any(key.startswith("rollout/") for key in record["summary"])


def test_persist_file_in_subprocesses(tmp_path: Path) -> None:
    """SAC on GridLife means its continuous form, and the horizon reaches training and evaluation."""
    (tmp_path / "gridlife.yml").write_text(
        """
        env: {name: GridLife-v0, horizon: 24}
        internal_state: {dims: [energy, temp, integrity], mu: [0.7, 0.5, 0.9], w: [1.0, 0.5, 1.5]}
        viability: {constraints: ["energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6"]}
        rewards: {lambda_homeo: 0.5, alive_bonus: 0.4}
        train: {algo: SAC, batch_size: 32, gamma: 0.95}
        """
    )
    arguments = ("--persist", "gridlife.yml", "--vec-env", "subproc", "-n", "400", "--eval-freq", "200")
    run(tmp_path, *TRAIN, *arguments, *COMMON, "-params", "n_envs:2", "learning_starts:100")
    run_folder = tmp_path / "logs" / "sac" / "GridLifeContinuous-v0_1"
    config = config_of(run_folder)
    assert (config["batch_size"], config["gamma"]) == (32, 0.95)
    assert config["vec_env_wrapper"][1]["persist_sb3.wrappers.VecHomeostatReward"]["weight"] == 0.5  # type: ignore[index]
    assert "policy" in config
    with open(run_folder / "0.monitor.csv") as file:
        next(file)
        trained = [int(row["l"]) for row in csv.DictReader(file)]
    evaluated = np.load(run_folder / "evaluations.npz")["ep_lengths"]
    assert max(trained) == 24
    assert evaluated.max() <= 24


def test_persist_file_whose_layers_add_to_what_the_policy_sees(tmp_path: Path) -> None:
    (tmp_path / "hidden.yml").write_text(
        "env: {name: GridLife-v0}\n"
        "internal_state:\n"
        "  dims: [energy, temp, integrity]\n"
        "  mu: [0.7, 0.5, 0.9]\n"
        "  hidden: [energy]\n"
        "  belief: gru\n"
        "viability: {constraints: ['energy >= 0.2', 'temp in [0.3, 0.7]', 'integrity >= 0.6']}\n"
        "train: {algo: PPO}\n"
    )
    run(tmp_path, *TRAIN, "--persist", "hidden.yml", "-n", "400", "--eval-freq", "-1", *COMMON)
    model = PPO.load(tmp_path / "logs" / "ppo" / "GridLife-v0_1" / "GridLife-v0.zip", device="cpu")
    assert type(model.policy).__name__ == "MultiInputActorCriticPolicy"


def test_persist_file_for_an_environment_without_shipped_hyperparameters(tmp_path: Path) -> None:
    (tmp_path / "car.yml").write_text(
        """
        env: {name: MountainCar-v0}
        internal_state:
          dims: [fuel]
          mu: [1.0]
          low: [0.0]
          high: [1.0]
          source: {fuel: {initial: 1.0, action_cost: [0.01, 0.0, 0.01]}}
        viability: {constraints: ["fuel >= 0.1"]}
        train: {algo: DQN}
        """
    )
    small = ("-params", "n_envs:1", "learning_starts:100")
    run(tmp_path, *TRAIN, "--persist", "car.yml", "-n", "400", "--eval-freq", "-1", *COMMON, *small)
    assert (tmp_path / "logs" / "dqn" / "MountainCar-v0_1" / "MountainCar-v0.zip").is_file()


def test_optimize(tmp_path: Path) -> None:
    arguments = ("--algo", "dqn", "--env", "GridLifeFlat-v0", "-n", "300", "-optimize", "--n-trials", "2")
    printed = run(tmp_path, *TRAIN, *arguments, "--no-optim-plots", *COMMON)
    assert "Number of finished trials:  2" in printed
    (report,) = (tmp_path / "logs" / "dqn").glob("report_GridLifeFlat-v0_*.csv")
    with open(report) as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["COMPLETE", "COMPLETE"]


def test_masks_hold_in_training_evaluation_and_replay(tmp_path: Path) -> None:
    """The environment raises at the first masked action, and 15 of its 16 actions are masked."""
    toy = ("--gym-packages", "tests.masked_toy", "--algo", "ppo_mask", "--env", "OneAllowed-v0")
    conf = ("-conf", "persist_sb3.hyperparams.ppo_mask")
    run(tmp_path, *TRAIN, *toy, *conf, "-n", "256", "--eval-freq", "64", *COMMON, *SMALL_PPO)
    assert (tmp_path / "logs" / "ppo_mask" / "OneAllowed-v0_1" / "evaluations.npz").is_file()
    printed = run(tmp_path, *ENJOY, "--gym-packages", "tests.masked_toy", "--no-render", "-n", "64", "--device", "cpu")
    assert "Mean reward: 8.00" in printed


def test_masks_hold_in_optimize(tmp_path: Path) -> None:
    toy = ("--gym-packages", "tests.masked_toy", "--algo", "ppo_mask", "--env", "OneAllowed-v0")
    conf = ("-conf", "persist_sb3.hyperparams.ppo_mask")
    optimize = ("-optimize", "--n-trials", "1", "--no-optim-plots", "-n", "32")
    printed = run(tmp_path, *TRAIN, *toy, *conf, *optimize, *COMMON, "-params", "n_envs:1")
    assert "Value:  8.0" in printed


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        train(arguments)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "own", "of_zoo"), [("train", "--persist FILE", "--eval-freq"), ("enjoy", "newest run", "--load-best")]
)
def test_help_shows_examples_and_the_options_of_the_zoo(
    command: str, own: str, of_zoo: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["persist-sb3", command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: persist-sb3 {command} ")
    assert own in printed
    assert "examples:" in printed
    assert of_zoo in printed


def test_an_environment_without_entry_is_refused_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--algo", "ppo", "--env", "Acrobot-v1")
    assert "no shipped hyperparameters for ppo on Acrobot-v1" in message
    assert "GridLife-v0" in message
    assert "--persist" in message


def test_an_algorithm_without_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no shipped hyperparameters for ars" in refusal(capsys, "--algo", "ars", "--env", "GridLife-v0")


def test_persist_file_and_options_cannot_both_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--persist", "gridlife.yml", "--algo", "ppo")
    assert "--algo ppo: gridlife.yml says this already" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("env: {nane: GridLife-v0}", "did you mean 'name'"),
        ("env: {name: GridLive-v0}", "GridLife"),
        ("train: {algo: ARS}", "ARS"),
        ("viability: {constraints: ['enregy >= 0.2']}", "energy"),
    ],
)
def test_a_persist_file_that_is_wrong_is_refused(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.yml"
    file.write_text(text)
    message = refusal(capsys, "--persist", str(file))
    assert str(file) in message
    assert expected in message


def test_a_persist_file_that_is_missing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no_such_file.yml" in refusal(capsys, "--persist", "no_such_file.yml")


def test_enjoy_without_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        enjoy(["-f", str(tmp_path)])
    assert "train one first" in capsys.readouterr().err
