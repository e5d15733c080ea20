"""The gateway: lets clients of the app-server protocol in, over Unix sockets and WebSocket."""
