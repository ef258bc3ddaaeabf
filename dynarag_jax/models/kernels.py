"""Attention by the platform's flash kernel, where there is one that can compute it.

Of a decoder's trunk, which is causal, and of encoders' texts, whose positions see both ways:

- NVIDIA: cuDNN's, through ``jax.nn.dot_product_attention``: bfloat16, heads of up to 256 numbers
  (128 before Hopper), sliding windows, no soft cap.
- TPU: splash attention (``jax.experimental.pallas.ops.tpu``): sliding windows and soft caps.
- Elsewhere, and where the kernel cannot: ``attention.trunk_attention``, blocks of queries by XLA;
  of texts ``encoder_parts.attend``.

Where a mesh cuts the trunk's positions, ``parts`` calls splash and the plain attention.

No kernel ever holds the [P, P] scores. The branches' attention is the exact joint softmax of
``attention.branch_attention`` on every platform: its queries are few, and a kernel's own softmax
cannot be joined with another's without a gradient of its log-sum-exp, which cuDNN does not give.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.models.attention import ATTENDED, Window, trunk_attention
from dynarag_jax.models.config import DecoderConfig, Kernel
from dynarag_jax.sharding import axis_size, context_mesh, position_order, spec

LANES = 128
"""Positions are padded to a multiple of this for splash attention."""
SHORT = 256
"""Shorter padded texts are attended by XLA on TPUs, where their scores are few beside what the
layers' products move: the compiler finds both bound by compute."""


class KernelChoice(NamedTuple):
    """A kernel, and why it was chosen, in words for the log."""

    kernel: Kernel
    reason: str


_HOPPER = ("H20", "H100", "H200", "H800", "GH200", "B100", "B200", "B300", "GB200", "GB300")
"""NVIDIA's cards of compute capability 9 or later, where only a card's name is known."""


class Platform(NamedTuple):
    """What a choice of kernel depends on beside the model."""

    name: str
    """cuda, rocm, tpu or cpu"""
    hopper: bool = False
    """an NVIDIA GPU of compute capability 9 or later"""

    @classmethod
    def here(cls) -> Platform:
        """The platform that a program is traced for: its mesh's, or the default backend's.

        The devices of a mesh may be those of a machine that is not here, described for its
        compiler, while the default backend is the CPU.
        """
        mesh = context_mesh()
        described: Any = None if mesh is None else mesh.abstract_device
        name = getattr(described, "platform", "")
        if name and name != jax.default_backend():
            if name != "gpu":
                return cls(name)
            kind = described.device_kind
            words = kind.replace("-", " ").split()
            return (
                cls("cuda", any(w in _HOPPER for w in words)) if "NVIDIA" in words else cls("rocm")
            )
        device = jax.devices()[0]
        if device.platform != "gpu":
            return cls(device.platform)
        if "cuda" not in getattr(device.client, "platform_version", ""):
            return cls("rocm")
        return cls("cuda", float(device.compute_capability) >= 9)


def choose(cfg: DecoderConfig, platform: Platform | None = None, parts: int = 1) -> KernelChoice:
    """The kernel for a model's trunk attention: as configured, or the platform's where it can.

    Args:
      platform: None is ``Platform.here()``.
      parts: of a trunk's positions, over the mesh's sequence axis.

    Raises:
      InputError: the configured kernel cannot compute this model, or does not exist here.
    """
    platform = platform or Platform.here()
    own: dict[str, Kernel] = {"cuda": "cudnn", "tpu": "splash"}
    wanted = own.get(platform.name, "plain") if cfg.attention == "auto" else cfg.attention
    why = ""
    if wanted == "cudnn":
        why = _against_cudnn(cfg, platform, parts)
    elif wanted == "splash":
        # On other platforms a configured splash attention runs interpreted: slow, for tests.
        why = "" if cfg.head_size % 64 == 0 or platform.name != "tpu" else _odd_heads(cfg, 64)
    if why and cfg.attention != "auto":
        raise InputError(f"attention '{wanted}' cannot be used: {why}; 'auto' takes what can")
    if why:
        return KernelChoice(
            "plain", f"attention by XLA in blocks of queries, not by {wanted}: {why}"
        )
    names = {
        "cudnn": "attention of the trunk by cuDNN's flash kernel",
        "splash": "attention of the trunk by splash attention",
        "plain": "attention by XLA in blocks of queries",
    }
    branches = "" if wanted == "plain" else ", branches by XLA"
    return KernelChoice(wanted, f"{names[wanted]}{branches}")


def _odd_heads(cfg: DecoderConfig, multiple: int) -> str:
    return f"heads of {cfg.head_size} numbers are no multiple of {multiple}"


def _against_cudnn(cfg: DecoderConfig, platform: Platform, parts: int) -> str:
    if platform.name != "cuda":
        return f"it needs an NVIDIA GPU, and this is {platform.name}"
    if cfg.dtype != "bfloat16":
        return f"it computes bfloat16, and the model's dtype is {cfg.dtype}"
    if cfg.score_cap is not None:
        return f"it has no soft cap, and the model caps its scores at {cfg.score_cap}"
    if parts > 1:
        return f"its masks know of no prompts cut in parts, and mesh.sequence is {parts}"
    if cfg.head_size % 8:
        return _odd_heads(cfg, 8)
    most = 256 if platform.hopper else 128
    if cfg.head_size > most:
        return f"heads of {cfg.head_size} numbers are larger than {most}"
    return ""


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: Window,
    cap: float | None,
    kernel: Kernel,
    reach: int | None = None,
) -> jax.Array:
    """Causal attention of the trunk over itself, as ``attention.trunk_attention``, by a kernel.

    Args:
      q: [B, P, H, K], already scaled; k, v: [B, P, G, K]; lengths: [B].
      window: a number, None, or, where layers of a scan differ, an array that is ``reach`` or
        larger than any position.
      kernel: of ``choose``.
      reach: the window of windowed layers.

    Returns:
      [B, P, H, K]; positions at or beyond ``lengths`` hold finite values of no meaning.
    """
    if kernel == "plain":
        return trunk_attention(q, k, v, lengths, window, cap)
    run: Any = _cudnn if kernel == "cudnn" else _splash
    run = functools.partial(run, cap=cap)
    return _on_each_device(run, q, k, v, lengths, window, reach, ("heads", "kv_heads"))


def _on_each_device(
    run: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: Window,
    reach: int | None,
    heads: tuple[str | None, str | None],
) -> jax.Array:
    """A kernel over each device's own rows and heads; it is opaque to the partitioner.

    Args:
      heads: logical axes of the queries' and of the keys' heads; None where every device that has
        the rows computes all of them.
    """
    static = window is None or isinstance(window, int | np.integer)

    def here(q: Any, k: Any, v: Any, lengths: Any, window: Any) -> jax.Array:
        if static:
            return run(q, k, v, lengths, None if window is None else int(window))
        # A kernel's window is part of its program: both are compiled, and the layer picks.
        return jax.lax.cond(
            window > (reach or 0),
            lambda q, k, v, lengths: run(q, k, v, lengths, None),
            lambda q, k, v, lengths: run(q, k, v, lengths, reach),
            q, k, v, lengths,
        )  # fmt: skip

    if context_mesh() is None:
        return here(q, k, v, lengths, window)
    # Rows that the devices do not share evenly are computed by each.
    rows = "batch" if len(lengths) % axis_size("batch") == 0 else None
    queries, keys = (spec((rows, None, axis, None)) for axis in heads)
    call = jax.shard_map(
        functools.partial(here, window=window) if static else here,
        in_specs=(queries, keys, keys, spec((rows,)), *([] if static else [spec(())])),
        out_specs=queries,
        check_vma=False,
    )
    return call(q, k, v, lengths, *([] if static else [window]))


def choose_for_texts(
    dtype: str, size: int, length: int, windows: bool, platform: Platform | None = None
) -> Kernel:
    """The kernel for attention within texts.

    Args:
      dtype: of what is attended; ``size``: numbers of a head; ``length``: of the padded texts.
      windows: whether some layers see so far only to either side, which cuDNN does not know but of
        causal attention.
      platform: None is ``Platform.here()``.
    """
    platform = platform or Platform.here()
    if platform.name == "tpu" and length >= SHORT:
        return "splash"
    cudnn = dtype == "bfloat16" and size % 8 == 0 and size <= 128 and not windows
    return "cudnn" if platform.name == "cuda" and cudnn else "plain"


def attend_within(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: Window,
    kernel: Kernel,
    reach: int | None = None,
) -> jax.Array:
    """Attention of texts over themselves, both ways, by a kernel.

    Args:
      q, k, v: [B, T, H, K], q already scaled; lengths: [B].
      window: positions seen to either side, None for cuDNN; else as of ``attend``.
      kernel: of ``choose_for_texts``, and not ``plain``.

    Returns:
      [B, T, H, K]; positions at or beyond ``lengths`` hold finite values of no meaning.
    """
    run: Any = _cudnn if kernel == "cudnn" else _splash
    run = functools.partial(run, cap=None, causal=False)
    _, length, _, size = q.shape
    # cuDNN has no gradients of odd lengths, and splash no heads of other sizes.
    more = (-length % 2, 0) if kernel == "cudnn" else (0, -size % 64)
    if any(more):
        wide = [(0, 0), (0, more[0]), (0, 0), (0, more[1])]
        q, k, v = (jnp.pad(x, wide) for x in (q, k, v))
    out = _on_each_device(run, q, k, v, lengths, window, reach, (None, None))
    return out[:, :length, :, :size]


def _cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: int | None,
    cap: Any,
    causal: bool = True,
) -> jax.Array:
    del cap  # refused by ``choose``
    lengths = jnp.maximum(lengths, 1).astype(jnp.int32)
    real = (jnp.arange(q.shape[1]) < lengths[:, None])[..., None, None]
    # What the kernel leaves in rows of padding is unspecified, in gradients, too: keep it out.
    q, k, v = (jnp.where(real, x, 0) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v,
        scale=1.0,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )  # fmt: skip
    return jnp.where(real, out, 0)


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    window: int | None,
    cap: float | None,
    causal: bool = True,
) -> jax.Array:
    padded = -(-q.shape[1] // LANES) * LANES
    kernel = splash_tables(q.shape[2], padded, window, cap, causal=causal)
    return splash_call(kernel, q, k, v, jnp.arange(padded), lengths)


def splash_call(
    kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, at: jax.Array, lengths: jax.Array
) -> jax.Array:
    """A kernel of ``splash_tables`` over queries at positions ``at`` and keys from 0 on.

    Args:
      q: [B, T, H, K], already scaled; k, v: [B, P, G, K]; at: [T], or more for padding; lengths:
        [B].

    Returns:
      [B, T, H, K].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    count = q.shape[1]
    q, k, v = (
        jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0)]).swapaxes(1, 2)
        for x in (q, k, v)
    )
    at = jnp.pad(at, (0, q.shape[2] - len(at)), mode="edge")
    # Padding is a segment of its own: its queries see its keys, and stay finite.
    own, every = ((x < lengths[:, None]).astype(jnp.int32) for x in (at, jnp.arange(k.shape[2])))
    out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(own, every))
    return out.swapaxes(1, 2)[:, :count].astype(v.dtype)


def splash_tables(
    heads: int,
    length: int,
    window: int | None,
    cap: float | None,
    parts: int = 1,
    causal: bool = True,
) -> Any:
    """Splash attention for prompts of a length, with the tables of its mask.

    Args:
      heads, length: of the queries on one device, and of a whole prompt.
      parts: into how many positions are cut, in the order of ``sharding.position_order``; the
        tables are then those of every part, side by side.
      causal: or both ways, where a window is to either side.
    """
    interpret = Platform.here().name != "tpu"
    return _splash_kernel(heads, length, window, cap, interpret, parts, causal)


@functools.lru_cache(maxsize=64)
def _splash_kernel(
    heads: int,
    length: int,
    window: int | None,
    cap: float | None,
    interpret: bool,
    parts: int,
    causal: bool,
) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    # The positions of the queries, padded on each device.
    at = position_order(length, parts).reshape(parts, -1)
    at = np.pad(at, [(0, 0), (0, -at.shape[1] % LANES)], mode="edge")
    keys = -(-length // LANES) * LANES
    shape = (at.size, keys)
    mask: Any = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0) if causal else (window, window), 0)
    if causal or window is not None:
        mask.q_sequence = at.reshape(-1).astype(np.int32)
    block, over = (
        next(size for size in (512, 256, LANES) if count % size == 0)
        for count in (at.shape[1], keys)
    )

    def make() -> Any:
        return splash.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=over, block_kv_compute=over,
                block_q_dkv=block, block_kv_dkv=over, block_kv_dkv_compute=over,
                block_q_dq=block, block_kv_dq=over,
            ),
            head_shards=1,
            q_seq_shards=parts,
            residual_checkpoint_name=ATTENDED,
            attn_logits_soft_cap=cap,
            interpret=interpret,
        )  # fmt: skip

    # The mask's tables become arrays on the default device. Those of a trace would be values of the
    # program that asks first, and those of a mesh lie on devices that may be described only; a
    # thread of its own has neither, and constants in NumPy serve every program.
    with ThreadPoolExecutor(1) as alone:
        kernel = alone.submit(make).result()
    return jax.tree.map(np.asarray, kernel)
