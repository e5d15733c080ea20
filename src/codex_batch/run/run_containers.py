"""The containers of a run: which sample gets which image, what is refused, and what is left over."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import tomli

from codex_app_server._runtime.files import read_text_file
from codex_app_server.config import find_codex

from ..configuration.settings import Settings
from ..container import ContainerSpec, engine
from ..container.images import missing
from ..container.options import ContainerOptions
from ..container.running import Containers, problem_of_host
from ..dataset import DatasetError, Sample
from ..store import RunDirectory, layout
from ..workspace import reopen

_LOOK_LIMIT_S = 60.0


class ContainerPlan:
    """Gives each sample its container. Raises DatasetError if this machine has none to give."""

    def __init__(self, options: ContainerOptions | None) -> None:
        self._options = options
        self._images: Mapping[str, str] = {}
        self._digests: dict[str, str | ValueError] = {}
        if options is not None:
            problem = problem_of_host()
            if problem is not None:
                raise DatasetError([f"--container {options.engine}: {problem}"])
            if options.image_map is not None:
                self._images = _read_map(options.image_map)

    def of(self, sample: Sample) -> Sample:
        """Return a sample with the container that it is to have, and a workspace. Raises ValueError."""
        options = self._options
        if options is None:
            if sample.container is not None:
                raise ValueError("is for a run with --container podman or --container docker, which is missing")
            return sample
        if sample.cwd is not None:
            raise ValueError("does not go with cwd; expected a workspace, which is copied into the container")
        spec = self._filled(sample.container or ContainerSpec(), sample.id, options)
        return msgspec.structs.replace(sample, container=spec, workspace=sample.workspace or {})

    def _filled(self, spec: ContainerSpec, sample_id: str, options: ContainerOptions) -> ContainerSpec:
        asked: dict[str, Any] = {
            name: getattr(options, name)
            for name in ("cpus", "memory_mb", "processes", "user", "network")
            if not getattr(spec, name)
        }
        spec = replace(spec, **asked)
        if spec.build is not None:
            return spec
        named = next((image for pattern, image in self._images.items() if fnmatchcase(sample_id, pattern)), None)
        image = spec.image or named or options.image
        if image is None:
            raise ValueError("has no image; expected an image or a build of the sample, --image or --image-map")
        return replace(spec, image=image, digest=self._digest(options.engine, image))

    def _digest(self, program: str, image: str) -> str:
        if image not in self._digests:
            try:
                self._digests[image] = _look(program, image)
            except ValueError as error:
                self._digests[image] = error
        found = self._digests[image]
        if isinstance(found, ValueError):
            raise found
        return found


def _look(program: str, image: str) -> str:
    """Return the digest of an image. Raises ValueError."""
    try:
        done = subprocess.run(
            engine.image(program, image), stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOOK_LIMIT_S
        )
    except OSError as error:
        raise ValueError(f"{program} cannot be started: {error.strerror}; install it") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{program} has not answered within {_LOOK_LIMIT_S:.0f} s; see to it that it works") from None
    if done.returncode != 0:
        raise ValueError(missing(program, image, done.stderr.decode("utf-8", "replace").strip()[-300:]))
    return engine.image_of(done.stdout.decode("utf-8", "replace")).digest


def _read_map(path: Path) -> dict[str, str]:
    """Read images by patterns of ids, the first that matches counts. Raises DatasetError."""
    try:
        text = read_text_file(path)
        found: Any = json.loads(text) if path.suffix == ".json" else tomli.loads(text)
    except OSError as error:
        raise DatasetError([f"--image-map {path}: cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise DatasetError([f"--image-map {path}: {error}; expected TOML, or JSON in a .json file"]) from None
    if not isinstance(found, dict) or not all(isinstance(image, str) and image for image in found.values()):
        raise DatasetError([f"--image-map {path}: expected names of images by ids of samples, or by patterns of ids"])
    return found


def containers_of(settings: Settings, directory: RunDirectory) -> Containers | None:
    """Return the containers of a run; None if its samples have none."""
    options = settings.container
    if options is None:
        return None
    work = directory.file(layout.WORK)
    return Containers(options.engine, directory.path, work, Path(find_codex(settings.codex_bin)).resolve())


async def sweep_containers(containers: Containers, directory: RunDirectory, *, at_end: bool) -> None:
    """Remove the containers of the run that no sample needs any more. Raises ContainerError.

    Needed are those of samples that are still to be scored, and before the start those of attempts that may have
    completed.
    """
    kept = set()
    for row in directory.store.samples(state="scoring" if at_end else None):
        if row.state == "done" or row.spec.get("container") is None:
            continue
        workspace = reopen(Sample.from_json(row.spec), directory.file(layout.WORK) / row.directory_name)
        if workspace is not None and workspace.place is not None:
            kept.add(workspace.place.name)
    await containers.sweep(frozenset(kept))
