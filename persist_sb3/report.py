"""``python -m persist_sb3.report``: how well the agents of some runs keep themselves alive."""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich.console import Console
from stable_baselines3.common.base_class import BaseAlgorithm

from persist_sb3 import plots, tables, video
from persist_sb3.evaluation import Episode, declared_viability, evaluate
from persist_sb3.metrics import EpisodeRecord, survival_curve
from persist_sb3.packages import import_packages
from persist_sb3.progress import bar, waiting
from persist_sb3.runs import Run, RunError
from persist_sb3.summary import common_horizon, evaluation_figures, training_figures, with_intrinsic, without_nan
from persist_sb3.viability import ViabilitySet

EXAMPLES = """
examples:
  %(prog)s logs/ppo/GridLife-v0_1
  %(prog)s logs/ppo/GridLife-v0_1 logs/ppo/GridLife-v0_2 --labels homeostat "task only" --output comparison
  %(prog)s logs/ppo/GridLife-v0_1 --no-evaluate     only what was recorded in training, also while it goes on
  %(prog)s logs/ppo/GridLife-v0_1 --env-kwargs food:4 hazards:6     in a world that is not as it was in training

The agent is the final one; while there is none, the best so far or the last checkpoint. Its environment is rebuilt with
its layers, as rl-zoo3's enjoy does. What a run folder names is imported and unpickled: open only runs that you trust.
"""

#: Environments that run side by side, for one batch of the policy.
MOST_ENVS = 100


@dataclass
class Subject:
    """
    A run, and what is found out about it.

    :param label: its name in the report
    :param run: the run
    :param trained: its training episodes
    :param episodes: its evaluation episodes
    :param viability: the constraints that it is judged by
    :param notes: what a reader must know
    :param failures: what could not be found out
    """

    label: str
    run: Run
    trained: list[EpisodeRecord] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
    viability: ViabilitySet | None = None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[EpisodeRecord]:
        """The evaluation episodes, without their traces."""
        return [episode.record for episode in self.episodes]


def report(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line. Default: the process's own
    :return: the exit status: 1 if something could not be found out, and the report says what
    """
    parser = _parser()
    own = parser.parse_args(arguments)
    try:
        import_packages(own.gym_packages)
    except ImportError as error:
        parser.error(str(error))
    subjects = _subjects(parser, own)
    output = Path(own.output or (subjects[0].run.folder / "report" if len(subjects) == 1 else "report"))
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    files = []
    for subject in subjects:
        _read_training(subject)
        if own.evaluate:
            files += _evaluate(subject, subjects, own, output)
    summary = _summary(subjects, own)
    console.print(tables.comparison(summary["runs"]))
    for subject in subjects:
        for text in subject.notes:
            console.print(f"{subject.label}: {text}", style="dim", markup=False, highlight=False)
        for text in subject.failures:
            console.print(f"{subject.label}: {text}", style="red", markup=False, highlight=False)
    with waiting("plots"):
        files = [*(plots.save(figure, output / name) for name, figure in _figures(subjects).items()), *files]
    files.append(_write_json(summary, output / "summary.json"))
    console.print(*files, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return int(any(subject.failures for subject in subjects))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="How well the agents of some runs keep themselves alive: a table, plots, a video of an episode.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", help="run folder of rl-zoo3, ALGO/ENV_NUMBER")
    parser.add_argument("--labels", metavar="LABEL", nargs="+", help="a name for each run (default: its folder)")
    parser.add_argument("--episodes", metavar="N", type=int, default=100, help="to evaluate (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="test",
        help="layouts to evaluate on, where the environment has such (default: %(default)s, never seen in training)",
    )
    parser.add_argument(
        "--env-kwargs",
        metavar="KEY:VALUE",
        nargs="+",
        type=_keyword,
        default=[],
        help="keywords of the environment that are not as they were in training",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation (default: %(default)s)")
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the best ones")
    parser.add_argument("--no-evaluate", dest="evaluate", action="store_false", help="only read the training record")
    parser.add_argument(
        "--video", choices=("gif", "mp4", "none"), default="gif", help="of an evaluation episode (default: %(default)s)"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where the files go (default: RUN_DIR/report, or ./report for several runs)"
    )
    parser.add_argument(
        "--gym-packages", metavar="MODULE", nargs="+", default=[], help="modules that register your own environments"
    )
    return parser


def _keyword(text: str) -> tuple[str, Any]:
    """
    :param text: ``key:value``, the value in YAML
    :return: the two
    :raises argparse.ArgumentTypeError: if it is not
    """
    key, colon, value = text.partition(":")
    try:
        if key.isidentifier() and colon:
            return key, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not KEY:VALUE, such as food:4 or hidden:[energy]")


def _subjects(parser: argparse.ArgumentParser, own: argparse.Namespace) -> list[Subject]:
    names = [Path(folder).resolve().name for folder in own.runs]
    labels = own.labels or (names if len(set(names)) == len(names) else own.runs)
    if len(labels) != len(own.runs):
        parser.error(f"--labels names {len(labels)} ({', '.join(labels)}), but there are {len(own.runs)} runs")
    for label in labels:
        if labels.count(label) > 1:
            parser.error(f"two runs are called {label!r}: tell them apart with --labels")
    if own.episodes < 1:
        parser.error(f"--episodes {own.episodes}: at least one is needed; --no-evaluate leaves the evaluation out")
    try:
        return [Subject(label, Run(folder)) for label, folder in zip(labels, own.runs, strict=True)]
    except RunError as error:
        parser.error(str(error))


def _read_training(subject: Subject) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            subject.trained, how = subject.run.training_episodes()
        except RunError as error:
            subject.failures.append(str(error))
            return
    subject.notes += [str(warning.message) for warning in caught]
    if how is not None:
        subject.notes.append(how)
    if not subject.trained:
        subject.notes.append("no training episode has been recorded yet")


def _evaluate(subject: Subject, subjects: Sequence[Subject], own: argparse.Namespace, output: Path) -> list[Path]:
    """
    :param subject: the run to evaluate
    :param subjects: all runs, of which the first that says what is alive says it for those that do not
    :param own: the command line
    :param output: where a video goes
    :return: files written
    """
    run = subject.run
    if run.model_path is None:
        subject.notes.append("not evaluated: no agent has been saved yet")
        return []
    judges = [other.run.internal_state for other in subjects if other.run.env_id == run.env_id]
    judge = next((judge for judge in judges if judge), None)
    how: dict[str, Any] = {"split": own.split, "judge": judge, "env_kwargs": dict(own.env_kwargs)}
    try:
        venv = run.make_env(min(own.episodes, MOST_ENVS), **how)
        try:
            model = run.load_model(venv, own.seed)
            subject.viability = declared_viability(venv)
            renders = "rgb_array" in (venv.get_attr("metadata")[0] or {}).get("render_modes", ())
            with bar() as progress:
                task = progress.add_task(subject.label, total=own.episodes)
                subject.episodes = evaluate(
                    model,
                    venv,
                    own.episodes,
                    deterministic=not own.stochastic,
                    seed=own.seed,
                    progress=lambda done: progress.update(task, completed=done),
                )
        finally:
            venv.close()
    except RuntimeError as error:
        subject.failures.append(f"not evaluated: {error}")
        return []
    if own.video == "none":
        return []
    if not renders:
        subject.notes.append(f"no video: {run.env_id} has no render mode rgb_array")
        return []
    name = "episode" if len(subjects) == 1 else f"episode-{_slug(subject.label)}"
    try:
        with waiting(f"video of {subject.label}"):
            return [_record(run, model, how, own, output / f"{name}.{own.video}")]
    except RuntimeError as error:
        subject.notes.append(f"no video: {error}")
        return []


def _record(run: Run, model: BaseAlgorithm, how: Mapping[str, Any], own: argparse.Namespace, path: Path) -> Path:
    venv = run.make_env(1, innermost=video.FrameRecorder, render_mode="rgb_array", **how)
    try:
        film = video.film(model, venv, deterministic=not own.stochastic, seed=own.seed)
        return video.write(film, path, fps=venv.get_attr("metadata")[0].get("render_fps", 30))
    finally:
        venv.close()


def _summary(subjects: Sequence[Subject], own: argparse.Namespace) -> dict[str, Any]:
    curves = [survival_curve(subject.records) for subject in subjects if subject.episodes]
    horizon = common_horizon(curves) if curves else 0.0
    return {
        "seed": own.seed,
        "deterministic": not own.stochastic,
        "env_kwargs": dict(own.env_kwargs),
        "runs": [
            {
                "label": subject.label,
                "folder": str(subject.run.folder),
                "algo": subject.run.algo,
                "env": subject.run.env_id,
                "model": str(subject.run.model_path) if subject.episodes else None,
                "split": own.split if subject.episodes and subject.run.has_splits else None,
                "constraints": list(subject.viability.names) if subject.viability else None,
                "evaluation": evaluation_figures(subject.records, horizon) if subject.episodes else None,
                "training": training_figures(subject.trained) if subject.trained else None,
                "notes": subject.notes,
                "failures": subject.failures,
            }
            for subject in subjects
        ],
    }


def _figures(subjects: Sequence[Subject]) -> dict[str, Figure]:
    """
    :param subjects: runs
    :return: what can be drawn of them, by file name
    """
    trained = {subject.label: subject.trained for subject in subjects if subject.trained}
    evaluated = [subject for subject in subjects if subject.episodes]
    records = {subject.label: subject.records for subject in evaluated}
    figures = {}
    if evaluated:
        figures["survival.png"] = plots.survival(records)
    by_variables: dict[tuple[str, ...], list[Subject]] = {}
    for subject in evaluated:
        assert subject.viability is not None
        by_variables.setdefault(subject.viability.dims, []).append(subject)
    for group in by_variables.values():
        name = "internal.png" if len(by_variables) == 1 else f"internal-{_slug(group[0].label)}.png"
        episodes = {subject.label: subject.episodes for subject in group}
        figures[name] = plots.internal(episodes, {s.label: s.viability for s in group if s.viability is not None})
    if trained:
        figures["training.png"] = plots.training(trained)
    if trained or evaluated:
        figures["rewards.png"] = plots.rewards(trained, records)
    paid = {label: with_intrinsic(episodes) for label, episodes in trained.items()}
    if any(paid.values()):
        figures["intrinsic.png"] = plots.intrinsic({label: episodes for label, episodes in paid.items() if episodes})
    return figures


def _slug(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-")


def _write_json(summary: Mapping[str, Any], path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(without_nan(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


if __name__ == "__main__":
    sys.exit(report())
