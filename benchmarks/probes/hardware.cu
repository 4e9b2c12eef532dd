// Five numbers of a GPU that decide how recurrent kernels should be built. Prints one line of JSON.
//
//   nvcc -O3 -std=c++17 -arch=sm_90a hardware.cu -o hardware && ./hardware
//   ./hardware --list     names of what is measured, without a GPU
//
// Barriers are timed over STEPS of them in one kernel with one CTA on each SM, launches over NODES in one graph.

#include <algorithm>
#include <cooperative_groups.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <functional>
#include <vector>

namespace cg = cooperative_groups;

constexpr int STEPS = 2000;
constexpr int NODES = 200;
constexpr int THREADS = 256;
constexpr int ROUNDS = 15;
constexpr size_t WORKING_SET = 12 << 20;
constexpr int PASSES = 50;
constexpr int CLUSTER_SMEM = 160 << 10;  // about what observing in one launch keeps in a CTA, one to an SM

#define CHECK(call)                                                                             \
  do {                                                                                          \
    if (cudaError_t status = (call); status != cudaSuccess) {                                   \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status));      \
      std::exit(1);                                                                             \
    }                                                                                           \
  } while (0)

__global__ void cooperative_barriers(int steps) {
  cg::grid_group grid = cg::this_grid();
  for (int i = 0; i < steps; ++i) grid.sync();
}

// One arrival for each CTA on a counter that only grows; release and acquire at the scope of the GPU.
__device__ void barrier(unsigned* counter, unsigned target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (static_cast<int>(seen - target) < 0);
  }
  __syncthreads();
}

__global__ void counted_barriers(unsigned* counter, int steps) {
  for (int i = 1; i <= steps; ++i) barrier(counter, i * gridDim.x);
}

__global__ void cluster_barriers(int steps) {
  extern __shared__ unsigned char keeps_other_ctas_away[];
  cg::cluster_group cluster = cg::this_cluster();
  for (int i = 0; i < steps; ++i) cluster.sync();
}

__global__ void node(float* x) {
  cudaGridDependencySynchronize();
  if (blockIdx.x == 0 && threadIdx.x == 0) x[0] += 1.f;
  cudaTriggerProgrammaticLaunchCompletion();
}

__global__ void read_all(const float4* x, size_t count, int passes, float* out) {
  float sum = 0.f;
  for (int pass = 0; pass < passes; ++pass) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
      float4 v = __ldcg(x + i);  // from L2, past L1
      sum += v.x + v.y + v.z + v.w;
    }
  }
  if (sum == 42.f) *out = sum;  // never: keeps the loads
}

// Median milliseconds of what `work` puts into the stream.
float milliseconds(cudaStream_t stream, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int round = 0; round < ROUNDS + 3; ++round) {
    CHECK(cudaEventRecord(begin, stream));
    work();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float time;
    CHECK(cudaEventElapsedTime(&time, begin, end));
    if (round >= 3) times.push_back(time);
  }
  std::nth_element(times.begin(), times.begin() + ROUNDS / 2, times.end());
  return times[ROUNDS / 2];
}

cudaLaunchConfig_t clustered(int size, int grid, cudaLaunchAttribute* attribute, cudaStream_t stream) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = size;
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = THREADS;
  config.dynamicSmemBytes = CLUSTER_SMEM;
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

// How many clusters of `size` CTAs the GPU holds at once; 0 where it cannot hold one.
int active_clusters(int size) {
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = clustered(size, size, &attribute, nullptr);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, cluster_barriers, &config) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

// Microseconds of a node in a graph of NODES that depend on one another.
float node_time(cudaStream_t stream, float* x, int ctas, bool overlapping) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = ctas;
  config.blockDim = THREADS;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlapping ? 1 : 0;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CHECK(cudaLaunchKernelEx(&config, node, x));  // loads the kernel, which a capture need not allow
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < NODES; ++i) CHECK(cudaLaunchKernelEx(&config, node, x));
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&ready, graph, 0));
  return 1e3f * milliseconds(stream, [&] { CHECK(cudaGraphLaunch(ready, stream)); }) / NODES;
}

const char* const NAMES[] = {
    "grid_barrier_cooperative_us", "grid_barrier_counter_us", "clusters_of_16", "clusters_of_8",
    "cluster_barrier_size",        "cluster_barrier_us",      "graph_node_us",  "graph_node_overlapping_us",
    "l2_read_gb_per_s",            "sms"};

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "--list")) {
    for (const char* name : NAMES) std::printf("%s\n", name);
    return 0;
  }
  cudaStream_t stream;
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  CHECK(cudaStreamCreate(&stream));
  const int sms = device.multiProcessorCount;
  unsigned* counter;
  float* data;
  CHECK(cudaMalloc(&counter, sizeof(unsigned)));
  CHECK(cudaMalloc(&data, WORKING_SET));
  CHECK(cudaMemset(data, 0, WORKING_SET));
  CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeMaxDynamicSharedMemorySize, CLUSTER_SMEM));
  CHECK(cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));

  int steps = STEPS;
  void* cooperative_args[] = {&steps};
  void* counted_args[] = {&counter, &steps};
  const float cooperative = milliseconds(stream, [&] {
    CHECK(cudaLaunchCooperativeKernel(cooperative_barriers, sms, THREADS, cooperative_args, 0, stream));
  });
  const float counted = milliseconds(stream, [&] {
    CHECK(cudaMemsetAsync(counter, 0, sizeof(unsigned), stream));
    CHECK(cudaLaunchCooperativeKernel(counted_barriers, sms, THREADS, counted_args, 0, stream));
  });

  const int of_16 = active_clusters(16), of_8 = active_clusters(8);
  const int size = of_16 ? 16 : 8;
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = clustered(size, size * std::max(1, size == 16 ? of_16 : of_8), &attribute, stream);
  const float cluster =
      milliseconds(stream, [&] { CHECK(cudaLaunchKernelEx(&config, cluster_barriers, steps)); });

  const float plain = node_time(stream, data, sms, false), overlapping = node_time(stream, data, sms, true);
  const float reading = milliseconds(stream, [&] {
    read_all<<<sms * 4, 512, 0, stream>>>(
        reinterpret_cast<const float4*>(data), WORKING_SET / sizeof(float4), PASSES, data);
    CHECK(cudaGetLastError());
  });

  const double values[] = {
      1e3 * cooperative / STEPS, 1e3 * counted / STEPS, double(of_16), double(of_8), double(size),
      1e3 * cluster / STEPS,     plain,                 overlapping,   1e-6 * WORKING_SET * PASSES / reading,
      double(sms)};
  for (size_t i = 0; i < sizeof(values) / sizeof(*values); ++i)
    std::printf("%s\"%s\": %.6g", i ? ", " : "{", NAMES[i], values[i]);
  std::printf("}\n");
  return 0;
}
