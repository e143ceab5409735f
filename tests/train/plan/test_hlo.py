"""Reading a compiled program: shapes, trip counts, groups of devices, products, collectives; by hand, and against XLA's
own count."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.plan.hlo import computations_of, parse_shapes, runs
from train.plan.hlo_collectives import first_group
from train.plan.hlo_cost import summarize
from train.plan.hlo_flops import attention_kernel_flops

# Two slices of four chips. A loop that goes by twos gathers over four chips and multiplies; an asynchronous gather
# stands in two operations and is one; a fused all-reduce of which each chip keeps a part is a reduce-scatter; gradients
# go between slices.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[16,32] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,32]{1,0:T(8,128)} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %kept = f32[16,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={16,32}
}

%begun (parameter.1: bf16[16,32]) -> (bf16[16,32], bf16[64,32]) {
  %parameter.1 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.5 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%parameter.1), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %begin = (bf16[16,32]{1,0}, bf16[64,32]{1,0}) custom-call(%all-gather.5), custom_call_target="AsyncCollectiveStart"
}

%beside (parameter.2: bf16[16,32]) -> bf16[64,32] {
  %parameter.2 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.6 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%parameter.2), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

%body (carry: (u32[], bf16[8,16], bf16[16,32])) -> (u32[], bf16[8,16], bf16[16,32]) {
  %carry = (u32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/bf16[16,32]{1,0}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%carry), index=1
  %shard = bf16[16,32]{1,0} get-tuple-element(%carry), index=2
  %all-gather.1 = bf16[16,128]{1,0} all-gather(%shard), channel_id=1, replica_groups=mesh['slice'=2,'chip'=4] {'chip'}, dimensions={1}
  %product = bf16[8,128]{1,0} convolution(%x, %all-gather.1), window={}, dim_labels=bf_io->bf
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%counter, %two)
  ROOT %carried = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%next, %x, %shard)
}

%condition (carry.1: (u32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %carry.1 = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %limit = u32[]{:T(128)} constant(12)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[8,16], shard.1: bf16[16,32], gradient: f32[64,32]) -> f32[16,32] {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %shard.1 = bf16[16,32]{1,0} parameter(1)
  %gradient = f32[64,32]{1,0:T(8,128)} parameter(2)
  %four = u32[]{:T(128)} constant(4)
  %first = u32[]{:T(128)} copy(%four)
  %begins = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%first, %x.1, %shard.1)
  %loop = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,32]{1,0}) while(%begins), condition=%condition, body=%body
  %started = (bf16[16,32]{1,0}, bf16[64,32]{1,0}) fusion(%shard.1), kind=kCustom, calls=%begun
  %meanwhile = bf16[64,32]{1,0} fusion(%shard.1), kind=kOutput, calls=%beside
  %token = token[] after-all()
  %scattered = f32[16,32]{1,0:T(8,128)} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.1
  %send.1 = (f32[16,32]{1,0}, u32[], token[]) send(%scattered, %token), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %permuted = (bf16[8,16]{1,0}, bf16[8,16]{1,0}) collective-permute-start(%x.1), channel_id=8, source_target_pairs={{0,4},{4,0}}
  %far = f32[16,32]{1,0} all-reduce(%scattered), channel_id=10, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %out = f32[16,32]{1,0:T(8,128)} copy(%far)
}
"""
SLICES = [0] * 4 + [1] * 4


def test_collectives_are_counted_as_often_as_they_run_and_by_the_network_they_use():
    collectives = {
        (one["kind"], one["network"]): (one["count"], one["bytes"]) for one in summarize(PROGRAM, SLICES)["collectives"]
    }
    assert collectives == {
        ("all-gather", "ici"): (
            4 + 1,
            (4 + 1) * 16 * 32 * 2 * 3,
        ),  # the loop goes 4, 6, 8, 10; the asynchronous one is begun once
        ("reduce-scatter", "ici"): (1, 64 * 32 * 4 * 3 / 4),
        ("all-reduce", "dcn"): (2, 16 * 32 * 4 * 2 / 2 * 2),  # by the runtime (send), and as an instruction
        ("collective-permute", "dcn"): (1, 8 * 16 * 2),
    }


def test_products_in_loops_are_counted_as_often_as_they_run():
    summary = summarize(PROGRAM, SLICES)
    assert summary["loops_counted_once"] == 2 * 8 * 16 * 128 and summary["flops"] == 4 * summary["loops_counted_once"]
    assert {run.times for run in runs(PROGRAM) if run.computation.name == "body"} == {4}


@pytest.mark.parametrize(
    "condition, times",
    [("compare(%counter.1, %limit), direction=LE", 5), ("compare(%counter.1, %limit), direction=LT, metadata={}", 4)],
)
def test_trip_counts_follow_the_condition(condition, times):
    program = PROGRAM.replace("compare(%counter.1, %limit), direction=LT", condition)
    assert {run.times for run in runs(program) if run.computation.name == "body"} == {times}
    told = program.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert {run.times for run in runs(told) if run.computation.name == "body"} == {7}


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [0, 2]),
        ("replica_groups=[2,4]<=[8], use_global_device_ids=true", [0, 1, 2, 3]),
        ("replica_groups=[2,8]<=[8,2]T(1,0), dimensions={3}", [0, 2, 4, 6, 8, 10, 12, 14]),
        (
            "replica_groups=mesh['axis_0'=8,'axis_1'=2,'axis_2'=1] {'axis_0'}, dimensions={0}",
            [0, 2, 4, 6, 8, 10, 12, 14],
        ),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}", [0, 2]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", [0, 4]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={1}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}, dimensions={1}", [3, 1]),
        ("replica_groups={}, to_apply=%add", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_groups_of_devices_in_every_way_they_are_written(attributes, group):
    assert first_group(attributes, 8) == group


@pytest.mark.parametrize(
    "text, expected",
    [
        ("bf16[8,64]{1,0:T(8,128)(2,1)}", [(1024, True)]),
        (
            "(f32[2]{0:T(128)S(1)}, /*index=1*/pred[3]{0}, u32[]{:S(2)}, token[])",
            [(8, False), (3, True), (4, False), (0, True)],
        ),
        ("s4[10]{0}", [(5, True)]),
        ("f8e4m3fn[6]", [(6, True)]),
    ],
)
def test_shapes_know_their_bytes_and_memory(text, expected):
    assert [(shape.num_bytes, shape.in_hbm) for shape in parse_shapes(text)] == expected


def test_an_attention_kernel_leaves_out_the_blocks_that_its_mask_hides():
    program = """\
ENTRY %main (m: s8[1,4,4], q: bf16[2,4,2048,64], k: bf16[2,2,2048,64], v: bf16[2,2,2048,64]) -> bf16[2,4,2048,64] {
  %m = s8[1,4,4]{2,1,0} parameter(0)
  %q = bf16[2,4,2048,64]{3,2,1,0} parameter(1)
  %k = bf16[2,2,2048,64]{3,2,1,0} parameter(2)
  %v = bf16[2,2,2048,64]{3,2,1,0} parameter(3)
  ROOT %splash_mha_fwd_segmented.1 = bf16[2,4,2048,64]{3,2,1,0} custom-call(%m, %q, %k, %v), custom_call_target="tpu_custom_call"
}
"""
    main = computations_of(program)["ENTRY"]
    whole_square = 2 * 2 * (2 * 4 * 2048 * 2048 * 64)
    assert attention_kernel_flops(main, main.root, causal=False) == whole_square
    assert attention_kernel_flops(main, main.root, causal=True) == whole_square * 10 / 16  # 4 x 4 blocks of 512
    one_row = program.replace("bf16[2,", "bf16[").replace("{3,2,1,0}", "{2,1,0}")  # a chip's only row has no axis
    assert summarize(one_row, [0])["attention_flops"] == whole_square * 10 / 16 / 2
    assert summarize(program.replace("splash_mha_fwd_segmented", "mystery"), [0])["uncounted_kernels"] == ["mystery"]


@pytest.mark.parametrize("kernel, products", [("forward", 1), ("backward_by_x", 2), ("backward_by_table", 2)])
def test_a_kernel_of_the_head_computes_its_logits_and_what_it_makes_of_them(kernel, products):
    program = f"""
ENTRY %main (x: bf16[512,128], table: bf16[1024,128]) -> f32[1,512] {{
  %x = bf16[512,128]{{1,0}} parameter(0)
  %table = bf16[1024,128]{{1,0}} parameter(1)
  ROOT %linear_cross_entropy_{kernel}.3 = f32[1,512]{{1,0}} custom-call(%x, %table), custom_call_target="tpu_custom_call"
}}
"""
    found = summarize(program, [0])
    assert found["flops"] == products * 2 * 512 * 1024 * 128 and found["attention_flops"] == 0
    assert found["head_kernels"] == [f"linear_cross_entropy_{kernel}"] and not found["uncounted_kernels"]


def test_slices_are_charged_for_what_they_take():
    """A layer of a stack is read, and a layer of another is written; the chip's own memory is free."""
    program = """\
%fused (stack: f32[24,8,128], number: s32[], sums: f32[24,8,128]) -> f32[24,8,128] {
  %stack = f32[24,8,128]{2,1,0} parameter(0)
  %number = s32[] parameter(1)
  %sums = f32[24,8,128]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %layer = f32[1,8,128]{2,1,0} dynamic-slice(%stack, %number, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %twice = f32[1,8,128]{2,1,0} add(%layer, %layer)
  ROOT %update = f32[24,8,128]{2,1,0} dynamic-update-slice(%sums, %twice, %number, %zero, %zero)
}

ENTRY %main (stack.1: f32[24,8,128], number.1: s32[], sums.1: f32[24,8,128]) -> f32[24,8,128] {
  %stack.1 = f32[24,8,128]{2,1,0} parameter(0)
  %number.1 = s32[]{:S(6)} parameter(1)
  %sums.1 = f32[24,8,128]{2,1,0} parameter(2)
  %near = f32[8,128]{1,0:S(1)} broadcast(%number.1), dimensions={}
  ROOT %fusion.1 = f32[24,8,128]{2,1,0} fusion(%stack.1, %number.1, %sums.1), kind=kLoop, calls=%fused
}
"""
    assert summarize(program, [0])["hbm_bytes"] == 2 * 8 * 128 * 4


def test_products_are_counted_as_xla_counts_them():
    """Written out, where XLA's own count is right; and in a loop, where it counts the body once."""

    def layers(x, weights, scanned):
        if scanned:
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]
        for w in weights:
            x = jnp.tanh(x @ w)
        return x

    x, weights = jnp.zeros((64, 256)), jnp.zeros((5, 256, 256))
    gradient = lambda scanned: (
        jax.jit(jax.grad(lambda x, w: jnp.sum(layers(x, w, scanned)), (0, 1))).lower(x, weights).compile()
    )
    written_out, scanned = gradient(False), gradient(True)
    by_xla = written_out.cost_analysis()["flops"]
    assert summarize(written_out.as_text(), [0])["flops"] == pytest.approx(by_xla, rel=0.02)
    assert summarize(scanned.as_text(), [0])["flops"] == pytest.approx(by_xla, rel=0.02)
    assert scanned.cost_analysis()["flops"] < 0.5 * by_xla


@pytest.mark.parametrize(
    "stride, padding, left_dilation, right_dilation", [(1, (0, 0), 1, 1), (2, (3, 1), 1, 2), (1, (2, 2), 3, 1)]
)
def test_convolutions_are_counted_as_xla_counts_them(stride, padding, left_dilation, right_dilation):
    function = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (stride,), [padding], (left_dilation,), (right_dilation,)
    )
    lowered = jax.jit(function).lower(jnp.zeros((2, 3, 16)), jnp.zeros((5, 3, 4)))
    text = lowered.compiler_ir("hlo").as_hlo_text()
    entry = "ENTRY %main (x: f32[2,3,16], w: f32[5,3,4]) -> f32[1] {\n"
    lines = [
        f"  {line.strip()}" if line.strip().startswith("ROOT") else f"  %{line.strip()}"
        for line in text.splitlines()
        if " = " in line
    ]
    product = [line.replace("(x.", "(%x.").replace(", w.", ", %w.") for line in lines]
    assert summarize(entry + "\n".join(product) + "\n}\n", [0])["flops"] == pytest.approx(
        lowered.cost_analysis()["flops"], rel=1e-6
    )


def test_collectives_of_a_real_program():
    """A matrix whose shards are gathered in a loop over layers, on 8 CPU devices."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("replica", "fsdp"))
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=place(("replica", "fsdp")))
    weights = jax.ShapeDtypeStruct((5, 256, 256), jnp.float32, sharding=place(None, "fsdp"))

    def layer(x, w):
        whole = jax.lax.with_sharding_constraint(w, place())
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ whole), place(("replica", "fsdp"))), None

    compiled = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).lower(x, weights).compile()
    [gathered] = summarize(compiled.as_text(), [0] * 4 + [1] * 4)["collectives"]
    assert gathered == {"kind": "all-gather", "network": "ici", "count": 5, "bytes": 5 * math.prod((64, 256, 4)) * 3}
