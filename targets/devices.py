"""Devices that bundles are planned for: what makers publish of their memory and arithmetic.

Bandwidth is that of the memory that weights are read from, in GB/s (10^9 bytes). Arithmetic is dense, a multiply-add counted as
two, in 10^12 a second, of the unit that runs the model: a GPU's matrix units in float16, the GPU of an Apple chip or a phone in
float16, all cores of a CPU with their widest vectors in float32, or AMX in bfloat16. Sources: NVIDIA's whitepapers and product
pages, Intel ARK, AMD's product pages, Apple's technical specifications, Qualcomm's and Raspberry Pi's product briefs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from .contract import OssicleError

Kind = Literal["gpu", "board", "cpu", "apple", "phone", "here"]

# Of the memory built in, what a model may take: the rest is the system's, other programs', and a driver's own.
USABLE: Mapping[Kind, float] = {"gpu": 0.92, "board": 0.85, "cpu": 0.85, "apple": 0.70, "phone": 0.50, "here": 0.85}

# Of what is published, what engines reach: of bandwidth in decoding, of arithmetic in prefill and the encoder.
REACHED: Mapping[Kind, tuple[float, float]] = {
    "gpu": (0.70, 0.35),
    "board": (0.70, 0.35),
    "cpu": (0.80, 0.40),
    "apple": (0.75, 0.45),
    "phone": (0.60, 0.30),
    "here": (1.0, 1.0),
}

_TARGETS: Mapping[Kind, tuple[str, ...]] = {
    "gpu": ("tensorrt", "onnx"),
    "cpu": ("openvino", "onnx", "gguf"),
    "apple": ("coreml", "onnx", "gguf"),
    "phone": ("coreml",),
}


@dataclass(frozen=True)
class Device:
    """One device; memory in bytes, bandwidth in bytes a second, arithmetic in operations a second."""

    name: str  # the word the user types
    title: str
    kind: Kind
    memory: float
    bandwidth: float
    operations: float
    targets: tuple[str, ...]

    @property
    def usable(self) -> float:
        """Bytes that a model may take of the memory."""
        return self.memory * USABLE[self.kind]

    @property
    def achieved_bandwidth(self) -> float:
        """Bytes a second that decoding reaches."""
        return self.bandwidth * REACHED[self.kind][0]

    @property
    def achieved_operations(self) -> float:
        """Operations a second that prefill and the audio encoder reach."""
        return self.operations * REACHED[self.kind][1]


def device(name: str) -> Device:
    """The device of this name.

    Raises:
        OssicleError: there is none; with those of nearest name.
    """
    if name not in DEVICES:
        near = get_close_matches(name.lower(), DEVICES, n=4, cutoff=0.4) or list(DEVICES)[:4]
        raise OssicleError(
            f"device '{name}' is unknown (nearest: {', '.join(near)}; 'here' is this machine). "
            "See them all with: ossicle plan CHECKPOINT --all-devices"
        )
    return DEVICES[name]


def _gpu(name: str, title: str, memory: float, bandwidth: float, tera: float) -> Device:
    return Device(name, title, "gpu", memory * 2**30, bandwidth * 1e9, tera * 1e12, _TARGETS["gpu"])


def _jetson(name: str, title: str, memory: float, bandwidth: float, tera: float) -> Device:
    """A GPU that shares the board's memory."""
    return replace(_gpu(name, title, memory, bandwidth, tera), kind="board")


def _cpu(name: str, title: str, memory: float, bandwidth: float, tera: float, *targets: str) -> Device:
    return Device(name, title, "cpu", memory * 2**30, bandwidth * 1e9, tera * 1e12, targets or _TARGETS["cpu"])


def _apple(name: str, title: str, memories: tuple[int, ...], bandwidth: float, tera: float) -> tuple[Device, ...]:
    """One chip in each of its memory sizes; arithmetic is that of its GPU in float16."""
    return tuple(
        Device(
            f"{name}-{size}",
            f"{title}, {size} GB",
            "apple",
            size * 2**30,
            bandwidth * 1e9,
            tera * 1e12,
            _TARGETS["apple"],
        )
        for size in memories
    )


def _phone(name: str, title: str, memory: float, bandwidth: float, tera: float, *targets: str) -> Device:
    return Device(name, title, "phone", memory * 2**30, bandwidth * 1e9, tera * 1e12, targets or _TARGETS["phone"])


_ARM = ("onnx", "gguf")

DEVICES: Mapping[str, Device] = {
    one.name: one
    for one in (
        _gpu("rtx-3060", "GeForce RTX 3060, 12 GB", 12, 360, 51),
        _gpu("rtx-3070", "GeForce RTX 3070, 8 GB", 8, 448, 81),
        _gpu("rtx-3080", "GeForce RTX 3080, 10 GB", 10, 760, 119),
        _gpu("rtx-3090", "GeForce RTX 3090, 24 GB", 24, 936, 142),
        _gpu("rtx-4060", "GeForce RTX 4060, 8 GB", 8, 272, 60),
        _gpu("rtx-4060-ti-16", "GeForce RTX 4060 Ti, 16 GB", 16, 288, 88),
        _gpu("rtx-4070", "GeForce RTX 4070, 12 GB", 12, 504, 117),
        _gpu("rtx-4080", "GeForce RTX 4080, 16 GB", 16, 717, 195),
        _gpu("rtx-4090", "GeForce RTX 4090, 24 GB", 24, 1008, 330),
        _gpu("rtx-5060", "GeForce RTX 5060, 8 GB", 8, 448, 77),
        _gpu("rtx-5060-ti-16", "GeForce RTX 5060 Ti, 16 GB", 16, 448, 95),
        _gpu("rtx-5070", "GeForce RTX 5070, 12 GB", 12, 672, 123),
        _gpu("rtx-5070-ti", "GeForce RTX 5070 Ti, 16 GB", 16, 896, 176),
        _gpu("rtx-5080", "GeForce RTX 5080, 16 GB", 16, 960, 225),
        _gpu("rtx-5090", "GeForce RTX 5090, 32 GB", 32, 1792, 419),
        _gpu("h100", "H100 SXM, 80 GB", 80, 3350, 989),
        _gpu("h200", "H200 SXM, 141 GB", 131, 4800, 989),
        _jetson("jetson-orin-nano-8", "Jetson Orin Nano Super, 8 GB", 8, 102, 16.7),
        _jetson("jetson-orin-nx-16", "Jetson Orin NX, 16 GB", 16, 102, 25),
        _jetson("jetson-agx-orin-64", "Jetson AGX Orin, 64 GB", 64, 204.8, 68),
        _cpu("core-ultra-155h", "Core Ultra 7 155H with NPU, 32 GB", 32, 89.6, 1.4),
        _cpu("core-ultra-258v", "Core Ultra 7 258V with NPU, 32 GB", 32, 136.5, 0.9),
        _cpu("core-ultra-285h", "Core Ultra 9 285H with NPU, 32 GB", 32, 134.4, 1.5),
        _cpu("xeon-8480", "Xeon Platinum 8480+ with AMX, 256 GB", 256, 307, 60),
        _cpu("xeon-6980p", "Xeon 6980P with AMX, 512 GB", 512, 614, 180),
        _cpu("epyc-9654", "EPYC 9654, 384 GB", 384, 460.8, 9.2),
        _cpu("epyc-9755", "EPYC 9755, 384 GB", 384, 576, 22),
        _cpu("ryzen-ai-370", "Ryzen AI 9 HX 370 with NPU, 32 GB", 32, 120, 1.4, "onnx", "gguf", "openvino"),
        _cpu("ryzen-ai-max-395", "Ryzen AI Max+ 395, 128 GB", 128, 256, 2.4, "onnx", "gguf", "openvino"),
        _cpu("snapdragon-x-elite", "Snapdragon X Elite, 16 GB", 16, 135, 1.3, *_ARM),
        _cpu("raspberry-pi-5-8", "Raspberry Pi 5, 8 GB", 8, 17, 0.15, *_ARM),
        _cpu("raspberry-pi-5-16", "Raspberry Pi 5, 16 GB", 16, 17, 0.15, *_ARM),
        *_apple("m1", "Apple M1", (8, 16), 68, 5.2),
        *_apple("m1-max", "Apple M1 Max", (32, 64), 400, 21),
        *_apple("m2", "Apple M2", (8, 16, 24), 100, 7.2),
        *_apple("m2-ultra", "Apple M2 Ultra", (64, 128, 192), 800, 54),
        *_apple("m3", "Apple M3", (8, 16, 24), 100, 8.2),
        *_apple("m3-max", "Apple M3 Max", (36, 48, 64, 128), 400, 28),
        *_apple("m4", "Apple M4", (16, 24, 32), 120, 8.5),
        *_apple("m4-pro", "Apple M4 Pro", (24, 48, 64), 273, 17),
        *_apple("m4-max", "Apple M4 Max", (36, 48, 64, 128), 546, 34),
        *_apple("m5", "Apple M5", (16, 24, 32), 153, 17),
        _phone("iphone-15-pro", "iPhone 15 Pro, 8 GB", 8, 51, 4.3),
        _phone("iphone-16-pro", "iPhone 16 Pro, 8 GB", 8, 60, 4.6),
        _phone("iphone-17-pro", "iPhone 17 Pro, 12 GB", 12, 77, 7),
        _phone("snapdragon-8-gen-3", "Snapdragon 8 Gen 3, 12 GB", 12, 77, 5.6, *_ARM),
        _phone("snapdragon-8-elite", "Snapdragon 8 Elite, 16 GB", 16, 85, 6.4, *_ARM),
    )
}
