"""swebench_loader.py FILE: the predictions of a file as SWE-bench's own harness reads them, as JSON.

Its package imports what runs containers in the cloud; the loader needs none of that, so the package is not initialised.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path


def main() -> None:
    import swebench

    harness = types.ModuleType("swebench.harness")
    harness.__path__ = [str(Path(next(iter(swebench.__path__))) / "harness")]
    sys.modules["swebench.harness"] = harness
    utils = importlib.import_module("swebench.harness.utils")
    print(json.dumps(utils.get_predictions_from_file(sys.argv[1], "none", "none")))


if __name__ == "__main__":
    main()
