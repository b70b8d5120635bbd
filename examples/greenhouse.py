"""
Lettuce in a greenhouse (van Henten 1994, as lettuce-greenhouse-gym has it), whose air must stay in range: carbon
dioxide in [500, 1600] ppm, temperature in [10, 20] degrees Celsius, relative humidity at most 80 %. Three days of
February in steps of half an hour; actions are the levels of CO2 supply, ventilation and heating. ``pip install
lettuce-greenhouse-gym``; then ``python examples/greenhouse.py``, or ``python train.py --gym-packages
examples.greenhouse --algo sac --env Greenhouse-v0 --shield``.
"""

import gymnasium as gym
from lettuce_greenhouse_gym import ActionMode, EnvConfig, LettuceGreenhouseEnv, RandomWeatherSampler


def make() -> LettuceGreenhouseEnv:
    """
    :return: a greenhouse on measured weather, three days from a random day of February 2014 on
    """
    config = EnvConfig(episode_days=3.0, action_mode=ActionMode.ABSOLUTE, terminal_at_harvest=False)
    return LettuceGreenhouseEnv(config, weather_sampler=RandomWeatherSampler("bleiswijk_2014", range(31, 57)))


gym.register("Greenhouse-v0", make)

if __name__ == "__main__":
    import sys

    from persist_sb3.train import train

    train(["--algo", "sac", "--env", "Greenhouse-v0", "--shield", *sys.argv[1:]])
