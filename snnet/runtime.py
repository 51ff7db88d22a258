"""What a run sets on this machine: device, number format, seeds, determinism."""

from __future__ import annotations

import os
import platform
import random
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnet.config.options import OPTIONS, Config, RuntimeConfig, flatten
from snnet.errors import UserError
from snnet.models.embedding import ReIDModel, build_model
from snnet.system.cpus import available_cpus
from snnet.system.processes import Processes, take_own_gpu
from snnet.system.terminal import printable, speaker
from snnet_kernels import backend_info
from snnet_kernels.backends import instruction_set, servers_on
from snnet_kernels.version import __version__

# Options in which several processes may differ; "the device" stands for --device.
_OF_A_MACHINE = ("data_dir", "output_dir", "weights", "image_cache", "workers", "device")


@dataclass(frozen=True)
class Placement:
    """The device, number format and memory format of the network."""

    device: torch.device
    amp: bool
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def pin_memory(self) -> bool:
        """Whether batches should be in pinned memory, so that copies to a GPU are asynchronous."""
        return self.device.type == "cuda"

    def summary(self) -> str:
        """Device, number format of the network's products and memory format, as text."""
        numbers, layout = "bfloat16" if self.amp else "float32", "last" if self.channels_last else "first"
        if self.device.type == "cuda" and not self.amp and torch.backends.cudnn.allow_tf32:
            numbers += " (convolutions in tf32)"  # torch's default
        return f"{self.device}, {numbers}, channels-{layout}"

    def place(self, model: nn.Module) -> None:
        """Move a network to the device, in place. On a CPU only images are channels-last; weights stay contiguous."""
        weights = torch.contiguous_format if self.device.type == "cpu" else self.memory_format
        model.to(self.device, memory_format=weights)  # type: ignore[call-overload]

    def images(self, images: Tensor) -> Tensor:
        """Move a batch of images [B, 3, H, W] to the device."""
        return images.to(self.device, non_blocking=True, memory_format=self.memory_format)

    def autocast(self) -> AbstractContextManager[None]:
        """The autocast context of the network: bfloat16 products with ``amp``, else float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)


@dataclass(frozen=True, eq=False)
class PlacedModel:
    """A network in its place, and the configuration it works under."""

    model: ReIDModel
    config: Config
    placement: Placement


def network_of(config: Config, weights: str | None) -> ReIDModel:
    """The network that ``config`` describes, from these ``weights`` (a file, "imagenet", or None: random)."""
    model, data = config.model, config.data
    built = build_model(
        model.arch, embedding=model.embedding, weights=weights, height=data.height, width=data.width
    )
    _warn_of_other_settings(built.settings_of_weights, config, weights)
    return built


def _warn_of_other_settings(theirs: dict[str, str], config: Config, weights: str | None) -> None:
    """Warn where a file of this package says that its network was used in another way."""
    ours = flatten(config)
    other = [name for name, value in theirs.items() if value != str(ours[name])]
    if other:
        was, now = (
            " ".join(f"{OPTIONS[name].flag} {values[name]}" for name in other) for values in (theirs, ours)
        )
        warnings.warn(
            f"weights of {weights} are of a network with {was}, and are used with {now}: features and ranks differ",
            stacklevel=3,
        )


def choose_device(name: str) -> torch.device:
    """The device ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises :class:`~snnet.errors.UserError` if it does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "cuda" and device.index is None:
        take_own_gpu()
    return device


def show_warnings_as_lines() -> None:
    """Print a warning as one line, without the source line that caused it."""
    warnings.formatwarning = lambda message, *_, **__: f"{speaker()}warning: {printable(message)}\n"


def kernels_line(device: torch.device) -> str:
    """Which kernels run on ``device``, as one line; ``python -m snnet_kernels`` shows the table."""
    served = {name for names in servers_on(device).values() for name in names}
    titles = {"cpu": "CPU", "cuda": "CUDA", "triton": "Triton"}
    found = " and ".join(title for name, title in titles.items() if name in served)
    notes = [instruction_set()] if "cpu" in served else []
    notes += [f"SNNET_BACKEND={forced}"] if (forced := backend_info().forced) else []
    kernels = f"{found} kernels" if found else "plain PyTorch"
    return f"snnet_kernels: {kernels}" + (f" ({', '.join(notes)})" if notes else "")


def environment(placement: Placement, processes: int = 1) -> dict[str, Any]:
    """The machine, versions and number of processes that a run's results depend on, to be recorded."""
    device = placement.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(device),
        "device_name": name,
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        **({"processes": processes} if processes > 1 else {}),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {
            "snnet": __version__,
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        },
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "backends": {name: ", ".join(names) for name, names in sorted(servers_on(device).items())},
    }


def _processor() -> str:
    """The name of the processor if the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def prepare(config: RuntimeConfig) -> Placement:
    """Seed every global generator, and choose the device.

    What stays set in this process: the generators' states, cuDNN's choice of the fastest algorithm (off where results
    are to be deterministic), and with ``deterministic`` torch's deterministic mode. That mode is never switched off.
    """
    device = choose_device(config.device)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it before cuBLAS starts
        torch.use_deterministic_algorithms(True)
    # The input size never changes.
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    # Without an index it is the current device already, and torch refuses it here.
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return Placement(device, config.amp, channels_last(config, device))


def check_same_options(
    config: Config, device: torch.device, processes: Processes, others: Mapping[str, Any] | None = None
) -> None:
    """Raise :class:`~snnet.errors.UserError` where ``processes`` have other options, devices or versions than rank 0.

    Each may have its own files and way to read them. ``others`` are values by name that must be the same, too.
    """
    options = {
        OPTIONS[name].flag: value for name, value in flatten(config).items() if name not in _OF_A_MACHINE
    }
    versions = {"the version of snnet": __version__, "the version of torch": str(torch.__version__)}
    # Of another version other options are compared.
    processes.check_alike({**versions, **options, "the device": device.type, **(others or {})})


def channels_last(config: RuntimeConfig, device: torch.device) -> bool:
    """The memory format asked for, else the faster one: channels-last on a CPU and with bfloat16."""
    if config.channels_last is not None:
        return config.channels_last
    return device.type == "cpu" or config.amp
