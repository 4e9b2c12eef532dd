#include <cuda_runtime.h>

#include "cuda/lambda_return.h"

// A thread that walked its row through global memory would read 32 cache lines for each step of a warp. So a block owns
// 32 rows and passes along them in tiles of 32 steps: all its threads copy a tile to shared memory, 32 neighbouring
// elements at a time, one warp walks it, a lane for a row (33 columns: no two lanes share a bank), and all copy back.
namespace fastdream::cuda {
namespace {

constexpr int kRows = 32;
constexpr int kSteps = 32;
constexpr int kThreads = 128;
constexpr int kBlocks = 4;  // on one multiprocessor at least: keeps ptxas from saving registers until it spills

template <typename T>
using Tile = T[kRows][kSteps + 1];

// One block's window on [rows, steps]: rows row0.., steps t0.., cut at the edges.
struct Window {
  int64_t row0, t0, rows, steps;

  __device__ bool inside(int row, int64_t t) const { return row0 + row < rows && t < steps; }
  __device__ int64_t offset(int row, int64_t t) const { return (row0 + row) * steps + t; }
};

// tile[r][c] = source[row0 + r, t0 + shift + c]; what lies outside stays as it was and is never read.
template <typename T>
__device__ void load(Tile<T>& tile, const T* __restrict__ source, const Window& at, int shift = 0) {
  const int64_t t = at.t0 + shift + threadIdx.x % kSteps;
#pragma unroll
  for (int row = threadIdx.x / kSteps; row < kRows; row += kThreads / kSteps) {
    if (at.inside(row, t)) tile[row][threadIdx.x % kSteps] = source[at.offset(row, t)];
  }
}

template <typename T>
__device__ void store(T* __restrict__ target, const Tile<T>& tile, const Window& at) {
  const int64_t t = at.t0 + threadIdx.x % kSteps;
#pragma unroll
  for (int row = threadIdx.x / kSteps; row < kRows; row += kThreads / kSteps) {
    if (at.inside(row, t)) target[at.offset(row, t)] = tile[row][threadIdx.x % kSteps];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks) forward_kernel(const LambdaReturn<T> args) {
  __shared__ Tile<T> reward, live, mix, value;
  const int row = threadIdx.x;
  Window at{int64_t(blockIdx.x) * kRows, (args.steps - 1) / kSteps * kSteps, args.rows, args.steps};
  T next = T(0);
  for (; at.t0 >= 0; at.t0 -= kSteps) {
    load(reward, args.reward, at);
    load(live, args.live, at);
    load(mix, args.mix, at);
    load(value, args.value, at);
    __syncthreads();
    if (row < kRows) {
      for (int c = kSteps - 1; c >= 0; --c) {
        if (!at.inside(row, at.t0 + c)) continue;
        if (at.t0 + c == args.steps - 1) next = value[row][c];
        next = lambda_step(reward[row][c], live[row][c], mix[row][c], value[row][c], next);
        reward[row][c] = next;
      }
    }
    __syncthreads();
    store(args.ret, reward, at);
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(const LambdaReturnBackward<T> args) {
  __shared__ Tile<T> grad, live, mix, value, next;
  const int row = threadIdx.x;
  Window at{int64_t(blockIdx.x) * kRows, 0, args.rows, args.steps};
  T carry = T(0);
  for (; at.t0 < args.steps; at.t0 += kSteps) {
    load(grad, args.grad, at);
    load(live, args.live, at);
    load(mix, args.mix, at);
    load(value, args.value, at);
    load(next, args.ret, at, 1);
    __syncthreads();
    if (row < kRows) {
      for (int c = 0; c < kSteps && at.inside(row, at.t0 + c); ++c) {
        const bool last = at.t0 + c == args.steps - 1;
        const T total = grad[row][c] + carry;
        const LambdaGrad<T> d = lambda_step_backward(total, live[row][c], mix[row][c], value[row][c],
                                                     last ? value[row][c] : next[row][c]);
        grad[row][c] = total;
        live[row][c] = d.live;
        mix[row][c] = d.mix;
        value[row][c] = last ? d.value + d.next : d.value;
        carry = d.next;
      }
    }
    __syncthreads();
    store(args.d_reward, grad, at);
    store(args.d_live, live, at);
    store(args.d_mix, mix, at);
    store(args.d_value, value, at);
    __syncthreads();
  }
}

template <typename Args>
int launch(void (*kernel)(Args), const Args& args, uintptr_t stream) {
  if (args.rows <= 0 || args.steps <= 0) return cudaSuccess;
  const int64_t blocks = (args.rows + kRows - 1) / kRows;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  // Its status is this launch's own: that of cudaGetLastError may be what an earlier call left there.
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace

template <typename T>
int lambda_return(const LambdaReturn<T>& args, uintptr_t stream) {
  return launch(forward_kernel<T>, args, stream);
}

template <typename T>
int lambda_return_backward(const LambdaReturnBackward<T>& args, uintptr_t stream) {
  return launch(backward_kernel<T>, args, stream);
}

template int lambda_return(const LambdaReturn<float>&, uintptr_t);
template int lambda_return(const LambdaReturn<double>&, uintptr_t);
template int lambda_return_backward(const LambdaReturnBackward<float>&, uintptr_t);
template int lambda_return_backward(const LambdaReturnBackward<double>&, uintptr_t);

}  // namespace fastdream::cuda
