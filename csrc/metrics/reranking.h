#pragma once

#include <pybind11/pybind11.h>

// Adds the steps of k-reciprocal re-ranking to the module; snnet/retrieval/reranking.py puts them together.
void add_reranking(pybind11::module_& module);
