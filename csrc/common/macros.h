#pragma once

// What host and device share is written once: FD_HD marks it for both compilers.
#ifdef __CUDACC__
#define FD_HD __host__ __device__ __forceinline__
#else
#define FD_HD inline
#endif
