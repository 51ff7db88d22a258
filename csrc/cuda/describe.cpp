#include "../common/describe.h"

// SNNET_CUDA_BUILD is set by the build: the CUDA version and the architectures compiled for.
SNNET_EXPORT const char* snnet_describe_build() {
  return SNNET_STRING(SNNET_CUDA_BUILD) ", " SNNET_COMPILER ", torch " TORCH_VERSION " headers";
}
