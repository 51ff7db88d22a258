// The sources that a library was compiled from, as a mark in its file: snnet_kernels/libraries.py reads it before it
// loads the library. Included once in each library. The build makes snnet_digest.h.
#pragma once

#define SNNET_EXPORT extern "C" __attribute__((visibility("default")))

#if __has_include("snnet_digest.h")
#include "snnet_digest.h"
#else
#define SNNET_DIGEST "unknown"
#endif

SNNET_EXPORT const char* snnet_sources() { return "snnet-sources:" SNNET_DIGEST; }
