import pathlib
import subprocess
import tempfile
import unittest


class Test(unittest.TestCase):
    def test_names_with_spaces_are_copied(self):
        with tempfile.TemporaryDirectory() as directory:
            source, target = pathlib.Path(directory, "my files"), pathlib.Path(directory, "the backup")
            source.mkdir()
            for name in ("a.txt", "b c.txt", "d.md"):
                (source / name).write_text(name)
            subprocess.run(["sh", "backup.sh", str(source), str(target)], check=True)
            self.assertEqual(sorted(path.name for path in target.iterdir()), ["a.txt", "b c.txt"])
