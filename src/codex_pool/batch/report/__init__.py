"""Reports of runs: one page that opens from the disk, without a server.

source     a run as its store reads it
figures    what is said of runs as a whole, with paired for two of them    pure
document   what is kept of each sample, with transcript                   pure
packing    JSON that nothing can take for markup, and segments             pure
plots, sections, compare_sections, page    markup: SVG, parts, all of it   pure
write      the page and its segments as files
"""
