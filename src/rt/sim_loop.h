// SimLoop: a Loop on virtual time. The same seed gives the same run, to the last step.
//
// Ready coroutines run in a seeded order (any of the first few), posts in order, and when nothing is ready
// the time jumps to the next timer. One thread; post() from others is a bug. It has no descriptors.
#pragma once

#include <deque>

#include "rt/loop.h"
#include "rt/pool.h"
#include "rt/stream.h"

namespace skate::rt {

class SimLoop final : public Loop {
 public:
  explicit SimLoop(uint64_t seed) : Loop(seed) {}

  TimePoint now() const override { return now_; }
  int64_t unix_time_ms() const override {
    return kEpochMs + now_.time_since_epoch() / std::chrono::milliseconds(1);
  }
  void post(std::function<void()> work) override;
  /// Until stop(), or until nothing can happen any more.
  void run() override;
  void stop() override { stopping_ = true; }
  std::unique_ptr<FdWatch> watch_fd(int fd) override;

  /// As run(), but no further than `duration` of virtual time, which has passed afterwards.
  void run_for(Duration duration);
  /// Steps taken so far: coroutines resumed and posts run.
  uint64_t steps() const { return steps_; }

 private:
  static constexpr int64_t kEpochMs = 1'700'000'000'000;
  detail::Waiter* pick_ready() override;
  bool step(TimePoint limit);

  TimePoint now_{};
  std::deque<std::function<void()>> posts_;
  bool stopping_ = false;
  uint64_t steps_ = 0;
};

/// Runs the work on the loop's thread after a seeded delay.
class SimPool final : public Pool {
 public:
  explicit SimPool(SimLoop& loop, Duration delay_max = std::chrono::milliseconds(5))
      : loop_(loop), delay_max_(delay_max) {}
  void submit(std::function<void()> work) override;

 private:
  SimLoop& loop_;
  Duration delay_max_;
  std::map<uint64_t, std::unique_ptr<Timer>> timers_;
  uint64_t next_ = 0;
};

}  // namespace skate::rt
