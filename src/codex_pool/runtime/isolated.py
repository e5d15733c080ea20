"""Runs a module as a program, as `python -m` does, without importing anything from the working directory.

    python -I -S isolated.py MODULE ARGUMENTS...

A checkout that an agent works on may hold a `random.py`. `python -m` looks for modules in the working directory first,
and so does an empty or relative entry of PYTHONPATH, even for `encodings`, which Python loads before any program. With
-I Python reads neither, and with -S no `sitecustomize` yet; the absolute entries of PYTHONPATH are added here, and
`site` is run then. -I ignores every other variable of Python as well; those that say where modules and their compiled
files are, and how warnings are treated, are honoured here. An environment variable such as PYTHONSAFEPATH would reach
the agents' tools.
"""

import sys

if __name__ == "__main__":
    # Built in: nothing is looked for on the path before it is right.
    from posix import environ, getegid, geteuid, getgid, getuid

    def _variable(name: bytes) -> str:
        return environ.get(name, b"").decode(sys.getfilesystemencoding(), "surrogateescape")

    _named = [place for place in _variable(b"PYTHONPATH").split(":") if place.startswith("/")]
    sys.path[:0] = _named
    sys.dont_write_bytecode = bool(_variable(b"PYTHONDONTWRITEBYTECODE"))
    if _variable(b"PYTHONPYCACHEPREFIX").startswith("/"):
        sys.pycache_prefix = _variable(b"PYTHONPYCACHEPREFIX")
    sys.warnoptions += [option for option in _variable(b"PYTHONWARNINGS").split(",") if option]

    import site

    # As it decides itself, but -I switches the user's packages off. In a virtual environment they stay off.
    if not _variable(b"PYTHONNOUSERSITE"):
        site.ENABLE_USER_SITE = True if (geteuid(), getegid()) == (getuid(), getgid()) else None
    site.main()

    # The directory of this package, if only a relative entry of PYTHONPATH has said so.
    _root = __file__.rsplit("/", 3)[0]
    if _root not in sys.path:
        sys.path.append(_root)

    from runpy import run_module

    sys.argv[:] = sys.argv[1:]
    run_module(sys.argv[0], run_name="__main__", alter_sys=True)
