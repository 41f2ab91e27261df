"""What the parts of a well-typed manifest must agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NoReturn

from engines.errors import ManifestError
from engines.schema import (
    CAPABILITIES_OF_TARGET,
    MANIFEST_NAME,
    NETWORKS,
    ONNX_TARGETS,
    TOKENIZERS,
    Engine,
    FileEntry,
    Manifest,
    Network,
    Range,
    ShapeRange,
)


def check_manifest(manifest: Manifest) -> None:
    """Raise ManifestError where the parts of a well-typed manifest contradict each other."""
    _check_files(manifest.files)
    listed = {entry.path for entry in manifest.files}
    architecture = manifest.architecture
    _check_keys("networks", architecture, manifest.networks, NETWORKS[architecture])
    _check_keys("tokenizers", architecture, manifest.tokenizers, TOKENIZERS[architecture])
    for key, network in sorted(manifest.networks.items()):
        _check_network(key, network, listed)
    for key, tokenizer in sorted(manifest.tokenizers.items()):
        _need(key, tokenizer.file, listed)
        if tokenizer.template and tokenizer.template.count("{}") != 1:
            _refuse(f'the template of tokenizer {key!r} must hold "{{}}" once, where the prompt goes')
        if tokenizer.drop >= tokenizer.max_tokens:
            _refuse(f"tokenizer {key!r} drops {tokenizer.drop} of {tokenizer.max_tokens} tokens: nothing is left")
    for field in ("batch", "width", "height", "text_tokens"):
        limit: Range = getattr(manifest.limits, field)
        if not limit.min <= limit.opt <= limit.max:
            _refuse(f"limits.{field} is {limit.min}/{limit.opt}/{limit.max}; min <= opt <= max must hold")
    _check_geometry(manifest)
    if manifest.schedule.nfe > manifest.schedule.max_nfe:
        _refuse(f"schedule.nfe is {manifest.schedule.nfe}, above max_nfe {manifest.schedule.max_nfe}")
    _check_engine(manifest)
    if (manifest.quantisation is not None) != (manifest.precision == "fp8"):
        _refuse(f"precision is {manifest.precision!r}; quantisation must be described where it is 'fp8', only there")


def capabilities(target: str) -> tuple[str, ...]:
    """The compute capabilities of a GPU target, sorted: of "rtx" sm120 and sm89, of "sm90" itself."""
    return CAPABILITIES_OF_TARGET.get(target, (target,))


def unsafe_path(path: str) -> str | None:
    """Why ``path`` may not name a file of a bundle, or None where it may (ASCII, relative, inside, normal form)."""
    if not path.isascii():
        return "has characters beyond ASCII"
    if not path or not path.isprintable():
        return "is empty or has control characters"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or (len(path) > 1 and path[1] == ":"):
        return "is absolute"
    if ".." in path.split("/"):
        return "leaves the bundle"
    return None if PurePosixPath(path).as_posix() == path and path != "." else "is not in its shortest form"


def _refuse(message: str) -> NoReturn:
    raise ManifestError(f"{MANIFEST_NAME}: {message}")


def _check_files(files: Sequence[FileEntry]) -> None:
    for entry in files:
        reason = unsafe_path(entry.path)
        if reason:
            _refuse(f"the file path {entry.path!r} {reason}; it must lie in the bundle")
        if entry.path == MANIFEST_NAME:
            raise ManifestError(f"{MANIFEST_NAME} lists itself among its files")
    paths = [entry.path for entry in files]
    if paths != sorted(set(paths)):
        _refuse("files are not sorted by path, or one is listed twice")


def _check_keys(field: str, architecture: str, found: Mapping[str, object], expected: Sequence[str]) -> None:
    if sorted(found) != sorted(expected):
        _refuse(f"{field} are {', '.join(sorted(found)) or 'none'}; {architecture} has {', '.join(expected)}")


def _need(key: str, path: str, listed: set[str]) -> None:
    if path not in listed:
        _refuse(f"{key!r} needs {path!r}, which is not among its files")


def _check_network(key: str, network: Network, listed: set[str]) -> None:
    for path in (network.file, *network.data):
        _need(key, path, listed)
    if network.format == "plan" and network.data:
        _refuse(f"the plan of {key!r} has data files; a plan holds its weights itself")
    folder = PurePosixPath(network.file).parent
    if any(PurePosixPath(path).parent != folder or path == network.file for path in network.data):
        _refuse(f"the data files of {key!r} do not lie beside {network.file!r}")
    if list(network.data) != sorted(set(network.data)):
        _refuse(f"the data files of {key!r} are not sorted, or one is listed twice")


def _check_geometry(manifest: Manifest) -> None:
    limits, latent, momentum = manifest.limits, manifest.latent, manifest.momentum
    token_pixels = latent.patch * latent.vae_factor
    if limits.multiple % token_pixels:
        _refuse(f"limits.multiple is {limits.multiple}; {token_pixels} px must divide it")
    for field in ("width", "height"):
        limit: Range = getattr(limits, field)
        if any(value % limits.multiple for value in (limit.min, limit.opt, limit.max)):
            _refuse(f"limits.{field} has a value that {limits.multiple} does not divide")
    for field in ("scaling_factor", "shift_factor"):
        count = len(getattr(latent, field))
        if count not in (1, latent.channels):
            _refuse(f"latent.{field} has {count} numbers; it needs 1, or one for each of {latent.channels} channels")
    positions = latent.patch**2
    if momentum.patch_positions != positions or momentum.packed_channels != latent.channels * positions:
        _refuse(
            f"momentum has {momentum.packed_channels} packed channels and {momentum.patch_positions} "
            f"patch positions; the latent makes {latent.channels * positions} and {positions}"
        )


def _check_engine(manifest: Manifest) -> None:
    """Plans and a description of their engine go with a GPU's target, ONNX files with the others."""
    plans, engine = manifest.target not in ONNX_TARGETS, manifest.engine
    wrong = sorted(key for key, n in manifest.networks.items() if n.format != ("plan" if plans else "onnx"))
    if wrong:
        kind = "a plan" if plans else "an ONNX file"
        _refuse(f"each network of target {manifest.target!r} is {kind}; not so {', '.join(wrong)}")
    if (engine is not None) != plans:
        _refuse(f"target is {manifest.target!r}; an engine must be described for plans, and for them only")
    if engine is None:
        return
    allowed = capabilities(manifest.target)
    if tuple(engine.compute_capabilities) != allowed:
        found = ", ".join(engine.compute_capabilities) or "none"
        _refuse(f"target is {manifest.target!r}, which is {', '.join(allowed)}; its engine is for {found}")
    for field, group in (("onnx", engine.onnx), ("profiles", engine.profiles)):
        _check_keys(f"engine.{field}", manifest.architecture, group, NETWORKS[manifest.architecture])
    if engine.memory:
        _check_keys("engine.memory", manifest.architecture, engine.memory, NETWORKS[manifest.architecture])
    _check_profiles(manifest, engine)


def _check_profiles(manifest: Manifest, engine: Engine) -> None:
    for key, network in sorted(manifest.networks.items()):
        profile = engine.profiles[key]
        inputs = {port.name: port.shape for port in network.inputs}
        if sorted(profile) != sorted(inputs):
            _refuse(f"engine.profiles of {key!r} are for {', '.join(sorted(profile))}; it takes {', '.join(inputs)}")
        for name, shape in inputs.items():
            if not _fits(profile[name], shape):
                _refuse(f"engine.profiles: input {name!r} of {key!r} does not fit {list(shape)}, or falls")


def _fits(profile: ShapeRange, shape: Sequence[int | str]) -> bool:
    """Whether min <= opt <= max hold for every dimension of ``shape`` and meet its fixed ones."""
    if not len(profile.min) == len(profile.opt) == len(profile.max) == len(shape):
        return False
    rows = zip(profile.min, profile.opt, profile.max, shape, strict=True)
    return all(
        low <= usual <= high and (isinstance(size, str) or low == high == size) for low, usual, high, size in rows
    )
