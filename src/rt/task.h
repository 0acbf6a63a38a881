// Task<T>: a coroutine that returns T. Lazy: it starts when it is awaited, or spawned in a TaskGroup.
//
// Cancellation is destruction: dropping a Task that is suspended destroys its frame, and with it all that it
// awaits, innermost first, by ordinary destructors. So a coroutine needs no code for being cancelled, and
// cannot refuse. Expected failures travel as Result<T>; an exception that leaves a spawned task is a bug.
// Single-threaded: a task and all it awaits live on the loop of the TaskGroup that it was spawned in.
//
// Parameters by value; no capturing lambda coroutines. g++ 12 mishandles some temporaries in a co_await
// expression: name arguments that are braced aggregates or conversions before the co_await.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "rt/loop.h"

namespace skate::rt {

template <class T = void>
class Task;
class TaskGroup;

namespace detail {

struct PromiseBase {
  Root* root = nullptr;                  // set before the first resume
  std::coroutine_handle<> continuation;  // the awaiting coroutine, once it is suspended
  std::exception_ptr exception;

  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      const std::coroutine_handle<> next = self.promise().continuation;
      return next ? next : std::noop_coroutine();
    }
    void await_resume() const noexcept {}
  };
  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  void unhandled_exception() noexcept { exception = std::current_exception(); }
  void rethrow() const {
    if (exception) std::rethrow_exception(exception);
  }
};

template <class T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <class U>
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
  T take() {
    rethrow();
    return std::move(*value);
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() const noexcept {}
  void take() const { rethrow(); }
};

}  // namespace detail

template <class T>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;
  using ValueType = T;

  Task() = default;
  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }
  explicit operator bool() const { return static_cast<bool>(handle_); }

  struct Awaiter {
    Handle child;
    bool await_ready() const noexcept { return false; }
    template <class P>
    bool await_suspend(std::coroutine_handle<P> parent) const {
      promise_type& promise = child.promise();
      promise.root = parent.promise().root;
      child.resume();
      if (child.done()) return false;  // a child that never waited costs no stack
      promise.continuation = parent;
      return true;
    }
    T await_resume() const { return child.promise().take(); }
  };
  Awaiter operator co_await() && {
    SKATE_ASSERT(handle_, "awaited a Task that holds no coroutine");
    return Awaiter{handle_};
  }
  Handle handle() const { return handle_; }

 private:
  Handle handle_;
};

namespace detail {

template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}

/// One spawned task. Owned by its TaskGroup, or by the loop while it runs and after its group has stopped.
struct Root : ListNode {
  Loop* loop = nullptr;
  TaskGroup* group = nullptr;
  Task<void> task;
  Waiter start;
  bool doomed = false;
};

}  // namespace detail

/// co_await this_loop(): the loop on which the coroutine runs.
struct ThisLoop {
  Loop* loop = nullptr;
  bool await_ready() const noexcept { return false; }
  template <class P>
  bool await_suspend(std::coroutine_handle<P> self) noexcept {
    loop = self.promise().root->loop;
    return false;
  }
  Loop& await_resume() const noexcept { return *loop; }
};
inline ThisLoop this_loop() { return {}; }

}  // namespace skate::rt
