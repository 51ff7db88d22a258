#include "../common/describe.h"

SNNET_EXPORT const char* snnet_describe_build() { return SNNET_COMPILER ", torch " TORCH_VERSION " headers"; }
