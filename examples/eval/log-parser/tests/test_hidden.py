import unittest

from log import parse


class Test(unittest.TestCase):
    def test_a_message_may_hold_colons(self):
        self.assertEqual(parse("ERROR: disk: no space left: 0 bytes\n"), ("ERROR", "disk: no space left: 0 bytes"))
        self.assertEqual(parse("INFO: ok"), ("INFO", "ok"))
