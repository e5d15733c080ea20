"""The marks whose tests have a make target of their own, which brings or builds what they need."""

OWN_TARGETS = ("generate", "parquet", "browser", "security", "chaos", "clients", "versions", "fleet", "containers")
