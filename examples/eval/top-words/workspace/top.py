def top(words, n):
    """The n words that occur most often."""
    return sorted(set(words), key=words.count, reverse=True)[:n]
