"""What made someone stop and think who had nothing but the docs, an empty folder and environments of their own."""

import json
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3.enjoy as zoo_enjoy
import yaml
from typer.testing import CliRunner

from persist_sb3 import train as training
from persist_sb3.__main__ import app
from persist_sb3.config import PersistConfig
from persist_sb3.diagnosis.numbers import numbers_of
from persist_sb3.doctor import examine
from persist_sb3.enjoy import enjoy
from persist_sb3.evaluation import evaluate
from persist_sb3.explain import explain
from persist_sb3.packages import import_packages
from persist_sb3.report import report
from persist_sb3.runs import Run, RunError
from persist_sb3.train import train
from persist_sb3.witness import Witness

runner = CliRunner()

MODULE = '''
import gymnasium as gym
import numpy as np


class Drone(gym.Env):
    """Dict observation, Box action, a battery that only the info shows, a pressure that reset does not show."""

    metadata = {"render_modes": []}
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, pixels=0):
        self.observation_space = gym.spaces.Dict(pose=gym.spaces.Box(-10.0, 10.0, (2,), np.float32))
        if pixels:
            self.observation_space["camera"] = gym.spaces.Box(0, 255, (pixels, pixels, 1), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pose, self.battery = self.np_random.normal(size=2).astype(np.float32), 1.0
        return self.show(), {"battery": 100.0}

    def step(self, action):
        self.pose = np.clip(self.pose + 0.1 * action, -10.0, 10.0).astype(np.float32)
        self.battery = max(0.0, self.battery - 0.02 * float(np.abs(action).sum()))
        info = {"battery": 100.0 * self.battery, "pressure": float(self.pose.sum())}
        return self.show(), float(self.pose[0]), self.battery <= 0.0, False, info

    def show(self):
        camera = {name: np.zeros(space.shape, np.uint8) for name, space in self.observation_space.items()}
        return {**camera, "pose": self.pose}


gym.register("NewcomersDrone-v0", Drone, max_episode_steps=60)
gym.register("NewcomersCamera-v0", Drone, max_episode_steps=60, kwargs={"pixels": 8})
'''
DRONE = "NewcomersDrone-v0"
PERSIST = """
env: {name: NewcomersDrone-v0}
internal_state:
  {dims: [battery], mu: [100.0], source: {battery: info.battery}, low: [0.0], high: [100.0], append: true}
viability: {constraints: ["battery >= 30"]}
"""
TINY = ["-n", "64", "--eval-freq", "-1", "--device", "cpu"]
PARAMS = ["-params", "n_envs:1", "n_steps:64", "batch_size:64", "n_epochs:1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a module in it, as a console command sees it: not on Python's path."""
    (tmp_path / "newcomers_drone.py").write_text(MODULE)
    (tmp_path / "drone.yml").write_text(PERSIST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "newcomers_drone", raising=False)
    for env_id in (DRONE, "NewcomersCamera-v0"):
        monkeypatch.delitem(gym.registry, env_id, raising=False)
    monkeypatch.setattr(sys, "argv", ["persist-sb3"])
    return tmp_path


def said(*arguments: str, status: int) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def refused(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_module_beside_you_is_found(folder: Path) -> None:
    """An installed command does not look in the current folder, as ``python -m`` does."""
    assert "no problems" in said("doctor", DRONE, "--gym-packages", "newcomers_drone", "--episodes", "2", status=0)


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"neither installed nor in {folder}"):
        import_packages(["newcomers_dron"])
    with pytest.raises(ImportError, match=r"newcomers_drone instead of newcomers_drone\.py"):
        import_packages(["newcomers_drone.py"])
    (folder / "needy.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(ImportError, match="'needy' cannot be imported: No module named 'a_package_that_nobody_has'"):
        import_packages(["needy"])


def test_an_id_that_nobody_registered_asks_for_the_module(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hint = "name the module that registers it with --gym-packages"
    assert hint in said("doctor", DRONE, status=1)
    assert hint in said("doctor", "--persist", "drone.yml", status=1)
    assert hint in said("init", DRONE, status=1)
    assert hint in refused(capsys, train, "--env", DRONE)
    assert hint in refused(capsys, train, "--persist", "drone.yml")
    assert "GridLife" in refused(capsys, train, "--env", "GridLif-v0")
    assert "no_such" in refused(capsys, train, "--env", DRONE, "--gym-packages", "no_such")
    assert "no_such" in refused(capsys, report, "logs", "--gym-packages", "no_such")


def test_what_init_writes_into_another_folder_runs_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--gym-packages", "newcomers_drone", "--folder", "sub"]
    printed = said("init", DRONE, *where, "--episodes", "4", "--algo", "A2C", status=0)
    assert "not proposed, since the environment does not show them at reset: info.pressure." in printed
    monkeypatch.delitem(sys.modules, "newcomers_drone")
    monkeypatch.delitem(gym.registry, DRONE)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    monkeypatch.setattr(sys, "argv", ["train_newcomersdrone.py", "--timesteps", "20"])
    runpy.run_path("sub/train_newcomersdrone.py", run_name="__main__")
    assert (folder / "sub" / "newcomersdrone_run" / "newcomersdrone.zip").is_file()


def test_init_limits_only_the_side_to_which_a_variable_goes(folder: Path) -> None:
    said("init", DRONE, "--gym-packages", "newcomers_drone", "--episodes", "4", status=0)
    persist = PersistConfig.from_yaml("newcomersdrone.yml")
    (constraint,) = persist.viability.constraints
    name, sign, limit = constraint.split()
    assert (name, sign) == ("battery", ">=") and 0.0 < float(limit) < 100.0
    assert persist.internal_state.high == (100.0,)
    # A battery at its limit costs half a unit, as the comment in the file says.
    assert persist.internal_state.w is not None
    assert persist.internal_state.w[0] * (100.0 - float(limit)) ** 2 == pytest.approx(0.5, rel=0.01)


def test_images_that_no_network_of_sb3_can_look_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_packages(["newcomers_drone"])
    (problem,) = examine("NewcomersCamera-v0", episodes=1).problems
    assert "36 x 36" in problem.text and "obs.camera" in problem.text
    (folder / "camera.yml").write_text(PERSIST.replace(DRONE, "NewcomersCamera-v0"))
    assert "36 x 36" in refused(capsys, train, "--persist", "camera.yml")
    seen = numbers_of({"camera": np.zeros((4, 4, 1), np.uint8), "pose": np.ones(2)}, {})
    assert seen == {"obs.pose[0]": 1.0, "obs.pose[1]": 1.0}


@pytest.mark.parametrize("append", [False, True])
def test_a_variable_that_the_agent_cannot_see_is_a_note(folder: Path, append: bool) -> None:
    import_packages(["newcomers_drone"])
    data = yaml.safe_load(PERSIST)
    data["internal_state"]["append"] = append
    findings = examine(DRONE, PersistConfig.model_validate(data), episodes=3).findings
    assert [f.text.split(":")[0] for f in findings if f.check == "visibility"] == ([] if append else ["battery"])


def test_a_variable_that_the_observation_shows_is_visible() -> None:
    state = {"dims": ["x", "theta"], "mu": [0, 0], "source": {"x": "obs[0]", "theta": "obs[2]"}}
    data = {"env": {"name": "CartPole-v1"}, "internal_state": state, "viability": {"constraints": ["abs(x) <= 2"]}}
    findings = examine("CartPole-v1", PersistConfig.model_validate(data), episodes=3).findings
    assert not [f for f in findings if f.check == "visibility"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("battery >= 30", "batery >= 30", "drone.yml: constraint 'batery >= 30': unknown internal variable 'batery'"),
        ("mu: [100.0]", "mu: [much]", "drone.yml: internal_state.mu.0: Input should be a valid number"),
        ("viability:", "viabilty:", "drone.yml: unknown key 'viabilty', did you mean 'viability'?"),
    ],
)
def test_a_typo_is_named_with_its_file_and_key_and_nothing_else(
    folder: Path, old: str, new: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "drone.yml").write_text(PERSIST.replace(old, new))
    for printed in (
        said("doctor", "--persist", "drone.yml", status=1),
        refused(capsys, train, "--persist", "drone.yml"),
    ):
        assert expected in printed
        assert "pydantic" not in printed and "input_value" not in printed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What rl-zoo3 is told, instead of training."""
    told: list[list[str]] = []

    def told_to_train(algo: str, env_id: str, config: str, others: Sequence[str]) -> None:
        told.append(["--algo", algo, "--env", env_id, "-conf", config, *others])

    monkeypatch.setattr(training, "_train", told_to_train)
    return told


def test_shield_takes_an_entry_that_has_one_anyway(asked: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    train(["--algo", "ppo", "--env", "GridLifeScent-v0", "--shield"])
    assert asked[0][:4] == ["--algo", "ppo", "--env", "GridLifeScent-v0"]
    message = refused(capsys, train, "--algo", "sac", "--env", "CartPole-v1", "--shield")
    assert "PPO on CartPole-v1 would have some" in message and "--persist" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module and a run on its environment."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "newcomers_drone.py").write_text(MODULE)
    shield = "shield: {min_updates: 1, threshold: 0.9}"
    (folder / "drone.yml").write_text(PERSIST.replace("constraints:", f"{shield}, constraints:"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["persist-sb3"])
        # Past the callback's learning_starts.
        enough = ["-n", "1200", "--eval-freq", "-1", "--device", "cpu", "--verbose", "0"]
        params = ["-params", "n_envs:1", "n_steps:1200", "batch_size:1200", "n_epochs:1"]
        train(["--persist", "drone.yml", "--gym-packages", "newcomers_drone", *enough, *params])
    return folder


def test_the_end_of_a_training_says_what_can_be_done_with_it(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "drone.yml", "shielded.yml")
    for file in ("shielded.yml", "drone.yml"):
        train(["--persist", file, "--gym-packages", "newcomers_drone", *TINY, *PARAMS])
    first, second = capsys.readouterr().out.split("What now:")[1:]
    assert f"persist-sb3 report logs/ppo/{DRONE}_1" in first and f"persist-sb3 explain logs/ppo/{DRONE}_1" in first
    assert f"persist-sb3 enjoy logs/ppo/{DRONE}_2" in second and "explain" not in second


def test_going_on_with_an_agent(
    trained: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    run = f"logs/ppo/{DRONE}_1"
    agent = f"{run}/{DRONE}.zip"
    assert f"did you mean {agent}?" in refused(capsys, train, "-i", run)
    assert f"did you mean {agent}?" in refused(capsys, train, "-i", f"{run}/drone.zip")
    assert "is not the file of an agent" in refused(capsys, train, "-i", "nothing.zip")
    # Which environment it is, who registers that, and what it was trained with, the run says itself.
    train(["-i", agent])
    train(["-i", agent, "--persist", "drone.yml"])
    for told in asked:
        assert told[:4] == ["--algo", "ppo", "--env", DRONE]
        assert told[told.index("-i") + 1] == agent
        assert told[told.index("--gym-packages") + 1] == "newcomers_drone"


def test_enjoy_takes_a_run_and_says_who_stays_alive(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(zoo_enjoy, "create_test_env", zoo_enjoy.create_test_env)
    enjoy([f"logs/ppo/{DRONE}_1", "--no-render", "-n", "130", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert f"Loading logs/ppo/{DRONE}_1/{DRONE}.zip" in printed.replace(f"{trained.resolve()}/", "")
    episodes = printed.count("Episode Length")
    assert f"of {episodes} episodes stayed inside their limits; task return" in printed


def test_a_training_that_was_killed_is_watched_by_its_last_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(zoo_enjoy, "create_test_env", zoo_enjoy.create_test_env)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    there = tmp_path / "logs" / "ppo" / f"{DRONE}_1"
    shutil.copytree(f"logs/ppo/{DRONE}_1", there)
    (there / f"{DRONE}.zip").rename(there / "rl_model_1000_steps.zip")
    shutil.copy(there / "rl_model_1000_steps.zip", there / "rl_model_200_steps.zip")
    enjoy([str(there), "-n", "70", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "rl_model_1000_steps.zip" in printed
    # Without a screen nothing is drawn, and that is said.
    assert f"no screen: nothing is drawn. For a video: persist-sb3 report {there}" in printed


def test_enjoy_without_that_run_says_which_there_are(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(zoo_enjoy, "create_test_env", zoo_enjoy.create_test_env)
    assert f"there are: ppo on {DRONE}" in refused(capsys, enjoy, "--algo", "dqn", "--env", DRONE)
    assert f"did you mean logs/ppo/{DRONE}_1?" in refused(capsys, enjoy, "logs")
    message = refused(capsys, enjoy, f"logs/ppo/{DRONE}_1", "--no-render", "--load-best")
    assert "No model found" in message and f"there are: {DRONE}.zip" in message


def test_the_witness_counts_what_an_evaluation_counts(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    run = Run(f"logs/ppo/{DRONE}_1")
    venv = Witness.around(run.make_env(1))
    assert isinstance(venv, Witness)
    records = [e.record for e in evaluate(run.load_model(venv, 0), venv, 4, deterministic=False, seed=0)]
    assert venv.violated == [record.violated for record in records]
    assert venv.returns == pytest.approx([record.task_return for record in records])
    assert venv.steps == sum(record.length for record in records)
    assert venv.interventions == sum(record.interventions or 0 for record in records) > 0
    assert f"the shield changed {venv.interventions} of {venv.steps} actions" in venv.summary()


def test_what_real_valued_actions_were_changed_to_is_not_counted(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    told = tmp_path / "interventions.jsonl"
    assert explain([f"logs/ppo/{DRONE}_1", "--episodes", "2", "--output", str(told)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "by constraint in danger" in printed and "by proposed and executed action" not in printed
    lost = [json.loads(line)["infeasible"] for line in told.read_text().splitlines()]
    # A threshold of 0.9 asks for a battery that is all but full.
    assert 2 * sum(lost) > len(lost)
    assert f"at {sum(lost)} of {len(lost)} interventions no action passed" in printed


def test_a_run_that_was_moved_is_whole(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes back from a hub: uploaded as a folder, downloaded to where the commands look."""
    monkeypatch.chdir(trained)
    there = tmp_path / "logs" / "ppo" / f"{DRONE}_7"
    shutil.copytree(trained / "logs" / "ppo" / f"{DRONE}_1", there)
    run = Run(there)
    venv = run.make_env(2)
    evaluate(run.load_model(venv, 0), venv, 2, seed=0)
    assert venv.layer.updates > 0  # type: ignore[attr-defined]
    assert venv.layer.ready  # type: ignore[attr-defined]


def test_an_environment_that_draws_nothing_has_no_video(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert report([f"logs/ppo/{DRONE}_1", "--episodes", "2", "--output", str(tmp_path)]) == 0
    assert f"no video: {DRONE} has no render mode rgb_array" in " ".join(capsys.readouterr().out.split())


def test_a_module_that_went_missing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(trained))])
    monkeypatch.delitem(sys.modules, "newcomers_drone", raising=False)
    run = Run(trained / "logs" / "ppo" / f"{DRONE}_1")
    with pytest.raises(RunError, match="was trained with --gym-packages, and there is no module 'newcomers_drone'"):
        run.make_env(1)
