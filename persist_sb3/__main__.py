"""``persist-sb3 COMMAND``, and the same as ``python -m persist_sb3 COMMAND``, for those who have no checkout."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from persist_sb3 import completion

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback with all its variables is thousands of lines where torch is involved.
    pretty_exceptions_enable=False,
    help="Agents that stay alive: Stable-Baselines3 with internal variables, constraints on them, and a shield.",
    epilog=(
        "Begin with [bold]persist-sb3 doctor CartPole-v1[/bold] and [bold]persist-sb3 init CartPole-v1[/bold], "
        "or with [bold]persist-sb3 train --algo ppo --env GridLife-v0[/bold]."
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

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """
        :param ctx: of the command
        :param incomplete: a word that begins as an option does
        :return: what it may become, which the one declared argument knows
        """
        (words,) = (parameter for parameter in self.params if parameter.name == "words")
        return words.shell_complete(ctx, incomplete)


def _loaded(command: str) -> ModuleType:
    """
    :param command: of this package
    :return: its module
    """
    from persist_sb3.progress import waiting

    # Late: `persist-sb3 --help` must not pay for torch.
    with waiting(f"loading {command}"):
        return importlib.import_module(f"persist_sb3.{command}")


def _hand_over(ctx: typer.Context) -> None:
    """
    :param ctx: of a command
    :raises SystemExit: with the status of the module of the same name
    """
    command = ctx.info_name
    module = _loaded(str(command))
    sys.argv = [f"persist-sb3 {command}", *ctx.args]
    sys.exit(getattr(module, str(command))())


def _words(ctx: typer.Context, incomplete: str) -> list[str | tuple[str, str]]:
    return list(completion.offered(str(ctx.info_name), ctx.args, incomplete))


def _words_or_runs(ctx: typer.Context, incomplete: str) -> list[str | tuple[str, str]]:
    return list(completion.offered(str(ctx.info_name), ctx.args, incomplete, completion.runs))


#: The values are the other parser's to read: declared here, they are completed, and so are its options.
Words = Annotated[list[str] | None, typer.Argument(autocompletion=_words)]
WordsOrRuns = Annotated[list[str] | None, typer.Argument(autocompletion=_words_or_runs)]


@app.command(cls=OtherParser)
def train(ctx: typer.Context, words: Words = None) -> None:
    """Train an agent, through rl-zoo3: [dim]--algo ppo --env GridLife-v0[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def enjoy(ctx: typer.Context, words: WordsOrRuns = None) -> None:
    """Watch a trained agent: [dim]logs/ppo/GridLife-v0_1[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def report(ctx: typer.Context, words: WordsOrRuns = None) -> None:
    """Table, plots and a video of runs: [dim]logs/ppo/GridLife-v0_1[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def explain(ctx: typer.Context, words: WordsOrRuns = None) -> None:
    """Why the shield of a run intervened: [dim]logs/ppo/GridLifeScent-v0_1[/dim]"""
    _hand_over(ctx)


@app.command(cls=OtherParser)
def demonstrate(ctx: typer.Context, words: Words = None) -> None:
    """Record episodes to learn from: [dim]--env GridLife-v0 --episodes 20[/dim]"""
    _hand_over(ctx)


EnvId = Annotated[str, typer.Argument(metavar="ENV_ID", help="a registered id", autocompletion=completion.environments)]
OptionalEnvId = Annotated[
    str | None,
    typer.Argument(
        metavar="[ENV_ID]", help="a registered id (default: that of --persist)", autocompletion=completion.environments
    ),
]
GymPackages = Annotated[
    list[str] | None,
    typer.Option("--gym-packages", metavar="MODULE", help="registers your own environments; may be repeated"),
]
Seed = Annotated[int, typer.Option(help="of the random actions")]
Episodes = Annotated[int, typer.Option(min=1, help="to play with random actions")]


def _examples(*arguments: str) -> str:
    return "\n\n".join(["examples:", *(f"[bold]persist-sb3 {line}[/bold]" for line in arguments)])


@app.command(
    epilog=_examples(
        "doctor CartPole-v1",
        "doctor --persist gridlife.yml --output survival.png",
        "doctor MyEnv-v0 --gym-packages my_envs --episodes 50",
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
    run = _loaded("doctor").doctor
    raise typer.Exit(run(env_id, persist, gym_packages or (), episodes=episodes, seed=seed, output=output))


@app.command(
    epilog=_examples(
        "init CartPole-v1",
        "init Pendulum-v1 --algo SAC --folder pendulum",
        "init MyEnv-v0 --gym-packages my_envs --force",
    )
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
    run = _loaded("init").init
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
