"""Checks of `codex-pool doctor`: probes collect facts, `findings` judges them. They change nothing."""
