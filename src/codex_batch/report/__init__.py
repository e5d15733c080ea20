"""Reports of runs: one page that opens from the disk, without a server.

source     a run as its store reads it
figures    figures of runs as a whole, with paired for two of them        pure
document   what is kept of each sample, with transcript_view              pure
packing    JSON that nothing can take for markup, and segments            pure
plots, run_view, comparison_view    what the page shows, as values        pure
page       the templates filled with it, by markup                        pure
write      the page and its segments as files

templates/ holds the markup, as Jinja templates; static/ the stylesheet and scripts.
"""
