"""Entry of the process; see `loop`."""

import sys

from .loop import main

sys.exit(main())
