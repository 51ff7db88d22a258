// A loop over independent items on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace snnet {

// Calls work(item, thread) for every item in [0, items) on at most `threads` threads, the caller's among
// them; thread < threads names the one that works. The first exception is thrown here after all have ended.
template <class Work>
void for_each_item(std::int64_t items, std::int64_t threads, const Work& work) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failing;
  const auto run = [&](std::int64_t thread) {
    try {
      for (std::int64_t item = next++; item < items; item = next++) work(item, thread);
    } catch (...) {
      next = items;
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
    }
  };
  const std::int64_t helping = std::min(threads, items) - 1;
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<std::size_t>(std::max<std::int64_t>(helping, 0)));
  try {
    for (std::int64_t i = 0; i < helping; ++i) helpers.emplace_back(run, i + 1);
  } catch (...) {
    // The system gives no more threads, or no memory for them: those that started do all of it.
  }
  run(0);
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace snnet
