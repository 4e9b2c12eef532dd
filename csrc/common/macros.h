#pragma once

// What host and device share is written once: FD_HD marks it for both compilers.
#ifdef __CUDACC__
#define FD_HD __host__ __device__ __forceinline__
#else
#define FD_HD inline
#endif

// Before a loop: unroll it wholly, or eight times. Other compilers are left to themselves.
#ifdef __CUDACC__
#define FD_UNROLL _Pragma("unroll")
#define FD_UNROLL8 _Pragma("unroll 8")
#else
#define FD_UNROLL
#define FD_UNROLL8
#endif
