// Loop: the home executor of everything that lives on one thread.
//
// Coroutines, timers and posted functions run one at a time on the thread that is inside run(); only post()
// and stop() may be called from other threads. A coroutine is never resumed inside the call that wakes it: it
// goes to the ready queue, so that a set() or close() has no surprises. Work per turn is bounded.
// Two implementations: make_loop() over Boost.Asio, SimLoop on virtual time.
#pragma once

#include <coroutine>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "base/assert.h"
#include "rt/random.h"
#include "rt/time.h"

namespace skate::rt {

class Loop;
class FdWatch;

namespace detail {

struct Root;

struct ListNode {
  ListNode* prev = nullptr;
  ListNode* next = nullptr;
  ListNode() = default;
  ListNode(const ListNode&) = delete;
  ListNode& operator=(const ListNode&) = delete;
  ~ListNode() { unlink(); }
  bool linked() const { return next != nullptr; }
  void unlink() {
    if (next == nullptr) return;
    prev->next = next;
    next->prev = prev;
    prev = next = nullptr;
  }
};

/// A suspended coroutine, in the ready queue or in the list of what it waits for. It lives in the frame of
/// the coroutine: destroying the frame takes it out of either list, which is all that cancellation is.
struct Waiter : ListNode {
  std::coroutine_handle<> handle;
  Root* root = nullptr;
};

struct WaiterQueue {
  WaiterQueue() { head.prev = head.next = &head; }
  ~WaiterQueue() {
    SKATE_ASSERT(empty(), "what is waited for must outlive those that wait: stop their TaskGroup first");
    head.prev = head.next = nullptr;
  }
  bool empty() const { return head.next == &head; }
  Waiter* front() { return empty() ? nullptr : static_cast<Waiter*>(head.next); }
  void push_back(Waiter& waiter) {
    waiter.unlink();
    waiter.prev = head.prev;
    waiter.next = &head;
    head.prev->next = &waiter;
    head.prev = &waiter;
  }
  ListNode head;
};

}  // namespace detail

/// Something that happens at a time, armed on a Loop; disarms itself when destroyed.
class TimerHook {
 public:
  TimerHook() = default;
  TimerHook(const TimerHook&) = delete;
  TimerHook& operator=(const TimerHook&) = delete;
  virtual ~TimerHook();
  bool armed() const { return loop_ != nullptr; }

 private:
  friend class Loop;
  virtual void on_timer() = 0;
  Loop* loop_ = nullptr;
  std::pair<TimePoint, uint64_t> key_;
};

class Loop {
 public:
  virtual ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  virtual TimePoint now() const = 0;
  /// Wall clock, for people and for files; never for waiting.
  virtual int64_t unix_time_ms() const = 0;
  Random& random() { return random_; }

  /// Runs `work` on the home thread, in order. From any thread.
  virtual void post(std::function<void()> work) = 0;
  /// Runs until stop(); the calling thread becomes the home thread.
  virtual void run() = 0;
  /// Makes run() return soon. From any thread. What is left undone stays where it is.
  virtual void stop() = 0;
  /// Readiness of a descriptor, which must stay open while the watch lives.
  virtual std::unique_ptr<FdWatch> watch_fd(int fd) = 0;

  bool on_home_thread() const { return home_ == std::thread::id{} || home_ == std::this_thread::get_id(); }
  /// Aborts when called from a thread that is not this loop's.
  void assert_home() const { SKATE_ASSERT(on_home_thread(), "called from a thread that is not the loop's"); }

  // For awaitables, on the home thread.
  void schedule(detail::Waiter& waiter);
  void arm(TimerHook& hook, TimePoint when);
  void disarm(TimerHook& hook);

 protected:
  explicit Loop(uint64_t seed) : random_(seed) {}
  /// Which of the ready coroutines runs next; the first, unless a simulation shuffles them.
  virtual detail::Waiter* pick_ready() { return ready_.front(); }
  bool has_ready() const { return !ready_.empty(); }
  /// Runs at most `count` ready coroutines.
  void run_ready(size_t count);
  void fire_timers();
  std::optional<TimePoint> next_timer() const;

  Random random_;
  std::thread::id home_;
  detail::WaiterQueue ready_;

 private:
  friend class TaskGroup;
  void resume(detail::Waiter& waiter);

  std::map<std::pair<TimePoint, uint64_t>, TimerHook*> timers_;
  uint64_t timer_sequence_ = 0;
  detail::Root* current_ = nullptr;
};

/// The real loop. Descriptors by epoll, timers to a millisecond, random numbers seeded by the system.
std::unique_ptr<Loop> make_loop();

/// A callback at a time. Owner: whoever must not be called back once gone.
class Timer final : public TimerHook {
 public:
  Timer(Loop& loop, std::function<void()> fire) : loop_(loop), fire_(std::move(fire)) {}
  void start_at(TimePoint when) { loop_.arm(*this, when); }
  void start_after(Duration delay) { loop_.arm(*this, loop_.now() + delay); }
  void cancel() { loop_.disarm(*this); }

 private:
  void on_timer() override { fire_(); }
  Loop& loop_;
  std::function<void()> fire_;
};

/// A Loop on a thread of its own, with every signal blocked; stopped and joined by the destructor.
class LoopThread {
 public:
  LoopThread();
  ~LoopThread();
  Loop& loop() { return *loop_; }

 private:
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace skate::rt
