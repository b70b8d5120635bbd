"""Explanations: every intervention of a replayed run, with its reasons."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from PIL import Image

from persist_sb3.explain import explain, replay
from persist_sb3.runs import Run, RunError
from persist_sb3.train import train

SMALL = ["n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:1"]
LAYERS = (
    "vec_env_wrapper:[{'persist_sb3.wrappers.VecInternalState': {}}, "
    "{'persist_sb3.wrappers.VecActionShield': {'threshold': 0.5, 'min_updates': 1}}]"
)
CALLBACKS = "callback:[{'persist_sb3.callbacks.ViabilityCallback': {'learning_starts': 64, 'net_arch': [16]}}]"


def make_run(folder: Path, *params: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train"])
        arguments = ["--algo", "ppo", "--env", "GridLife-v0", "-n", "256", "-f", str(folder), "--seed", "1"]
        options = ["--device", "cpu", "--eval-freq", "-1", "--verbose", "0", "--env-kwargs", "horizon:40"]
        train([*arguments, *options, "-params", *SMALL, *params])
    return folder / "ppo" / "GridLife-v0_1"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("shielded"), LAYERS, CALLBACKS)


def test_every_intervention_is_listed(run: Path, tmp_path: Path, capsys: Any) -> None:
    output, picture = tmp_path / "all.jsonl", tmp_path / "timeline.png"
    assert explain([str(run), "--episodes", "3", "--output", str(output), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert f"{len(rows)} interventions" in printed
    assert Image.open(picture).format == "PNG"
    assert rows
    space = gym.make("GridLife-v0").action_space
    for row in rows:
        assert row["proposed"] in space and row["executed"] in space
        assert row["proposed"] != row["executed"] or row["infeasible"]
        assert row["value"] < 0.5 and row["executed_value"] >= row["value"]
        assert row["infeasible"] == (row["executed_value"] < 0.5)
        assert row["constraint"] in ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")
        assert row["p_safe"] is None and row["foreseen"] == -1


def test_they_are_as_many_as_the_episodes_say(run: Path) -> None:
    episodes, interventions, _ = replay(Run(run), 5, seed=3)
    for number, episode in enumerate(episodes):
        own = [each for each in interventions if each.episode == number]
        changed = [each for each in own if each.proposed != each.executed]
        assert len(changed) == episode.record.interventions
        assert all(1 <= each.step <= episode.record.length for each in own)


def test_a_run_without_a_shield(tmp_path: Path, capsys: Any) -> None:
    bare = make_run(tmp_path, "vec_env_wrapper:['persist_sb3.wrappers.VecInternalState']", "callback:None")
    with pytest.raises(RunError, match="no ActionShield"):
        replay(Run(bare), 1, seed=0)
    assert explain([str(bare)]) == 1
    assert "nothing to explain" in capsys.readouterr().out.replace("\n", " ")
