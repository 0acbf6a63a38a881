// Pool: a few threads for work that blocks (files, fsync, compression), awaited from a loop.
//
//   Result<int> answer = co_await run_on(&pool, [path] { return read(path); });
//
// A task that is cancelled while it waits does not interrupt the work: its result is dropped. Each caller has
// one piece of work queued at a time, so that the queue is bounded by the number of tasks.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "rt/sync.h"
#include "rt/task.h"

namespace skate::rt {

class Pool {
 public:
  virtual ~Pool() = default;
  virtual void submit(std::function<void()> work) = 0;
};

/// Threads with every signal blocked. The destructor finishes what is queued, then joins.
class ThreadPool final : public Pool {
 public:
  explicit ThreadPool(size_t threads);
  ~ThreadPool() override;
  void submit(std::function<void()> work) override;

 private:
  void work_loop();
  std::mutex mutex_;  // the queue is filled by loops and emptied by the pool's threads
  std::condition_variable available_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

namespace detail {
/// Shared by the pool's thread, which fills it, and the awaiting coroutine, which may vanish first.
template <class T>
struct PoolCall {
  std::optional<T> value;
  Event* done = nullptr;  // touched on the loop's thread only
};
}  // namespace detail

/// Runs `work` on the pool and returns its value (not void: return a Result<void>).
template <class Work>
Task<std::invoke_result_t<Work>> run_on(Pool* pool, Work work) {
  using T = std::invoke_result_t<Work>;
  Loop& loop = co_await this_loop();
  auto call = std::make_shared<detail::PoolCall<T>>();
  Event done;
  struct Forget {
    detail::PoolCall<T>& call;
    ~Forget() { call.done = nullptr; }
  } forget{*call};
  call->done = &done;
  pool->submit([call, &loop, work = std::move(work)]() mutable {
    call->value.emplace(work());
    loop.post([call = std::move(call)] {
      if (call->done != nullptr) call->done->set();
    });
  });
  co_await done.wait();
  co_return std::move(*call->value);
}

}  // namespace skate::rt
