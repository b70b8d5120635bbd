"""``persist-sb3 doctor``: what would go wrong with an environment and a configuration, before anything is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console

from persist_sb3 import plots
from persist_sb3.config import PersistConfig
from persist_sb3.diagnosis import agent, display, environment
from persist_sb3.diagnosis.finding import Finding
from persist_sb3.diagnosis.probe import NumberRecorder, Play, play_randomly
from persist_sb3.infos import MissingInfoError
from persist_sb3.internal import SourceError
from persist_sb3.metrics import survival_curve
from persist_sb3.packages import import_packages, told
from persist_sb3.progress import bar
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import InternalState

Progress = Callable[[int], object]


@dataclass
class Diagnosis:
    """
    What was found out.

    :param findings: in the order in which they were looked for
    :param plays: the episodes under random actions
    :param viability: the constraints; None if nothing says what they are
    """

    findings: list[Finding]
    plays: list[Play]
    viability: ViabilitySet | None = None

    @property
    def problems(self) -> list[Finding]:
        """Those with which training goes wrong."""
        return [finding for finding in self.findings if finding.level == "problem"]


def examine(
    env_id: str,
    persist: PersistConfig | None = None,
    *,
    episodes: int = 20,
    seed: int = 0,
    most: int = 2000,
    progress: Progress | None = None,
) -> Diagnosis:
    """
    Play random actions, and look at what the environment shows.

    :param env_id: a registered id
    :param persist: the configuration, of an agent in this environment. Default: only what the environment itself says
    :param episodes: how many to play
    :param seed: the i-th episode is reset with ``seed + i``
    :param most: steps of an episode after which watching stops
    :param progress: called with the share of the work that is done, in steps of :func:`amount_of_work`
    :return: the findings
    :raises gymnasium.error.Error: if there is no such environment
    :raises ValueError: if ``episodes`` or ``most`` is not positive
    """
    for name, value in (("episodes", episodes), ("most", most)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    kwargs = {} if persist is None else persist.env_kwargs

    def make() -> gym.Env[Any, Any]:
        return NumberRecorder(gym.make(env_id, disable_env_checker=True, **kwargs))

    bare = make()
    findings = environment.check_interface(bare)
    if any(finding.level == "problem" for finding in findings):
        return Diagnosis(findings, [])
    findings += environment.check_spaces(
        bare,
        None if persist is None else persist.algo,
        append=persist is not None and persist.internal_state.append,
    )
    limit = _time_limit(bare)
    env = bare if persist is None else _with_internal_state(make(), persist, findings)
    try:
        plays = play_randomly(env, episodes, seed, most, progress)
    except (MissingInfoError, SourceError) as error:
        findings.append(Finding("problem", "sources", str(error), "name a source that is in the list"))
        env, plays = bare, play_randomly(bare, episodes, seed, most)
        return Diagnosis([*findings, *environment.check_finite(plays)], plays)
    viability: ViabilitySet | None = env.get_wrapper_attr("viability") if env.has_wrapper_attr("viability") else None
    findings += environment.check_finite(plays, () if viability is None else viability.dims)
    findings += environment.check_ends(plays, limit, viability, most)
    if viability is None:
        if persist is None:
            remedy = f"choose them from the list: persist-sb3 init {env_id} writes a configuration to begin with"
            findings.append(Finding("note", "internal variables", "nothing says which they are", remedy))
        return Diagnosis(findings, plays)
    findings += agent.check_beginning(plays, viability)
    findings += agent.check_constraints(plays, viability)
    findings += agent.check_setpoint(plays, viability)
    if persist is not None and not persist.internal_state.append:
        findings += agent.check_visible(plays, viability, persist.internal_state.hidden)
    findings += agent.check_lives(plays, viability, limit)
    findings += agent.check_influence(
        env, viability, seed, most, None if progress is None else lambda done: progress(episodes + done)
    )
    if persist is not None:
        findings += agent.check_agent(persist.make_env)
    return Diagnosis(findings, plays, viability)


def amount_of_work(episodes: int) -> int:
    """
    :param episodes: as :func:`examine` takes them
    :return: up to what its progress counts
    """
    return episodes + agent.REPLAYS


def _with_internal_state(env: gym.Env[Any, Any], persist: PersistConfig, findings: list[Finding]) -> gym.Env[Any, Any]:
    """
    :param env: the environment
    :param persist: says where its internal variables are
    :param findings: is told if that does not fit
    :return: the environment with them; without, if that does not fit
    """
    (_, kwargs), *_ = persist.layers()
    try:
        return InternalState(env, **{**kwargs, "append": False, "check_finite": False})
    except (RuntimeError, TypeError, ValueError) as error:
        remedy = "correct internal_state.source or viability.constraints; the list shows what there is"
        findings.append(Finding("problem", "sources", str(error), remedy))
        return env


def _time_limit(env: gym.Env[Any, Any]) -> int | None:
    """
    :param env: any
    :return: steps after which it says that it cuts episodes off
    """
    limit = env.spec.max_episode_steps if env.spec is not None else None
    own = getattr(env.unwrapped, "horizon", None)
    return own if limit is None and isinstance(own, int) else limit


def doctor(
    env_id: str | None,
    persist_file: Path | None = None,
    gym_packages: Sequence[str] = (),
    *,
    episodes: int = 20,
    seed: int = 0,
    output: Path | None = None,
    console: Console | None = None,
) -> int:
    """
    :param env_id: a registered id. Default: that of the configuration
    :param persist_file: a configuration
    :param gym_packages: modules that register environments
    :param episodes: how many to play
    :param seed: of the first of them
    :param output: where the survival curve goes, as PNG
    :param console: is printed to
    :return: the exit status: 0 if nothing is wrong, 1 if there are problems
    """
    console = console or Console()
    try:
        import_packages(gym_packages)
        persist = None if persist_file is None else PersistConfig.from_yaml(persist_file)
        env_id = _one_of(env_id, persist)
        with bar() as progress:
            task = progress.add_task("random actions", total=amount_of_work(episodes))
            diagnosis = examine(
                env_id,
                persist,
                episodes=episodes,
                seed=seed,
                progress=lambda done: progress.update(task, completed=done),
            )
    except (ImportError, OSError, RuntimeError, ValueError, gym.error.Error) as error:
        console.print(told(error), style="red", markup=False, highlight=False)
        return 1
    _print(diagnosis, console)
    if output is not None and diagnosis.plays:
        records = [one.record(diagnosis.viability) for one in diagnosis.plays]
        console.print(plots.save(plots.survival({"random actions": records}), output), soft_wrap=True)
    problems = len(diagnosis.problems)
    verdict = "no problems" if problems == 0 else f"{problems} problem{'s' if problems > 1 else ''}"
    console.print(f"{env_id}: {verdict}", style="bold red" if problems else "bold green", highlight=False)
    return int(problems > 0)


def _one_of(env_id: str | None, persist: PersistConfig | None) -> str:
    if persist is None:
        if env_id is None:
            raise ValueError("name an environment, or give --persist FILE")
        return env_id
    if env_id is not None and env_id not in (persist.env.name, persist.env_id):
        raise ValueError(f"{env_id} is not what --persist is about, {persist.env.name}: leave one of them out")
    return persist.env_id


def _print(diagnosis: Diagnosis, console: Console) -> None:
    console.print(display.findings_table(diagnosis.findings))
    if not diagnosis.plays:
        return
    console.print(display.sources_table(diagnosis.plays))
    records = [one.record(diagnosis.viability) for one in diagnosis.plays]
    what = "termination" if diagnosis.viability is None else "the first violation"
    console.print(display.survival_lines(survival_curve(records), len(records), what))
