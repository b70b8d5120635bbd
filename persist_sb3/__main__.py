"""``persist-sb3 COMMAND``, and the same as ``python -m persist_sb3 COMMAND``, for those who have no checkout."""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback with all its variables is thousands of lines where torch is involved.
    pretty_exceptions_enable=False,
    help="Agents that stay alive: Stable-Baselines3 with internal variables, constraints on them, and a shield.",
    epilog=(
        "Begin with [bold]persist-sb3 doctor CartPole-v1[/bold] and [bold]persist-sb3 init CartPole-v1[/bold], "
        "or with [bold]persist-sb3 train --algo ppo --env GridLife-v0 --progress[/bold]."
    ),
)


class OtherParser(TyperCommand):
    """A command whose module reads its arguments itself, ``--help`` and all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """
        :param ctx: of the command
        :param args: as they were typed
        :return: the same
        """
        ctx.args = list(args)
        return ctx.args


def _hand_over(ctx: typer.Context) -> None:
    """
    :param ctx: of a command
    :raises SystemExit: with the status of the module of the same name
    """
    command = ctx.info_name
    # Late: `persist-sb3 --help` must not pay for torch.
    module = importlib.import_module(f"persist_sb3.{command}")
    sys.argv = [f"persist-sb3 {command}", *ctx.args]
    sys.exit(getattr(module, str(command))())


def _runs(incomplete: str) -> list[str]:
    # As rl-zoo3 lays them out: LOGS/ALGO/ENV_NUMBER/ENV/args.yml.
    found = {str(file.parents[1]) for file in Path().glob("*/*/*_*/*/args.yml")}
    return sorted(run for run in found if run.startswith(incomplete.removeprefix("./")))


#: Its values are the other parser's to read: declared here, it is completed.
RunFolders = Annotated[list[str] | None, typer.Argument(metavar="RUN_DIR", autocompletion=_runs)]


@app.command(cls=OtherParser)
def train(ctx: typer.Context) -> None:
    """Train an agent, through rl-zoo3: [dim]--algo ppo --env GridLife-v0 --progress[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def enjoy(ctx: typer.Context, runs: RunFolders = None) -> None:
    """Watch a trained agent: [dim]logs/ppo/GridLife-v0_1[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def report(ctx: typer.Context, runs: RunFolders = None) -> None:
    """Table, plots and a video of runs: [dim]logs/ppo/GridLife-v0_1[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def explain(ctx: typer.Context, runs: RunFolders = None) -> None:
    """Why the shield of a run intervened: [dim]logs/ppo/GridLifeScent-v0_1[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def demonstrate(ctx: typer.Context) -> None:
    """Record episodes to learn from: [dim]--env GridLife-v0 --episodes 20[/dim]"""
    _hand_over(ctx)


def _environments(incomplete: str) -> list[str]:
    import gymnasium as gym

    return sorted(env_id for env_id in gym.registry if env_id.startswith(incomplete))


EnvId = Annotated[str, typer.Argument(metavar="ENV_ID", help="a registered id", autocompletion=_environments)]
OptionalEnvId = Annotated[
    str | None,
    typer.Argument(
        metavar="[ENV_ID]", help="a registered id (default: that of --persist)", autocompletion=_environments
    ),
]
GymPackages = Annotated[
    list[str] | None,
    typer.Option("--gym-packages", metavar="MODULE", help="registers your own environments; may be repeated"),
]
Seed = Annotated[int, typer.Option(help="of the random actions")]
Episodes = Annotated[int, typer.Option(min=1, help="to play with random actions")]


@app.command(
    epilog=(
        "Examples: [bold]persist-sb3 doctor CartPole-v1[/bold], "
        "[bold]persist-sb3 doctor --persist gridlife.yml --output survival.png[/bold]"
    )
)
def doctor(
    env_id: OptionalEnvId = None,
    persist: Annotated[Path | None, typer.Option(metavar="FILE", help="a persistent agent's configuration")] = None,
    gym_packages: GymPackages = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(metavar="PNG", help="where the survival curve goes")] = None,
) -> None:
    """
    What would go wrong with an environment and a configuration. The exit status is 0 if nothing is wrong, 1 if there
    are problems; each names its remedy.
    """
    from persist_sb3.doctor import doctor as run

    raise typer.Exit(run(env_id, persist, gym_packages or (), episodes=episodes, seed=seed, output=output))


@app.command(
    epilog="Examples: [bold]persist-sb3 init CartPole-v1[/bold], [bold]persist-sb3 init Pendulum-v1 --algo SAC[/bold]"
)
def init(
    env_id: EnvId,
    folder: Annotated[Path, typer.Option("--folder", "-f", metavar="DIR", help="where the files go")] = Path("."),
    algo: Annotated[str | None, typer.Option(metavar="ALGO", help="PPO, SAC, DQN ... (default: PPO)")] = None,
    gym_packages: GymPackages = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="write over files that exist")] = False,
) -> None:
    """
    Write a configuration and a training script to begin with, which run as they are. The limits in them are read off
    random actions, and marked: put those in that really kill.
    """
    from persist_sb3.init import init as run

    raise typer.Exit(run(env_id, folder, algo or "PPO", gym_packages or (), episodes=episodes, seed=seed, force=force))


def _show_version(wanted: bool) -> None:
    if wanted:
        import persist_sb3

        typer.echo(persist_sb3.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command that the first argument names."""
    app(prog_name="persist-sb3")


if __name__ == "__main__":
    main()
