from codex_pool.cli import main

main()
