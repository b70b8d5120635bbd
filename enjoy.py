"""Watch a trained agent: ``python enjoy.py --help``."""

from persist_sb3.enjoy import enjoy

if __name__ == "__main__":
    enjoy()
