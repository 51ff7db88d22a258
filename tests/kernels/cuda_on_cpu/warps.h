// Operations of a warp: lanes leave a value each and wait until all lanes of their mask have come.
#pragma once

#include "fibres.h"

namespace cuda_on_cpu {

// What each lane of `mask` gets, all of them having arrived.
inline void resolve(unsigned first, unsigned mask, Operation operation) {
  uint64_t combined = 0;
  bool begun = false;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const uint64_t value = block.fibres[first + lane]->value;
    const auto low = static_cast<uint32_t>(value), so_far = static_cast<uint32_t>(combined);
    switch (operation) {
      case Operation::ballot: case Operation::any: case Operation::all:
        combined |= static_cast<uint64_t>(value != 0) << lane; break;
      case Operation::reduce_add: combined = static_cast<uint32_t>(so_far + low); break;
      case Operation::reduce_min: combined = begun && so_far < low ? so_far : low; break;
      case Operation::reduce_max: combined = begun && so_far > low ? so_far : low; break;
      case Operation::reduce_min_signed:
        combined = begun && static_cast<int32_t>(so_far) < static_cast<int32_t>(low) ? so_far : low; break;
      case Operation::reduce_max_signed:
        combined = begun && static_cast<int32_t>(so_far) > static_cast<int32_t>(low) ? so_far : low; break;
      case Operation::reduce_and: combined = begun ? so_far & low : low; break;
      case Operation::reduce_or: combined = so_far | low; break;
      case Operation::reduce_xor: combined = so_far ^ low; break;
      default: break;
    }
    begun = true;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fibre& fibre = *block.fibres[first + lane];
    switch (operation) {
      case Operation::syncwarp: break;
      case Operation::shuffle: case Operation::shuffle_up: case Operation::shuffle_down: case Operation::shuffle_xor:
        if ((mask >> fibre.source & 1) == 0) {
          fail(describe(first + lane) + " reads lane " + std::to_string(fibre.source) +
               ", which is not in the mask, at " + describe(fibre));
        }
        fibre.result = block.fibres[first + fibre.source]->value;
        break;
      case Operation::match_any: case Operation::match_all:
        fibre.result = 0;
        for (unsigned other = 0; other < 32; ++other) {
          if ((mask >> other & 1) != 0 && block.fibres[first + other]->value == fibre.value) {
            fibre.result |= uint64_t{1} << other;
          }
        }
        break;
      default: fibre.result = combined; break;
    }
  }
}

// One warp operation of the lanes in `mask`; source is the lane that a shuffle reads.
inline uint64_t warp_operation(Operation operation, unsigned mask, uint64_t value, int source, Place place) {
  const unsigned first = block.current & ~31u, lane = block.current & 31u;
  Warp& warp = block.warps[first / 32];
  Fibre& own = self();
  own.operation = operation;
  own.mask = mask;
  own.value = value;
  own.source = source;
  own.place = place;
  if ((mask >> lane & 1) == 0 || (mask & warp.ended) != 0) {
    fail((mask & warp.ended) != 0 ? "the mask of " + describe(block.current) +
                                        " names a lane that has left the kernel or does not exist, at " + describe(own)
                                  : describe(block.current) + " is not in its own mask at " + describe(own));
  }
  bool complete = ((warp.waiting | 1u << lane) & mask) == mask;
  for (unsigned other = 0; complete && other < 32; ++other) {
    if ((mask >> other & 1) == 0 || other == lane) continue;
    const Fibre& fibre = *block.fibres[first + other];
    complete = fibre.operation == operation && fibre.mask == mask;
  }
  if (!complete) {
    warp.waiting |= 1u << lane;
    wait(Fibre::State::in_warp);
    return own.result;
  }
  resolve(first, mask, operation);
  warp.waiting &= ~mask;
  for (unsigned other = 0; other < 32; ++other) {
    if ((mask >> other & 1) != 0) make_ready(first + other);
  }
  block.idle_waits = 0;
  reschedule(own.context);
  return own.result;
}

}  // namespace cuda_on_cpu
