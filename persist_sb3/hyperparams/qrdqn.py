"""The hyperparameters of ``qrdqn.yml``, as a module for rl-zoo3's ``-conf``."""

from persist_sb3.hyperparams import load

hyperparams = load("qrdqn")
