// What a library was built from, read by snnet_kernels.backend_info().
#pragma once

#include <torch/headeronly/version.h>

#include "sources.h"

#define SNNET_STRING_(x) #x
#define SNNET_STRING(x) SNNET_STRING_(x)

#if defined(__clang__)
#define SNNET_COMPILER \
  "clang " SNNET_STRING(__clang_major__) "." SNNET_STRING(__clang_minor__) "." SNNET_STRING(__clang_patchlevel__)
#else
#define SNNET_COMPILER "gcc " __VERSION__
#endif
