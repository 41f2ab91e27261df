"""Run by test_bare: what parts (a), (b), (e) and (f) do, where only torch's usual environment is installed."""

from __future__ import annotations

import sys

ABSENT = (
    "msgspec",
    "diffusers",
    "peft",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "onnxruntime",
    "transformers",
    "tokenizers",
)


def main() -> None:
    """Raises where something absent is imported, or a check fails."""
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]
    import runtime.cuda.device
    from gpu.catalogue import Options
    from gpu.device import open_gpu
    from gpu.parts import flux, graphs, machine, solver
    from gpu.records import Printer, SkipPartError
    from tests.gpu.stub_on_host import host_stub
    from tests.gpu.test_backbone import SMALL
    from tests.runtime.cuda.stand_in import StandInDevice

    device, printer = StandInDevice(), Printer("x")
    machine.run(printer, Options(smoke=True))
    solver.check(printer, Options(smoke=True), device, "cpu")
    graphs.measure(printer, device, host_stub(device), 32, 2)
    baseline = flux.Baseline(SMALL, "cpu", 3, 5)
    baseline.measure(printer, "eager", 1)
    try:
        baseline.measure(printer, "diffusers", 1)
    except SkipPartError as reason:
        print("diffusers skipped:", reason)
    assert open_gpu and runtime.cuda.device.open_device


if __name__ == "__main__":
    main()
