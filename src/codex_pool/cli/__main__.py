from codex_pool.cli import main

main(prog_name="codex-pool")
