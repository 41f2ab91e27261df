"""``python -m arcflow.distill --recipe flux``: distil a two-step student and save its adapter.

Several GPUs: ``accelerate launch -m arcflow.distill --recipe flux``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from arcflow.prompts.lists import Prompts
    from arcflow.publishing.card import Weights
    from arcflow.recipe import Recipe, StudentRecipe
    from arcflow.sources.base import Base
    from arcflow.sources.text import Placement
    from arcflow.students import Student
    from arcflow.training.start import Start
    from arcflow.training.tracking import WandB

STUDENTS = ("arcflow", "linear")
PLACEMENTS = ("device", "turns", "cpu")
FROZEN = ("fp32", "bf16", "fp8")
WEIGHTS = ("average", "last")

_EPILOG = """examples:
  python -m arcflow.distill --recipe tiny
  python -m arcflow.distill --recipe tiny --student linear --out models/tiny/linear
  python -m arcflow.distill --recipe flux --base FLUX.1-dev --prompts captions.jsonl --cache-encodings .work/encodings
  python -m arcflow.distill --recipe flux --dry-run --gpus 8 --shard --gpu-memory 24
  python -m arcflow.distill --recipe flux-released --init ymyy307/ArcFlow/arcflow-flux-2steps
  python -m arcflow.distill --recipe tiny --weights last --out last --push-to-hub USER/NAME
  accelerate launch --multi_gpu -m arcflow.distill --recipe qwen --shard"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m arcflow.distill",
        description="Distil a teacher into a two-step student, from prompts alone, and save the adapter. An "
        "interrupted run resumes where it stopped, to the same result.",
        epilog=_EPILOG,
    )
    add_recipe_options(parser, "--workdir")
    add = parser.add_argument
    add("--student", choices=STUDENTS, default="arcflow", help="linear: one mode, the baseline")
    add("--base", "--teacher", metavar="BASE", help="the teacher: a diffusers pipeline's folder or hub id (default: "
        "the recipe's; of tiny WORKDIR/teacher or models/tiny/teacher)")  # fmt: skip
    add("--prompts", nargs="+", metavar="PATH", help="text, JSONL or Parquet files, WebDataset shards, folders of "
        "these or of a saved data set (default: the recipe's lists)")  # fmt: skip
    add("--prompt-key", metavar="NAME", help="what holds a prompt (default: prompt, caption or text)")
    add("--cache-encodings", type=Path, metavar="DIR", help="encode all prompts first and keep the encodings there; "
        "text encoders then take no memory in training")  # fmt: skip
    add("--encoders", choices=PLACEMENTS, default="device", help="where text encoders run, if nothing is cached: "
        "beside the backbone, in turns with it, or on the CPU (default: %(default)s)")  # fmt: skip
    add("--shard", action="store_true", help="share the weights between the processes, frozen or trained (FSDP); each "
        "reads its part only")  # fmt: skip
    add("--frozen", choices=FROZEN, help="what the weights are kept in that are not trained (default: the recipe's)")
    add("--micro-batch", type=int, metavar="N", help="images that a process takes at once: fewer need less memory and "
        "change no result but by rounding (default: the recipe's)")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    add("--init", metavar="ADAPTER", help="start from that adapter, a folder or a hub id (default: as the teacher)")
    add("--out", type=Path, help="adapter folder to write (default: WORKDIR/STUDENT-adapter)")
    add("--weights", choices=WEIGHTS, default="average", help="write the average of the weights, or the last ones: "
        "again by the same command with another --out, without training (default: %(default)s)")  # fmt: skip
    add("--push-to-hub", metavar="USER/NAME", help="upload the adapter to that repository of the Hugging Face hub, "
        "which is made, private, where it is not there")  # fmt: skip
    add("--iterations", type=int, help="instead of the recipe's number of iterations")
    add("--wandb", metavar="PROJECT", help="send figures and images to that project of Weights & Biases as well")
    add("--dry-run", action="store_true", help="say what an iteration takes of each GPU, and train nothing; without "
        "--base nothing is downloaded")  # fmt: skip
    add("--gpus", type=int, metavar="N", help="with --dry-run: for so many GPUs (default: 1)")
    add("--gpu-memory", type=float, metavar="GB", help="with --dry-run: say whether a GPU of so many GB is enough")
    args = parser.parse_args(argv)
    if not args.dry_run and (args.gpus is not None or args.gpu_memory is not None):
        parser.error("--gpus and --gpu-memory are for --dry-run: add it, or leave them out")
    if args.gpu_memory is not None and not 0 < args.gpu_memory < float("inf"):
        parser.error(f"--gpu-memory is {args.gpu_memory:g}: it must be a positive number of GB")
    from arcflow.publishing.push import check_id, prepare_push, push
    from arcflow.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    repository = check_id(args.push_to_hub) if args.push_to_hub is not None else None
    changed = {"iterations": args.iterations, "micro_batch": args.micro_batch}
    loop = replace(recipe.distill.loop, **{key: value for key, value in changed.items() if value is not None})
    frozen = recipe.distill.frozen if args.frozen is None else args.frozen
    recipe = replace(recipe, distill=replace(recipe.distill, loop=loop, frozen=frozen))
    workdir = args.workdir or Path(".work") / recipe.name
    student = student_recipe(recipe, args.student)
    if args.dry_run:
        from arcflow.needs.estimate import estimate_step
        from arcflow.needs.spread import Spread
        from arcflow.sources.base import described_base

        spread = Spread(1 if args.gpus is None else args.gpus, args.shard)
        base = (described_base(recipe) if args.base is None else None) or choose_base(recipe, args.base, workdir)
        prompts = choose_prompts(recipe, args.prompts, args.prompt_key)
        wanted = replace(recipe, student=student)
        print(f"{estimate(wanted, base, prompts)}\n{estimate_step(wanted, base, spread, args.gpu_memory)}")
        return 0
    base = choose_base(recipe, args.base, workdir)
    prompts = choose_prompts(recipe, args.prompts, args.prompt_key)
    start = choose_start(base, student, args.init)
    from arcflow.training.run import choose_accelerator
    from arcflow.training.tracking import WandB, check_wandb

    wandb = None
    if args.wandb is not None:
        check_wandb()
        wandb = WandB(args.wandb, f"{recipe.name}-{args.student}", asdict(replace(recipe, student=student)))
    accelerator = choose_accelerator(args.device, args.shard)
    if accelerator.is_main_process:
        if repository is not None:
            prepare_push(repository)
        print(estimate(replace(recipe, student=student), base, prompts), file=sys.stderr)
    out = args.out or workdir / f"{args.student}-adapter"
    distil(
        recipe, base, prompts, student, workdir / f"distill-{args.student}", out,
        accelerator=accelerator, cache=args.cache_encodings, placement=args.encoders, sharded=args.shard, start=start,
        weights=args.weights, called=repository, wandb=wandb,
    )  # fmt: skip
    if accelerator.is_main_process:
        print(out)
        if repository is not None:
            print(push(out, repository), file=sys.stderr)
    return 0


def choose_base(recipe: Recipe, source: str | Path | None, workdir: Path) -> Base:
    """The base that is named, or else the recipe's: trained here, or of its hub id.

    Raises SourceError, BackboneError, and CheckpointError where a teacher was to be trained and was not.
    """
    from arcflow.sources.base import find_base

    if recipe.teacher is not None:
        from arcflow.errors import CheckpointError
        from arcflow.tiny.stages import find_teacher

        source = Path(source or find_teacher(recipe, workdir))
        if not (source / "model_index.json").is_file():
            raise CheckpointError(f"no teacher at {source}: run `python -m arcflow.teacher`, or give --base FOLDER")
    elif source is None:
        source = recipe.base
    if source is None:
        from arcflow.errors import RecipeError

        raise RecipeError(f"recipe {recipe.name!r} names no base; give --base FOLDER or a hub id")
    return find_base(source, recipe.architecture)


def choose_prompts(recipe: Recipe, sources: Sequence[str] | None = None, key: str | None = None) -> Prompts:
    """The prompts that are named, or else the recipe's: its lists, or of a teacher trained here all its captions.

    Raises PromptsError.
    """
    from arcflow.prompts.lists import open_prompts

    if not sources and recipe.teacher is not None:
        from arcflow.tiny.captions import training_captions

        return training_captions()
    return open_prompts(sources or recipe.distill.prompts, key)


def choose_start(base: Base, student: StudentRecipe, source: str | Path | None) -> Start | None:
    """The adapter that training begins with, where one is named. Raises SourceError, AdapterError."""
    from arcflow.training.start import read_start

    return None if source is None else read_start(source, base, student)


def student_recipe(recipe: Recipe, kind: str) -> StudentRecipe:
    """The recipe's student, or the linear baseline: the same with a single mode (a plain velocity)."""
    return recipe.student if kind == "arcflow" else replace(recipe.student, modes=1)


def estimate(recipe: Recipe, base: Base, prompts: Prompts) -> str:
    """One line: what is trained, on how many prompts, and the disk that it needs; memory: see --dry-run."""
    from arcflow.needs.inventory import take_inventory

    found, student = take_inventory(recipe, base.blank()), recipe.student
    # In float32 at most: weights, two moments and averages, of a checkpoint and of the next beside it; and the adapter.
    disk = 4 * (2 * 4 + 1) * found.trained
    return (
        f"{student.modes} modes, rank {student.rank}: {found.trained:,} trained parameters, {found.share:.2%} of the "
        f"backbone's {found.backbone:,}; {disk / 2**20:.0f} MiB on disk; {len(prompts):,} prompts"
    )


def distil(
    recipe: Recipe,
    base: Base,
    prompts: Prompts,
    student: StudentRecipe,
    workdir: Path,
    out: Path,
    *,
    accelerator: Accelerator | None = None,
    cache: Path | None = None,
    placement: Placement = "device",
    sharded: bool = False,
    start: Start | None = None,
    weights: Weights = "average",
    called: str | None = None,
    wandb: WandB | None = None,
    stop_after: int | None = None,
) -> Student:
    """Train a student of ``base`` on prompts and write its adapter to ``out``, in what the recipe's frozen weights are.

    accelerator: None for the CPU; cache, placement, sharded, start: see :func:`arcflow.training.run.prepare`; weights:
    which of them the adapter has; called: what its card calls it (default: its folder's name); wandb: where figures are
    sent to; stop_after: see ``fit``, a run that is stopped early writes no adapter. Raises BackboneError, PromptsError,
    CheckpointError, TrackingError.
    """
    from accelerate import Accelerator

    from arcflow.adapter import save_adapter, trained_tensors
    from arcflow.policy import policy_of
    from arcflow.publishing.card import model_card
    from arcflow.training.loop import fit
    from arcflow.training.precision import settle
    from arcflow.training.progress import reporting
    from arcflow.training.run import DTYPES, prepare
    from arcflow.training.sharding import whole

    accelerator = accelerator or Accelerator(cpu=True)

    def tell(line: str) -> None:
        if accelerator.is_main_process:
            sys.stderr.write(line + "\n")

    loop = settle(recipe.distill.loop, base.blank(), workdir, accelerator.device, tell)
    recipe = replace(recipe, distill=replace(recipe.distill, loop=loop))
    card = None
    if stop_after is None and accelerator.is_main_process:  # Now, while the hub is there to be asked.
        made, name = replace(recipe, student=student), called or out.resolve().name
        card = model_card(made, base, name, weights, start.source if start is not None else None)
    ready = prepare(
        recipe, base, prompts, student, accelerator,
        cache=cache, placement=placement, sharded=sharded, start=start, workdir=workdir, tell=tell,
    )  # fmt: skip
    main = accelerator.is_main_process
    told = reporting(workdir.name, loop.iterations, workdir / "logs", wandb=wandb) if main else nullcontext(_unheard)
    with told as report:
        fit(
            ready.student, ready.step, loop, workdir, accelerator=accelerator, groups=ready.groups, report=report,
            look=ready.watch.look if ready.watch else None, stop_after=stop_after, identity=ready.identity,
            average=weights == "average",
        )  # fmt: skip
    if stop_after is None:
        tensors = {name: whole(tensor).detach().cpu() for name, tensor in trained_tensors(ready.student).items()}
        if accelerator.is_main_process:
            dtype = DTYPES[recipe.distill.frozen]
            save_adapter(ready.student, base.config, policy_of(recipe), out, dtype, tensors, card)
        accelerator.wait_for_everyone()
    return ready.student


def _unheard(*_: object) -> None:
    """The report of a process that is not the main one."""


if __name__ == "__main__":
    sys.exit(run(main))
