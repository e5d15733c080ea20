"""Entry of the process; see `process`."""

from .process import main

main()
