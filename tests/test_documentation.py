"""What README and docs say works: each block runs or is what its reader takes it for, and links lead somewhere."""

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import VecEnvWrapper

from persist_sb3 import hyperparams, zoo
from persist_sb3.buffers import Demonstrations
from persist_sb3.config import PersistConfig
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.hub import push
from persist_sb3.recording import record
from persist_sb3.wrappers import VecSpatialMemory
from tests import hub
from tests.documents import PAGES, ROOT, Block, blocks, name_of
from tests.learners import set_up
from tests.toys import BatteryEnv

#: The languages of blocks, and what tests them. What is not to be run is text: what a command prints.
LANGUAGES = {"python", "yaml", "bash", "text", "{toctree}", "{include}"}
#: First line of a part of a hyperparameter file, which says where it goes.
PLACE = re.compile(r"# persist_sb3/hyperparams/(\w+)\.yml, (\S+)\n")
PYTHON = re.compile(r"^(import|from|def|class) \S+|^\w+ = \w+\(", flags=re.MULTILINE)


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], int | None]]:
    """What Trackio is told, which is not installed."""
    told: list[tuple[dict[str, Any], int | None]] = []
    module: Any = ModuleType("trackio")
    module.init = lambda project, *, name=None: None
    module.log = lambda metrics, step=None: told.append((metrics, step))
    module.finish = lambda: None
    monkeypatch.setitem(sys.modules, "trackio", module)
    return told


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No network, and no place outside of a folder of this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["persist-sb3"])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    hub.install(monkeypatch, tmp_path / "hub")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
@pytest.mark.usefixtures("nobody", "trackio")
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(ROOT / "docs" / "configuration.md", "yaml")[:1]:
        (tmp_path / "gridlife.yml").write_text(block.text)
    # An environment for the fragments that say only how to wrap one, and trainings of one rollout.
    scope: dict[str, object] = {"env": BatteryEnv()}
    for block in blocks(page, "python"):
        if "buffers.minari" in block.text:
            pytest.importorskip("minari")
        if "hub import pull" in block.text:
            push(hub.make_run(), "me/ppo-GridLifeScent-v0", episodes=1)
        short = re.sub(r"learn\([\d_]+", "learn(1", block.text)
        with warnings.catch_warnings():
            warnings.simplefilter("error", category=DeprecationWarning)
            exec(compile(short, page.name, "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_is_left_untested(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: no test looks at a block of {block.language!r}"
        if block.language == "text":
            assert not PYTHON.search(block.text), f"{block.where} is Python"
            assert not isinstance(_as_yaml(block.text), dict), f"{block.where} is YAML"


def _as_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def test_trackio_is_given_what_the_logger_writes(
    trackio: list[tuple[dict[str, Any], int | None]], tmp_path: Path
) -> None:
    (block,) = [each for each in blocks(ROOT / "docs" / "tracking.md", "python") if "trackio" in each.text]
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    exec(compile(block.text, block.where, "exec"), {"model": model})
    model.learn(16, log_interval=1)
    assert [step for _, step in trackio] == [8, 16]
    assert trackio[-1][0]["time/total_timesteps"] == 16
    assert all(isinstance(value, int | float) for metrics, _ in trackio for value in metrics.values())


YAML = [block for page in PAGES for block in blocks(page, "yaml")]
PARTS = [block for block in YAML if PLACE.match(block.text)]


@pytest.mark.parametrize("block", [block for block in YAML if block not in PARTS], ids=lambda block: block.where)
def test_yaml_blocks_are_configurations(block: Block) -> None:
    PersistConfig.model_validate(yaml.safe_load(block.text)).layers()


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps as `GridLifeScent-v0`'s entry shows them, since what is demonstrated does not matter here."""
    folder = tmp_path_factory.mktemp("demonstrations")
    venv = VecSpatialMemory(GridLifeVecEnv(2, split="train", horizon=8, scent=True))
    shown: Demonstrations = record(Still(), venv, episodes=2, seed=0)
    shown.save(folder / "demos.npz")
    return folder


class Still:
    """Stays where it is."""

    def predict(self, observation: Any, *rest: Any, **more: Any) -> tuple[Any, None]:
        return np.zeros(len(observation["internal"]), dtype=np.int64), None


FEW: dict[str, Any] = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1} | {
    "learning_starts": 16,
    "buffer_size": 1000,
    "train_freq": 4,
    "gradient_steps": 1,
}


@pytest.mark.parametrize("block", PARTS, ids=lambda block: block.where)
def test_yaml_blocks_are_parts_of_a_hyperparameter_file(
    block: Block, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of what the shipped entry says, and trained: each class that they name is there."""
    monkeypatch.chdir(demonstrations)
    zoo.register_ppo_mask()
    place = PLACE.match(block.text)
    assert place is not None
    algo, env_id = place.groups()
    part = yaml.safe_load(block.text)
    entry = hyperparams.load(algo)[env_id] | part
    entry |= {key: value for key, value in FEW.items() if key in entry}
    for callback in entry["callback"]:
        # Begun with demonstrations, but not for thousands of gradient steps.
        for name, parameters in callback.items() if isinstance(callback, dict) else ():
            if "demonstrations" in parameters:
                parameters["pretrain_steps" if name.endswith("ViabilityCallback") else "gradient_steps"] = 1
    manager, model = set_up(algo, env_id, entry, tmp_path)
    manager.learn(model)
    env, made = model.get_env(), {type(model.policy), type(getattr(model, "replay_buffer", None))}
    while isinstance(env, VecEnvWrapper):
        made.add(type(env))
        env = env.venv
    made |= {type(callback) for callback in CallbackList(manager.callbacks).callbacks}
    named = set(re.findall(r"persist_sb3\.\w+\.(\w+)", block.text))
    assert named and named <= {kind.__name__ for kind in made}


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yml")), ids=lambda path: path.name)
def test_examples_make_an_environment(example: Path) -> None:
    env = PersistConfig.from_yaml(example).make_env()
    env.reset(seed=0)
    assert "homeo" in env.step(env.action_space.sample())[4]["reward_terms"]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.*")), ids=lambda path: path.name)
def test_examples_are_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 60


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
