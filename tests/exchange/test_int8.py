"""Weights in eight bits: how far off they are, and files that are no such files."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.int8 import quantized, read_int8, unpack_int8, write_int8

NUMBERS = st.floats(-1e6, 1e6, width=32)
MATRICES = st.tuples(st.integers(1, 5), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=NUMBERS)
)


@given(MATRICES)
@settings(max_examples=200, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(matrix):
    whole, factors = quantized(matrix)
    assert whole.dtype == np.int8 and np.abs(whole.astype(int)).max() <= 127
    back = whole.astype(np.float64) * factors[:, None]
    step = np.abs(matrix.astype(np.float64)).max(axis=1, keepdims=True) / 127
    # Factors are float32 themselves.
    assert (np.abs(back - matrix) <= step * (0.5 + 1e-4) + 1e-30).all()


def test_what_is_no_matrix_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "weight": rng.normal(size=(6, 4)).astype(np.float32),
        "bias": rng.normal(size=6).astype(np.float32),
        "three": rng.normal(size=(2, 3, 4)).astype(np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    write_int8(tmp_path / "model.safetensors", tmp_path / "model.int8.safetensors")
    found = read_int8(tmp_path / "model.int8.safetensors")
    assert found.keys() == tensors.keys()
    np.testing.assert_array_equal(found["bias"], tensors["bias"])
    np.testing.assert_array_equal(found["three"], tensors["three"])
    whole, factors = quantized(tensors["weight"])
    np.testing.assert_array_equal(found["weight"], whole.astype(np.float32) * factors[:, None])


def test_an_unpacked_file_is_made_anew_where_what_stands_beside_it_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "model"
    place.mkdir()
    save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "plain.safetensors")
    write_int8(tmp_path / "plain.safetensors", place / "model.int8.safetensors")
    (place / "config.json").write_text("{}")
    first = unpack_int8(place / "model.int8.safetensors")
    assert (first / "config.json").read_text() == "{}"
    assert unpack_int8(place / "model.int8.safetensors") == first
    (place / "config.json").write_text('{"a": 1}')
    second = unpack_int8(place / "model.int8.safetensors")
    assert second != first
    assert (second / "config.json").read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    ("tensors", "said", "message"),
    [
        ({"a": np.ones((2, 2), np.int8)}, "1", "a has no factor for each of its rows"),
        (
            {"a": np.ones((2, 2), np.int8), "a.int8_factor": np.ones(3, np.float32)},
            "1", "a has no factor",
        ),
        ({"a.int8_factor": np.ones(3, np.float32)}, "1", "belongs to no tensor"),
        ({"a": np.ones((2, 2), np.float16)}, "1", "type float16, neither int8 nor float32"),
        ({"a": np.ones((2, 2), np.float32)}, "7", "is '7'; this version reads '1'"),
        ({"a": np.ones((2, 2), np.float32)}, None, "is None"),
    ],
)  # fmt: skip
def test_files_that_say_something_else_are_refused(tmp_path, tensors, said, message):
    path = tmp_path / "model.int8.safetensors"
    save_file(tensors, path, said and {"dynarag_jax.int8": said})
    with pytest.raises(InputError, match=message):
        read_int8(path)


def test_damaged_files_and_weights_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "model.int8.safetensors"
    path.write_bytes(b"12345")
    with pytest.raises(InputError, match="no safetensors file that can be read"):
        read_int8(path)
    save_file({"a": np.full((2, 2), np.nan, np.float32)}, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match="a holds weights that are no numbers"):
        write_int8(tmp_path / "nan.safetensors", path)
    save_file({"a": np.ones((2, 2), np.float16)}, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="a has type float16, not float32"):
        write_int8(tmp_path / "half.safetensors", path)
