"""The process that refreshes the ChatGPT tokens of one auth.json, for all app-servers of a pool."""
