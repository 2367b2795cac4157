"""`python -m samehost` is the command `samehost`."""

import sys

from samehost.cli import main

sys.exit(main())
