"""Log-ins under way: a place to send the user to, and the wait for the end."""

from ._async.login import AsyncChatgptLoginHandle, AsyncDeviceCodeLoginHandle
from ._sync.login import ChatgptLoginHandle, DeviceCodeLoginHandle

__all__ = [
    "AsyncChatgptLoginHandle",
    "AsyncDeviceCodeLoginHandle",
    "ChatgptLoginHandle",
    "DeviceCodeLoginHandle",
]
