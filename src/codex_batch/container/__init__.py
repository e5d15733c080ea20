"""Containers of samples: what a sample asks for, and the container that it works in.

spec      what a sample asks for: image, limits, user. Pure
session   commands and files in a running container
"""

from .spec import ContainerSpec

__all__ = ["ContainerSpec"]
