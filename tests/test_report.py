"""The report, on runs that rl-zoo3 made."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from persist_sb3.envs.layout import SPLITS
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import EpisodeRecord, read_episodes
from persist_sb3.report import Subject, _figures, report
from persist_sb3.runs import Run, RunError, read_monitors
from persist_sb3.train import train

SMALL = ["n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:1"]
BARE = ["vec_env_wrapper:None", "callback:None"]
HORIZON = "horizon:40"


#: What SB3's evaluation, which knows no normalisation, can repeat to the last step: where a state is its own image, the
#: best actions of an equivariant policy are as good as each other, and rounding decides.
PLAIN = ["policy:'MultiInputPolicy'", "policy_kwargs:{}", "normalize:False"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on GridLife and on CartPole, with the layers and without."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        for env_id, steps, options, params in (
            ("GridLife-v0", "512", ["--env-kwargs", HORIZON], PLAIN),
            ("GridLife-v0", "512", ["--env-kwargs", HORIZON], BARE),
            ("CartPole-v1", "256", [], ["normalize:True"]),
            ("CartPole-v1", "256", [], BARE),
        ):
            arguments = [
                "--algo",
                "ppo",
                "--env",
                env_id,
                "-n",
                steps,
                "-f",
                str(logs),
                "--seed",
                "1",
                "--device",
                "cpu",
            ]
            patch.setattr("sys.argv", ["train"])
            train([*arguments, "--eval-freq", "-1", "--verbose", "0", *options, "-params", *SMALL, *params])
    made = ("gridlife", "GridLife-v0_1"), ("gridlife_bare", "GridLife-v0_2"), ("cart", "CartPole-v1_1")
    return {name: logs / "ppo" / folder for name, folder in (*made, ("cart_bare", "CartPole-v1_2"))}


def figures(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.parent.name / run.name))


def test_a_report_of_one_run(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(runs["gridlife"], tmp_path)
    assert report([str(run), "--episodes", "6"]) == 0
    output = capsys.readouterr().out
    files = {"survival.png", "internal.png", "training.png", "rewards.png", "episode.gif", "summary.json"}
    assert {path.name for path in (run / "report").iterdir()} == files
    for name in files:
        assert name in output
    for row in ("survive", "median steps to violation", "satisfied: temp in [0.3, 0.7]", "reward term: homeo"):
        assert row in output
    (subject,) = figures(run / "report")["runs"]
    episodes = read_episodes(run / "persist.jsonl")
    assert subject["label"] == "GridLife-v0_1"
    assert subject["training"]["episodes"] == len(episodes)
    assert subject["training"]["violations"] == sum(episode.violated is not None for episode in episodes)
    with Image.open(run / "report" / "episode.gif") as gif:
        assert gif.n_frames > 1


def test_figures_are_those_of_an_evaluation_by_sb3(runs: dict[str, Path], tmp_path: Path) -> None:
    report([str(runs["gridlife"]), "--episodes", "12", "--seed", "7", "--video", "none", "--output", str(tmp_path)])
    venv = DummyVecEnv([lambda: Monitor(gym.make("GridLifeMemory-v0", split="test", horizon=40))] * 12)
    venv.seed(7)
    model = PPO.load(runs["gridlife"] / "GridLife-v0.zip", device="cpu")
    cut_off: list[bool] = []

    def watch(local_variables: dict[str, Any], _: Any) -> None:
        if local_variables["done"]:
            cut_off.append(local_variables["info"]["TimeLimit.truncated"])

    returns, lengths = evaluate_policy(model, venv, 12, return_episode_rewards=True, callback=watch)
    evaluation = figures(tmp_path)["runs"][0]["evaluation"]
    # GridLife ends an episode at the first violation, or at the horizon.
    assert evaluation["survival"]["survived"] == sum(cut_off)
    assert evaluation["steps"] == np.sum(lengths)
    assert evaluation["task_return"]["mean"] == pytest.approx(np.mean(returns))
    assert sum(evaluation["deaths"].values()) == 12 - evaluation["survival"]["survived"]


def test_two_runs_one_of_them_without_layers(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(runs["gridlife"]), str(runs["gridlife_bare"])]
    options = ["--episodes", "4", "--video", "none", "--labels", "ours", "task only", "--output", str(tmp_path)]
    assert report([*folders, *options]) == 0
    output = capsys.readouterr().out
    assert "ours" in output
    assert "task only: trained without MetricsCallback: an episode that ended before 40 steps counts" in " ".join(
        output.split()
    )
    ours, bare = figures(tmp_path)["runs"]
    assert bare["constraints"] == ours["constraints"]
    assert set(ours["evaluation"]["reward_terms"]) == {"task", "homeo"}
    assert bare["evaluation"]["reward_terms"] == {}
    assert bare["training"]["deaths"] is None
    assert bare["training"]["violations"] > 0


def test_a_seed_decides_the_episodes(runs: dict[str, Path]) -> None:
    run = Run(runs["gridlife"])
    venv = run.make_env(3)

    def traces(seed: int) -> list[Any]:
        model = run.load_model(venv, seed)
        return [episode.internal.tolist() for episode in evaluate(model, venv, 6, deterministic=False, seed=seed)]

    assert traces(0) == traces(0)
    assert traces(0) != traces(1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_layouts_are_of_the_split(runs: dict[str, Path], split: Any) -> None:
    venv = Run(runs["gridlife"]).make_env(8, split=split)
    venv.reset()
    low, high = SPLITS[split]
    assert all(low <= info["layout_seed"] < high for info in venv.unwrapped.reset_infos)


def test_in_another_world(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--episodes", "3", "--video", "none", "--output", str(tmp_path), "--env-kwargs"]
    report([str(runs["gridlife"]), *options, "horizon:7", "constraints:['energy >= 0.001']"])
    summary = figures(tmp_path)
    assert summary["env_kwargs"] == {"horizon": 7, "constraints": ["energy >= 0.001"]}
    (subject,) = summary["runs"]
    # A horizon of 40 in training, and limits that nobody reaches in seven steps.
    assert subject["evaluation"]["steps"] == 3 * 7
    assert subject["constraints"] == ["energy >= 0.001"]
    for wrong in ("food", "food 4", "food:[4"):
        with pytest.raises(SystemExit):
            report([str(runs["gridlife"]), *options, wrong])
        assert "is not KEY:VALUE, such as food:4" in capsys.readouterr().err


def test_constraints_of_the_first_run_judge_one_that_has_none(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [str(runs["cart_bare"]), str(runs["cart"])]
    assert report([*folders, "--episodes", "4", "--video", "none", "--output", str(tmp_path)]) == 0
    bare, ours = figures(tmp_path)["runs"]
    assert bare["constraints"] == ours["constraints"] == ["abs(x) <= 2.0", "abs(theta) <= 0.18"]
    assert bare["evaluation"]["survival"]["survived"] < 4
    assert bare["split"] is None
    internal = Run(runs["cart"]).internal_state
    # The agent sees what it saw in training.
    venv = Run(runs["cart_bare"]).make_env(1, judge=internal)
    assert venv.observation_space == gym.make("CartPole-v1").observation_space


def test_alone_it_cannot_be_judged(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(runs["cart_bare"]), "--output", str(tmp_path)]) == 1
    assert "Report it together with a run on the same environment that was trained with constraints" in " ".join(
        capsys.readouterr().out.split()
    )
    (subject,) = figures(tmp_path)["runs"]
    assert subject["evaluation"] is None
    assert subject["training"]["episodes"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"training.png", "rewards.png", "summary.json"}


def test_observations_are_normalised_as_in_training(runs: dict[str, Path]) -> None:
    venv = Run(runs["cart"]).make_env(2)
    assert isinstance(venv, VecNormalize)
    assert (venv.training, venv.norm_reward, venv.norm_obs) == (False, False, True)
    statistics: Any = venv.obs_rms
    assert statistics.count > 256


def test_the_gauges_of_another_environment_are_drawn(runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    assert report([str(runs["cart"]), "--episodes", "1", "--output", str(tmp_path)]) == 0
    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.size[0] == 600
        # Beneath the frame: two variables and the step.
        assert gif.size[1] > 400 + 3 * 20


def test_only_the_training_record(runs: dict[str, Path], tmp_path: Path) -> None:
    assert report([str(runs["gridlife"]), "--no-evaluate", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"training.png", "rewards.png", "summary.json"}


def test_the_intrinsic_reward_is_drawn_where_there_is_one() -> None:
    def subject(label: str, **terms: float) -> Subject:
        rest: Any = dict.fromkeys(("violations", "near_steps", "recovered_steps", "task_return", "shaped_return"), 0)
        ends: Any = {"terminated": False, "truncated": True, "violated": None, "violated_at": None}
        record = EpisodeRecord(
            length=8, min_margin=0.5, satisfaction={}, reward_terms=terms, timestep=8, **ends, **rest
        )
        run: Any = None
        return Subject(label, run, trained=[record])

    figures = _figures([subject("bare", task=1.0), subject("curious", task=1.0, intrinsic=4.0)])
    (axes,) = figures["intrinsic.png"].axes
    assert [container.get_label() for container in axes.containers] == ["curious"]
    assert "intrinsic.png" not in _figures([subject("bare", task=1.0)])


def test_a_run_in_progress(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(runs["gridlife"], tmp_path)
    (run / "GridLife-v0.zip").unlink()
    assert report([str(run), "--output", str(tmp_path / "a")]) == 0
    assert "not evaluated: no agent has been saved yet" in capsys.readouterr().out
    for number in (999, 1000, 64):
        shutil.copy(runs["gridlife"] / "GridLife-v0.zip", run / f"rl_model_{number}_steps.zip")
    assert Run(run).model_path == run / "rl_model_1000_steps.zip"
    shutil.copy(runs["gridlife"] / "GridLife-v0.zip", run / "best_model.zip")
    assert Run(run).model_path == run / "best_model.zip"


def test_a_run_that_has_just_begun(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(runs["gridlife"], tmp_path)
    for path in [*run.glob("*.csv"), *run.glob("*.zip"), run / "persist.jsonl"]:
        path.unlink()
    assert report([str(run), "--output", str(tmp_path / "a")]) == 0
    assert "no training episode has been recorded yet" in capsys.readouterr().out


def test_a_damaged_model_leaves_the_other_runs_alone(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copied(runs["gridlife"], tmp_path)
    model = damaged / "GridLife-v0.zip"
    model.write_bytes(model.read_bytes()[:5000])
    options = ["--labels", "damaged", "whole", "--episodes", "2", "--video", "none", "--output", str(tmp_path / "a")]
    assert report([str(damaged), str(runs["gridlife"]), *options]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "damaged: not evaluated:" in output
    assert "If it is damaged, put another model of the run" in output
    first, second = figures(tmp_path / "a")["runs"]
    assert first["evaluation"] is None
    assert first["training"] == second["training"]
    assert second["evaluation"]["episodes"] == 2


def test_a_torn_last_line(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(runs["gridlife"], tmp_path)
    record = run / "persist.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:-1]) + lines[-1][:40])
    assert report([str(run), "--no-evaluate", "--output", str(tmp_path / "a")]) == 0
    assert "the last line is torn and was left out" in " ".join(capsys.readouterr().out.split())
    assert figures(tmp_path / "a")["runs"][0]["training"]["episodes"] == len(lines) - 1


def test_a_damaged_record(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(runs["gridlife"], tmp_path)
    record = run / "persist.jsonl"
    record.write_text("{}\n" + record.read_text())
    assert report([str(run), "--no-evaluate", "--output", str(tmp_path / "a")]) == 1
    assert "line 1: not an episode record" in " ".join(capsys.readouterr().out.split())


def test_what_monitors_files_tell(tmp_path: Path) -> None:
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 100.0, "env_id": "X"}\nr,l,t\n1.0,10,1.5\n2.5,50,9.0\n')
    # This environment began earlier, and its last line is being written.
    (tmp_path / "1.monitor.csv").write_text('#{"t_start": 99.0, "env_id": "X"}\nr,l,t\n4.0,30,3.0\n0.0,1')
    (tmp_path / "2.monitor.csv").write_text('#{"t_star')
    records, how = read_monitors(tmp_path, 50)
    assert [(r.timestep, r.length, r.task_return, r.env, r.survived) for r in records] == [
        (10, 10, 1.0, 0, False),
        (40, 30, 4.0, 1, False),
        (90, 50, 2.5, 0, True),
    ]
    assert how is not None
    assert "ended before 50 steps" in how
    # Without a time limit it is the longest episode's length.
    assert [r.survived for r in read_monitors(tmp_path, None)[0]] == [False, False, True]
    assert [r.survived for r in read_monitors(tmp_path, 60)[0]] == [False, False, False]
    assert read_monitors(tmp_path / "nothing", 50) == ([], None)


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        report(arguments)
    assert raised.value.code == 2
    return capsys.readouterr().err


def test_a_folder_that_is_no_run(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["gridlife"]
    assert "there is no such folder" in refuse([str(tmp_path / "nowhere")], capsys)
    assert "ENV/args.yml is missing" in refuse([str(tmp_path)], capsys)
    assert f"did you mean {run}?" in refuse([str(run / "GridLife-v0")], capsys)
    assert "did you mean " + str(run.parent) in refuse([str(run.parent)], capsys)


def test_a_damaged_configuration(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(runs["gridlife"], tmp_path)
    (run / "GridLife-v0" / "args.yml").write_text("{")
    assert "args.yml or config.yml is damaged" in refuse([str(run)], capsys)


def test_labels_that_do_not_fit(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs["gridlife"])
    assert "--labels names 1 (ours), but there are 2 runs" in refuse([run, run, "--labels", "ours"], capsys)
    assert "two runs are called" in refuse([run, run], capsys)
    assert "two runs are called 'a'" in refuse([run, run, "--labels", "a", "a"], capsys)


def test_no_episodes(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--episodes 0: at least one is needed" in refuse([str(runs["gridlife"]), "--episodes", "0"], capsys)


def test_an_environment_that_nobody_registered(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["gridlife"], tmp_path)
    path = run / "GridLife-v0" / "args.yml"
    arguments = dict(yaml.load(path.read_text(), Loader=yaml.UnsafeLoader))
    path.write_text(yaml.dump({**arguments, "env": "Nowhere-v0"}))
    with pytest.raises(RunError, match=r"Nowhere-v0 is not registered: name the module.*--gym-packages"):
        Run(run).make_env(1)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report(["--help"])
    assert "examples:" in capsys.readouterr().out
