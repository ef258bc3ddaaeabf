"""What every stage of a run shares: where it writes, its seed, its devices, prompts and types.

A stage's own configuration stands in its file in ``stages``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeVar

from dynarag_jax.errors import InputError
from dynarag_jax.prompts import PromptConfig

INHERITED: Any = None
"""Default of a stage's field that the run sets for all of its stages; see ``inherit``."""

T = TypeVar("T")

MorePassages = Literal["windows", "show_first", "set_aside"]
"""What becomes of a question with more candidates than a prompt shows, ``prompts.ids``."""

SAME_RESULT = "changes nothing of the result"
SameResult = Annotated[T, SAME_RESULT]
"""Type of a field on which a stage's result does not depend: changed, the stage still stands."""


@dataclass(frozen=True)
class Mesh:
    """Sizes of the device mesh; their product is the number of devices."""

    data: int = -1
    """copies of the model that share a batch; -1 takes the devices that are left"""
    fsdp: int = 1
    """devices that share each copy's weights and its part of the batch"""
    tensor: int = 1
    """devices that share heads, MLP width and vocabulary"""
    sequence: int = 1
    """devices that share each prompt in training, by its positions, and weights as ``fsdp`` does;
    what samples, scores or embeds takes it as more of ``fsdp``"""
    slices: int = 0
    """groups of devices joined by a slower network, which only ``data`` is spread over; 0 takes the
    slices of TPUs, and one group elsewhere"""

    def __post_init__(self) -> None:
        if self.slices < 0:
            raise InputError(f"mesh.slices = {self.slices} must not be negative")
        sizes = (self.data, self.fsdp, self.tensor)
        if self.sequence != 1:
            sizes = (self.data, self.fsdp, self.sequence, self.tensor)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise InputError(f"mesh {sizes}: sizes are positive, at most one of them is -1")


@dataclass(frozen=True)
class Run:
    """A run: one directory, one seed, one mesh for all of its stages."""

    directory: str
    """everything the run writes lies here, each stage in a directory of its name"""
    seed: int = 0
    """same seed, same configuration, same inputs, same devices: same bytes"""
    mesh: Mesh = Mesh()
    prompts: PromptConfig = PromptConfig()
    """prompts of all stages that set none of their own"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type in which stages that sample and score compute, unless they set their own; training
    takes ``model.dtype``"""
    more_passages: MorePassages = "windows"
    """questions with more passages than ``prompts.ids``: windows over all of them where lists are
    written, their first ones where lists are learned or sampled (counted, and said); or their first
    ones everywhere; or set aside everywhere"""
    cpu_devices: int = 0
    """devices simulated where JAX runs on the CPU; 0 takes one per core, two at most"""
    compilation_cache: str = ""
    """directory of compiled programs; empty is the user's cache directory, 'off' keeps none"""
    token_cache: str = ""
    """directory of tokenized prompts, shared by stages; empty is the run's, 'off' keeps none"""
    tensorboard: bool = False
    """also write metrics for TensorBoard, into the stages' directories"""
    wandb: str = ""
    """Weights & Biases project that metrics are sent to as well; empty sends none"""
    keep_previous: int = 3
    """finished results of a stage kept beside the one that stands, when it is made anew; the oldest
    beyond are removed once a new one has finished, and the log says so; 0 keeps all"""
    peak_flops: float = 0.0
    """operations a second of one device, for the utilization; 0 takes the maker's figure for
    accelerators that are known, and reports none for others"""

    def __post_init__(self) -> None:
        if not self.directory:
            raise InputError("run.directory is empty; name the directory the run writes to")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"run.seed = {self.seed} must lie in [0, 2**32)")
        if self.keep_previous < 0:
            raise InputError(f"run.keep_previous = {self.keep_previous} must not be negative")
        if self.peak_flops < 0:
            raise InputError(f"run.peak_flops = {self.peak_flops} must not be negative")
        if self.cpu_devices < 0:
            raise InputError(f"run.cpu_devices = {self.cpu_devices} must not be negative")


def inherit(run: Run, stage: T) -> T:
    """The stage's configuration with what it leaves to the run filled in."""
    names = {field.name for field in fields(stage)}  # type: ignore[arg-type]
    given = {"prompts": run.prompts, "dtype": run.dtype, "more_passages": run.more_passages}
    left = {n: v for n, v in given.items() if n in names and getattr(stage, n) is INHERITED}
    return replace(stage, **left) if left else stage  # type: ignore[type-var]
