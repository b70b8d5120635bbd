"""``persist-sb3 init``: a configuration and a training script for an environment, to begin with."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from rich.console import Console

from persist_sb3.diagnosis import environment
from persist_sb3.diagnosis.probe import NumberRecorder, play_randomly
from persist_sb3.diagnosis.proposal import Proposal, propose
from persist_sb3.packages import import_packages, told
from persist_sb3.progress import bar

#: Where SB3 and sb3-contrib keep the algorithms that a script can name.
CLASSES = {
    **{name: ("stable_baselines3", name.upper()) for name in ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")},
    **{name: ("sb3_contrib", name.upper()) for name in ("tqc", "trpo", "qrdqn")},
    "crossq": ("sb3_contrib", "CrossQ"),
    "ppo_mask": ("sb3_contrib", "MaskablePPO"),
    "ppo_lstm": ("sb3_contrib", "RecurrentPPO"),
}
#: Steps after which an episode is cut off where the environment never does.
HORIZON = 1000
#: Steps of an episode that are watched.
WATCHED = 2000

CONFIGURATION = """\
# {command}
# {origin}
# Check it:   persist-sb3 doctor --persist {config}{packages}
# Train with: python {script}
#          or: persist-sb3 train --persist {config}{packages}

env: {{{env}}}
internal_state:
  dims: {dims}
{source}{ranges}  # Setpoints: where a variable is best. EDIT
  mu: {mu}
  # Weights: with these, a variable at its nearest limit costs 0.5 a step, times lambda_homeo. EDIT
  w: {w}
{append}viability:
  constraints:
{constraints}
  # shield: {{}}  # to keep unsafe actions from being executed, see the page on the shield
rewards: {{lambda_homeo: 0.5, alive_bonus: "auto", death_penalty: 10.0}}
train: {{algo: "{algo}", n_timesteps: 100000}}
"""

SCRIPT = '''\
"""Train {algo} to stay alive on {env_id}: ``python {script} --timesteps 100000``."""

import argparse
from pathlib import Path

from {module} import {algo}
from stable_baselines3.common.env_util import make_vec_env

from persist_sb3 import PersistConfig
{importer}
HERE = Path(__file__).parent
RUN = HERE / "{slug}_run"

if __name__ == "__main__":
{packages}    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()

    persist = PersistConfig.from_yaml(HERE / "{config}")
    venv = make_vec_env(persist.env_id, n_envs=4, seed=own.seed, env_kwargs=persist.env_kwargs, monitor_dir=str(RUN))
    model = {algo}("{policy}", persist.wrap_vec(venv), seed=own.seed, device="cpu", verbose=1)
    model.learn(own.timesteps, callback=persist.callbacks())
    model.save(RUN / "{slug}")
'''


def init(
    env_id: str,
    folder: Path,
    algo: str = "PPO",
    gym_packages: Sequence[str] = (),
    *,
    episodes: int = 20,
    seed: int = 0,
    force: bool = False,
    console: Console | None = None,
) -> int:
    """
    :param env_id: a registered id
    :param folder: where the files go
    :param algo: rl-zoo3's name of the algorithm, in capitals or not
    :param gym_packages: modules that register environments
    :param episodes: of random actions, from which limits are read off
    :param seed: of the first of them
    :param force: write over files that exist
    :param console: is printed to
    :return: the exit status: 0 if the files were written
    """
    console = console or Console()
    try:
        import_packages(gym_packages)
        files = _files(env_id, algo.lower(), gym_packages, episodes, seed, console)
    except (ImportError, ValueError, gym.error.Error) as error:
        console.print(told(error), style="red", markup=False, highlight=False)
        return 1
    there = [folder / name for name in files if (folder / name).exists()]
    if there and not force:
        console.print(f"{', '.join(map(str, there))}: exists already; --force writes over it", style="red")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        console.print(folder / name, markup=False, highlight=False, soft_wrap=True)
    config, script = (folder / name for name in files)
    console.print(
        f"Edit what is marked EDIT in {config.name}, then\n  persist-sb3 doctor --persist {config}"
        + "".join(f" --gym-packages {module}" for module in gym_packages)
        + f"\n  python {script}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _files(
    env_id: str, algo: str, gym_packages: Sequence[str], episodes: int, seed: int, console: Console
) -> dict[str, str]:
    """
    :return: the configuration and the script, by the name of the file
    :raises ValueError: if the algorithm and the environment do not go together
    """
    if algo not in CLASSES:
        raise ValueError(f"algo={algo.upper()} is not one of {', '.join(name.upper() for name in CLASSES)}")
    with NumberRecorder(gym.make(env_id, disable_env_checker=True)) as env:
        flattened = isinstance(env.observation_space, spaces.Tuple)
        wrong = [each for each in environment.check_spaces(env, algo, append=flattened) if each.level == "problem"]
        if wrong:
            raise ValueError(". ".join(f"{each.text}: {each.remedy}" for each in wrong))
        if algo == "ppo_mask" and not env.has_wrapper_attr("action_masks"):
            raise ValueError(f"PPO_MASK needs an environment with action_masks(), and {env_id} has none: choose PPO")
        with bar() as progress:
            task = progress.add_task("random actions", total=episodes)
            plays = play_randomly(
                env, episodes, seed, WATCHED, progress=lambda done: progress.update(task, completed=done)
            )
        proposal = propose(env, plays)
        endless = any(not one.ended for one in plays)
        policy = _policy(env.observation_space, algo, proposal.append or flattened)
    slug = re.sub(r"\W+", "_", re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])).strip("_").lower()
    names = {"config": f"{slug}.yml", "script": f"train_{slug}.py", "slug": slug, "env_id": env_id}
    module, cls = CLASSES[algo]
    config = _configuration(env_id, algo, gym_packages, proposal, endless, proposal.append or flattened, names)
    script = SCRIPT.format(
        **names,
        algo=cls,
        module=module,
        policy=policy,
        importer="from persist_sb3.packages import import_packages\n" if gym_packages else "",
        packages=f"    import_packages({json.dumps(list(gym_packages))})  # registers the environment\n"
        if gym_packages
        else "",
    )
    if proposal.late:
        console.print(
            f"not proposed, since the environment does not show them at reset: {', '.join(proposal.late)}. Return them "
            "in the info of reset, too, to use them",
            style="yellow",
            markup=False,
            highlight=False,
        )
    return {names["config"]: config, names["script"]: script}


def _configuration(
    env_id: str,
    algo: str,
    gym_packages: Sequence[str],
    proposal: Proposal,
    endless: bool,
    append: bool,
    names: dict[str, str],
) -> str:
    variables = proposal.variables
    packages = "".join(f" --gym-packages {module}" for module in gym_packages)
    origin = (
        "The environment declares its variables and constraints itself; these are copies of them, to be changed."
        if proposal.declared
        else "A beginning: what is marked EDIT was read off random actions, and knows nothing of what really kills."
    )
    sources = {variable.name: variable.source for variable in variables if variable.source is not None}
    source = f"  source: {json.dumps(sources)}\n" if sources else ""
    lows, highs = [variable.low for variable in variables], [variable.high for variable in variables]
    ranges = "" if None in lows else f"  low: {json.dumps(lows)}  # the least and greatest values there can be. EDIT\n"
    ranges += "" if None in highs else f"  high: {json.dumps(highs)}\n"
    return CONFIGURATION.format(
        **{key: names[key] for key in ("config", "script")},
        command=f"persist-sb3 init {env_id} --algo {algo.upper()}{packages}",
        origin=origin,
        packages=packages,
        env=f'name: "{env_id}"' + (f", horizon: {HORIZON}" if endless else ""),
        dims=json.dumps([variable.name for variable in variables]),
        mu=json.dumps([variable.mu for variable in variables]),
        w=json.dumps([variable.w for variable in variables]),
        source=source,
        ranges=ranges,
        append="  append: true  # show them to the agent\n" if append else "",
        constraints="\n".join(f'    - "{text}"  # EDIT: {seen}' for text, seen in proposal.constraints),
        algo=algo.upper(),
    )


def _policy(observation_space: spaces.Space[Any], algo: str, append: bool) -> str:
    """
    :param observation_space: of the environment
    :param algo: rl-zoo3's name
    :param append: the internal variables are appended to the observation
    :return: SB3's name of the policy
    """
    if isinstance(observation_space, spaces.Dict):
        kind = "MultiInput"
    else:
        kind = "Cnn" if environment.is_image(observation_space) and not append else "Mlp"
    return f"{kind}{'Lstm' if algo == 'ppo_lstm' else ''}Policy"
