"""Contents of `codex-pool debug-bundle`, and how secrets and texts of people are kept out of it."""
