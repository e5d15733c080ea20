"""Trying again when the server reports that it is overloaded."""

from ._async.retry import aretry_on_overload
from ._sync.retry import retry_on_overload, retry_while

__all__ = ["aretry_on_overload", "retry_on_overload", "retry_while"]
