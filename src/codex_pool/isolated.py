"""Runs a module as a program, as `python -m` does, without importing anything from the working directory.

    python -S isolated.py MODULE ARGUMENTS...

A checkout that an agent works on may hold a `random.py`. `python -m` looks for modules in the working directory first,
and so does an empty or relative entry of PYTHONPATH. Here neither is searched, not even for `sitecustomize`: with -S
the path is put right before `site` is loaded. An environment variable would do as well, but would reach the agents'
tools.
"""

import sys

if __name__ == "__main__":
    # Built in: nothing is looked for on the path before it is right.
    from posix import environ

    # Without the directory of this file, which comes first unless PYTHONSAFEPATH says otherwise.
    _path = sys.path[0 if getattr(sys.flags, "safe_path", False) else 1 :]
    _named = environ.get(b"PYTHONPATH", b"").split(b":") if environ.get(b"PYTHONPATH") else []
    # The entries of PYTHONPATH come first, one each, already made absolute by Python 3.11.
    _kept = [place for place, named in zip(_path, _named, strict=False) if named.startswith(b"/")]
    sys.path[:] = [place for place in [*_kept, *_path[len(_named) :]] if place.startswith("/")]

    import site

    site.main()

    # Where this package is, if only a relative entry of PYTHONPATH has said so.
    _root = __file__.rpartition("/")[0].rpartition("/")[0]
    if _root not in sys.path:
        sys.path.append(_root)

    from runpy import run_module

    sys.argv[:] = sys.argv[1:]
    run_module(sys.argv[0], run_name="__main__", alter_sys=True)
