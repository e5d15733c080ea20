"""gates: conditions that the scores of a run must meet, and what CI systems read about it.

options    gates as they are asked for, from the words of the command line      pure
columns    scores of a run or a baseline by variant, scorer and sample          pure
verdicts   scores -> passed or failed, with the reason                          pure
prepare    gates checked before anything starts; baselines read
judge      the gates of a run decided; JUnit and GitHub files written
junit      JUnit XML of a run                                                   pure
github     step summary and annotations of GitHub Actions                       pure
"""
