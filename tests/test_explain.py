"""Explanations: every intervention of a replayed run, with its reasons."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from stable_baselines3 import PPO

from persist_sb3.explain import INFEASIBLE, UNGUARDED, WAITING, Intervention, _listed, explain, replay
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
    seen = replay(Run(run), 5, seed=3)
    for number, episode in enumerate(seen.episodes):
        own = [each for each in seen.interventions if each.episode == number]
        changed = [each for each in own if each.proposed != each.executed]
        assert len(changed) == episode.record.interventions
        assert all(1 <= each.step <= episode.record.length for each in own)


def test_every_violation_is_listed_with_what_the_critic_thought(run: Path) -> None:
    seen = replay(Run(run), 5, seed=3)
    died = {i: one.record.violated_at for i, one in enumerate(seen.episodes) if one.record.violated_at is not None}
    assert {each.episode: each.step for each in seen.violations} == died
    assert died
    told = {(each.episode, each.step): each for each in seen.interventions}
    for each in seen.violations:
        assert each.constraint == seen.episodes[each.episode].record.violated
        assert (each.why == INFEASIBLE) == (each.value < seen.threshold)
        if each.why == INFEASIBLE:
            assert each.value == pytest.approx(told[each.episode, each.step].executed_value)


def test_a_violation_of_what_is_not_guarded_is_called_that(tmp_path: Path) -> None:
    guarding = make_run(tmp_path, LAYERS.replace("'threshold': 0.5", "'guards': ['integrity']"), CALLBACKS)
    seen = replay(Run(guarding), 5, seed=3)
    assert seen.violations
    for each in seen.violations:
        assert (each.why == UNGUARDED) == (each.constraint != "integrity >= 0.6")


@pytest.mark.parametrize("kind", ["env_wrapper", "vec_env_wrapper"])
def test_a_shield_that_never_judged_says_what_it_waits_for(kind: str, tmp_path: Path, capsys: Any) -> None:
    prefix = "persist_sb3.wrappers." + ("Vec" if kind == "vec_env_wrapper" else "")
    layers = f"{kind}:[{{'{prefix}InternalState': {{}}}}, {{'{prefix}ActionShield': {{'min_updates': 10000}}}}]"
    waiting = make_run(tmp_path, layers, CALLBACKS, *(["vec_env_wrapper:[]"] if kind == "env_wrapper" else []))
    assert explain([str(waiting), "--episodes", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 interventions in" in printed
    assert "the shield never judged" in printed and "of the 10000 that min_updates asks for" in printed
    seen = replay(Run(waiting), 2, seed=0)
    assert 0 < seen.updates < 10000
    assert all(each.why == WAITING for each in seen.violations)


def test_an_agent_that_was_saved_without_its_critic(run: Path, tmp_path: Path, capsys: Any) -> None:
    bare = tmp_path / "ppo" / run.name
    shutil.copytree(run, bare)
    agent = PPO.load(bare / "GridLife-v0.zip", custom_objects={"persist": None}, device="cpu")
    delattr(agent, "persist")
    agent.save(bare / "GridLife-v0.zip")
    with pytest.warns(UserWarning, match="ActionShield has no models"):
        assert explain([str(bare), "--episodes", "2"]) == 0
    assert "the agent's file holds no trained model for it" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_a_shield(tmp_path: Path, capsys: Any) -> None:
    bare = make_run(tmp_path, "vec_env_wrapper:['persist_sb3.wrappers.VecInternalState']", "callback:None")
    with pytest.raises(RunError, match="no ActionShield"):
        replay(Run(bare), 1, seed=0)
    assert explain([str(bare)]) == 1
    printed = capsys.readouterr().out
    assert "nothing to explain" in printed
    assert "--shield" in printed and f"persist-sb3 report {bare}" in printed


def intervention(**known: Any) -> Intervention:
    about: dict[str, Any] = {
        "episode": 0,
        "step": 3,
        "proposed": 1,
        "executed": 0,
        "value": -0.1,
        "executed_value": 0.4,
    }
    about |= {
        "p_safe": np.nan,
        "executed_p_safe": np.nan,
        "constraint": "energy >= 0.2",
        "margin": -0.1,
        "foreseen": -1,
    }
    return Intervention(**(about | {"infeasible": False, "failed": False} | known))


def listed(*interventions: Intervention) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(_listed(interventions, 10))
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_what_nobody_knows_has_no_column() -> None:
    critic = listed(intervention(), intervention(step=9))
    assert "p_safe" not in critic and "steps" not in critic
    assert "when, nobody has foreseen" in critic
    search = listed(intervention(), intervention(p_safe=0.25, executed_p_safe=1.0, foreseen=4))
    assert "p_safe" in search and "0.25 → 1.00" in search and "in 4 steps" in search and "nan" not in search
    assert "nobody has foreseen" not in search
