// Time as the loop sees it: steady nanoseconds, real or simulated. Only a Loop tells the time.
#pragma once

#include <chrono>
#include <cstdint>

namespace skate::rt {

using Duration = std::chrono::nanoseconds;

/// The clock's time points; it has no now() of its own: ask the Loop.
struct Clock {
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<Clock>;
  static constexpr bool is_steady = true;
};
using TimePoint = Clock::time_point;

}  // namespace skate::rt
