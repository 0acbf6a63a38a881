#include "rt/sim_loop.h"

#include "rt/fd.h"

namespace skate::rt {

void SimLoop::post(std::function<void()> work) { posts_.push_back(std::move(work)); }

detail::Waiter* SimLoop::pick_ready() {
  detail::ListNode* node = ready_.head.next;
  for (uint64_t skip = random_.below(4); skip > 0 && node->next != &ready_.head; --skip) node = node->next;
  return static_cast<detail::Waiter*>(node);
}

bool SimLoop::step(TimePoint limit) {
  if (!posts_.empty()) {
    std::function<void()> work = std::move(posts_.front());
    posts_.pop_front();
    work();
  } else if (has_ready()) {
    run_ready(1);
  } else {
    const std::optional<TimePoint> next = next_timer();
    if (!next || *next > limit) return false;
    if (*next > now_) now_ = *next;
    fire_timers();
  }
  ++steps_;
  return true;
}

void SimLoop::run() {
  stopping_ = false;
  while (!stopping_ && step(TimePoint::max())) {
  }
}

void SimLoop::run_for(Duration duration) {
  const TimePoint limit = now_ + duration;
  stopping_ = false;
  while (!stopping_ && step(limit)) {
  }
  if (!stopping_) now_ = limit;
}

std::unique_ptr<FdWatch> SimLoop::watch_fd(int) {
  SKATE_ASSERT(false, "a simulated loop has no descriptors: use a simulated Network or disk");
  return nullptr;
}

void SimPool::submit(std::function<void()> work) {
  const uint64_t id = next_++;
  auto run = [this, id, work = std::move(work)] {
    // The timer owns this closure: take what is needed before it goes.
    std::function<void()> now = work;
    loop_.post([this, id] { timers_.erase(id); });
    now();
  };
  auto [entry, added] = timers_.emplace(id, std::make_unique<Timer>(loop_, std::move(run)));
  SKATE_ASSERT(added, "ids of a simulated pool are unique");
  entry->second->start_after(Duration(loop_.random().below(static_cast<uint64_t>(delay_max_.count()) + 1)));
}

}  // namespace skate::rt
