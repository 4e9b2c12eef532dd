#pragma once

#include "cpu/call.h"

// At the end of a kernel's file: the precisions of it that FD_DISPATCH calls.
#ifdef FD_FLOAT_ALONE
#define FD_INSTANTIATE(name) template void name<float>(Call&);
#else
#define FD_INSTANTIATE(name)        \
  template void name<float>(Call&); \
  template void name<double>(Call&);
#endif
