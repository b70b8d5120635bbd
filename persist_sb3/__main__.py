"""``persist-sb3 COMMAND``, and the same as ``python -m persist_sb3 COMMAND``, for those who have no checkout."""

import importlib
import sys

COMMANDS = ("train", "enjoy", "report", "demonstrate", "explain")


def main() -> None:
    """Run the command that the first argument names, with the others as its own."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        sys.exit(f"usage: persist-sb3 {{{','.join(COMMANDS)}}} ...\npersist-sb3 COMMAND --help tells more")
    sys.argv = [f"persist-sb3 {command}", *sys.argv[2:]]
    sys.exit(getattr(importlib.import_module(f"persist_sb3.{command}"), command)())


if __name__ == "__main__":
    main()
