"""Run the demonstration or the tests with nothing but Python and pip.

    python3 run.py demo
    python3 run.py tests [options for pytest]

The first run makes `.venv` beside this file; nothing is installed anywhere else.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# Any Python 3 has to get as far as this sentence, so no newer syntax in this file.
if sys.version_info < (3, 11):
    sys.exit("run.py: this is Python " + sys.version.split()[0] + ", and 3.11 or newer is needed")

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"

# Editable, so that the demonstration follows the source; the tests build wheels for themselves.
PROJECTS = [ROOT, ROOT / "drivers" / "sql"]
REQUIREMENTS = {
    "demo": [f"--editable={project}" for project in PROJECTS],
    "tests": ["nox[uv]>=2025.5.1"],
}
INSTALL = ["install", "--quiet", "--disable-pip-version-check"]
COMMANDS = {
    "demo": ["examples/quickstart.py"],
    "tests": ["-m", "nox", "--session=ci", "--"],
}


def main() -> None:
    name, *arguments = sys.argv[1:] or [""]
    if name not in COMMANDS:
        sys.exit("usage: python3 run.py demo | tests [options for pytest]")
    os.chdir(ROOT)
    make_environment()
    install_requirements(name)
    os.execv(PYTHON, [str(PYTHON), *COMMANDS[name], *arguments])


def make_environment() -> None:
    """Make `.venv`, unless this Python has made it, here and to the end."""
    stamp = VENV / "made-by-run.py"
    finished = f"{sys.version}\n{VENV}\n".encode()
    if stamp.exists():
        if stamp.read_bytes() == finished and PYTHON.exists():
            return
        shutil.rmtree(VENV)
    elif VENV.exists():
        sys.exit(f"run.py: {VENV} was made by something else: rename it or remove it")
    if not find_spec("ensurepip") and not find_spec("pip"):
        sys.exit(
            "run.py: this Python has neither ensurepip nor pip: "
            "install one of them (on Debian: apt-get install python3-venv)"
        )
    VENV.mkdir()
    stamp.touch()
    make = [sys.executable, "-m", "venv", str(VENV)]
    if find_spec("ensurepip"):
        run("make .venv", *make)
    else:  # Debian keeps ensurepip in a package of its own
        run("make .venv without pip", *make, "--without-pip")
        pip = [sys.executable, "-m", "pip", f"--python={PYTHON}"]
        run("install pip into it", *pip, *INSTALL, "pip")
    stamp.write_bytes(finished)


def install_requirements(name: str) -> None:
    """Install what the command needs, unless just that is installed."""
    stamp = VENV / f"installed-for-{name}"
    projects = [(project / "pyproject.toml").read_bytes() for project in PROJECTS]
    finished = b"\n".join([*map(str.encode, REQUIREMENTS[name]), *projects])
    if not stamp.exists() or stamp.read_bytes() != finished:
        run("install what is needed", str(PYTHON), "-m", "pip", *INSTALL, *REQUIREMENTS[name])
        stamp.write_bytes(finished)


def run(purpose: str, *command: str) -> None:
    print(f"run.py: {purpose}", flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"run.py: could not {purpose}, for the reason above")


if __name__ == "__main__":
    main()
