"""OpenVINO's `Core`, of which a process has one."""

from functools import cache
from typing import Any


@cache
def core() -> Any:
    """The one `openvino.Core` of this process, which is never let go.

    Its CPU plugin gives the thread that first asks for it a stack for signals, and puts the former one back when the `Core`
    goes. With several that go in the order they came in, what is put back is memory that was given up: the next signal, a
    Ctrl-C for example, ends the process (OpenVINO's src/plugins/intel_cpu/src/plugin.cpp, SigAltStackSetup).
    """
    import openvino

    return openvino.Core()
