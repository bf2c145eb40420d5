"""``python -m aioconnect``: the command."""

import sys

from aioconnect.cli import main

sys.exit(main())
