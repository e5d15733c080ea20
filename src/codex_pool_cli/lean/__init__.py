"""`codex-pool doctor --lean`: what switches of app-servers save on this machine."""
