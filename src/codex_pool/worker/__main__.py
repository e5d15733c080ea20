from codex_pool.worker.loop import main

main()
