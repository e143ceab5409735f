"""Every implementation of the window coder's steps against Python's own integers, and the walks that they make."""

import functools
import importlib.util
import itertools
import json
import pathlib
import random
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokenizer_lab.kernels.window_coder import PRODUCTION_SHAPES, decode_step, encode_step, pallas_tpu, reference


def new_steps(implementation: str) -> tuple:
    """Both steps of an implementation, compiled anew."""
    if implementation == "reference":
        return tuple(jax.jit(functools.partial(step)) for step in (reference.encode_step, reference.decode_step))
    steps = pallas_tpu.encode_step, pallas_tpu.decode_step
    return tuple(jax.jit(functools.partial(step, interpret=True)) for step in steps)


STEPS = {name: new_steps(name) for name in ("reference", "pallas")}
every_implementation = pytest.mark.parametrize("implementation", STEPS)
# Walks are as wide as one of the steps' shapes, so that nothing is compiled for them.
WALK_SHAPES = [(16, 300), (32, 129), (64, 127), (128, 127)]
# Bits and streams: every width; one stream, ragged blocks, several blocks.
every_shape = pytest.mark.parametrize("window_bits, num_streams", [(16, 1), (32, 3), *WALK_SHAPES])
VMEM_BYTES = {"v5e": 128 << 20, "v6e": 128 << 20, "v5p": 64 << 20, "tpu7x": 64 << 20}


def divide(shares: list[int], span: int, window_bits: int) -> list[int]:
    """The points of the 256 bytes at a node of span + 1 points, by the rule's own words."""
    at_root = span == 2**window_bits - 1
    points_left = 2**window_bits - 256 if at_root else span
    points = [points_left * share // 2**16 for share in shares]
    by_remainder = sorted(range(256), key=lambda byte: (-(points_left * shares[byte] % 2**16), byte))
    for byte in by_remainder[: points_left - sum(points)]:
        points[byte] += 1
    return [n + 1 for n in points] if at_root else points


def children(shares: list[int], span: int, low: int, window_bits: int) -> list[tuple[int, int]]:
    """The span and the low of every byte's child; a span of -1 where there is none."""
    points, first = divide(shares, span, window_bits), low + (span != 2**window_bits - 1)
    lows = itertools.accumulate(points[:-1], initial=first)
    return [(num_points - 1, child_low) for num_points, child_low in zip(points, lows, strict=True)]


def to_limbs(numbers: list[int], window_bits: int) -> jax.Array:
    return jnp.asarray(np.array([[n >> k & 0xFFFF for n in numbers] for k in range(0, window_bits, 16)], np.uint32))


def from_limbs(number_kn: jax.Array) -> list[int]:
    assert number_kn.dtype == jnp.uint32
    return [sum(limb << 16 * k for k, limb in enumerate(column)) for column in np.asarray(number_kn).T.tolist()]


def to_shares(columns: list[list[int]]) -> jax.Array:
    return jnp.asarray(np.array(columns, np.int32).T)


def random_shares(rng: random.Random) -> list[int]:
    """256 integers of sum 2**16: of a few sizes (so that remainders tie), or spread over orders of magnitude."""
    kind = rng.choice(["uniform", "certain", "two sizes", "spread"])
    if kind == "uniform":
        return [256] * 256
    shares = [1] * 256
    if kind == "certain":
        shares[rng.randrange(256)] = 2**16 - 255
        return shares
    if kind == "two sizes":
        shares = [128] * 128 + [384] * 128
        rng.shuffle(shares)
        return shares
    weights = [rng.random() ** 20 for _ in shares]
    shares = [1 + int((2**16 - 256) * weight / sum(weights)) for weight in weights]
    shares[rng.randrange(256)] += 2**16 - sum(shares)
    return shares


def random_nodes(window_bits: int, num_nodes: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Shares, spans and lows: leaves, the smallest nodes, nodes of every size, the root and the one just below it."""
    rng = random.Random(window_bits * num_nodes)
    largest = 2**window_bits - 1
    special = [largest, largest - 1, 0, 1, 2, 255, 256, 2**16 - 1, 2**16 % largest]
    spans = [special[i] if i < len(special) else rng.getrandbits(rng.randint(1, window_bits)) for i in range(num_nodes)]
    lows = [rng.randint(0, largest - span) for span in spans]
    return [random_shares(rng) for _ in spans], spans, lows


@every_implementation
@every_shape
def test_encode_step(implementation, window_bits, num_streams):
    shares, spans, lows = random_nodes(window_bits, num_streams)
    rng = random.Random(0)
    bytes_ = [rng.choice([0, 255, rng.randrange(256), column.index(max(column))]) for column in shares]
    limbs = functools.partial(to_limbs, window_bits=window_bits)
    fits, new_span, new_low = STEPS[implementation][0](
        to_shares(shares), limbs(spans), limbs(lows), jnp.array(bytes_, jnp.int32)
    )
    assert fits.dtype == jnp.bool_
    actual = list(zip(fits.tolist(), from_limbs(new_span), from_limbs(new_low), strict=True))
    for result, column, span, low, byte in zip(actual, shares, spans, lows, bytes_, strict=True):
        child_span, child_low = children(column, span, low, window_bits)[byte]
        expected = (True, child_span, child_low) if child_span >= 0 else (False, span, low)
        assert result == expected, (span, low, byte)


@every_implementation
def test_the_programs_as_they_ship(as_shipped, monkeypatch, implementation):
    monkeypatch.setitem(STEPS, implementation, new_steps(implementation))
    test_encode_step(implementation, 32, 3)
    test_decode_step(implementation, 32, 3)


@every_implementation
@every_shape
def test_decode_step(implementation, window_bits, num_streams):
    shares, spans, lows = random_nodes(window_bits, num_streams)
    rng = random.Random(0)
    points = [low + rng.choice([0, 0, 1, span, rng.randint(0, span)]) % (span + 1) for span, low in zip(spans, lows)]
    limbs = functools.partial(to_limbs, window_bits=window_bits)
    byte, new_span, new_low = STEPS[implementation][1](to_shares(shares), limbs(spans), limbs(lows), limbs(points))
    assert byte.dtype == jnp.int32
    actual = list(zip(byte.tolist(), from_limbs(new_span), from_limbs(new_low), strict=True))
    for result, column, span, low, point in zip(actual, shares, spans, lows, points, strict=True):
        nodes = enumerate(children(column, span, low, window_bits))
        holds_point = [(byte, *child) for byte, child in nodes if child[1] <= point <= child[0] + child[1]]
        assert [result] == (holds_point or [(-1, span, low)]), (span, low, point)


@pytest.mark.parametrize("implementation, window_bits", [("reference", 16), ("reference", 64), ("pallas", 128)])
def test_the_children_tile_their_node_and_are_found_again(implementation, window_bits):
    """The 256 children of eleven nodes at once, without a look at the rule that sizes them."""
    encode, decode = STEPS[implementation]
    limbs = functools.partial(to_limbs, window_bits=window_bits)
    columns, node_spans, node_lows = random_nodes(window_bits, 11)
    shares, span_kn, low_kn = (
        jnp.repeat(x, 256, axis=1) for x in (to_shares(columns), limbs(node_spans), limbs(node_lows))
    )
    bytes_ = np.tile(np.arange(256, dtype=np.int32), len(node_spans))
    fits, child_spans, child_lows = encode(shares, span_kn, low_kn, jnp.array(bytes_))
    fits, child_spans, child_lows = fits.tolist(), from_limbs(child_spans), from_limbs(child_lows)

    for i, (span, low) in enumerate(zip(node_spans, node_lows)):
        begin = low if span == 2**window_bits - 1 else low + 1
        for stream in range(256 * i, 256 * (i + 1)):
            if fits[stream]:
                assert child_lows[stream] == begin, (span, low, bytes_[stream])
                begin += child_spans[stream] + 1
        assert begin == low + span + 1

    for points in (child_lows, [span + low for span, low in zip(child_spans, child_lows)]):
        found, found_spans, found_lows = decode(shares, span_kn, low_kn, limbs(points))
        found_nodes = zip(found.tolist(), from_limbs(found_spans), from_limbs(found_lows))
        for fit, *expected, found_node in zip(fits, bytes_, child_spans, child_lows, found_nodes):
            assert not fit or tuple(expected) == found_node


@every_implementation
def test_ties_go_to_the_lower_byte(implementation):
    """Points by hand: who gets what is left over by rounding down."""
    two_sizes = [1] * 252 + [16321] * 4
    cases = [  # shares, span, and the points of bytes 0, 1, 2, 3, 252, 253, 254 and 255
        ([256] * 256, 3, [1, 1, 1, 0, 0, 0, 0, 0]),
        ([256] * 256, 257, [2, 1, 1, 1, 1, 1, 1, 1]),
        ([256] * 256, 511, [2, 2, 2, 2, 2, 2, 2, 1]),
        (two_sizes, 1, [0, 0, 0, 0, 1, 0, 0, 0]),  # remainders are the shares
        (two_sizes, 6, [0, 0, 0, 0, 2, 2, 1, 1]),  # 6 * 16321 = 1 * 2**16 + 32390
        (two_sizes, 2**16, [1, 1, 1, 1, 16321, 16321, 16321, 16321]),  # nothing is left over
    ]
    bytes_ = [0, 1, 2, 3, 252, 253, 254, 255]
    shares, spans = ([case[i] for case in cases for _ in bytes_] for i in (0, 1))
    fits, span, _ = STEPS[implementation][0](
        to_shares(shares),
        to_limbs(spans, 32),
        to_limbs([7] * len(spans), 32),
        jnp.array(bytes_ * len(cases), jnp.int32),
    )
    points = [fit * (span + 1) for fit, span in zip(fits.tolist(), from_limbs(span), strict=True)]
    assert points == [n for *_, expected in cases for n in expected]


@every_implementation
@pytest.mark.parametrize("window_bits, num_streams", WALK_SHAPES)
def test_a_walk_there_and_back(implementation, window_bits, num_streams):
    """Texts from the root until their windows close, and the bytes again from the points where they ended."""
    encode, decode = STEPS[implementation]
    rng = random.Random(window_bits)
    max_bytes = 48
    language_model = np.array([random_shares(rng) for _ in range(256)], np.int32)  # the next byte's shares by the last

    def shares_of(prefixes):
        return jnp.array(language_model[[prefix[-1] if prefix else 0 for prefix in prefixes]].T)

    def next_byte(prefix):  # what the model likes, most of the time
        likely = language_model[prefix[-1] if prefix else 0].tolist()
        return rng.choices(range(256), likely)[0] if rng.random() < 0.9 else rng.randrange(256)

    texts = []
    for _ in range(num_streams):
        text = b""
        while len(text) < max_bytes and rng.random() < 0.96:
            text += bytes([next_byte(text)])
        texts.append(text)

    root = to_limbs([2**window_bits - 1] * num_streams, window_bits), to_limbs([0] * num_streams, window_bits)
    (span, low), prefixes, ends = root, [b""] * num_streams, [""] * num_streams
    for position in range(max_bytes + 1):
        ends = [end or "text" * (position == len(text)) for end, text in zip(ends, texts)]
        bytes_ = [0 if end else text[position] for end, text in zip(ends, texts)]
        fits, new_span, new_low = encode(shares_of(prefixes), span, low, jnp.array(bytes_, jnp.int32))
        goes = [fit and not end for fit, end in zip(fits.tolist(), ends)]
        span, low = jnp.where(jnp.array(goes), new_span, span), jnp.where(jnp.array(goes), new_low, low)
        prefixes = [prefix + bytes([byte]) * go for prefix, byte, go in zip(prefixes, bytes_, goes)]
        leaf = [s == 0 for s in from_limbs(span)]
        ends = [end or (not go and "stop") or is_leaf * "leaf" for end, go, is_leaf in zip(ends, goes, leaf)]
    assert all(ends) and len(set(ends)) == 3, "the texts should end in every way that there is"
    assert all(text.startswith(prefix) for text, prefix in zip(texts, prefixes))

    # A text of nothing has no point of its own, as the root has no STOP.
    (span, node_low), point, decoded = root, low, [b""] * num_streams
    ended = [not prefix for prefix in prefixes]
    for _ in range(max_bytes + 1):
        byte, span, node_low = decode(shares_of(decoded), span, node_low, point)
        ended = [end or b < 0 for end, b in zip(ended, byte.tolist())]
        decoded = [text + bytes([] if end else [b]) for text, b, end in zip(decoded, byte.tolist(), ended)]
        ended = [end or s == 0 for end, s in zip(ended, from_limbs(span))]
    assert all(ended) and decoded == prefixes


@pytest.mark.parametrize("window_bits, num_streams", PRODUCTION_SHAPES)
def test_the_vmem_budget_fits_every_chip(window_bits, num_streams):
    budget = pallas_tpu.vmem_bytes(window_bits // 16, num_streams)
    shares_block = 4 * 256 * pallas_tpu.block_streams(num_streams)
    assert 2 * shares_block < budget <= pallas_tpu.VMEM_LIMIT_BYTES
    assert pallas_tpu.VMEM_LIMIT_BYTES <= min(VMEM_BYTES.values()) // 4


@pytest.mark.parametrize("num_streams, expected", [(1, 128), (128, 128), (129, 256), (256, 256), (4096, 256)])
def test_blocks_are_whole_lanes(num_streams, expected):
    assert pallas_tpu.block_streams(num_streams) == expected


def step_arguments(step, window_bits=32, num_streams=256):
    """Abstract arguments of `encode_step` or `decode_step`."""
    number = jax.ShapeDtypeStruct((window_bits // 16, num_streams), jnp.uint32)
    byte = jax.ShapeDtypeStruct((num_streams,), jnp.int32)
    shares = jax.ShapeDtypeStruct((256, num_streams), jnp.int32)
    return shares, number, number, byte if step is encode_step else number


@pytest.mark.parametrize("step", [encode_step, decode_step], ids=lambda step: step.__name__)
@pytest.mark.parametrize(
    "platform, implementation, is_kernel",
    [("cpu", "auto", False), ("tpu", "auto", True), ("tpu", "reference", False), ("tpu", "pallas", True)],
)
def test_the_platform_chooses_unless_told(step, platform, implementation, is_kernel):
    traced = step.trace(*step_arguments(step), implementation=implementation)
    assert ("tpu_custom_call" in traced.lower(lowering_platforms=(platform,)).as_text()) == is_kernel


@pytest.mark.parametrize("step", [encode_step, decode_step], ids=lambda step: step.__name__)
def test_operands_of_other_shapes_are_refused(step):
    shares, span, low, operand = step_arguments(step)
    three_limbs = step_arguments(step, window_bits=48)
    signed = jax.ShapeDtypeStruct(span.shape, jnp.int32)
    fewer = step_arguments(step, num_streams=255)
    for arguments in (
        three_limbs,
        (shares, signed, low, operand),
        (shares, span, signed, operand),
        (fewer[0], span, low, operand),
        (shares, span, fewer[2], operand),
        (shares, span, low, fewer[3]),
    ):
        with pytest.raises(AssertionError):
            step.trace(*arguments)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'tokenizer-lab[tpu]'",
)
@pytest.mark.parametrize(
    "topologies",
    [("v5e:2x2", "v6e:2x2"), pytest.param(("v5p:2x2x1", "tpu7x:2x2x1"), marks=pytest.mark.slow)],
    ids="-".join,
)
def test_the_kernels_compile_for_tpus(topologies):
    """Every production shape, ahead of time and within the VMEM budget; nothing runs."""
    script = pathlib.Path(__file__).with_name("window_coder_compile.py")
    result = subprocess.run([sys.executable, script, *topologies], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    by_topology = json.loads(result.stdout.splitlines()[-1])
    for topology in topologies:
        programs = by_topology[topology]
        assert {(program["window_bits"], program["num_streams"]) for program in programs} == set(PRODUCTION_SHAPES)
        assert {program["step"] for program in programs} == {"encode_step", "decode_step"}
        for program in programs:
            assert program["tpu_custom_calls"] == 1, (topology, program)
            assert program["temp_bytes"] < 2**18, (topology, program)  # the shares of 256 streams
