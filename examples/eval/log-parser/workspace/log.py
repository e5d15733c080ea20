def parse(line):
    """(level, message) of a line such as `ERROR: disk: no space left`."""
    parts = line.rstrip("\n").split(": ")
    return parts[0], parts[1]
