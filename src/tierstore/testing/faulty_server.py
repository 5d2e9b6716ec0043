"""``python -m tierstore.testing.faulty_server``: ``tierstore serve`` over stores that fail as they are told.

The settings come from the environment alone. Everything else is the real server: its processes, signals and stores;
only the calls between tiering and the stores pass `tierstore.testing.process_faults`, which says how to script them.
"""

import os
import sys

from tierstore.config_loading import load_config
from tierstore.process.server import serve
from tierstore.testing.process_faults import open_faulty_stores


def main() -> None:
    """Serve, and end the process."""
    sys.exit(serve(load_config(None, os.environ, {}).config, open_faulty_stores))


if __name__ == "__main__":
    main()
