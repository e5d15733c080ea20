"""A soak of the daemon: mixed clients for thousands of turns, across all that an operator does and all that dies."""
