"""Configuration: typed, complete, and strict. Where a run's every setting comes from.

`configs/base.yaml` holds every field with its default, unit and source; a row's file holds its differences and names
what it `extends:`; a profile (data, model scale, budget) is laid over that, then single `key=value` overrides. Nothing
here has a default of its own, so a key that is missing, unknown, of another type or at odds with another is an error
that names the file, the key, what was found and what is allowed.

Must not know: torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vit24h import paths, schedules
from vit24h.errors import UserError, one_line


@dataclass(frozen=True)
class ModelConfig:
    feed_forward: Literal["mlp", "locality", "localvit"]
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    drop_path: float
    init: Literal["deit", "released"]
    squeeze_reduction: int


@dataclass(frozen=True)
class CurriculumConfig:
    initial_size: int | None
    size_step: int | None
    epochs_per_stage: int | None
    budget_fraction_per_stage: float | None


@dataclass(frozen=True)
class DataConfig:
    path: str | None
    synthetic: bool
    eval_resize_ratio: float
    repeated_augmentation: int
    scaled_decoding: bool
    epoch_multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class AugmentationConfig:
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip_probability: float
    randaugment_ops: int
    randaugment_magnitude: float
    randaugment_magnitude_std: float
    randaugment_probability: float
    randaugment_on: Literal["cpu", "device"]
    erasing_probability: float
    erasing_scale: tuple[float, float]
    erasing_ratio: tuple[float, float]
    mixup_alpha: float
    cutmix_alpha: float
    cutmix_switch_probability: float
    label_smoothing: float


@dataclass(frozen=True)
class OptimizerConfig:
    batch_size: int
    constant_tokens: bool
    learning_rate_scaling: Literal["none", "sqrt", "linear"]
    learning_rate: float
    min_learning_rate: float
    warmup_epochs: int
    schedule_epochs: int | None
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    ema_decay: float
    precision: Literal["auto", "fp16", "bf16", "fp32"]


@dataclass(frozen=True)
class BudgetConfig:
    hours: float | None
    epochs: int | None
    steps: int | None
    counts: Literal["train", "all"]


@dataclass(frozen=True)
class EvaluationConfig:
    every_epochs: int


@dataclass(frozen=True)
class RuntimeConfig:
    device: Literal["auto", "cpu", "cuda"]
    workers: int | Literal["auto"]
    prefetch_batches: int
    eval_batch_size: int
    checkpoint_minutes: float
    log_every_steps: int
    fault_wait_minutes: float
    stall_minutes: float
    compile: bool | Literal["auto"]
    cuda_graphs: bool
    tf32: bool
    depthwise: Literal["auto", "conv", "shifted", "triton"]


@dataclass(frozen=True)
class Config:
    """A resolved run. Fields, units and sources: `configs/base.yaml`."""

    name: str
    profile: str
    smoke: bool
    seed: int
    model: ModelConfig
    curriculum: CurriculumConfig
    data: DataConfig
    augmentation: AugmentationConfig
    optimizer: OptimizerConfig
    budget: BudgetConfig
    evaluation: EvaluationConfig
    runtime: RuntimeConfig

    @property
    def image_sizes(self) -> list[int]:
        """All sizes that a run trains at, in order, in pixels."""
        curriculum, final_size = self.curriculum, self.model.image_size
        if curriculum.initial_size is None:
            return [final_size]
        return schedules.curriculum_sizes(curriculum.initial_size, curriculum.size_step, final_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, as YAML and JSON hold it (tuples as lists)."""
        return _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_config(path: str | Path, *, profile: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Resolve a configuration.

    Args:
        path: a YAML file, or the name of a shipped one (`paper/combined`).
        profile: a YAML file, or the name of a shipped one (`quick`); its `by_arm:` section may differ by arm name.
        overrides: `section.key=value`, the value written as in YAML.

    Raises:
        UserError: naming file, key, value found, what is allowed and the nearest valid key.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, layer in _layers(_find(path, paths.configs(), "config")):
        _merge(values, layer, source, origin)
    if profile is not None:
        profile_path = _find(profile, paths.configs() / "profiles", "profile")
        source, layer = _label(profile_path), _read_yaml(profile_path)
        by_arm = layer.pop("by_arm", {})
        if not isinstance(by_arm, dict):
            raise UserError(f"{source}: by_arm: expected a section for each arm, found {_show(by_arm)}")
        _merge(values, {"profile": profile_path.stem, **layer}, source, origin)
        _merge(values, by_arm.get(values.get("name"), {}), f"{source} (by_arm.{values.get('name')})", origin)
    for override in overrides:
        _merge(values, _parse_override(override), f"--set {one_line(override)}", origin)
    return _build(values, origin, source=_label(Path(path)))


def config_from_dict(values: Mapping[str, Any], source: str) -> Config:
    """A `Config` from a complete nested mapping, such as a run folder's `config.yaml`, checked like any other."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    _merge(merged, dict(values), source, origin)
    return _build(merged, origin, source)


def read_config(path: Path) -> Config:
    """The resolved configuration that a run folder's `config.yaml` holds."""
    return config_from_dict(_read_yaml(path), _label(path))


def parse_yaml(text: str) -> Any:
    """YAML as plain values; nothing in it is executed, and a key given twice is refused.

    Raises:
        yaml.YAMLError, ValueError: it is not that.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    # PyYAML's own constructors stumble over explicit tags whose value does not fit, such as `!!bool maybe`
    except (KeyError, IndexError, AttributeError, TypeError, OverflowError) as error:
        raise yaml.YAMLError("a value does not fit its tag") from error


# -- files ----------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        # PyYAML's time grows with the square of the depth: thousands of brackets would keep it busy for minutes
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token_class)


_DEEPEST = 50


def _find(path: str | Path, folder: Path, what: str) -> Path:
    """A file as given, or the shipped one of that name below `folder`."""
    given = Path(path)
    if given.suffix in {".yaml", ".yml"} and given.is_file():
        return given
    shipped = folder / given.with_suffix("") if given.suffix in {".yaml", ".yml"} else folder / given
    if (shipped := shipped.with_name(shipped.name + ".yaml")).is_file():
        return shipped
    names = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(names)}"
    raise UserError(f"no {what} {path}: expected a .yaml file or the name of a shipped {what}; {hint}")


def _layers(path: Path, _children: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The file and everything it extends, the most basic first."""
    if path.resolve() in _children:
        raise UserError(f"{_label(path)}: extends itself, by way of {' -> '.join(p.name for p in _children)}")
    layer = _read_yaml(path)
    parent = layer.pop("extends", None)
    if parent is None:
        return [(_label(path), layer)]
    if not isinstance(parent, str) or not (path.parent / parent).is_file():
        raise UserError(f"{_label(path)}: extends: expected a YAML file beside it, found {_show(parent)}")
    return [*_layers(path.parent / parent, (*_children, path.resolve())), (_label(path), layer)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{_label(path)}: not a YAML text file") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{_label(path)}{where}: not valid YAML: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{_label(path)}: expected `key: value` lines, found {_show(content)}")
    return content


def _label(path: Path) -> str:
    """The path as a user knows it: relative to the project where it lies in it."""
    try:
        return str(path.resolve().relative_to(paths.project_root()))
    except ValueError:
        return str(path)


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {one_line(override)}: expected section.key=value, such as --set budget.hours=12")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {one_line(override)}: {_show(text)} is not a valid YAML value") from error
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return value


# -- strictness -----------------------------------------------------------------------------------------------------


def _merge(values: dict[str, Any], layer: Mapping[str, Any], source: str, origin: dict[str, str]) -> None:
    """Lay `layer` over `values`, checking keys and types, and note in `origin` which source each value came from."""
    if not isinstance(layer, Mapping):
        raise UserError(f"{source}: expected `key: value` lines, found {_show(layer)}")
    _merge_section(values, layer, Config, "", source, origin)


def _merge_section(
    values: dict[str, Any], layer: Mapping[Any, Any], schema: type, prefix: str, source: str, origin: dict[str, str]
) -> None:
    fields = typing.get_type_hints(schema)
    for key, value in layer.items():
        if key not in fields:
            name = one_line(key) if isinstance(key, str) else _show(key)
            raise UserError(f"{source}: unknown key {prefix}{name}; {_nearest(name, prefix)}")
        expected = fields[key]
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: {prefix}{key}: expected a section, found {_show(value)}")
            _merge_section(values.setdefault(key, {}), value, expected, f"{prefix}{key}.", source, origin)
            continue
        try:
            values[key] = _typed(value, expected)
        except TypeError as error:
            raise UserError(
                f"{source}: {prefix}{key}: expected {_describe(expected)}, found {_show(value)}{error}"
            ) from None
        origin[f"{prefix}{key}"] = source


def _typed(value: Any, expected: Any) -> Any:
    """`value` as the field's type, or TypeError whose text is a hint (often empty)."""
    kind = typing.get_origin(expected)
    if kind in (typing.Union, types.UnionType):
        options = typing.get_args(expected)
        for option in options:
            try:
                return _typed(value, option)
            except TypeError:
                continue
        raise TypeError(_hint(value, options[0]))
    if kind is Literal:
        if isinstance(value, str) and value in typing.get_args(expected):
            return value
        raise TypeError(_hint(value, str))
    if kind is tuple:
        options = typing.get_args(expected)
        if isinstance(value, (list, tuple)) and len(value) == len(options):
            return tuple(_typed(item, option) for item, option in zip(value, options, strict=True))
        raise TypeError("")
    if expected is type(None):
        if value is None:
            return None
    elif expected is float:
        if _is_number(value):
            return float(value)
    elif expected is int:
        # 5e1 is a float to YAML, but a whole number to whoever wrote it
        if _is_number(value) and value % 1 == 0:
            return int(value)
    elif isinstance(value, expected):
        return value
    raise TypeError(_hint(value, expected))


def _is_number(value: Any) -> bool:
    """A finite number of a size that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _hint(value: Any, expected: Any) -> str:
    """What PyYAML made of a value that looks right, so that the user sees why it is not."""
    if isinstance(value, str) and expected in (int, float):
        try:
            number = float(value)
        except ValueError:
            return ""
        if math.isfinite(number):
            return f" (YAML reads {value} as text; write {_yaml_number(number)})"
    if isinstance(value, bool) and expected is str:
        return " (YAML reads yes, no, on and off as true and false; put it in quotes)"
    return ""


def _yaml_number(number: float) -> str:
    text = repr(number)
    return text if "." in text or "e" not in text else text.replace("e", ".0e")


def _describe(expected: Any) -> str:
    kind = typing.get_origin(expected)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(expected))
    if kind is Literal:
        return " | ".join(typing.get_args(expected))
    if kind is tuple:
        return f"a list of {len(typing.get_args(expected))} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}[expected]


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    text = _REPR.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _ShortRepr(reprlib.Repr):
    """repr() of a little of a value: YAML's aliases make, in a few lines, lists too long ever to be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxset, self.maxstring, self.maxother, self.maxlong = 2, 4, 4, 100, 100, 60

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 1000 else "a huge number"

    def repr_float(self, value: float, _level: int) -> str:
        return repr(value)


_REPR = _ShortRepr()


def _all_keys(schema: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for key, expected in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(expected):
            keys.extend(_all_keys(expected, f"{prefix}{key}."))
        else:
            keys.append(f"{prefix}{key}")
    return keys


def _nearest(key: str, prefix: str) -> str:
    """A suggestion: the key most alike, looked for everywhere, the same section first; `lr` finds learning_rate."""
    sections = [
        f"{prefix}{name}" for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)
    ]
    keys = [*(sections if not prefix else []), *sorted(_all_keys(), key=lambda full: not full.startswith(prefix))]
    names = [full.rpartition(".")[2] for full in keys]
    initials = ["".join(word[0] for word in name.split("_") if word) for name in names]
    if key in names:
        return f"it belongs at {keys[names.index(key)]}"
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    index = names.index(near[0]) if near else initials.index(key) if key in initials else None
    if index is not None:
        return f"the nearest valid key is {keys[index]}"
    here = [full.rpartition(".")[2] for full in keys if full.startswith(prefix) and prefix]
    return f"valid keys here: {', '.join(here)}" if here else "every valid key is in configs/base.yaml"


def _build(values: dict[str, Any], origin: dict[str, str], source: str) -> Config:
    missing = [key for key in _all_keys() if key not in origin]
    if missing:
        raise UserError(
            f"{source}: missing {', '.join(missing[:5])}{' ...' if missing[5:] else ''}: add it, or extend base.yaml"
        )
    config = _instance(Config, values)
    _validate(config, origin)
    return config


def _instance(schema: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(schema)
    return schema(
        **{
            key: _instance(expected, values[key]) if dataclasses.is_dataclass(expected) else values[key]
            for key, expected in hints.items()
        }
    )


def _validate(config: Config, origin: Mapping[str, str]) -> None:
    """Ranges, and what must agree across fields."""

    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
            raise UserError(f"{origin[key]}: {key}: expected {expected}, found {_show(_plain(value))}")

    model, data = config.model, config.data
    augmentation, optimizer, budget, runtime = config.augmentation, config.optimizer, config.budget, config.runtime

    require(
        bool(config.name) and all(c.isascii() and (c.isalnum() or c in "-_") for c in config.name),
        "name",
        "letters, digits, - and _",
    )
    require(0 <= config.seed < 2**32, "seed", "0 or more, below 2^32")

    for key in ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "squeeze_reduction"):
        require(getattr(model, key) >= 1, f"model.{key}", "1 or more")
    require(
        model.image_size % model.patch_size == 0,
        "model.image_size",
        f"a multiple of model.patch_size {model.patch_size}, "
        f"such as {_multiples_near(model.image_size, model.patch_size)}",
    )
    require(
        model.embed_dim % model.num_heads == 0, "model.num_heads", f"a divisor of model.embed_dim {model.embed_dim}"
    )
    require(model.mlp_ratio > 0, "model.mlp_ratio", "more than 0")
    require(0 <= model.drop_path < 1, "model.drop_path", "0 or more, below 1")
    _validate_curriculum(config, require)

    require(
        not (data.path and data.synthetic), "data.path", "null where data.synthetic is true: images are drawn or read"
    )
    require(data.eval_resize_ratio >= 1, "data.eval_resize_ratio", "1 or more")
    require(data.repeated_augmentation >= 1, "data.repeated_augmentation", "1 or more")
    require(data.epoch_multiple >= 1, "data.epoch_multiple", "1 or more")
    require(all(value > 0 for value in data.std), "data.std", "three numbers above 0")

    for key in ("flip_probability", "randaugment_probability", "erasing_probability", "cutmix_switch_probability"):
        require(0 <= getattr(augmentation, key) <= 1, f"augmentation.{key}", "0 to 1")
    for key in ("crop_scale", "crop_ratio", "erasing_scale", "erasing_ratio"):
        low, high = getattr(augmentation, key)
        limit = 1 if key.endswith("scale") else math.inf
        require(
            0 < low <= high <= limit,
            f"augmentation.{key}",
            f"[low, high] above 0, low first{', up to 1' if limit == 1 else ''}",
        )
    for key in ("randaugment_ops", "randaugment_magnitude_std", "mixup_alpha", "cutmix_alpha"):
        require(getattr(augmentation, key) >= 0, f"augmentation.{key}", "0 or more")
    require(0 <= augmentation.randaugment_magnitude <= 10, "augmentation.randaugment_magnitude", "0 to 10")
    require(0 <= augmentation.label_smoothing < 1, "augmentation.label_smoothing", "0 or more, below 1")

    require(optimizer.batch_size >= 1, "optimizer.batch_size", "1 or more")
    require(optimizer.learning_rate > 0, "optimizer.learning_rate", "more than 0")
    require(
        0 <= optimizer.min_learning_rate <= optimizer.learning_rate,
        "optimizer.min_learning_rate",
        f"0 to optimizer.learning_rate {optimizer.learning_rate}",
    )
    require(optimizer.warmup_epochs >= 0, "optimizer.warmup_epochs", "0 or more")
    if optimizer.schedule_epochs is not None:
        require(
            optimizer.schedule_epochs > optimizer.warmup_epochs,
            "optimizer.schedule_epochs",
            f"more than optimizer.warmup_epochs {optimizer.warmup_epochs}",
        )
    require(all(0 <= beta < 1 for beta in optimizer.betas), "optimizer.betas", "two numbers, 0 or more, below 1")
    require(optimizer.eps > 0, "optimizer.eps", "more than 0")
    require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
    require(0 <= optimizer.ema_decay < 1, "optimizer.ema_decay", "0 or more, below 1")

    set_limits = [key for key in ("hours", "epochs", "steps") if getattr(budget, key) is not None]
    if len(set_limits) != 1:
        where = ", ".join(f"{key} ({origin[f'budget.{key}']})" for key in set_limits) or "none"
        raise UserError(f"budget: expected exactly one of hours, epochs, steps; found {where}; set the others to null")
    require(getattr(budget, set_limits[0]) > 0, f"budget.{set_limits[0]}", "more than 0")
    require(config.evaluation.every_epochs >= 0, "evaluation.every_epochs", "0 or more")

    require(runtime.workers == "auto" or runtime.workers >= 0, "runtime.workers", "auto, or 0 or more")
    for key in ("prefetch_batches", "eval_batch_size", "log_every_steps"):
        require(getattr(runtime, key) >= 1, f"runtime.{key}", "1 or more")
    for key in ("checkpoint_minutes", "stall_minutes"):
        require(getattr(runtime, key) > 0, f"runtime.{key}", "more than 0")
    require(runtime.fault_wait_minutes >= 0, "runtime.fault_wait_minutes", "0 or more")
    require(
        not runtime.cuda_graphs or runtime.compile is not False,
        "runtime.cuda_graphs",
        "false where runtime.compile is false: what is recorded is the compiled step",
    )


def _validate_curriculum(config: Config, require: Any) -> None:
    model, curriculum = config.model, config.curriculum
    rest = ("size_step", "epochs_per_stage", "budget_fraction_per_stage")
    if curriculum.initial_size is None:
        for key in rest:
            require(getattr(curriculum, key) is None, f"curriculum.{key}", "null where curriculum.initial_size is null")
        return
    for key in ("initial_size", "size_step"):
        size = getattr(curriculum, key)
        require(
            size is not None and size >= 1 and size % model.patch_size == 0,
            f"curriculum.{key}",
            f"a multiple of model.patch_size {model.patch_size}",
        )
    require(
        curriculum.initial_size <= model.image_size,
        "curriculum.initial_size",
        f"at most model.image_size {model.image_size}",
    )
    by_epochs, by_budget = curriculum.epochs_per_stage, curriculum.budget_fraction_per_stage
    require(
        (by_epochs is None) != (by_budget is None),
        "curriculum.epochs_per_stage",
        "exactly one of it and curriculum.budget_fraction_per_stage, the other null",
    )
    if by_epochs is not None:
        require(by_epochs >= 1, "curriculum.epochs_per_stage", "1 or more")
        return
    growing_stages = schedules.growing_stages(curriculum.initial_size, curriculum.size_step, model.image_size)
    require(
        by_budget > 0 and by_budget * growing_stages < 1,
        "curriculum.budget_fraction_per_stage",
        f"above 0 and below 1/{max(growing_stages, 1)}, so that the last of {growing_stages + 1} sizes is reached",
    )


def _multiples_near(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
