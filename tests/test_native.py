"""The compiled ops against the reference: values, every gradient, odd shapes, bad input, the compiler, threads."""

import threading
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdream.ops import reference

from .native_tools import check_others_run, cuda_resources

NAMES = ("reward", "live", "mix", "value")
SIZES = (1, 3, 63)


def inputs(
    *shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> list[Tensor]:
    """reward, live, mix and value with rewards of both signs and some cut and terminal steps."""
    generator = torch.Generator().manual_seed(seed)
    reward, value = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    live, mix = (torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))
    live[live < 0.1] = 0
    mix[mix < 0.1] = 0
    return [x.to(device).requires_grad_() for x in (reward, live, mix, value)]


def value_and_gradients(op, args: list[Tensor], grad: Tensor) -> list[Tensor]:
    ret = op(*args)
    return [ret.detach(), *torch.autograd.grad(ret, args, grad.to(ret))]


def assert_as_good_as_reference(op, args: list[Tensor], device: str = "cpu") -> None:
    """Error against float64 at most twice (gradients: three times) that of the reference in the same dtype."""
    grad = torch.randn(args[0].shape)
    wide = [x.detach().cpu().double().requires_grad_() for x in args]
    truth = value_and_gradients(reference.lambda_return, wide, grad)
    ours = value_and_gradients(op, args, grad.to(device))
    theirs = value_and_gradients(reference.lambda_return, args, grad.to(device))
    floor = 8 * torch.finfo(args[0].dtype).eps
    for i, (name, true, our, their) in enumerate(zip(("ret", *NAMES), truth, ours, theirs, strict=True)):
        error = (our.cpu().double() - true).abs().max().item()
        allowed = (3 if i else 2) * (their.cpu().double() - true).abs().max().item()
        assert error <= allowed + floor * (1 + true.abs().max().item()), (name, error, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", SIZES)
@pytest.mark.parametrize("rows", SIZES)
def test_agrees_with_reference(
    native: ModuleType, poison: list[str], rows: int, steps: int, dtype: torch.dtype
):
    assert_as_good_as_reference(native.lambda_return, inputs(rows, steps, dtype=dtype))
    assert "empty_like" in poison


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 70), steps=st.integers(1, 70), seed=st.integers(0, 2**16))
def test_agrees_with_the_formula(native: ModuleType, rows: int, steps: int, seed: int):
    reward, live, mix, value = (x.detach() for x in inputs(rows, steps, seed=seed))
    ret = native.lambda_return(reward, live, mix, value)
    after = torch.cat([ret[:, 1:], value[:, -1:]], 1)
    torch.testing.assert_close(ret, reward + live * ((1 - mix) * value + mix * after), rtol=1e-12, atol=1e-12)


def test_takes_any_strides(native: ModuleType):
    base = inputs(63, 3)
    views = [
        base[0].t(),
        base[1].detach().repeat_interleave(2, 0)[::2].t(),
        base[2].detach()[:1, :1].expand(3, 63),
        base[3].t().contiguous(),
    ]
    grad = torch.randn(63, 3, dtype=torch.float64).t()
    leaves = [x.detach().requires_grad_() for x in views]
    ours = value_and_gradients(native.lambda_return, leaves, grad)
    theirs = value_and_gradients(reference.lambda_return, leaves, grad)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_takes_more_axes_and_none_of_size(native: ModuleType):
    args = inputs(2, 3, 5)
    torch.testing.assert_close(native.lambda_return(*args), reference.lambda_return(*args))
    assert native.lambda_return(*inputs(0, 5)).shape == (0, 5)
    assert native.lambda_return(*inputs(5, 0)).shape == (5, 0)


def test_half_precision_widens(native: ModuleType):
    args = [x.detach().bfloat16() for x in inputs(3, 5)]
    ret = native.lambda_return(*args)
    assert ret.dtype == torch.float32
    torch.testing.assert_close(ret, reference.lambda_return(*args))


def test_gradcheck(native: ModuleType):
    assert torch.autograd.gradcheck(native.lambda_return, inputs(3, 7))


def test_unused_gradients_are_not_demanded(native: ModuleType):
    reward, live, mix, value = (x.detach() for x in inputs(3, 7))
    value.requires_grad_()
    native.lambda_return(reward, live, mix, value).sum().backward()
    assert value.grad is not None and reward.grad is None


def test_second_gradient_is_refused(native: ModuleType):
    args = inputs(3, 5)
    first = torch.autograd.grad(native.lambda_return(*args).sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once.*reference"):
        first[3].sum().backward()


def test_opcheck(native: ModuleType):
    args = inputs(3, 7, dtype=torch.float32)
    grad = torch.rand(3, 7)
    plain = [x.detach() for x in args]
    ret = native.lambda_return(*plain)
    checks = torch.library.opcheck(torch.ops.fastdream.lambda_return.default, tuple(args))
    checks |= torch.library.opcheck(
        torch.ops.fastdream.lambda_return_backward.default, (grad, *plain[1:], ret)
    )
    assert set(checks.values()) == {"SUCCESS"}


def test_compiles_as_one_graph(native: ModuleType):
    def loss(*args: Tensor) -> Tensor:
        return (native.lambda_return(*args) ** 2).sum()

    args = inputs(3, 7)
    expected = torch.autograd.grad(loss(*args), args)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(torch.autograd.grad(compiled(*args), args), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda x: x[:, :3], r"lambda_return: live has shape \[3, 3\], expected \[3, 5\]"),
        (2, lambda x: x.float(), r"mix has dtype torch.float32, expected torch.float64 like reward"),
        (0, lambda x: x.int(), r"reward is torch.int32, expected torch.float32 or torch.float64"),
    ],
)
def test_bad_input_is_named(native: ModuleType, index: int, change, message: str):
    args = [x.detach() for x in inputs(3, 5)]
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        native.lambda_return(*args)


def test_mixed_devices_are_named(native: ModuleType):
    tensors = {name: x.detach() for name, x in zip(NAMES, inputs(3, 5), strict=True)}
    with pytest.raises(ValueError, match=r"value has device meta, expected cpu like reward"):
        native.library.check_alike("lambda_return", 1, **tensors | {"value": tensors["value"].to("meta")})


def test_no_axis_at_all_is_refused(native: ModuleType):
    with pytest.raises(ValueError, match=r"reward has shape \[\], expected 1 or more axes"):
        native.lambda_return(*[torch.zeros(())] * 4)


def test_threads_do_not_disturb_each_other(native: ModuleType):
    args = [[x.detach() for x in inputs(63, 63, seed=seed)] for seed in range(4)]
    results: list[Tensor | None] = [None] * len(args)

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = native.lambda_return(*args[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(args))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, arg in zip(results, args, strict=True):
        torch.testing.assert_close(result, reference.lambda_return(*arg))


def test_kernel_lets_other_threads_run(native: ModuleType):
    args = [x.detach() for x in inputs(1000, 500, dtype=torch.float32)]
    ret = torch.empty_like(args[0])
    pointers = [x.data_ptr() for x in (*args, ret)]
    check_others_run(lambda: native.library.C.cpu_lambda_return(4, pointers, 1000, 500))


def test_wrong_itemsize_is_a_status(native: ModuleType):
    status = native.library.C.cpu_lambda_return(2, [0] * 5, 1, 1)
    assert native.library.C.error_string(status) == "unsupported itemsize"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (63, 3), (1025, 15), (33, 65)])
def test_cuda_agrees_with_reference(
    native: ModuleType, poison: list[str], shape: tuple[int, int], dtype: torch.dtype
):
    assert_as_good_as_reference(native.lambda_return, inputs(*shape, dtype=dtype, device="cuda"), "cuda")


@pytest.mark.gpu
def test_cuda_runs_on_the_current_stream(native: ModuleType):
    """Captured into a graph, hence on the capturing stream: replays see new input."""
    args = [x.detach() for x in inputs(33, 15, dtype=torch.float32, device="cuda")]
    native.lambda_return(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ret = native.lambda_return(*args)
    args[0].add_(1)
    graph.replay()
    torch.testing.assert_close(ret, reference.lambda_return(*args))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_kernels_do_not_spill(native: ModuleType, arch: str):
    used = cuda_resources(native, "cuda/lambda_return.cu", arch)
    assert len(used) == 4  # forward and backward in two dtypes
    assert all(x.spilled == 0 and x.registers <= 96 for x in used), used
