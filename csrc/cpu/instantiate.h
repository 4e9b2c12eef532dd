#pragma once

#include "cpu/call.h"

// At the end of a kernel's file: both precisions of it.
#define FD_INSTANTIATE(name)        \
  template void name<float>(Call&); \
  template void name<double>(Call&);
