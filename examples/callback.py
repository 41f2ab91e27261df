"""Progress of a request, and how to stop one: what the callback raises ends the generation.

python examples/callback.py
"""

from __future__ import annotations

from runtime import Pipeline, Step


class StoppedError(Exception):
    """Raised by our own callback; the pipeline passes it on and stays usable."""


def main() -> None:
    pipeline = Pipeline.open("tiny")

    def progress(step: Step) -> None:
        print(f"evaluation {step.index + 1} of {step.total}: noise level {step.sigma_from:.2f} to {step.sigma_to:.2f}")

    def stop_early(step: Step) -> None:
        progress(step)
        raise StoppedError

    pipeline.generate("a strawberry", seed=1, nfe=4, on_step=progress)
    try:
        pipeline.generate("a strawberry", seed=1, nfe=4, on_step=stop_early)
    except StoppedError:
        print("stopped after the first evaluation")
    print(f"still usable: {len(pipeline.generate('a strawberry', seed=1).images)} image")


if __name__ == "__main__":
    main()
