"""The listeners of the gateway: WebSocket over Unix sockets and TCP, for clients of the app-server protocol."""
