from codex_pool.supervisor.loop import main

main()
