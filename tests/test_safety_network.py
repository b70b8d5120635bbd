"""The shield's modes, and the network that learns from its search, against dynamics that are known exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import (
    InternalModelCallback,
    SafetyNetworkCallback,
    ViabilityCallback,
    WorldModelCallback,
)
from persist_sb3.models.base import rebuild
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import StateSpec
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    InternalState,
    ShieldError,
    VecActionShield,
    VecInternalState,
    VectorActionShield,
    VectorInternalState,
)
from tests.toys import Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
HORIZON = 4


def walk(observation: Any, internal: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    """What a Walker's battery does, which is all that matters."""
    effort = np.abs(action).reshape(len(internal), -1).sum(axis=1)
    internal = internal - np.stack([0.03 + 0.02 * effort, np.zeros(len(internal))], axis=1)
    return observation, internal


def rest(observation: Any, internal: NDArray[Any]) -> NDArray[Any]:
    return np.zeros(len(internal), dtype=np.int64)


def stays_inside(battery: Any, action: Any) -> Any:
    """Whether the battery holds for the action and rest after that."""
    return battery - 0.03 * HORIZON - 0.02 * action >= 0.2


KNOWN: dict[str, Any] = {"dynamics": walk, "backup": rest, "horizon": HORIZON, "rollouts": 2}


def make_vec(count: int = 3, kind: str = "discrete", **kwargs: Any) -> VecActionShield:
    venv = VecInternalState(DummyVecEnv([lambda: Walker(action=kind)] * count), **LIMITS)
    return VecActionShield(venv, **kwargs)


def make_spec(kind: str = "discrete") -> StateSpec:
    walker = Walker(action=kind)
    viability = ViabilitySet(LIMITS["constraints"], LIMITS["dims"])
    return StateSpec(walker.observation_space, walker.action_space, viability)


def test_known_dynamics_shield_from_the_first_step() -> None:
    env = make_vec(mode="search", **KNOWN)
    env.seed(0)
    env.reset()
    refused = 0
    for _ in range(60):
        before = np.array([x[0] for x in env.get_attr("x")])
        masks = env.env_method("action_masks")
        _, _, _, infos = env.step(np.full(3, 2))
        for slot, info in enumerate(infos):
            safe = stays_inside(before[slot], np.arange(3))
            np.testing.assert_array_equal(masks[slot], safe if safe.any() else [True, False, False])
            # The nearest to the proposed one are both others; of those that pass, the one that spares most.
            expected = 2 if safe[2] else 0
            assert info.get("executed_action", 2) == expected
            refused += int(expected == 0)
            if info["intervened"] and not info["shield"]["infeasible"]:
                assert info["shield"]["p_safe"] == 0.0 and info["shield"]["executed_p_safe"] == 1.0
    assert refused > 10


def test_a_foreseen_violation_is_explained() -> None:
    env = make_vec(1, mode="search", **KNOWN)
    env.seed(0)
    env.reset()
    env.envs[0].unwrapped.x[0] = 0.2 + 0.07 + 0.03 + 0.01
    env.layer._x[0, 0] = 0.31
    env.layer._state = None
    _, _, _, infos = env.step(np.array([2]))
    told = infos[0]["shield"]
    # After the effort 0.24, then 0.21, then 0.18.
    assert told["step"] == 3 and told["constraint"] == 0 and told["margin"] == pytest.approx(-0.02, abs=1e-4)
    assert told["infeasible"] and told["executed_p_safe"] == 0.0


def test_the_same_in_all_forms() -> None:
    n, steps = 3, 40
    actions = np.random.default_rng(0).integers(3, size=(steps, n))
    vec = make_vec(n, mode="search", **KNOWN)
    vec.seed(7)
    vec.reset()
    many = [[info["intervened"] for info in vec.step(action)[3]] for action in actions]
    singles = [ActionShield(InternalState(Walker(), **LIMITS), mode="search", **KNOWN) for _ in range(n)]
    for slot, env in enumerate(singles):
        env.reset(seed=7 + slot)
    alone = []
    for action in actions:
        row = []
        for slot, env in enumerate(singles):
            _, _, terminated, truncated, info = env.step(action[slot])
            row.append(info["intervened"])
            if terminated or truncated:
                env.reset()
        alone.append(row)
    vector = VectorActionShield(
        VectorInternalState(SyncVectorEnv([Walker] * n, autoreset_mode=AutoresetMode.SAME_STEP), **LIMITS),
        mode="search",
        **KNOWN,
    )
    vector.reset(seed=7)
    third = []
    for action in actions:
        *_, ended, late, infos = vector.step(action)
        done = ended | late
        last = infos["final_info"]["intervened"] if done.any() else done
        here = done if done.all() else infos["intervened"]
        third.append(np.where(done, last, here).tolist())
    assert many == alone == third
    assert np.any(many) and not np.all(many)


@pytest.mark.parametrize(
    ("mode", "missing"),
    [
        ("search", "InternalModelCallback, persist_sb3.callbacks.WorldModelCallback"),
        ("verify", "InternalModelCallback, persist_sb3.callbacks.WorldModelCallback"),
        ("amortised", "SafetyNetworkCallback"),
    ],
)
def test_a_mode_without_its_models_says_whom_to_add(mode: Any, missing: str) -> None:
    model = PPO("MlpPolicy", make_vec(mode=mode), n_steps=8, batch_size=8, seed=0, device="cpu")
    with pytest.raises(ShieldError, match=missing):
        model.learn(24, callback=ViabilityCallback())


def test_parameters() -> None:
    for key, value in (("mode", "fast"), ("band", -1.0), ("min_agreement", 2.0), ("conf", 0.0), ("horizon", 0)):
        with pytest.raises(ValueError, match=f"{key}="):
            make_vec(**dict[str, Any]({key: value}))
    with pytest.raises(RuntimeError, match="criterion='cvar'"):
        make_vec(mode="amortised", criterion="cvar")
    for key in ("answers", "batch_size", "train_freq"):
        with pytest.raises(ValueError, match=f"{key}=0"):
            SafetyNetworkCallback(**dict[str, Any]({key: 0}))
    with pytest.raises(ValueError, match="min_updates=-1"):
        SafetyNetworkCallback(min_updates=-1)
    with pytest.raises(ValueError, match="foresight=0"):
        SafetyNetworkCallback(foresight=0)


def test_the_callback_without_a_shield() -> None:
    venv = VecInternalState(DummyVecEnv([Walker]), **LIMITS)
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(RuntimeError, match="ActionShield"):
        model.learn(8, callback=SafetyNetworkCallback())


def test_the_callback_without_the_models_of_the_search() -> None:
    model = PPO("MlpPolicy", make_vec(mode="amortised", min_updates=10**6), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(RuntimeError, match="InternalModelCallback"):
        model.learn(48, callback=[ViabilityCallback(), SafetyNetworkCallback(train_freq=1)])


class Logged:
    """Keeps the last value of everything that is logged."""

    def __init__(self, logger: Logger) -> None:
        self.values: dict[str, Any] = {}
        record = logger.record

        def remember(key: str, value: Any, *args: Any, **kwargs: Any) -> None:
            self.values[key] = value
            record(key, value, *args, **kwargs)

        logger.record = remember  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_each_answer_is_kept_with_what_the_critic_says_of_its_action(kind: str) -> None:
    venv = make_vec(3, kind, mode="amortised", min_updates=10**6, dynamics=walk, horizon=2, rollouts=1)
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    asked: list[tuple[Any, Any, Any]] = []

    class Spy(BaseCallback):
        def _on_step(self) -> bool:
            if callback._search is not None:
                callback._search = spied  # type: ignore[assignment]
            return True

    def spied(state: Any, action: Any) -> Any:
        verdict = callback._lookahead.verifier(callback.spec, callback.state.bundle())(state, action)
        values = critic.actor.values(state) if kind == "discrete" else None
        rows = np.arange(len(state))
        own = values[rows, action.argmax(axis=1)] if values is not None else critic.actor.action_values(state, action)
        asked.append((own, verdict.p_safe, callback._kept))
        return verdict

    callback = SafetyNetworkCallback(net_arch=[8], train_freq=1, min_updates=0, learning_starts=10**6)
    critic = ViabilityCallback(learning_starts=32, net_arch=[8], train_freq=1)
    model.learn(3 * 64, callback=[critic, callback, Spy()])
    assert len(asked) > 30 and callback._memory is not None
    for own, p_safe, place in asked:
        rows = slice(place, place + len(own))
        np.testing.assert_allclose(callback._memory.inputs[rows, : own.shape[1]], own, atol=1e-6)
        np.testing.assert_array_equal(callback._memory.p_safe[rows], p_safe)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_the_network_learns_what_the_search_says(kind: str, tmp_path: Path) -> None:
    still = (lambda o, x: np.zeros((len(x), 2), np.float32)) if kind == "box" else rest
    venv = make_vec(8, kind, mode="amortised", min_updates=10**6, **{**KNOWN, "backup": still})
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    logged: list[Logged] = []

    class Spy(BaseCallback):
        def _on_training_start(self) -> None:
            logged.append(Logged(self.model.logger))

        def _on_step(self) -> bool:
            return True

    callback = SafetyNetworkCallback(
        net_arch=[32, 32], train_freq=1, gradient_steps=4, learning_starts=100, learning_rate=3e-3
    )
    critic = ViabilityCallback(learning_starts=10**6, net_arch=[8])
    model.learn(64 * 8 * 4, callback=[Spy(), critic, callback])
    values = logged[0].values
    assert values["persist/safety/agreement"] > 0.93
    assert values["persist/safety/missed"] < 0.2 and values["persist/safety/false_safe"] < 0.2

    spec, generator = make_spec(kind), np.random.default_rng(1)
    network: Any = model.persist.parts["safety"]  # type: ignore[attr-defined]
    battery = generator.uniform(0.25, 0.6, 400).astype(np.float32)
    internal = np.stack([battery, np.full(400, 0.5)], axis=1)
    time = np.round((0.8 - battery) / 0.05)
    state = spec.encode(np.stack([battery, internal[:, 1], time, -battery], axis=1).astype(np.float32), internal)
    if kind == "box":
        action = generator.uniform(-1.0, 1.0, (400, 2)).astype(np.float32)
        effort = np.abs(action).sum(axis=1)
    else:
        effort = generator.integers(3, size=400)
        action = spec.encode_action(effort)
    inputs = network.inputs(
        state, action, None, venv.layer.lookahead.sketch(spec, {}, network.foresight)(state, action)
    )
    truth, guess = stays_inside(battery, effort), network.p_safe(inputs)
    assert 0.2 < truth.mean() < 0.9
    assert ((guess >= 0.9) == truth).mean() > 0.85

    # It rides in the zip, and is the same there.
    model.save(tmp_path / "model")
    loaded: Any = PPO.load(tmp_path / "model", device="cpu")
    again = rebuild(loaded.persist.pending["safety"], spec, SafetyNetwork)
    np.testing.assert_array_equal(again.p_safe(inputs), network.p_safe(inputs))
    assert 0.5 < float(again.agreement) <= 1.0 and int(again.updates) == callback.updates

    # A replay takes it from there, and it judges.
    played = make_vec(4, kind, mode="amortised", min_updates=0, **{**KNOWN, "backup": still})
    played.seed(0)
    played.reset()
    proposed = np.ones((4, 2), dtype=np.float32) if kind == "box" else np.full(4, 2)
    expected, judged = [], []
    for _ in range(40):
        expected += [stays_inside(x[0], 2) for x in played.get_attr("x")]
        played.step(proposed)
        decision = played.layer.decision
        assert decision is not None
        np.testing.assert_array_equal(decision.proposed.safe, decision.proposed.p_safe >= 0.9)
        judged += decision.proposed.p_safe.tolist()
    assert 0.2 < np.mean(expected) < 0.9
    assert np.equal(np.greater_equal(judged, 0.9), expected).mean() > 0.85
    # The network's word, and not the search's: of two futures none, half or all are safe.
    assert len(set(judged) - {0.0, 0.5, 1.0}) > 10


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_a_network_that_is_told_the_values_says_what_a_search_with_the_critic_does(kind: str) -> None:
    known: dict[str, Any] = {"dynamics": walk, "horizon": HORIZON, "rollouts": 2}
    venv = make_vec(8, kind, mode="amortised", min_updates=10**6, **known)
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    small: dict[str, Any] = {"net_arch": [32, 32], "learning_starts": 100, "learning_rate": 3e-3, "train_freq": 1}
    critic = ViabilityCallback(gradient_steps=2, **small)
    model.learn(64 * 8 * 8, callback=[critic, SafetyNetworkCallback(gradient_steps=4, min_updates=100, **small)])
    network: Any = model.persist.parts["safety"]  # type: ignore[attr-defined]
    assert network.valued
    # Without the state: the action's value, overall and of the one constraint, and after each of two steps the margin
    # and these again.
    assert network.standardizer.mean.shape == (2 + 2 * 3,)
    assert float(network.agreement) > 0.9


@pytest.mark.parametrize("kind", ["discrete", "box"])
@pytest.mark.parametrize("valued", [False, True])
def test_numpy_and_torch_agree(kind: str, valued: bool) -> None:
    spec = make_spec(kind)
    network = SafetyNetwork(spec, valued=valued)
    generator = np.random.default_rng(0)
    state = generator.normal(size=(9, spec.state_dim)).astype(np.float32)
    action = generator.uniform(-1, 1, (9, spec.action_dim)).astype(np.float32)
    values = generator.normal(size=(9, 2)).astype(np.float32)
    outline = generator.normal(size=(9, 2 * (3 if valued else 1))).astype(np.float32)
    inputs = network.inputs(state, action, values if valued else None, outline)
    with torch.no_grad():
        logits = network(torch.as_tensor(inputs))
    np.testing.assert_allclose(network.p_safe(inputs), logits.sigmoid().numpy(), atol=1e-6)


@pytest.mark.parametrize("mode", ["search", "verify"])
def test_learned_models_take_over_from_the_critic(mode: Any) -> None:
    env = make_vec(4, mode=mode, min_updates=20, band=20.0, horizon=2, rollouts=4, threshold=-10.0)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    small: dict[str, Any] = {"net_arch": [16], "learning_starts": 50, "train_freq": 1}
    model.learn(
        64 * 4, callback=[ViabilityCallback(**small), InternalModelCallback(**small), WorldModelCallback(**small)]
    )
    env.reset()
    env.step(np.zeros(4, dtype=np.int64))
    decision = env.layer._decision
    assert decision is not None and np.isfinite(decision.proposed.p_safe).all()
