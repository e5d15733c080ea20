import unittest

from slug import slugify


class Test(unittest.TestCase):
    def test_titles(self):
        for title, slug in (("Hello, World!", "hello-world"), ("  a  --  b ", "a-b"), ("C3PO", "c3po"), ("!", "")):
            self.assertEqual(slugify(title), slug)
