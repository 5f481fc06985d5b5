"""The command line as `ostrack-fast` and `python -m ostrack_fast` start it: Ctrl-C is quiet during its imports too."""

from __future__ import annotations

import sys


def main() -> None:
    """As `cli.main`."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
