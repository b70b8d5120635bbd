"""The hyperparameters of ``ppo_lstm.yml``, as a module for rl-zoo3's ``-conf``."""

from persist_sb3.hyperparams import load

hyperparams = load("ppo_lstm")
