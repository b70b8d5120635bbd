"""What rl-zoo3 does not know by itself: this package's environments, MaskablePPO, and where the hyperparameters are."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import rl_zoo3.enjoy as zoo_enjoy
import rl_zoo3.exp_manager as exp_manager
import rl_zoo3.train as zoo_train
import stable_baselines3.common.callbacks as sb3_callbacks
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.base_class import BaseAlgorithm

from persist_sb3 import progress
from persist_sb3.callbacks import (
    CalibrationCallback,
    PersistCallback,
    TensorBoardCallback,
    TrackCallback,
    ViabilityCallback,
)
from persist_sb3.callbacks.wandb import active_run

MASKED = "ppo_mask"
#: Part of a model that has learned to shield it.
SHIELDED_BY = "viability"


class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
    """rl-zoo3's evaluation of an Optuna trial, with the environment's action masks."""


def register_ppo_mask(algorithm: type[BaseAlgorithm] = MaskablePPO) -> None:
    """
    Make ``--algo ppo_mask`` one of rl-zoo3's algorithms, searched by Optuna as PPO is.

    :param algorithm: the class to register
    """
    ALGOS[MASKED] = algorithm
    HYPERPARAMS_SAMPLER[MASKED] = HYPERPARAMS_SAMPLER["ppo"]
    HYPERPARAMS_CONVERTER[MASKED] = HYPERPARAMS_CONVERTER["ppo"]


@contextmanager
def evaluate_with_masks() -> Iterator[None]:
    """
    Let rl-zoo3's evaluations respect action masks, in training and in ``-optimize`` alike: it names the classes of its
    evaluation callbacks in one module, for every algorithm.
    """
    names = vars(exp_manager)
    before = {name: names[name] for name in ("EvalCallback", "TrialEvalCallback")}
    names.update(EvalCallback=MaskableEvalCallback, TrialEvalCallback=MaskableTrialEvalCallback)
    try:
        yield
    finally:
        names.update(before)


class TrackedManager(ExperimentManager):
    """rl-zoo3's experiment, shown in TensorBoard and W&B if it has callbacks of this package."""

    def create_callbacks(self) -> None:
        """
        Add those that show what the others measure, each of which does nothing where nobody looks; and where W&B does,
        the one that measures how far a shield can be believed.
        """
        super().create_callbacks()
        if not self._has(PersistCallback):
            return
        shown: list[type[PersistCallback]] = [TensorBoardCallback, TrackCallback]
        if active_run() is not None and self._has(ViabilityCallback):
            shown.insert(0, CalibrationCallback)
        for kind in shown:
            if not self._has(kind):
                self.callbacks.append(kind())

    def _has(self, kind: type[PersistCallback]) -> bool:
        return any(isinstance(callback, kind) for callback in self.callbacks)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        :param model: is saved; what can be done with it is printed
        """
        super().save_trained_model(model)
        if self.verbose < 1:
            return
        print("What now:")
        print(f"  persist-sb3 report {self.save_path}     who stays alive: table, plots, a video")
        print(f"  persist-sb3 enjoy {self.save_path}     watch it")
        persist = getattr(model, "persist", None)
        if persist is not None and SHIELDED_BY in persist.parts:
            print(f"  persist-sb3 explain {self.save_path}     what its shield did, and why")


@contextmanager
def show_runs() -> Iterator[None]:
    """Let rl-zoo3's ``train`` add the callbacks that show a run, so that ``--track`` needs no set-up."""
    names = vars(zoo_train)
    before = names["ExperimentManager"]
    names["ExperimentManager"] = TrackedManager
    try:
        yield
    finally:
        names["ExperimentManager"] = before


@contextmanager
def show_progress() -> Iterator[None]:
    """Let rl-zoo3 and SB3 draw their progress bars where this package draws its own."""
    before = zoo_enjoy.tqdm
    for module in (zoo_enjoy, sb3_callbacks):
        vars(module)["tqdm"] = partial(before, options=progress.drawn())
    try:
        yield
    finally:
        for module in (zoo_enjoy, sb3_callbacks):
            vars(module)["tqdm"] = before


def run(main: Callable[[], None], arguments: Sequence[str]) -> None:
    """
    :param main: one of rl-zoo3's commands, which reads ``sys.argv``
    :param arguments: what it is to find there
    """
    sys.argv[1:] = arguments
    main()
