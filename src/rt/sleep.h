// sleep_for, sleep_until, next_turn, with_timeout, with_deadline.
#pragma once

#include <type_traits>

#include "base/result.h"
#include "rt/task.h"

namespace skate::rt {

namespace detail {

struct SleepAwaiter final : TimerHook {
  explicit SleepAwaiter(TimePoint time) : when(time) {}
  TimePoint when;
  Waiter waiter;
  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> self) {
    waiter.handle = self;
    waiter.root = self.promise().root;
    waiter.root->loop->arm(*this, when);
  }
  void await_resume() const noexcept {}
  void on_timer() override { waiter.root->loop->schedule(waiter); }
};

struct TurnAwaiter : Waiter {
  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> self) {
    handle = self;
    root = self.promise().root;
    root->loop->schedule(*this);
  }
  void await_resume() const noexcept {}
};

template <class T>
struct AsResult {
  using Type = Result<T>;
};
template <class T>
struct AsResult<Result<T>> {
  using Type = Result<T>;
};

/// Runs a task until it ends or the time comes, whichever is first; then the task is destroyed.
template <class T>
struct TimeoutAwaiter final : TimerHook {
  TimeoutAwaiter(Task<T> child, TimePoint time) : task(std::move(child)), when(time) {}
  Task<T> task;
  TimePoint when;
  Waiter waiter;
  bool await_ready() const noexcept { return false; }
  template <class P>
  bool await_suspend(std::coroutine_handle<P> self) {
    waiter.handle = self;
    waiter.root = self.promise().root;
    auto child = task.handle();
    child.promise().root = waiter.root;
    child.resume();
    if (child.done()) return false;
    child.promise().continuation = self;
    waiter.root->loop->arm(*this, when);
    return true;
  }
  /// False when the time came first.
  bool await_resume() {
    if (armed()) waiter.root->loop->disarm(*this);
    return static_cast<bool>(task);
  }
  void on_timer() override {
    task = Task<T>();
    waiter.root->loop->schedule(waiter);
  }
};

}  // namespace detail

inline Task<void> sleep_until(TimePoint when) {
  detail::SleepAwaiter awaiter(when);
  co_await awaiter;
}

inline Task<void> sleep_for(Duration delay) {
  Loop& loop = co_await this_loop();
  detail::SleepAwaiter awaiter(loop.now() + delay);
  co_await awaiter;
}

/// Goes on when what else is ready has had its turn: for loops that might never have to wait.
inline Task<void> next_turn() {
  detail::TurnAwaiter awaiter;
  co_await awaiter;
}

/// The task's result, or kTimeout when it has not ended by `deadline`; then it is cancelled.
template <class T>
Task<typename detail::AsResult<T>::Type> with_deadline(TimePoint deadline, Task<T> task) {
  detail::TimeoutAwaiter<T> awaiter(std::move(task), deadline);
  const bool finished = co_await awaiter;
  if (!finished) co_return Error{ErrorCode::kTimeout, "the deadline has passed"};
  if constexpr (std::is_void_v<T>) {
    awaiter.task.handle().promise().take();
    co_return Result<void>();
  } else {
    co_return awaiter.task.handle().promise().take();
  }
}

template <class T>
Task<typename detail::AsResult<T>::Type> with_timeout(Duration timeout, Task<T> task) {
  Loop& loop = co_await this_loop();
  Task<typename detail::AsResult<T>::Type> bounded = with_deadline<T>(loop.now() + timeout, std::move(task));
  co_return co_await std::move(bounded);
}

}  // namespace skate::rt
