"""Run by test_bare: what parts do where only torch's usual environment is installed, or not even torch."""

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
    "cudnn",
)


def main() -> None:
    """Raises where something absent is imported, or a check fails."""
    from gpu.catalogue import Options
    from gpu.records import Printer, SkipPartError
    from tests.gpu.stub_on_host import host_stub
    from tests.runtime.cuda.stand_in import StandInDevice

    absent = (*ABSENT, "torch") if "torch" in sys.argv else ABSENT
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    import runtime.cuda.device.gpu
    from gpu.device import open_gpu, torch_device
    from gpu.parts import distil, flux, graphs, machine, provider, sanitizer, scenarios, solver, training

    device, printer, options = StandInDevice(), Printer("x"), Options(smoke=True, rehearse=True)
    machine.run(printer, options)
    graphs.measure(printer, device, host_stub(device), 32, 2, 1e12)
    assert open_gpu and runtime.cuda.device.gpu.open_device and scenarios.run and sanitizer.run and provider.run
    try:
        torch_device(options)
    except SkipPartError as reason:
        for part in (flux, solver, training, distil):
            try:
                part.run(printer, options)
            except (SkipPartError, ImportError) as error:
                print("skipped:", error)
        print("torch skipped:", reason)
        return
    solver.check(printer, options, device, "cpu")
    flux.run(printer, Options(smoke=True, rehearse=True, modes=("eager", "fused", "fp8", "diffusers", "image")))


if __name__ == "__main__":
    main()
