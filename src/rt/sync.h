// WaitList, Event, Channel: how coroutines of one loop wait for each other. None is for several threads.
#pragma once

#include <deque>
#include <optional>

#include "rt/task.h"

namespace skate::rt {

/// Coroutines that wait for a condition which they check themselves, in a loop, after each wake.
class WaitList {
 public:
  struct Awaiter : detail::Waiter {
    explicit Awaiter(WaitList& wait_list) : list(wait_list) {}
    WaitList& list;
    bool await_ready() const noexcept { return false; }
    template <class P>
    void await_suspend(std::coroutine_handle<P> self) {
      handle = self;
      root = self.promise().root;
      list.queue_.push_back(*this);
    }
    void await_resume() const noexcept {}
  };
  Task<void> wait() {
    Awaiter awaiter(*this);
    co_await awaiter;
  }
  void wake_all() {
    while (detail::Waiter* waiter = queue_.front()) waiter->root->loop->schedule(*waiter);
  }
  bool empty() const { return queue_.empty(); }

 private:
  detail::WaiterQueue queue_;
};

/// A flag that is set once, or reset by its owner; waiters pass while it is set.
class Event {
 public:
  void set() {
    set_ = true;
    waiters_.wake_all();
  }
  void reset() { set_ = false; }
  bool is_set() const { return set_; }
  Task<void> wait() {
    while (!set_) {
      WaitList::Awaiter awaiter(waiters_);
      co_await awaiter;
    }
  }

 private:
  bool set_ = false;
  WaitList waiters_;
};

/// A bounded queue between coroutines. After close() sends fail; receivers drain it, then get nothing.
template <class T>
class Channel {
 public:
  explicit Channel(size_t capacity) : capacity_(capacity) {
    SKATE_ASSERT(capacity > 0, "a channel holds something");
  }

  /// False when the channel is closed; waits while it is full.
  Task<bool> send(T item) {
    while (!closed_ && items_.size() >= capacity_) {
      WaitList::Awaiter awaiter(space_);
      co_await awaiter;
    }
    co_return try_send(std::move(item));
  }
  /// False when closed or full.
  bool try_send(T item) {
    if (closed_ || items_.size() >= capacity_) return false;
    items_.push_back(std::move(item));
    filled_.wake_all();
    return true;
  }
  /// The next item; nothing when the channel is closed and empty.
  Task<std::optional<T>> receive() {
    while (!closed_ && items_.empty()) {
      WaitList::Awaiter awaiter(filled_);
      co_await awaiter;
    }
    co_return try_receive();
  }
  std::optional<T> try_receive() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    space_.wake_all();
    return item;
  }
  void close() {
    closed_ = true;
    filled_.wake_all();
    space_.wake_all();
  }
  bool closed() const { return closed_; }
  size_t size() const { return items_.size(); }
  size_t capacity() const { return capacity_; }

 private:
  const size_t capacity_;
  std::deque<T> items_;
  bool closed_ = false;
  WaitList filled_;
  WaitList space_;
};

}  // namespace skate::rt
