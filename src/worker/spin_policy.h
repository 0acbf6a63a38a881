// SpinPolicy: how long a reader looks for a record before it sleeps.
//
// Guarantee: two processes that call each other without pause find the state in which both spin, whatever
// state they are in (a wake of the kernel takes longer than the budget: if each only spun for the budget,
// each would always just miss the other); and a reader whose records come late wastes at most a few looks in
// some hundreds of waits. Pure: durations go in, a duration comes out. One owner: the holder of the reading
// role.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace skate::worker {

class SpinPolicy {
 public:
  using Duration = std::chrono::nanoseconds;

  explicit SpinPolicy(Duration budget) : budget_(budget) {}

  /// For the wait that begins now: look for so long; zero: sleep at once.
  Duration next() {
    if (rest_left_ > 0) {
      --rest_left_;
      looked_ = Duration::zero();
    } else {
      looked_ = wide_ ? budget_ * kWide : budget_;
    }
    return looked_;
  }
  /// A record came after `took` of looking.
  void found(Duration took) {
    misses_ = 0;
    if (took <= budget_) {
      late_finds_ = 0;
      wide_ = false;
      rest_ = kRestLeast;
    } else if (++late_finds_ >= kTries) {
      rest();
    }
  }
  /// None came while it looked.
  void missed() {
    if (++misses_ >= kTries) rest();
  }
  /// The sleep after that ended with a record. If all of it was not much more than the wakes of two
  /// processes, the next wait looks long enough to bridge them.
  void slept(Duration took) { wide_ = looked_ + took <= budget_ * kWide; }

 private:
  static constexpr int64_t kWide = 6;
  static constexpr uint32_t kTries = 8;
  static constexpr uint32_t kRestLeast = 16, kRestMost = 256;

  void rest() {
    rest_left_ = rest_;
    rest_ = std::min(rest_ * 2, kRestMost);
    misses_ = late_finds_ = 0;
  }

  Duration budget_;
  Duration looked_{};
  bool wide_ = false;
  uint32_t misses_ = 0, late_finds_ = 0;
  uint32_t rest_left_ = 0, rest_ = kRestLeast;
};

}  // namespace skate::worker
