"""The threads that count ranks (csrc/metrics/parallel.h), where the system refuses some of them."""

import os
import shutil
import subprocess

import pytest

from tests.paths import ROOT

PROGRAM = """
#include "csrc/metrics/parallel.h"

#include <cstdio>
#include <cstdlib>
#include <new>

std::atomic<int> allowed{1 << 30};  // allocations that still succeed

void* operator new(std::size_t size) {
  if (allowed-- <= 0) throw std::bad_alloc();
  return std::malloc(size);
}
void operator delete(void* place) noexcept { std::free(place); }
void operator delete(void* place, std::size_t) noexcept { std::free(place); }

int main() {
  for (int few = 1; few < 5; ++few) {  // the first allocation is the vector of threads
    std::atomic<int> done{0};
    allowed = few;
    snnet::for_each_item(100, 4, [&](std::int64_t, std::int64_t) { ++done; });
    allowed = 1 << 30;
    std::printf("%d ", done.load());
  }
}
"""


def test_the_threads_that_start_do_all_of_the_work(tmp_path):
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "program.cpp").write_text(PROGRAM)
    command = [compiler, "-std=c++17", "-pthread", f"-I{ROOT}", "-o", "program", "program.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=900)
    result = subprocess.run([tmp_path / "program"], capture_output=True, text=True, timeout=900)
    assert (result.returncode, result.stdout.split()) == (0, ["100"] * 4)
