#pragma once

#include "cuda/resident/run.cuh"

// How both directions are launched: a team a tile of the batch, in clusters, and where a team is more than one cluster
// all of it at once or not at all.
namespace fastdream::resident {

template <class Args>
struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  // `shape` says how; `kernel` is told once more at every launch what it may use, which costs no wait.
  template <class S>
  cudaError_t prepare(S, void (*kernel)(Args), size_t shared, int tiles, uintptr_t stream) {
    config.gridDim = dim3(unsigned(S::team * tiles));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = S::cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    config.attrs = attributes;
    config.numAttrs = S::one_cluster ? 1 : 2;
    const void* const function = reinterpret_cast<const void*>(kernel);
    const cudaError_t status =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (status != cudaSuccess || S::cluster <= 8) return status;
    return cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
};

template <class S, class Args>
int launch(void (*kernel)(Args), size_t shared, const Args& args, int tiles, uintptr_t stream) {
  Launch<Args> launch;
  const cudaError_t status = launch.prepare(S{}, kernel, shared, tiles, stream);
  return status == cudaSuccess ? cudaLaunchKernelEx(&launch.config, kernel, args) : status;
}

// How many teams can run at once on the current device; minus a cudaError_t if that cannot be asked.
template <class S, class Args>
int teams(void (*kernel)(Args), size_t shared) {
  Launch<Args> launch;
  int clusters = 0;
  cudaError_t status = launch.prepare(S{}, kernel, shared, 1, 0);
  launch.config.numAttrs = 1;  // the clusters' size alone, all that this question is documented for
  if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config);
  return status == cudaSuccess ? clusters * S::cluster / S::team : -int(status);
}

// The shapes that are compiled.
template <class Run>
int with_device_shape(const Call& call, Run run) {
  return with_shape<Tiny, Size1m, Size12m, Size12mBy8, Size25m>(call, run);
}

}  // namespace fastdream::resident
