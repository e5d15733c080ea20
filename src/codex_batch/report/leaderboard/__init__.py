"""Leaderboard: any number of runs and variants side by side.

results       what a run, or one variant of it, came to                   pure
ranking       standings by scorer, failures counted as 0                  pure
comparing     paired comparisons with a baseline, Holm-corrected          pure
differing     the settings that differ, for people                        pure
table         all of it together, and as plain values                     pure
view, chart   what the page and the chart show, as values                 pure
operands      RUN and RUN@VARIANT of a command line, opened
picture       the chart as SVG, and as PNG with Pillow
write         page, chart, CSV and JSON as files
"""
