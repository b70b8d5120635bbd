"""``python -m persist_sb3.hub``: runs to and from the Hugging Face Hub, each with a card that says who stays alive."""

import argparse
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_sb3 import EnvironmentName, ModelName
from rich.console import Console
from rl_zoo3.utils import ALGOS, get_latest_run_id

from persist_sb3 import zoo
from persist_sb3.callbacks.metrics import FILE_NAME
from persist_sb3.evaluation import declared_viability, evaluate
from persist_sb3.metrics import survival_curve
from persist_sb3.packages import import_packages
from persist_sb3.runs import Run, RunError
from persist_sb3.summary import evaluation_figures, without_nan

EXAMPLES = """
examples:
  %(prog)s push logs/ppo/GridLife-v0_1 me/ppo-GridLife-v0
  %(prog)s pull me/ppo-GridLife-v0

push evaluates the agent first, on layouts that it has not seen where the environment has such. It needs a token that
may write (`hf auth login`). pull executes nothing of what it downloads; enjoy, report and explain do: open only runs
that you trust.
"""

#: Most environments that an evaluation runs side by side.
MOST_ENVS = 100
#: What rl-zoo3's load_from_hub expects in a repository, by where it is in a run's folder of parameters.
PARAMETERS = {"args.yml": "args.yml", "config.yml": "config.yml", "vecnormalize.pkl": "vec_normalize.pkl"}
#: And the archive of what was recorded in training.
RECORDS = "train_eval_metrics.zip"

CARD = """---
{{ card_data }}
---

# {{ algorithm }} on {{ env_id }}

An agent trained by [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) and persist-sb3, which keeps its
internal variables inside limits: {{ constraints }}.

| {{ episodes }} episodes{{ where }}, {{ actions }} | |
|---|---|
{{ figures }}

{{ shield }}

## Use

```bash
pip install persist-sb3
python -m persist_sb3.hub pull {{ repo_id }}
persist-sb3 enjoy logs/{{ algo }}/{{ name }}_1
persist-sb3 report logs/{{ algo }}/{{ name }}_1
```

The zip holds the agent and the models of its layers; layers and hyperparameters are in `config.yml`. It holds pickles,
too, so open it only if you trust who wrote it. Without persist-sb3 it loads with `custom_objects={"persist": None}`,
and acts without its layers.

## Training

```bash
{{ command }}
```
"""
SHIELDED = (
    "**These figures are those of agent and shield together.** The shield is a learned estimate and no guarantee. The "
    "agent has never had to avoid what its shield avoids: do not deploy it without."
)
UNSHIELDED = "No shield filters its actions. The figures are measured, and no guarantee."


def push(
    folder: str | Path,
    repo_id: str,
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    private: bool = False,
    token: str | None = None,
) -> str:
    """
    Evaluate an agent, and upload it with a card that says its survival, violations, intervention rate and how it was
    trained. The files are laid out as rl-zoo3's own ``push_to_hub`` does, so its ``load_from_hub`` finds them, too.

    :param folder: of the run, ``LOGS/ALGO/ENV_NUMBER``
    :param repo_id: such as ``me/ppo-GridLife-v0``; made if it is not there
    :param episodes: to evaluate
    :param seed: of the evaluation
    :param deterministic: take the best action instead of a sample
    :param private: make a new repository one that others do not see
    :param token: of the Hub. Default: that of ``hf auth login``
    :return: the address of the repository
    :raises RuntimeError: if the run has no agent yet, or its environment cannot be rebuilt
    :raises ValueError: if ``episodes`` is not positive
    """
    run = Run(folder)
    venv = run.make_env(min(max(episodes, 1), MOST_ENVS))
    try:
        model = run.load_model(venv, seed)
        played = [e.record for e in evaluate(model, venv, episodes, deterministic=deterministic, seed=seed)]
        constraints = declared_viability(venv).names
    finally:
        venv.close()
    figures = evaluation_figures(played, survival_curve(played).last)
    api = HfApi(token=token)
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as staged:
        _stage(run, Path(staged))
        card = _card(run, address.repo_id, figures, constraints, deterministic)
        card.save(Path(staged, "README.md"))
        Path(staged, "results.yml").write_text(yaml.safe_dump(without_nan(figures)), encoding="utf-8")
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=staged,
            commit_message=f"{run.algo} on {run.env_id}, with persist-sb3",
        )
    return str(address)


def pull(repo_id: str, folder: str | Path = "logs", *, revision: str | None = None, token: str | None = None) -> Path:
    """
    Download an agent to where ``enjoy``, ``report`` and ``explain`` look for it. Nothing in it is executed or
    unpickled here; they do that.

    :param repo_id: such as ``me/ppo-GridLife-v0``, written by :func:`push` or rl-zoo3
    :param folder: where the runs are
    :param revision: of the repository. Default: the newest
    :param token: of the Hub. Default: that of ``hf auth login``
    :return: the folder of the new run, ``FOLDER/ALGO/ENV_NUMBER``
    :raises RunError: if no agent is in it
    """
    zoo.register_ppo_mask()
    with tempfile.TemporaryDirectory() as downloaded:
        source = Path(downloaded)
        HfApi(token=token).snapshot_download(repo_id, revision=revision, local_dir=source)
        # Not asked of args.yml, which rl-zoo3 writes so that reading it can execute anything.
        named = [(path, *path.stem.partition("-")[::2]) for path in sorted(source.glob("*.zip"))]
        agents = [(path, algo, name) for path, algo, name in named if algo in ALGOS and name]
        if len(agents) != 1 or not all((source / file).is_file() for file in ("args.yml", "config.yml")):
            raise RunError(
                f"{repo_id} does not hold one agent of rl-zoo3, which is ALGO-ENV.zip beside args.yml and config.yml "
                f"(there are: {', '.join(sorted(path.name for path in source.iterdir())) or 'no files'})"
            )
        ((agent, algo, name),) = agents
        number = get_latest_run_id(str(Path(folder, algo)), EnvironmentName(name)) + 1
        run = Path(folder, algo, f"{name}_{number}")
        (run / name).mkdir(parents=True)
        shutil.copy(agent, run / f"{name}.zip")
        for ours, theirs in PARAMETERS.items():
            if (source / theirs).is_file():
                shutil.copy(source / theirs, run / name / ours)
        if (source / RECORDS).is_file():
            with zipfile.ZipFile(source / RECORDS) as archive:
                archive.extractall(run)
    return run


def _stage(run: Run, folder: Path) -> None:
    """
    :param run: to be uploaded
    :param folder: filled as rl-zoo3 fills a repository
    :raises RunError: if the run has no agent yet
    """
    agent = run.model_path
    if agent is None:
        raise RunError(f"{run.folder}: no agent has been saved yet")
    shutil.copy(agent, folder / ModelName(run.algo, EnvironmentName(run.env_id)).filename)
    for ours, theirs in PARAMETERS.items():
        if (run.parameters / ours).is_file():
            shutil.copy(run.parameters / ours, folder / theirs)
    (folder / "env_kwargs.yml").write_text(yaml.safe_dump(run.arguments.get("env_kwargs") or {}), encoding="utf-8")
    with zipfile.ZipFile(folder / RECORDS, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in [run.folder / "evaluations.npz", run.folder / FILE_NAME, *run.folder.glob("*.monitor.csv")]:
            if record.is_file():
                archive.write(record, record.name)


def _card(
    run: Run, repo_id: str, figures: Mapping[str, Any], constraints: Sequence[str], deterministic: bool
) -> ModelCard:
    alive, paid, rate = figures["survival"], figures["task_return"], figures["intervention_rate"]
    algorithm = ALGOS[run.algo].__name__
    metrics = {
        "mean_reward": f"{paid['mean']:.2f}",
        "survival": round(alive["share"], 4),
        "violations_per_1k_steps": round(figures["violations_per_1k_steps"], 4),
    }
    if rate is not None:
        metrics["intervention_rate"] = round(rate, 4)
    data = ModelCardData(
        library_name="stable-baselines3",
        tags=[run.env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "persist-sb3"],
        model_name=algorithm,
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type=run.env_id,
                dataset_name=run.env_id,
                metric_type=kind,
                metric_value=value,
            )
            for kind, value in metrics.items()
        ],
    )
    return ModelCard.from_template(
        data,
        template_str=CARD,
        algo=run.algo,
        algorithm=algorithm,
        env_id=run.env_id,
        name=EnvironmentName(run.env_id),
        repo_id=repo_id,
        constraints=", ".join(f"`{name}`" for name in constraints),
        episodes=figures["episodes"],
        where=" on layouts that it has not seen" if run.has_splits else "",
        actions="the best action each" if deterministic else "actions sampled",
        figures="\n".join(f"| {name} | {value} |" for name, value in _rows(figures)),
        shield=UNSHIELDED if rate is None else SHIELDED,
        command=_command(run),
    )


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    :param figures: of an evaluation
    :return: rows of the card's table
    """
    alive, time, paid = figures["survival"], figures["time_to_violation"], figures["task_return"]
    rows = [
        ("episodes without a violation", f"{alive['share']:.0%} [{alive['low']:.0%}, {alive['high']:.0%}]"),
        ("steps without a violation, mean", f"{time['restricted_mean']:.0f} of {time['horizon']:.0f}"),
        ("episodes with a violation, per 1000 steps", f"{figures['violations_per_1k_steps']:.2f}"),
    ]
    rows += [(f"violated first: `{name}`", str(count)) for name, count in (figures["deaths"] or {}).items()]
    if figures["intervention_rate"] is not None:
        rows.append(("actions that the shield changed", f"{figures['intervention_rate']:.1%}"))
    interval = f" [{paid['low']:.2f}, {paid['high']:.2f}]" if figures["episodes"] > 1 else ""
    return [*rows, ("task return", f"{paid['mean']:.2f}{interval}")]


def _command(run: Run) -> str:
    """
    :param run: of rl-zoo3, which keeps the command that began it
    :return: that command without the folders of who gave it
    """
    file = run.parameters / "command.txt"
    if not file.is_file():
        return f"persist-sb3 train --algo {run.algo} --env {run.env_id}"
    text = re.sub(r"(?<!\S)/\S*/", "", file.read_text(encoding="utf-8").strip())
    return re.sub(r"^python\S* (?=persist-sb3 )", "", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line. Default: the process's own
    :return: the exit status
    """
    parser = argparse.ArgumentParser(
        prog="python -m persist_sb3.hub",
        description="Share trained agents on the Hugging Face Hub.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("push", help="evaluate a run, and upload it with its card")
    up.add_argument("run", metavar="RUN_DIR", help="run folder of rl-zoo3, ALGO/ENV_NUMBER")
    up.add_argument("repo", metavar="REPO", help="such as me/ppo-GridLife-v0")
    up.add_argument("--episodes", metavar="N", type=int, default=100, help="to evaluate (default: %(default)s)")
    up.add_argument("--seed", type=int, default=0, help="of the evaluation (default: %(default)s)")
    up.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the best ones")
    up.add_argument("--private", action="store_true", help="make a new repository a private one")
    up.add_argument(
        "--gym-packages", metavar="MODULE", nargs="+", default=[], help="modules that register your own environments"
    )
    down = commands.add_parser("pull", help="download a run to where the other commands find it")
    down.add_argument("repo", metavar="REPO", help="such as me/ppo-GridLife-v0")
    down.add_argument("-f", "--folder", metavar="DIR", default="logs", help="where the runs are (default: logs)")
    down.add_argument("--revision", help="of the repository (default: the newest)")
    own = parser.parse_args(arguments)
    console = Console()
    try:
        if own.command == "push":
            import_packages(own.gym_packages)
            with console.status("evaluating and uploading"):
                told = push(
                    own.run,
                    own.repo,
                    episodes=own.episodes,
                    seed=own.seed,
                    deterministic=not own.stochastic,
                    private=own.private,
                )
        else:
            told = str(pull(own.repo, own.folder, revision=own.revision))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
