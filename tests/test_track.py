"""What TensorBoard and W&B are shown beside scalars, and that showing it disturbs nothing."""

import ast
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]

from persist_sb3 import callbacks as persist_callbacks
from persist_sb3 import dashboards, hyperparams, plots
from persist_sb3 import train as training
from persist_sb3.callbacks import (
    CalibrationCallback,
    MetricsCallback,
    RNDCallback,
    TensorBoardCallback,
    TrackCallback,
    ViabilityCallback,
)
from persist_sb3.callbacks.gathering import COLUMNS
from persist_sb3.metrics import read_episodes
from persist_sb3.shield.calibration import Outcomes
from persist_sb3.wrappers import (
    InternalState,
    VecActionShield,
    VecHomeostatReward,
    VecInternalState,
    VecRNDBonus,
    VecSMiRLBonus,
)
from persist_sb3.zoo import TrackedManager
from tests.toys import Walker

ROOT = Path(__file__).parent.parent


class FakeRun:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.tags: tuple[str, ...] = ("mine",)
        self.settings = SimpleNamespace(sync_tensorboard=True)
        self.config: Any = SimpleNamespace(update=lambda told, allow_val_change: self.told.update(told))
        self.told: dict[str, Any] = {}
        self.metrics: dict[str, str] = {}
        self.pages: list[dict[str, Any]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics[name] = step_metric

    def log(self, page: dict[str, Any]) -> None:
        self.pages.append(page)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """An active run of a W&B whose tables, plots and videos are what they were made of."""
    run = FakeRun()
    table: Callable[..., Any] = lambda columns, data: SimpleNamespace(columns=columns, data=data)  # noqa: E731
    plot = SimpleNamespace(
        bar=lambda table, label, value, title: table,
        line_series=lambda xs, ys, keys, title, xname: SimpleNamespace(xs=xs, ys=ys, keys=keys, title=title),
    )
    fake = SimpleNamespace(run=run, Table=table, plot=plot, Video=lambda film, format: film)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return run


def gridlife(n: int = 2, subprocesses: bool = False) -> VecEnv:
    venv = make_vec_env(
        "persist_sb3:GridLife-v0",
        n,
        seed=0,
        env_kwargs={"horizon": 30},
        vec_env_cls=SubprocVecEnv if subprocesses else DummyVecEnv,
    )
    alive = VecHomeostatReward(VecInternalState(venv), alive_bonus="auto", death_penalty=5.0)
    shielded = VecActionShield(alive, threshold=0.3, min_updates=5)
    return VecNormalize(shielded, norm_obs_keys=["internal"])


def learn(venv: VecEnv, callbacks: list[BaseCallback], steps: int = 256, **kwargs: Any) -> PPO:
    more: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu", **kwargs}
    kind = "MultiInputPolicy" if isinstance(venv.observation_space, gym.spaces.Dict) else "MlpPolicy"
    model = PPO(kind, venv, policy_kwargs={"net_arch": [8]}, **more)
    return model.learn(steps, callback=callbacks)


def shielding() -> list[BaseCallback]:
    return [
        MetricsCallback(log_freq=100),
        ViabilityCallback(learning_starts=20, train_freq=2, batch_size=16),
        CalibrationCallback(conf=0.9, min_updates=5, horizon=2),
    ]


class Witness(BaseCallback):
    """Counts interventions and violations as the infos tell them."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []
        self.violations = np.zeros(3, dtype=int)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            energy, temp, integrity = info["internal"]
            self.violations += [energy < 0.2, not 0.3 <= temp <= 0.7, integrity < 0.6]
            if "shield" in info:
                self.told.append(info["shield"])
        return True


def test_a_run_is_shown(run: FakeRun) -> None:
    witness = Witness()
    learn(gridlife(), [*shielding(), witness, TrackCallback(log_freq=256, video_freq=512)], steps=512)
    logged = {key: [page[key] for page in run.pages if key in page] for page in run.pages for key in page}
    assert set(logged) == {
        "global_step",
        "persist/interventions",
        "persist/survival_curve",
        "persist/violations_by_constraint",
        "persist/calibration_plot",
        "persist/video",
    }
    assert not any(isinstance(value, int | float) for page in run.pages for key, value in page.items() if "/" in key)
    assert logged["global_step"][-1] == 512
    table = logged["persist/interventions"][-1]
    assert table.columns == list(COLUMNS)
    assert len(table.data) == min(len(witness.told), 200) > 0
    assert [row[2] for row in table.data] == [str(int(told["proposed"])) for told in witness.told[-200:]]
    bars = logged["persist/violations_by_constraint"][-1].data
    assert bars == [
        [name, count]
        for name, count in zip(
            ["energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6"], witness.violations, strict=True
        )
    ]
    curve = logged["persist/survival_curve"][-1]
    assert curve.ys[0][0] == 1.0 and (np.diff(curve.ys[0]) <= 0.0).all()
    calibration = logged["persist/calibration_plot"][-1]
    assert all(0.0 <= share <= 1.0 for share in calibration.ys[0])
    film: BytesIO = logged["persist/video"][-1]
    with Image.open(film) as image:
        assert image.format == "GIF" and image.n_frames > 1


def test_the_intrinsic_reward_is_shown_against_the_time_alive(run: FakeRun) -> None:
    learning = shielding()
    metrics = learning[0]
    assert isinstance(metrics, MetricsCallback)
    callbacks = [*learning, RNDCallback(learning_starts=32), TrackCallback(log_freq=256, video_freq=0)]
    learn(VecRNDBonus(gridlife()), callbacks, steps=256)
    curve = [page["persist/intrinsic_by_time_alive"] for page in run.pages if len(page) > 1][-1]
    paid = [episode.reward_terms["intrinsic"] / episode.length for episode in metrics.recent]
    assert min(paid) <= min(curve.ys[0]) <= max(curve.ys[0]) <= max(paid) and max(paid) > 0.0
    assert curve.xs == sorted(curve.xs) and curve.xs[-1] <= 30.0
    assert curve.keys == ["intrinsic"]


def test_tensorboard_and_wandb_get_the_curve_of_each_bonus(run: FakeRun, tmp_path: Path) -> None:
    walkers = DummyVecEnv([Walker] * 2)
    venv = VecRNDBonus(
        VecSMiRLBonus(VecInternalState(walkers, dims=["battery", "heat"], constraints=["battery >= 0.2"]))
    )
    rnd = RNDCallback(net_arch=[8], features=4, learning_starts=32)
    shown = [TensorBoardCallback(plot_freq=128), TrackCallback(video_freq=0)]
    learn(venv, [MetricsCallback(), rnd, *shown], steps=384, tensorboard_log=str(tmp_path))
    (folder,) = tmp_path.iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("persist/plots/intrinsic_by_time_alive")
    # At ends of rollouts of 128 steps; the last is the end of training.
    assert [image.step for image in images] == [128, 256, 384]
    with Image.open(BytesIO(images[-1].encoded_image_string)) as image:
        width, height = image.size
        # A panel of the sum and one of each bonus.
        assert height > width

    curve = run.pages[-1]["persist/intrinsic_by_time_alive"]
    assert curve.keys == ["intrinsic", "smirl", "rnd"]
    # Of each group of episodes, the bonuses add up.
    np.testing.assert_allclose(np.add(*curve.ys[1:]), curve.ys[0], atol=1e-9)


def test_runs_are_told_apart_by_their_layers(run: FakeRun) -> None:
    learn(gridlife(), [*shielding(), TrackCallback(video_freq=0)], steps=128)
    assert run.tags == ("mine", "InternalState", "HomeostatReward", "ActionShield")
    assert run.told[dashboards.GROUP] == "InternalState+HomeostatReward+ActionShield"
    assert run.told["persist_callbacks"] == ["MetricsCallback", "ViabilityCallback", "CalibrationCallback"]
    assert run.metrics["persist/*"] == "global_step"


@pytest.mark.parametrize(("synchronised", "written"), [(True, False), (False, True), (True, True)])
def test_a_run_that_gets_no_scalars_is_told(run: FakeRun, tmp_path: Path, synchronised: bool, written: bool) -> None:
    run.settings.sync_tensorboard = synchronised
    log = {"tensorboard_log": str(tmp_path)} if written else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn(gridlife(), [*shielding(), TrackCallback(video_freq=0)], steps=128, **log)
    told = [str(each.message) for each in caught if "W&B gets no scalars" in str(each.message)]
    assert len(told) == (not (synchronised and written))


def test_layers_inside_the_environments_are_named_too(run: FakeRun) -> None:
    def make() -> gym.Env[Any, Any]:
        limits: dict[str, Any] = {"dims": ["x"], "sources": {"x": "obs[0]"}, "constraints": ["abs(x) <= 1"], "mu": [0]}
        return InternalState(gym.make("CartPole-v1"), **limits)

    learn(VecHomeostatReward(DummyVecEnv([make]), alive_bonus="auto"), [TrackCallback(video_freq=0)], steps=128)
    assert run.told[dashboards.GROUP] == "InternalState+HomeostatReward"


def weights(model: PPO) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters())


def test_training_is_the_same_with_and_without(run: FakeRun, tmp_path: Path) -> None:
    shown = [TensorBoardCallback(log_freq=128), TrackCallback(log_freq=128, video_freq=200)]
    one = learn(gridlife(), [*shielding(), *shown], tensorboard_log=str(tmp_path))
    other = learn(gridlife(), shielding())
    assert sum("persist/video" in page for page in run.pages) >= 2
    torch.testing.assert_close(weights(one), weights(other), rtol=0.0, atol=0.0)


def test_it_works_in_subprocesses(run: FakeRun) -> None:
    venv = gridlife(subprocesses=True)
    learn(venv, [*shielding(), TrackCallback()], steps=256)
    venv.close()
    assert "persist/video" in run.pages[-1]


def test_nothing_happens_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    # No environment here says what its internal variables are, and nobody asks.
    venv = make_vec_env("CartPole-v1", 2, seed=0)
    learn(venv, [TrackCallback(), TensorBoardCallback()], steps=128)
    assert "wandb" not in sys.modules


def test_an_environment_that_cannot_be_drawn_is_said_once(run: FakeRun) -> None:
    limits: dict[str, Any] = {
        "dims": ["battery"],
        "sources": {"battery": "info.battery"},
        "constraints": ["battery >= 0.2"],
    }
    venv = DummyVecEnv([lambda: InternalState(Walker(), **limits)])
    with pytest.warns(UserWarning, match="no video") as caught:
        learn(venv, [TrackCallback(video_freq=64)], steps=512)
    assert len([each for each in caught if "no video" in str(each.message)]) == 1
    assert run.pages


@pytest.mark.parametrize("wrong", [{"log_freq": 0}, {"video_freq": -1}, {"most": 0}])
def test_parameters_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        TrackCallback(**wrong)
    with pytest.raises(ValueError, match="log_freq=0"):
        TensorBoardCallback(log_freq=0)
    with pytest.raises(ValueError, match="plot_freq=0"):
        TensorBoardCallback(plot_freq=0)
    with pytest.raises(ValueError, match="video_freq=-1"):
        TensorBoardCallback(video_freq=-1)


def events_of(folder: Path) -> EventAccumulator:
    (run_folder,) = folder.iterdir()
    events = EventAccumulator(str(run_folder), size_guidance={"tensors": 0, "histograms": 0, "images": 0})
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> list[list[str]]:
    """The cells of the newest table, without its head."""
    (written,) = events.Tensors(f"persist/tables/{tag}/text_summary")[-1].tensor_proto.string_val
    return [line.split("|")[1:-1] for line in written.decode().splitlines()[2:]]


def test_tensorboard_shows_what_wandb_shows(tmp_path: Path) -> None:
    witness = Witness()
    shown = TensorBoardCallback(log_freq=300, plot_freq=256, video_freq=512)
    learn(gridlife(), [*shielding(), witness, shown], steps=512, tensorboard_log=str(tmp_path / "tb"))
    events = events_of(tmp_path / "tb")
    tags = events.Tags()
    assert {f"persist/margins/{name}" for name in ("energy >= 0.2", "temp in [0.3, 0.7]")} <= set(tags["histograms"])
    # The last ones at the end of training.
    counted = sum(each.histogram_value.num for each in events.Histograms("persist/margins/energy >= 0.2"))
    assert counted == 512
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(dashboards.SECTIONS)
    assert set(tags["images"]) == {"persist/plots/survival_curve", "persist/plots/calibration", "persist/video"}
    for tag in ("persist/plots/survival_curve", "persist/plots/calibration"):
        # Once more at the end only if there is something new.
        assert [each.step for each in events.Images(tag)][-1] == 512
        with Image.open(BytesIO(events.Images(tag)[-1].encoded_image_string)) as image:
            assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 3
    (film,) = events.Images("persist/video")
    with Image.open(BytesIO(film.encoded_image_string)) as image:
        assert image.format == "GIF" and image.n_frames > 1 and image.size == (film.width, film.height)
    about = dict(text_of(events, "run"))
    assert about["layers"] == "InternalState+HomeostatReward+ActionShield"
    assert about["callbacks"] == "MetricsCallback, ViabilityCallback, CalibrationCallback"
    assert about["constraints"] == "energy >= 0.2, temp in [0.3, 0.7], integrity >= 0.6"
    rows = text_of(events, "interventions")
    told = witness.told[-50:]
    assert [row[2] for row in rows] == [str(int(each["proposed"])) for each in told] and rows
    assert [int(count) for _, count in text_of(events, "violations_by_constraint")] == witness.violations.tolist()


def test_only_one_of_them_films(run: FakeRun, tmp_path: Path) -> None:
    shown = [TensorBoardCallback(), TrackCallback()]
    learn(gridlife(), [*shielding(), *shown], steps=128, tensorboard_log=str(tmp_path / "tb"))
    assert "persist/video" in run.pages[-1]
    images = events_of(tmp_path / "tb").Tags()["images"]
    assert "persist/plots/survival_curve" in images and "persist/video" not in images


def test_outcomes_are_shown_with_their_intervals() -> None:
    value, made, kept, declared = [-0.1, 0.0, 0.1], [4, 10, 10], [0, 5, 10], [None, 0.5, 1.0]
    axes, counts = plots.calibration(Outcomes(value, made, kept, declared, 0.05)).axes
    (drawn,) = axes.containers
    _, _, (bars,) = drawn.lines  # type: ignore[attr-defined]
    for (low, high), wins, trials in zip(np.array(bars.get_segments())[:, :, 1], kept, made, strict=True):
        # Wilson's bounds are where the share lies 1.96 of its standard deviations away.
        for bound in (low, high):
            if 1e-9 < bound < 1 - 1e-9:
                assert abs(wins / trials - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / trials), 1e-3)
    assert [patch.get_height() for patch in counts.patches] == made  # type: ignore[attr-defined]


def test_every_metric_of_the_charts_is_logged_by_somebody() -> None:
    """Except those of parts that are described in the text of other modules; by name, not by value."""
    source = "".join(path.read_text() for path in (ROOT / "persist_sb3" / "callbacks").glob("*.py"))
    for charts in dashboards.SECTIONS.values():
        for chart in charts:
            for metric in chart.metrics:
                name = metric.removeprefix("persist/").removesuffix("/.*")
                if metric.startswith("persist/") and name != "curriculum":
                    assert name in source, metric


def recorded() -> set[str]:
    """The keys that callbacks log numbers under, as they stand in the source; ``*`` for what is put in."""
    models = {getattr(getattr(persist_callbacks, each), "name", None) for each in persist_callbacks.__all__}
    keys: set[str] = set()
    for path in (ROOT / "persist_sb3" / "callbacks").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr not in ("record", "_record", "add_histogram"):
                continue
            parts = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            texts = [part.value if isinstance(part, ast.Constant) else f"*{ast.unparse(part)}" for part in parts]
            key = ("persist/" if call.func.attr == "_record" else "") + "".join(map(str, texts))
            keys |= {re.sub(r"\*f?'?\{self.name\}'?", str(name), key) for name in models if name is not None}
    return {re.sub(r"\*f?'?\{[^}]*\}'?", "*", key) for key in keys}


def test_every_metric_that_is_logged_is_in_a_chart() -> None:
    metrics = [metric for charts in dashboards.SECTIONS.values() for chart in charts for metric in chart.metrics]
    metrics += [medium.key for media in dashboards.MEDIA.values() for medium in media]
    keys = recorded() - {"persist/*"}
    families = {key.split("/")[1] for key in keys}
    assert {"viability", "safety", "belief", "setpoint", "lagrange", "margins", "deaths", "survival"} <= families
    for key in keys:
        assert any(re.fullmatch(metric, key) for metric in metrics), key


def test_workspace_and_report_hold_every_chart() -> None:
    pytest.importorskip("wandb_workspaces")
    # A report looks up its runs at W&B as soon as it becomes the document that is sent, so it is read before.
    built = (
        dashboards.wandb_workspace("me", "sb3")._to_model().model_dump_json(),
        repr(dashboards.wandb_report("me", "sb3")),
    )
    for text in built:
        for section, charts in dashboards.SECTIONS.items():
            assert section in text
            assert all(chart.title in text for chart in charts)
        assert all(medium.key in text for media in dashboards.MEDIA.values() for medium in media)
        assert dashboards.GROUP in text
        assert "global_step" in text


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(SystemExit):
        dashboards.main(["--entity", "me"])
    assert "persist-sb3[dashboards]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "layers"),
    [
        ({}, "none"),
        ({"vec_env_wrapper": "persist_sb3.wrappers.VecInternalState"}, "InternalState"),
        ({"vec_env_wrapper": {"persist_sb3.wrappers.VecInternalState": {"dims": ["x"]}}}, "InternalState"),
        (
            {
                "env_wrapper": ["gymnasium.wrappers.ClipAction", {"persist_sb3.wrappers.InternalState": {}}],
                "vec_env_wrapper": [{"persist_sb3.wrappers.VecRNDBonus": {}}, "stable_baselines3.VecFrameStack"],
            },
            "InternalState+RNDBonus",
        ),
    ],
)
def test_layers_are_read_off_hyperparameters(entry: dict[str, Any], layers: str) -> None:
    assert dashboards.name_layers(dashboards.listed_layers(entry)) == layers


def test_runs_are_grouped_unless_somebody_else_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    asked: list[list[str]] = []
    monkeypatch.setattr(training.zoo, "run", lambda main, arguments: asked.append(arguments))

    def group(*arguments: str) -> str | None:
        training.train([*arguments])
        said = asked.pop()
        # The last one counts.
        return said[len(said) - said[::-1].index("--wandb-group")] if "--wandb-group" in said else None

    entry = ("--algo", "ppo", "--env", "CartPole-v1", "--track")
    layers = "InternalState+HomeostatReward"
    assert group(*entry) == f"CartPole-v1 ppo {layers}"
    assert group(*entry, "--shield") == f"CartPole-v1 ppo {layers}+ActionShield"
    assert group(*entry, "-params", "vec_env_wrapper:[]", "n_envs:1") == "CartPole-v1 ppo none"
    assert group(*entry, "-conf", "persist_sb3.hyperparams.ppo") == f"CartPole-v1 ppo {layers}"
    (tmp_path / "own.py").write_text("hyperparams = {'default': {'policy': 'MlpPolicy'}}")
    assert group(*entry, "-conf", str(tmp_path / "own.py")) == "CartPole-v1 ppo none"
    assert group("--persist", str(ROOT / "examples" / "cartpole.yml"), "--track") == f"CartPole-v1 ppo {layers}"
    assert group(*entry, "--wandb-group", "mine") == "mine"
    assert group(*entry[:-1]) is None
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert group(*entry) is None


def soon(entry: dict[str, Any]) -> dict[str, Any]:
    """A shipped entry with its layers and callbacks, on a budget of a few steps."""
    *_, shield = entry["vec_env_wrapper"]
    (limits,) = shield.values()
    limits |= {"min_updates": 5, "threshold": 0.3}
    small: dict[str, Any] = {"n_envs": 2, "n_steps": 64, "batch_size": 64, "n_epochs": 1}
    metrics, *_ = entry["callback"]
    learning = [
        {"persist_sb3.callbacks.ViabilityCallback": {"learning_starts": 20, "batch_size": 16, "augment": True}},
        {"persist_sb3.callbacks.CalibrationCallback": {"min_updates": 5, "horizon": 2, "conf": 0.9}},
    ]
    return {**entry, **small, "callback": [metrics, *learning]}


@pytest.mark.parametrize("watched", [True, False])
def test_a_shield_is_calibrated_where_somebody_looks(
    watched: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if watched:
        request.getfixturevalue("run")
    monkeypatch.setattr(ExperimentManager, "create_callbacks", lambda self: None)
    manager = TrackedManager.__new__(TrackedManager)
    manager.callbacks = [MetricsCallback(), ViabilityCallback()]
    manager.create_callbacks()
    names = [type(callback).__name__ for callback in manager.callbacks]
    shown = ["TensorBoardCallback", "TrackCallback"]
    assert names == ["MetricsCallback", "ViabilityCallback", *["CalibrationCallback"][: int(watched)], *shown]
    manager.callbacks = [MetricsCallback()]
    manager.create_callbacks()
    assert not any(isinstance(callback, CalibrationCallback) for callback in manager.callbacks)


def test_a_real_run_offline(tmp_path: Path) -> None:
    """The same through ``--track``, with W&B itself, as its own viewer reads it."""
    env_id = "GridLifeScent-v0"
    entry = hyperparams.load("ppo")[env_id]
    layers = "+".join(re.findall(r"'persist_sb3\.wrappers\.Vec(\w+)'", str(entry["vec_env_wrapper"])))
    assert layers.endswith("InternalState+HomeostatReward+ActionShield")
    (tmp_path / "soon.yml").write_text(yaml.safe_dump({env_id: soon(entry)}))
    command = [sys.executable, "-m", "persist_sb3", "train", "--algo", "ppo", "--env", env_id, "--track"]
    small = ["-conf", "soon.yml", "-n", "384", "--eval-freq", "-1", "--device", "cpu", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    for name in ("WANDB_RUN_GROUP", "WANDB_DIR"):
        environment.pop(name, None)
    subprocess.run(
        [*command, *small, "--env-kwargs", "horizon:30"], cwd=tmp_path, env=environment, check=True, timeout=600
    )
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    viewer = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    records, record = (
        subprocess.run([*viewer, *more], capture_output=True, check=True, text=True).stdout
        for more in ([], ["--summary"])
    )
    told = json.loads(record)
    summary = told["summary"]
    assert told["exit_code"] == 0
    assert summary["persist/video"]["_type"] == "video-file"
    assert summary["persist/interventions"]["_type"] == "table-file"
    plotted = ("survival_curve", "violations_by_constraint", "calibration_plot")
    assert {f"persist/{name}_table" for name in plotted} <= set(summary)
    assert any(key.startswith("persist/margins/") for key in summary)
    # Counted by the callbacks independently of each other.
    episodes = read_episodes(tmp_path / "logs" / "ppo" / f"{env_id}_1" / "persist.jsonl")
    (bars,) = folder.glob("files/media/table/persist/violations_by_constraint_table_*.json")
    counts = json.loads(bars.read_text())["data"]
    assert sum(count for _, count in counts) >= sum(episode.violations for episode in episodes) > 0
    assert told["config"]["persist_layers"] == layers
    assert f"{env_id} ppo {layers}" in records
