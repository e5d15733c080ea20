import pathlib
import subprocess
import sys
import tempfile
import unittest


def totals(text):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "file.csv")
        path.write_text(text)
        return subprocess.run(
            [sys.executable, "totals.py", str(path)], check=True, capture_output=True, text=True
        ).stdout


class Test(unittest.TestCase):
    def test_accounts_are_summed_and_sorted(self):
        self.assertEqual(totals("account,amount\nb,1\na,2.5\nb,0.25\n"), "a 2.50\nb 1.25\n")

    def test_cents_add_up_and_columns_may_be_in_any_order(self):
        self.assertEqual(totals("amount,account\n0.10,x\n0.20,x\n"), "x 0.30\n")
