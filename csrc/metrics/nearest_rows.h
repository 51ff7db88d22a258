#pragma once

#include <pybind11/pybind11.h>

// Adds the search for neighbours of k-reciprocal re-ranking to the module; snnet/retrieval/reranking.py uses it.
void add_nearest_rows(pybind11::module_& module);
