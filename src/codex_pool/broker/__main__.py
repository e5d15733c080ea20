from codex_pool.broker.loop import main

main()
