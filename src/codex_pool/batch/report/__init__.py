"""Reports of runs: one page that opens from the disk, without a server.

rows (what is known of a run) -> figures, document (what is said of it) -> plots, sections, page (HTML) -> write (files)
"""
