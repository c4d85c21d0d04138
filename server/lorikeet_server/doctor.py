"""What this machine has, what a shard would use of it, and the command that mends what is missing."""

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from lorikeet_server import __version__
from lorikeet_server.config import CACHE_DIR, physical_cores
from lorikeet_server.device.memory import available_bytes

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "grpcio", "gguf")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. `remedy` is empty where nothing needs to be done."""

    name: str
    value: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Looks at everything; what raises becomes a finding, so that one broken part does not hide the
    others."""
    probes: list[tuple[str, Callable[[], Finding]]] = [
        ("lorikeet_server", lambda: Finding("lorikeet_server", __version__)),
        ("python", lambda: Finding("python", platform.python_version())),
        ("cpu", lambda: Finding("cpu", f"{platform.machine()}, {physical_cores()} physical cores")),
        ("memory", lambda: Finding("memory", f"{available_bytes() / 2**30:.1f} GiB available")),
        *((name, _package(name)) for name in PACKAGES),
        ("torch threads", _threads),
        ("kernels", _kernels),
        ("cuda", _cuda),
        ("nvcc", _nvcc),
        ("flashinfer", _flashinfer),
    ]
    findings = []
    for name, probe in probes:
        try:
            findings.append(probe())
        except Exception as error:
            findings.append(Finding(name, f"{type(error).__name__}: {error}", "see the message"))
    return findings


def to_json(findings: list[Finding]) -> str:
    return json.dumps({"findings": [asdict(finding) for finding in findings]})


def to_text(findings: list[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"{'':<{width}}  to mend: {finding.remedy}")
    return "\n".join(lines)


def _package(name: str) -> Callable[[], Finding]:
    def probe() -> Finding:
        try:
            return Finding(name, version(name))
        except PackageNotFoundError:
            return Finding(name, "not installed", f"{sys.executable} -m pip install {name}")

    return probe


def _threads() -> Finding:
    import torch

    return Finding("torch threads", str(torch.get_num_threads()))


def _kernels() -> Finding:
    """Those that `--device auto` comes to."""
    import torch

    from lorikeet_server.kernels import select
    from lorikeet_server.kernels.compiled import BuildError

    if _has_gpu():
        return Finding("kernels", select(device=torch.device("cuda", 0), dtype=torch.bfloat16).name)
    try:
        return Finding("kernels", select("cpu").name)
    except Exception as error:
        if isinstance(error, BuildError):
            remedy = "install a C++ compiler (e.g. apt-get install g++)"
        elif isinstance(error, OSError):
            remedy = f"set {CACHE_DIR} to a directory that can be written, and whose code may be run"
        else:
            remedy = "see the message"
        return Finding("kernels", f"reference only, several times slower ({error})", remedy)


def _cuda() -> Finding:
    import torch

    from lorikeet_server.device.choose import why_no_cuda

    if missing := why_no_cuda():
        return Finding("cuda", f"not used: {missing}")
    major, minor = torch.cuda.get_device_capability()
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return Finding(
        "cuda",
        f"{torch.cuda.get_device_name()} (sm_{major}{minor}), driver for CUDA {driver // 1000}."
        f"{driver % 1000 // 10}, torch built for {torch.version.cuda}",
    )


def _nvcc() -> Finding:
    from lorikeet_server.kernels.cuda import toolkit

    try:
        return Finding("nvcc", toolkit.find().nvcc)
    except RuntimeError as error:
        return Finding("nvcc", f"none: {error}", toolkit.INSTALL if _has_gpu() else "")


def _flashinfer() -> Finding:
    from lorikeet_server.kernels.cuda import toolkit

    try:
        return Finding("flashinfer", version("flashinfer-python"))
    except PackageNotFoundError:
        return Finding("flashinfer", "not installed", toolkit.INSTALL if _has_gpu() else "")


def _has_gpu() -> bool:
    from lorikeet_server.device.choose import why_no_cuda

    return not why_no_cuda()
