"""Mistakes of those who begin: each is refused before anything is trained, by key, value and remedy."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from persist_sb3 import PersistConfig, callbacks, dashboards
from persist_sb3.callbacks import CalibrationCallback, MetricsCallback, ViabilityCallback
from persist_sb3.config.viability import ShieldSection
from persist_sb3.constraints import Constraint
from persist_sb3.diagnosis.environment import check_spaces
from persist_sb3.infos import ListInfos, MissingInfoError, VectorInfos
from persist_sb3.wrappers import ActionShield, HomeostatReward, InternalState, VecInternalState
from tests.documents import ROOT
from tests.toys import BatteryEnv

CART: dict[str, Any] = {
    "internal_state": {"dims": ["x", "theta"], "mu": [0, 0], "source": {"x": "obs[0]", "theta": "obs[2]"}},
    "viability": {"constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.18"]},
}
X: dict[str, Any] = {"dims": ["x"], "sources": {"x": "obs[0]"}, "constraints": ["abs(x) <= 2"], "mu": [0]}


def changed(section: str, **keys: Any) -> dict[str, Any]:
    return {**CART, section: {**CART.get(section, {}), **keys}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            changed("viability", constraints="abs(x) <= 2.0"),
            r"^viability.constraints: .* list, not 'abs\(x\) <= 2.0'$",
        ),
        (changed("internal_state", mu={"x": 0, "theta": 0}), "^internal_state.mu: .* a list$"),
        (changed("internal_state", mu=[3, 0]), r"'abs\(x\) <= 2.0' has margin -1 at x = 3. Move mu inside"),
        (changed("viability", shield=True), r"^viability.shield: must hold keys \(mode, .* or be {} .* not True$"),
        (changed("viability", shield={"guards": ["y"]}), "^viability.shield.guards: unknown internal variable 'y'"),
        ({**CART, "env": "CartPole-v1"}, r"^env: must hold keys \(name, .* not 'CartPole-v1'$"),
        (changed("train", learning_rate=0.001), "^train: unknown key 'learning_rate'.* -params learning_rate:0.001$"),
        (changed("train", gamma=1.5), "^train.gamma: .* not 1.5$"),
        ({"internal_state": CART["internal_state"]}, r"^viability.constraints is missing: .*\['x', 'theta'\]"),
        ({**CART, "internal_state": {"dims": ["x", "theta"]}}, r"^internal_state: mu is missing: .*\['x', 'theta'\]"),
    ],
)
def test_a_configuration_is_refused_in_its_own_terms(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        PersistConfig(**sections)
    assert "pydantic" not in str(refused.value) and "input_value" not in str(refused.value)
    file = tmp_path / "agent.yml"
    file.write_text(yaml.safe_dump(sections))
    with pytest.raises(ValueError, match=r"agent.yml: ") as read:
        PersistConfig.from_yaml(file)
    assert str(read.value) == f"{file}: {refused.value}"


def test_masks_are_for_actions_that_can_be_counted() -> None:
    masked = changed("viability", shield={"correction": "mask"})
    with pytest.raises(ValueError, match="correction='mask' needs actions that can be counted, and those of SAC"):
        PersistConfig(**masked, train={"algo": "SAC"})
    assert PersistConfig(**masked, train={"algo": "PPO_MASK"}).viability.shield is not None


def test_variables_of_ones_own_are_not_looked_for_in_gridlife() -> None:
    persist = PersistConfig(**CART)
    persist.wrap(gym.make("CartPole-v1")).reset(seed=0)
    for ask in (persist.make_env, persist.algorithm_kwargs):
        with pytest.raises(ValueError, match=r"env.name is missing: .*\['x', 'theta'\]"):
            ask()
    assert PersistConfig(**CART, env={"name": "CartPole-v1"}).make_env().observation_space.shape == (4,)
    assert PersistConfig().env_id == "GridLife-v0"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("soc >= 20 and heat <= 80", "list two constraints instead"),
        ("soc >= 20%", "in the variable's own unit"),
        ("soc ≥ 20", "write >="),
        ("soc == 20", "comparisons are >=, <=, and in [low, high]"),
        ("battery.soc >= 20", "the variable's name in dims"),
    ],
)
def test_what_other_languages_write_gets_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)) as refused:
        Constraint(text)
    # The caret still points at the character.
    _, shown, caret = str(refused.value).splitlines()
    assert shown.strip() == text and text[caret.index("^") - 4] in "a%≥=."


def test_an_environment_of_another_api_is_told_the_form_that_fits() -> None:
    venv = make_vec_env("CartPole-v1", 1)
    with pytest.raises(TypeError, match=r"not go around a DummyVecEnv: .*VecInternalState for SB3's VecEnv"):
        InternalState(venv, **X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"not go around a \w*TimeLimit: InternalState is for a gym"):
        VecInternalState(gym.make("CartPole-v1"), **X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"not go around a str: .*gymnasium.make makes one of an id"):
        PersistConfig(**CART).wrap("CartPole-v1")  # type: ignore[arg-type]


def test_a_misspelt_parameter_of_a_layer() -> None:
    alive = InternalState(gym.make("CartPole-v1"), **X)
    with pytest.raises(TypeError, match="ActionShield has no parameter 'treshold', did you mean 'threshold'"):
        ActionShield(alive, treshold=0.1)
    # What help() and an IDE show is how it can be called.
    kinds = {each.kind for each in list(inspect.signature(ActionShield).parameters.values())[1:]}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_layers_are_not_put_around_themselves() -> None:
    persist = PersistConfig(**CART)
    once = persist.wrap(gym.make("CartPole-v1"))
    with pytest.raises(RuntimeError, match="paid twice: is the environment wrapped already"):
        persist.wrap(once)
    venv = make_vec_env(lambda: persist.wrap(gym.make("CartPole-v1")), 1)
    with pytest.raises(RuntimeError, match="paid twice"):
        persist.wrap_vec(venv)


def test_limits_are_not_on_normalised_numbers() -> None:
    persist = PersistConfig(**CART)
    with pytest.raises(RuntimeError, match=r"VecNormalize\(persist.wrap_vec\(venv\)\)"):
        persist.wrap_vec(VecNormalize(make_vec_env("CartPole-v1", 1)))
    VecNormalize(persist.wrap_vec(make_vec_env("CartPole-v1", 1))).reset()


def test_an_open_limit_is_named() -> None:
    battery = InternalState(BatteryEnv(), dims=["battery"], sources={"battery": "info.battery"},
                            constraints=["battery >= 0.2"], mu=[1.0])  # fmt: skip
    with pytest.raises(RuntimeError, match=r"one is open: battery in \[0.2, inf\]. Give InternalState low="):
        HomeostatReward(battery, alive_bonus="auto")


def learn(env: gym.Env[Any, Any], *learning: Any) -> None:
    PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16, callback=list(learning))


def test_a_shield_that_sees_less_than_its_critic_is_refused_before_the_first_step() -> None:
    """Not 500 gradient steps later, when the critic is asked for the first time."""
    inside = ActionShield(InternalState(gym.make("CartPole-v1"), **X))
    with pytest.raises(RuntimeError, match="sees observations of 4 numbers, and 'viability' learns from the 5"):
        learn(InternalState(inside, **X, append=True), ViabilityCallback())
    learn(ActionShield(InternalState(gym.make("CartPole-v1"), **X, append=True)), ViabilityCallback())


def test_a_shield_without_its_callback_says_no_more_than_that() -> None:
    with pytest.raises(RuntimeError, match=r"ActionShield\(\) has no part 'viability': add \S*ViabilityCallback to"):
        learn(ActionShield(InternalState(gym.make("CartPole-v1"), **X)), MetricsCallback())


def test_what_is_tracked_of_a_critic_needs_no_shield() -> None:
    """``--track`` adds the callback where there is a critic, also if ``-params`` took the shield away."""
    calibration = CalibrationCallback()
    learn(InternalState(gym.make("CartPole-v1"), **X), ViabilityCallback(), calibration)
    assert calibration.calibration.conf == inspect.signature(ActionShield).parameters["conf"].default


def test_a_dashboard_without_an_account_names_what_there_is_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = pytest.importorskip("wandb.errors")

    def save() -> None:
        raise errors.UsageError("No API key configured.")

    monkeypatch.setattr(dashboards, "wandb_workspace", lambda *where: SimpleNamespace(save=save))
    with pytest.raises(SystemExit):
        dashboards.main(["--entity", "me"])
    assert "No API key configured. What is saved here lies at W&B" in " ".join(capsys.readouterr().err.split())


def test_a_missing_entry_is_looked_for_where_the_path_ends() -> None:
    infos, slots = ListInfos([{"battery": {"charge": 1.0}, "heat": 0.5}]), np.array([0])
    for path, told in (
        (("battery", "soc"), r"info\['battery'\] has \['charge'\]"),
        (("batery", "charge"), r"its info has \['battery', 'heat'\]"),
        (("heat", "motor"), r"its info has \['battery', 'heat'\]"),
    ):
        with pytest.raises(MissingInfoError, match=told):
            infos.column(path, slots)
    batch = VectorInfos({"battery": {"charge": np.ones(1)}}, 1)
    with pytest.raises(MissingInfoError, match=r"info\['battery'\] has \['charge'\]"):
        batch.column(("battery", "soc"), slots)


@pytest.mark.parametrize(
    ("algo", "actions", "able"),
    [("sac", spaces.MultiDiscrete([3, 2]), "PPO, A2C or TRPO"), ("sac", spaces.Discrete(3), "PPO, DQN or QRDQN"),
     ("dqn", spaces.MultiDiscrete([3, 2]), "PPO, A2C or TRPO"), ("dqn", spaces.Box(-1, 1), "PPO, SAC, TD3 or TQC")],
)  # fmt: skip
def test_the_algorithms_that_are_recommended_can_take_the_actions(algo: str, actions: Any, able: str) -> None:
    env = BatteryEnv()
    env.action_space = actions
    (problem,) = (each for each in check_spaces(env, algo) if each.level == "problem")
    assert able in problem.remedy


def test_the_documented_defaults_are_those_of_the_configuration() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    section, checked = "", set()
    for place, keys, default, _ in rows[1:]:
        section = place.strip("`") or section
        if section == "curriculum":
            continue
        inside = re.fullmatch(r"`shield: {(.*)}`", keys)
        owner: Any = ShieldSection if inside else PersistConfig.model_fields[section].annotation
        names = inside[1].split(", ") if inside else re.findall(r"`(\w+)`", keys)
        told = [value.strip('`"') for value in default.split(", ")] if len(names) > 1 else [default.strip('`"')]
        for name, value in zip(names, told * len(names) if len(told) == 1 else told, strict=True):
            actual = owner.model_fields[name].default
            checked.add((owner, name))
            if name in ("dims", "mu", "constraints"):
                assert value == "GridLife's"
            elif actual is None or actual in ((), {}):
                assert value
            elif isinstance(actual, int | float) and not isinstance(actual, bool):
                assert float(value) == actual, f"{section}.{name}"
            elif isinstance(actual, str | bool):
                assert value == str(actual).lower().replace("ppo", "PPO").replace("gridlife", "GridLife"), name
    parts = [PersistConfig.model_fields[part].annotation for part in list(PersistConfig.model_fields)[:-1]]
    assert {(part, name) for part in [*parts, ShieldSection] for name in part.model_fields} <= checked  # type: ignore[union-attr]


def test_the_documented_defaults_are_those_of_the_callbacks() -> None:
    page = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+Callback.*?) \| ([\d]+).*? \| (.*?) \| (\d+) \| (.*?) ?\|$", page, flags=re.MULTILINE)
    assert len(rows) == 7
    for named, starts, freq, batch, more in rows:
        for name, latent in re.findall(r"`(\w+)(\(kind=\"latent\"\))?`", named):
            kind = callbacks.latent.LatentWorldModelCallback if latent else getattr(callbacks, name)
            defaults = {key: each.default for key, each in inspect.signature(kind.__init__).parameters.items()}
            told = {"learning_starts": starts, "batch_size": batch, **dict(re.findall(r"`(\w+)` ([\d.]+)", more))}
            if freq.isdecimal():
                told["train_freq"] = freq
            told = {"gradient_steps": "1", "learning_rate": "0.001", **told}
            assert {key: float(value) for key, value in told.items()} == {key: defaults[key] for key in told}, name
