"""``python -m arcflow.evaluate``: a student's figures against its teacher, and images for GenEval and DPG-Bench."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run
from foundation.files import atomic_file

if TYPE_CHECKING:
    import torch

    from arcflow.recipe import Recipe

PROMPTS, SEEDS = 8, 4
"""What is taken unless told, where the teacher is large: prompts, and noises of each."""

_DTYPES = ("float32", "float16", "bfloat16")
_FROZEN = {"fp32": "float32"}
_IMAGES = ("geneval", "dpg")
_OWN = ("models", "linear", "classifier", "data")
_LARGE = ("prompts", "prompt_key", "num", "steps", "features", "workdir")
_EITHER = ("seed", "size", "nfe", "text_tokens", "device", "dtype")

_EXAMPLES = """examples:
  python -m arcflow.evaluate --recipe tiny --json
  python -m arcflow.evaluate --recipe flux --adapter arcflow-flux --device cuda --features facebook/dinov2-small
  python -m arcflow.evaluate --recipe flux --adapter arcflow-flux --images geneval --metadata evaluation_metadata.jsonl
  python -m arcflow.evaluate --recipe qwen --adapter arcflow-qwen --images dpg --metadata dpg_bench/prompts --out dpg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, or fill a folder with images; prints figures or the folder, returns 0. Raises ArcFlowError."""
    args = _parser().parse_args(argv)
    from arcflow.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    _check_numbers(args, 2 if recipe.teacher is not None else 1)
    if args.size is not None:
        recipe = replace(recipe, distill=replace(recipe.distill, sizes=(args.size,)))
    if args.images is not None:
        _reject(args, ("seeds", *_LARGE, *_OWN), "for --images")
        _images(args, recipe)
    elif recipe.teacher is not None:
        _reject(args, ("metadata", *_LARGE, *_EITHER), f"for {recipe.name}, which has prompts and a judge of its own")
        _own(args, recipe)
    else:
        _reject(args, ("metadata", *_OWN), f"for {recipe.name}, whose teacher is downloaded")
        _large(args, recipe, argv)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m arcflow.evaluate",
        description="Measure a student's few evaluations, and its teacher's own few Euler steps, against the teacher's "
        "many steps from the same noise. Writes evaluation.json and grid.png. Or make the images that GenEval and "
        "DPG-Bench judge (--images). What was interrupted resumes.",
        epilog=_EXAMPLES,
    )
    add_recipe_options(parser)
    add = parser.add_argument
    add("--base", "--teacher", metavar="BASE", help="the teacher: a diffusers pipeline's folder or hub id (default: "
        "the recipe's; of tiny MODELS/teacher)")  # fmt: skip
    add("--adapter", help="the student's adapter: a folder or a hub id (default: models/RECIPE/adapter)")
    add("--partial", action="store_const", dest="coverage", const="partial", default="whole",
        help="take adapters that lack LoRA pairs, whose layers stay the teacher's")  # fmt: skip
    add("--seeds", type=int, help=f"noises of each prompt (default: {SEEDS}); of tiny images a sampler (default: 300)")
    add("--seed", type=int, help="the first of the seeds (default: the recipe's first_seed; 0 for --images)")
    add("--size", metavar="WxH", help="pixels, such as 1024x1024 (default: the recipe's first)")
    add("--nfe", type=int, nargs="+", metavar="N", help="numbers of evaluations (default: the adapter's)")
    add("--text-tokens", type=int, metavar="N", help="longest prompt (default: the recipe's)")
    add("--device", help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    add("--dtype", choices=_DTYPES, help="of all networks (default: what the recipe keeps frozen weights in)")
    add("--out", type=Path, help="folder to write (default: .work/RECIPE/evaluation, or .work/RECIPE/geneval, .../dpg)")
    add("--json", action="store_true", help="print one JSON object, not a table")
    large = parser.add_argument_group("where the teacher is downloaded (flux, qwen)").add_argument
    large("--prompts", nargs="+", metavar="PATH", help="as in arcflow.distill (default: the recipe's lists)")
    large("--prompt-key", metavar="NAME", help="what holds a prompt (default: prompt, caption or text)")
    large("--num", type=int, help=f"so many prompts, spread evenly over all (default: {PROMPTS})")
    large("--steps", type=int, help="the teacher's Euler steps that are taken for the truth (default: the recipe's)")
    large("--features", metavar="MODEL", help="compare what this vision network sees as well: a folder or hub id in "
          "transformers' form, such as facebook/dinov2-small")  # fmt: skip
    large("--workdir", type=Path, help="keeps the samplers' endpoints (default: .work/RECIPE)")
    sets = parser.add_argument_group("images for other programs").add_argument
    sets("--images", choices=_IMAGES, help="make the images that this benchmark judges, and measure nothing")
    sets("--metadata", type=Path, metavar="PATH", help="GenEval's evaluation_metadata.jsonl, or DPG-Bench's folder of "
         "prompts")  # fmt: skip
    own = parser.add_argument_group("where the teacher is trained here (tiny)").add_argument
    own("--models", type=Path, help="folder with teacher, adapter, linear, classifier.safetensors "
        "(default: models/RECIPE)")  # fmt: skip
    own("--linear", type=Path, help="the linear twin's adapter (default: MODELS/linear, if there)")
    own("--classifier", type=Path, help="the judge's weights (default: MODELS/classifier.safetensors)")
    own("--data", type=Path, help="folder of the images that make data fetches (default: found by itself)")
    return parser


def _check_numbers(args: Namespace, seeds: int) -> None:
    from arcflow.errors import RecipeError
    from foundation.noise import SEED_LIMIT

    least = {"seeds": seeds, "seed": 0, "num": 1, "steps": 1, "text_tokens": 1}
    for name, bound in least.items():
        if (value := getattr(args, name)) is not None and value < bound:
            raise RecipeError(f"--{name.replace('_', '-')} is {value}: it must be at least {bound}")
    if args.seed is not None and args.seed >= SEED_LIMIT:
        raise RecipeError(f"--seed is {args.seed}: it must be at most 2^64 - 1")
    if args.nfe is not None and min(args.nfe) < 1:
        raise RecipeError("--nfe must be at least 1")


def _reject(args: Namespace, names: Sequence[str], where: str) -> None:
    from arcflow.errors import RecipeError

    for name in names:
        if getattr(args, name) is not None:
            raise RecipeError(f"--{name.replace('_', '-')} is not {where}; leave it out")


def _own(args: Namespace, recipe: Recipe) -> None:
    """Of a teacher that is trained here: also its linear twin, and what a classifier says of the images."""
    from arcflow.evaluation.compare import evaluate
    from arcflow.evaluation.plots import sample_grid, trajectory_plot
    from arcflow.evaluation.progress import Progress
    from arcflow.evaluation.tables import figures_table
    from arcflow.tiny.judging import open_judge
    from arcflow.tiny.stages import MODELS
    from arcflow.tiny.teacher_folder import open_teacher

    if args.seeds is not None:
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, seeds=args.seeds))
    models = args.models or MODELS / recipe.name
    adapters = {"student": Path(args.adapter or models / "adapter")}
    linear = args.linear or models / "linear"
    if args.linear is not None or linear.is_dir():
        adapters["linear"] = linear
    teacher = open_teacher(Path(args.base or models / "teacher"))
    classifier = args.classifier or models / "classifier.safetensors"
    judge = open_judge(recipe, recipe.evaluate.seeds, classifier, args.data)
    evaluation = evaluate(recipe, teacher, adapters, judge, Progress(), args.coverage)
    out = args.out or Path(".work") / recipe.name / "evaluation"
    text = json.dumps(evaluation.report, indent=2)
    with atomic_file(out / "evaluation.json") as temporary:
        temporary.write_text(text + "\n")
    nfe, steps = recipe.distill.nfe, recipe.evaluate.reference_steps
    sample_grid(evaluation, teacher, nfe, steps, out / "grid.png")
    trajectory_plot(evaluation, nfe, out / "trajectories.png")
    if args.json:
        print(text)
        return
    print(figures_table(evaluation.report))
    for name in ("path_error", "gain_over_linear", "trainable_fraction", "other_sizes", "seeds"):
        print(f"{name}: {evaluation.report.get(name)}")
    for name, held in evaluation.report["targets"].items():
        print(f"{'holds' if held else 'DOES NOT HOLD'}: {name}")
    print(f"files in {out}: evaluation.json, grid.png, trajectories.png")


def _large(args: Namespace, recipe: Recipe, argv: Sequence[str] | None) -> None:
    """Of a teacher that is downloaded: one backbone, which is teacher and then student."""
    from arcflow.adapter import read_adapter
    from arcflow.distill import choose_base, choose_prompts
    from arcflow.errors import RecipeError
    from arcflow.evaluation.endpoints import Endpoints
    from arcflow.evaluation.features import open_features
    from arcflow.evaluation.figures import measure
    from arcflow.evaluation.plots import image_grid, titles
    from arcflow.evaluation.progress import Progress
    from arcflow.evaluation.same_noise import Wanted, evaluations, sample
    from arcflow.evaluation.tables import figures_table
    from arcflow.sources.hub import adapter_digest, resolve_adapter
    from arcflow.sources.pipeline import choose_device, quiet
    from arcflow.tiny.stages import MODELS
    from foundation.measuring import begin, gigabytes, keep

    workdir = args.workdir or Path(".work") / recipe.name
    folder = resolve_adapter(args.adapter or MODELS / recipe.name / "adapter")
    device = choose_device(args.device)
    prompts = choose_prompts(recipe, args.prompts, args.prompt_key)
    count = min(args.num or PROMPTS, len(prompts))
    adapter = read_adapter(folder)
    wanted = Wanted(
        base=choose_base(recipe, args.base, workdir),
        adapter=adapter,
        adapter_digest=adapter_digest(folder),
        prompts=[prompts[number * len(prompts) // count] for number in range(count)],
        seeds=args.seeds or SEEDS,
        first_seed=recipe.evaluate.first_seed if args.seed is None else args.seed,
        size=recipe.distill.pixels[0],
        nfe=tuple(dict.fromkeys(args.nfe or (adapter.config.policy.nfe,))),
        steps=args.steps or recipe.evaluate.reference_steps,
        tokens=args.text_tokens or recipe.distill.text_tokens,
        dtype=_dtype(args, recipe),
        device=device,
        coverage=args.coverage,
    )
    if max(wanted.nfe) >= wanted.steps:
        raise RecipeError(f"--nfe is {max(wanted.nfe)}: it must be less than --steps, which is {wanted.steps}")
    backbone, most = wanted.check()
    features = open_features(args.features, device) if args.features is not None else None
    need = evaluations(wanted)
    size = "x".join(map(str, wanted.size))
    sys.stderr.write(
        f"{count} prompts, {wanted.seeds} noises each, {size}: {need['teacher']:,} evaluations of the teacher and "
        f"{need['student']:,} of the student, less what {workdir} has; backbone {gigabytes(backbone)}, "
        f"{gigabytes(most)} while the adapter is merged; text encoders before it, the VAE after it\n"
    )
    record = begin("python -m arcflow.evaluate", argv)
    advance = Progress()
    with quiet():
        measured = measure(wanted, sample(wanted, Endpoints(workdir / "endpoints"), advance), features, advance)
    policy = wanted.policy
    record |= {"recipe": recipe.name, "base": str(wanted.base.folder), "adapter": str(folder), "size": size}
    record |= {"adapter_sha256": wanted.adapter_digest, "dtype": str(wanted.dtype).removeprefix("torch.")}
    record |= {"prompts": list(wanted.prompts), "seeds": wanted.seeds, "first_seed": wanted.first_seed}
    record |= {"guidance": policy.guidance, "shift": policy.shift, "conditioning_dtype": policy.conditioning_dtype}
    record |= {"features": args.features, **measured.figures}
    out = args.out or workdir / "evaluation"
    few = policy.nfe if policy.nfe in wanted.nfe else wanted.nfe[0]
    columns = {title: measured.first_images[key] for title, key in titles(few, wanted.steps).items()}
    image_grid(columns, list(wanted.prompts), out / "grid.png")
    keep(out / "evaluation.json", record)
    if args.json:
        print((out / "evaluation.json").read_text(encoding="utf-8").rstrip())
        return
    print(figures_table(measured.figures))
    for nfe, gain in measured.figures.get("gain_over_euler", {}).items():
        print(
            f"rel. L2 below that of the teacher's {nfe} steps: {gain['mean']:.4f} (standard error "
            f"{gain['standard_error']:.4f}), nearer in {gain['won']:.0%} of the images"
        )
    print(f"files in {out}: evaluation.json, grid.png")


def _images(args: Namespace, recipe: Recipe) -> None:
    """The images that another program judges."""
    from arcflow.adapter import read_config
    from arcflow.distill import choose_base
    from arcflow.errors import RecipeError
    from arcflow.evaluation.progress import Progress
    from arcflow.evaluation.sets import SETS, make, missing
    from arcflow.pipelines.generation import open_generator
    from arcflow.sources.hub import adapter_digest, resolve_adapter
    from arcflow.sources.pipeline import choose_device
    from arcflow.tiny.stages import MODELS
    from foundation.measuring import gigabytes

    if args.metadata is None:
        raise RecipeError("--images needs --metadata: GenEval's evaluation_metadata.jsonl, or DPG-Bench's prompts")
    if args.nfe is not None and len(args.nfe) != 1:
        raise RecipeError("--images takes one number of evaluations; give --nfe 2")
    width, height = recipe.distill.pixels[0]
    if args.images == "dpg" and width != height:
        raise RecipeError(f"--size is {width}x{height}: DPG-Bench takes images as wide as high, such as 1024x1024")
    device, dtype = choose_device(args.device), _dtype(args, recipe)
    files = SETS[args.images](args.metadata, args.seed or 0)
    adapter = resolve_adapter(args.adapter or MODELS / recipe.name / "adapter")
    nfe = args.nfe[0] if args.nfe else read_config(adapter).policy.nfe
    base = choose_base(recipe, args.base, Path(".work") / recipe.name)
    out = args.out or Path(".work") / recipe.name / args.images
    tokens = args.text_tokens or recipe.distill.text_tokens
    settings = {"base": str(base.folder.resolve()), "adapter_sha256": adapter_digest(adapter), "nfe": nfe}
    settings |= {"dtype": str(dtype), "width": width, "height": height, "text_tokens": tokens}
    left = missing(files, settings, out)
    stored = sum(path.stat().st_size for path in base.folder.glob("*/*.safetensors"))
    sys.stderr.write(
        f"{len(files):,} files in {out}, {len(left):,} to make, {nfe} evaluations an image; the whole pipeline is "
        f"opened, {gigabytes(stored)} as stored\n"
    )
    if left:
        generator = open_generator(
            base, adapter, device=device, dtype=dtype, size=(width, height), tokens=tokens, coverage=args.coverage,
            nfe=nfe,
        )  # fmt: skip
        advance = Progress()
        make(left, generator, settings, out, lambda done: advance(args.images, done, len(left)))
    print(json.dumps({"folder": str(out), "images": len(files), "made": len(left)}) if args.json else out)


def _dtype(args: Namespace, recipe: Recipe) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, args.dtype or _FROZEN.get(recipe.distill.frozen, "bfloat16"))
    return dtype


if __name__ == "__main__":
    sys.exit(run(main))
