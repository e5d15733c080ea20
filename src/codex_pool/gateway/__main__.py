"""Entry of the process; see `process`."""

from .listeners.server import open_listeners
from .process import main

main(open_listeners)
