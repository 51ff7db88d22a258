#include "../common/describe.h"
#include "vector.h"

SNNET_EXPORT const char* snnet_describe_build() { return SNNET_COMPILER ", torch " TORCH_VERSION " headers"; }

// The instruction set in use, and the choice of another: false where this processor does not have it.
SNNET_EXPORT const char* snnet_instruction_set() { return snnet::instruction_set(); }
SNNET_EXPORT bool snnet_select_instruction_set(const char* name) { return snnet::select_instruction_set(name); }
