"""Entry of the process; see `loop`."""

import sys

from codex_pool.account.loop import main

sys.exit(main())
