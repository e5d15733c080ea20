def slugify(title):
    """A title as part of a URL: "Hello, World!" is "hello-world"."""
    return title.lower()
