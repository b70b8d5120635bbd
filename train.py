"""Train an agent: ``python train.py --help``."""

if __name__ == "__main__":
    # Here and not above: each worker of --vec-env subproc imports this file anew.
    from persist_sb3.train import train

    train()
