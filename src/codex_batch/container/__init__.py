"""Containers of samples: what a sample asks for, and the container that it works in.

spec       what a sample asks for: image, limits, user                    pure
engine     command lines of podman and docker                             pure
calls      calls of the engine's program
images     images by name, or built once of a directory
way        from a port of this machine to the exec-server inside
session    commands and files in a running container: the protocol
running    the containers of a run: started, reused, removed
leftovers  those that a run which died has left
"""

from .errors import ContainerError
from .session import ContainerSession, Ran
from .spec import ContainerSpec

__all__ = ["ContainerError", "ContainerSession", "ContainerSpec", "Ran"]
