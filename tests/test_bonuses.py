"""Several intrinsic rewards around one environment: what each layer pays is told apart, and counted once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from scipy.stats import spearmanr
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from persist_sb3 import tables
from persist_sb3.callbacks import MetricsCallback, RNDCallback
from persist_sb3.evaluation import evaluate
from persist_sb3.infos import MissingInfoError, told_bonuses
from persist_sb3.metrics import EpisodeRecord, bonus_shares, read_episodes
from persist_sb3.models.spec import StateSpec
from persist_sb3.summary import evaluation_figures, training_figures
from persist_sb3.wrappers import InternalState, VecInternalState, VecRNDBonus, VecSMiRLBonus, VectorInternalState
from persist_sb3.wrappers.adapters import VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.intrinsic import BonusLayer, BonusWrapper
from persist_sb3.wrappers.layer import Step
from tests.learners import Pages
from tests.toys import Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}


class BatteryBonusLayer(BonusLayer):
    """Pays for the battery's charge."""

    def bonus(self, step: Step) -> NDArray[np.float64]:
        return step.infos.column(("internal", 0), self.everyone)


class ColdBonusLayer(BonusLayer):
    """Takes the heat."""

    def bonus(self, step: Step) -> NDArray[np.float64]:
        return -step.infos.column(("internal", 1), self.everyone)


class BatteryBonus(BonusWrapper):
    layer_type = BatteryBonusLayer


class VecBatteryBonus(VecLayerWrapper):
    layer_type = BatteryBonusLayer


class VectorBatteryBonus(VectorLayerWrapper):
    layer_type = BatteryBonusLayer


class ColdBonus(BonusWrapper):
    layer_type = ColdBonusLayer


class VecColdBonus(VecLayerWrapper):
    layer_type = ColdBonusLayer


class VectorColdBonus(VectorLayerWrapper):
    layer_type = ColdBonusLayer


def check(reward: float, effort: float, info: dict[str, Any]) -> None:
    """A step of three layers, with weights 2, 0.5 and 1."""
    battery, heat = info["internal"]
    assert info["bonuses"] == pytest.approx({"battery": 2.0 * battery, "cold": -0.5 * heat, "battery_2": battery})
    assert info["reward_terms"] == pytest.approx({"task": effort, "intrinsic": 3.0 * battery - 0.5 * heat})
    assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-6)


def test_around_one_environment() -> None:
    env = BatteryBonus(ColdBonus(BatteryBonus(InternalState(Walker(), **LIMITS), weight=2.0), weight=0.5))
    env.reset(seed=0)
    for action in (0, 1, 2):
        _, reward, _, _, info = env.step(action)
        check(float(reward), float(action), info)


def test_inside_and_around_the_environments_of_sb3() -> None:
    venv = DummyVecEnv([lambda: BatteryBonus(InternalState(Walker(), **LIMITS), weight=2.0)] * 2)
    env = VecBatteryBonus(VecColdBonus(venv, weight=0.5))
    env.reset()
    for action in (0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2):
        _, rewards, _, infos = env.step(np.full(2, action))
        for reward, info in zip(rewards, infos, strict=True):
            check(float(reward), float(action), info)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_around_the_environments_of_gymnasium(mode: AutoresetMode) -> None:
    inner: Any = VectorInternalState(SyncVectorEnv([Walker] * 2, autoreset_mode=mode), **LIMITS)
    env = VectorBatteryBonus(VectorColdBonus(VectorBatteryBonus(inner, weight=2.0), weight=0.5))
    env.reset(seed=0)
    ended = np.zeros(2, dtype=bool)
    for _ in range(13):
        _, rewards, terminated, truncated, infos = env.step(np.array([1, 2]))
        for slot in range(2):
            over = bool(terminated[slot] or truncated[slot])
            told = infos["final_info"] if over and mode is AutoresetMode.SAME_STEP else infos
            bonuses = {name: told["bonuses"][name][slot] for name in ("battery", "cold", "battery_2")}
            if ended[slot]:
                # A step that only resets pays nothing.
                assert rewards[slot] == 0.0 and set(bonuses.values()) == {0.0}
            else:
                terms = {name: told["reward_terms"][name][slot] for name in ("task", "intrinsic")}
                info = {"bonuses": bonuses, "reward_terms": terms, "internal": told["internal"][slot]}
                check(float(rewards[slot]), float(slot + 1), info)
            ended[slot] = over and mode is AutoresetMode.NEXT_STEP
        if ended.any():
            assert mode is AutoresetMode.NEXT_STEP


class StateBonusLayer(BonusLayer):
    """Pays the sum of the next state, and keeps it."""

    def attach(self, num_envs: int, observation_space: Any, action_space: Any, lookup: Any) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._spec = StateSpec(observation_space, action_space, lookup("viability"))
        self.seen: list[NDArray[np.float32]] = []

    def bonus(self, step: Step) -> NDArray[np.float64]:
        self.seen.append(self.next_state(step, step.infos.column(("internal",), self.everyone)))
        return self.seen[-1].sum(axis=1).astype(np.float64)


class VecStateBonus(VecLayerWrapper):
    layer_type = StateBonusLayer
    layer: StateBonusLayer


class Tampering(VecEnvWrapper):
    """Says of one environment that its internal variables are others."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = self.venv.step_wait()
        infos[1]["internal"] = np.array([7.0, 8.0])
        return observation, rewards, dones, infos


def test_a_state_is_encoded_once_for_layers_that_see_the_same() -> None:
    inner = VecStateBonus(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS))
    middle = VecStateBonus(inner)
    outer = VecStateBonus(Tampering(middle))
    outer.reset()
    for _ in range(3):
        outer.step(np.ones(2, dtype=int))
    for one, same, other in zip(inner.layer.seen, middle.layer.seen, outer.layer.seen, strict=True):
        assert one is same
        np.testing.assert_array_equal(other[0], one[0])
        np.testing.assert_array_equal(other[1], [*one[1, :-2], 7.0, 8.0])


def test_a_single_bonus_is_not_told_apart() -> None:
    assert told_bonuses([{"bonuses": {"rnd": 1.0}}]) == {} == told_bonuses([{}])
    told = told_bonuses([{"bonuses": {"a": 1.0, "b": 2.0}}, {"bonuses": {"a": 3.0, "b": 4.0}}])
    assert {name: values.tolist() for name, values in told.items()} == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    with pytest.raises(MissingInfoError, match=r"\['bonuses'\]\['b'\].*environment 1"):
        told_bonuses([{"bonuses": {"a": 1.0, "b": 2.0}}, {"bonuses": {"a": 3.0}}])


@pytest.mark.parametrize(
    ("terms", "bonuses", "shares"),
    [
        ({"task": 1.0, "intrinsic": 1.0}, {"a": 2.0, "b": -1.0}, {"a": 0.5, "b": 0.25}),
        ({"task": 0.0, "intrinsic": 0.0}, {"a": 2.0, "b": -2.0}, {"a": 0.5, "b": 0.5}),
        ({"task": 0.0, "intrinsic": 0.0}, {"a": 0.0, "b": 0.0}, {}),
        ({"task": 1.0, "intrinsic": 1.0}, {}, {}),
    ],
)
def test_shares(terms: dict[str, float], bonuses: dict[str, float], shares: dict[str, float]) -> None:
    assert bonus_shares(terms, bonuses) == shares


class Witness(BaseCallback):
    """Keeps the infos' bonuses."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        self.rows += [info["bonuses"] for info in self.locals["infos"]]
        return True


def learn(layers: Callable[[VecEnv], VecEnv], folder: Path, steps: int) -> tuple[PPO, Witness, list[dict[str, Any]]]:
    venv = layers(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS))
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, policy_kwargs={"net_arch": [8]}, device="cpu", seed=0)
    pages, witness = Pages(), Witness()
    model.set_logger(Logger(None, [pages]))
    rnd = RNDCallback(net_arch=[8], features=4, learning_starts=16, batch_size=16)
    metrics = MetricsCallback(log_freq=1, window=1000, log_path=folder)
    model.learn(steps, callback=[rnd, witness, metrics])
    return model, witness, [page for page in pages.pages if "persist/min_margin" in page]


def test_what_is_logged_and_written_of_each(tmp_path: Path) -> None:
    model, witness, pages = learn(lambda env: VecRNDBonus(VecSMiRLBonus(env, weight=0.1)), tmp_path, 256)
    assert len(pages) == 4
    for number, page in enumerate(pages):
        rows = witness.rows[64 * number : 64 * (number + 1)]
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("rnd", "smirl")}
        assert sum(means.values()) == pytest.approx(page["persist/reward_terms/intrinsic"])
        total = abs(page["persist/reward_terms/task"]) + sum(map(abs, means.values()))
        for name, mean in means.items():
            assert page[f"persist/bonuses/{name}"] == pytest.approx(mean)
            assert page[f"persist/bonus_share/{name}"] == pytest.approx(abs(mean) / total)

    episodes = read_episodes(tmp_path / "persist.jsonl")
    for episode in episodes:
        assert set(episode.bonuses) == {"rnd", "smirl"}
        assert sum(episode.bonuses.values()) == pytest.approx(episode.reward_terms["intrinsic"])
        assert sum(episode.reward_terms.values()) == pytest.approx(episode.shaped_return, abs=1e-4)
    for name in ("rnd", "smirl"):
        lasted = [episode.length for episode in episodes]
        paid = np.array([episode.bonuses[name] for episode in episodes]) / lasted
        assert pages[-1][f"persist/bonus_correlation/{name}"] == pytest.approx(spearmanr(lasted, paid).statistic)

    env = model.get_env()
    assert env is not None
    evaluated = [episode.record for episode in evaluate(model, env, 4, seed=0)]
    assert all(sum(e.bonuses.values()) == pytest.approx(e.reward_terms["intrinsic"]) for e in evaluated)
    cells = written({"evaluation": evaluation_figures(evaluated, 4.0), "training": training_figures(episodes)})
    assert {"  bonus: rnd", "  bonus: smirl", "intrinsic share of the reward  smirl"} <= cells
    assert "rank correlation with time alive  rnd" in cells


def written(run: dict[str, Any]) -> set[str]:
    """The first column of the report's table."""
    return {str(cell) for cell in tables.comparison([{"label": "a", **run}]).columns[0].cells}


def test_one_layer_is_logged_as_before(tmp_path: Path) -> None:
    _, witness, pages = learn(VecRNDBonus, tmp_path, 64)
    assert set(witness.rows[0]) == {"rnd"}
    assert "persist/intrinsic_share" in pages[-1] and not any("bonus" in key for key in pages[-1])
    (episode, *_) = read_episodes(tmp_path / "persist.jsonl")
    assert isinstance(episode, EpisodeRecord) and episode.bonuses == {}
