"""Jobs of cluster managers that run the shards of a dataset. Pure: each function returns a text."""
