from codex_pool.ingress.loop import main

main()
