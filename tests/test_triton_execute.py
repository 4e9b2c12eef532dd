"""What Triton compiles of kernels, executed on a CPU: it is what the reference computes, as is what is interpreted."""

import numpy as np
import pytest
import torch

from fastdream.ops.triton.layers import WHOLE

from . import triton_cases, triton_earlier
from .parity_tools import FLOOR
from .ptx_machine import BASE, Memory, Threads
from .ptx_text import parse
from .test_triton import HERE
from .test_triton_compile import run
from .triton_cases import FULL_PRECISION

GPUS = "80", "90"
PRECISIONS = "float32", "bfloat16"
CASES = (
    ("90", "float32", "norm_act", ("rms-silu", "layer-elu")),
    ("90", "float32", "categorical_kl", ("mean-1.0-0.01",)),
    ("90", "float32", "mlp", ("rms-silu",)),
    ("90", "float32", "observe", ("block-classes-False",)),
    ("90", "float32", "imagine", ("gru-softplus-mixed-True", "gru_block_cell-softplus-mixed-True")),
    ("90", "float32", "policy_step", ("block-classes-mixed-True",)),
    ("80", "float32", "laprop_", ("0.3-True-False-0.1",)),
    ("80", "float32", "lstm_mdn_step", ("True-1.0",)),
    ("80", "bfloat16", "observe", ("block-classes-False",)),
    ("80", "bfloat16", "imagine", ("block-classes-mixed",)),
    ("90", "bfloat16", "imagine_step", ("block-classes@1m",)),  # of 1,024 rows, for which it takes wgmma
)
# What has weights, norms or pictures, whose tiles depend on how wide they are.
SIZED = "norm_act", "conv_pool", "conv_spread", "mlps", "prior", "observe_step", "imagine_step", "policy_step"
# Where the truth is on the other side of a limit, which no rule for errors allows for.
CUT = {
    ("bfloat16", "conv_pool", "4-layer-relu"): "the convolution rounds otherwise, and a maximum passes zero",
}


def check(capability: str, precision: str, op: str, names: tuple[str, ...]) -> None:
    floor = FLOOR[getattr(torch, precision)]
    for name, found in zip(names, run("triton_execute", capability, precision, op, *names), strict=True):
        assert found
        for i, (ours, theirs, largest) in enumerate(found):
            assert ours <= 3 * theirs + floor * (1 + largest), (name, i, ours, theirs, largest)


@pytest.mark.parametrize(("capability", "precision", "op", "names"), CASES)
def test_compiled_code_agrees_with_reference(
    capability: str, precision: str, op: str, names: tuple[str, ...]
):
    check(capability, precision, op, names)


@pytest.mark.slow
def test_compiled_code_of_rows_in_pieces_agrees_with_reference():
    check("90", "float32", "norm_act", tuple(f"{name}@{WHOLE + 1}" for name in ("rms-silu", "layer-elu")))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize("op", HERE)
def test_compiled_code_of_every_case_agrees_with_reference(op: str, capability: str, precision: str):
    if precision != "float32" and op in FULL_PRECISION:
        pytest.skip("it computes in float32 alone")
    check(capability, precision, op, tuple(name for name in HERE[op] if (precision, op, name) not in CUT))


@pytest.mark.slow
@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize(("op", "preset"), [(op, preset) for preset in triton_cases.PRESETS for op in SIZED])
def test_compiled_code_of_every_size_agrees_with_reference(op: str, preset: str, capability: str):
    """As agents compute on a GPU. Those of one size alone are under the first one."""
    every = triton_cases.names(precisions=(torch.bfloat16,))
    names = tuple(f"{case}@{size}" for found, case, size, _ in every if (found, size) == (op, preset))
    if not names:
        pytest.skip("it computes the same at every size")
    check(capability, "bfloat16", op, names)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize("name", triton_earlier.dreams())
def test_compiled_code_of_dreams_that_are_learned_from_agrees_with_reference(
    name: str, capability: str, precision: str
):
    check(capability, precision, "imagine", (f"{name}@1m",))


PROGRAM = """
.visible .entry add(
	.param .u64 .ptr .global .align 1 add_param_0,
	.param .u32 add_param_1
)
{
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<4>;
	ld.param.b64 	%rd1, [add_param_0];
	ld.param.b32 	%r1, [add_param_1];
	mov.u32 	%r2, %tid.x;
	mul.wide.u32 	%rd2, %r2, 4;
	add.s64 	%rd3, %rd1, %rd2;
	setp.lt.u32 	%p1, %r2, 40;
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r1, %r1, 1;
$L__BB0_2:
	ld.global.b32 { %r3 }, [ %rd3 + 0 ];
	shfl.sync.bfly.b32 	%r4, %r3, 1, 31, -1;
	add.s32 	%r5, %r4, %r1;
	OPCODE [ %rd3 + 0 ], { %r5 };
	ret;
}
"""


def execute(opcode: str) -> np.ndarray:
    """64 threads swap with their neighbours and add 7, from the fortieth on 8, to the first 64 of 65 numbers."""
    memory = Memory(65 * 4, BASE)
    memory.views[4][:65] = np.arange(65)
    memory.known[64 * 4 :] = False
    program = parse(PROGRAM.replace("OPCODE", opcode))
    Threads(program, memory, 64, 0, [BASE, 7], [(0, 0, 0)], (1, 1, 1)).run()
    return memory.views[4][:65]


def test_threads_part_meet_and_exchange():
    order = np.arange(64) ^ 1
    expected = order + np.where(np.arange(64) < 40, 7, 8)
    np.testing.assert_array_equal(execute("st.global.b32"), [*expected, 64])


def test_what_is_wrong_is_an_error():
    with pytest.raises(NotImplementedError, match=r"frob.global.b32"):
        execute("frob.global.b32")
    source = PROGRAM.replace("OPCODE", "st.global.b32")
    for change, wrong in (
        (("+ 0 ], {", "+ 4 ], {"), "not in a tensor"),
        (("%r2, 4;", "%r2, 2;"), "misaligned"),
    ):
        memory = Memory(64 * 4, BASE)
        with pytest.raises(RuntimeError, match=wrong):
            Threads(parse(source.replace(*change)), memory, 64, 0, [BASE, 7], [(0, 0, 0)], (1, 1, 1)).run()
