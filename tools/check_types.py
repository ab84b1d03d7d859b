"""Run mypy on the package as it is installed, whose folders lie apart in the repository, and on the benchmarks.

python tools/check_types.py [mypy's flags]
"""

import configparser
import os
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]


def main() -> int:
    """Print mypy's findings with the repository's own paths; return its exit code."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    places = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines() if line[0] != "=")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "dinov3_hf"
        package.mkdir()
        for path in (ROOT / "src" / "dinov3_hf").iterdir():
            os.symlink(path, package / path.name)
        for name, place in places.items():
            os.symlink(ROOT / place, package / name.removeprefix("dinov3_hf."))
        os.symlink(ROOT / "benchmarks", Path(folder) / "benchmarks")
        command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "setup.cfg", *sys.argv[1:]]
        command += ["--cache-dir", ROOT / ".mypy_cache", "dinov3_hf", "benchmarks"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        for name, place in places.items():
            line = line.replace(f"{name.replace('.', '/')}/", f"{place}/", 1)
        print(line.replace("dinov3_hf/", "src/dinov3_hf/", 1) if line.startswith("dinov3_hf/") else line)
    print(done.stderr, file=sys.stderr, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
