// The real loop: Boost.Asio's reactor for descriptors and for posts from other threads; our own queues for
// the rest. This file is the only one of the folder that includes Asio.
#include <time.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>

#include "base/ids.h"
#include "rt/fd.h"
#include "rt/loop.h"
#include "rt/sync.h"

namespace skate::rt {
namespace {

namespace asio = boost::asio;
constexpr size_t kReadyPerTurn = 64;
constexpr size_t kPostsPerTurn = 64;

uint64_t system_seed() {
  uint64_t seed = 0;
  secure_random_bytes(reinterpret_cast<uint8_t*>(&seed), sizeof(seed));
  return seed;
}

class AsioFdWatch final : public FdWatch {
 public:
  AsioFdWatch(asio::io_context& io, int fd)
      : descriptor_(io), read_(std::make_shared<Wait>()), write_(std::make_shared<Wait>()) {
    boost::system::error_code error;
    descriptor_.assign(fd, error);
    if (error) assign_error_ = error.message();
  }
  ~AsioFdWatch() override {
    read_->wake = nullptr;
    write_->wake = nullptr;
    if (descriptor_.is_open()) descriptor_.release();  // takes it out of epoll, leaves it open
  }
  Task<Result<void>> wait_readable() override {
    return wait(asio::posix::stream_descriptor::wait_read, read_);
  }
  Task<Result<void>> wait_writable() override {
    return wait(asio::posix::stream_descriptor::wait_write, write_);
  }

 private:
  /// Shared by the watch and the reactor's handler, which may come after the watch is gone.
  struct Wait {
    WaitList* wake = nullptr;
    bool armed = false;
    bool ready = false;
    std::string error;
  };

  Task<Result<void>> wait(asio::posix::stream_descriptor::wait_type type, std::shared_ptr<Wait> state) {
    if (!assign_error_.empty())
      co_return Error{ErrorCode::kIo, "cannot watch a descriptor: " + assign_error_};
    WaitList list;
    struct Forget {
      Wait& state;
      ~Forget() { state.wake = nullptr; }
    };
    SKATE_ASSERT(state->wake == nullptr, "a descriptor has one waiter for each direction");
    Forget forget{*state};
    state->wake = &list;
    state->ready = false;
    if (!state->armed) {  // an earlier waiter that was cancelled may have left it armed
      state->armed = true;
      descriptor_.async_wait(type, [state](const boost::system::error_code& error) {
        state->armed = false;
        state->ready = true;
        state->error = error ? error.message() : std::string();
        if (state->wake != nullptr) state->wake->wake_all();
      });
    }
    while (!state->ready) co_await list.wait();
    if (!state->error.empty()) co_return Error{ErrorCode::kIo, "waiting for a descriptor: " + state->error};
    co_return Result<void>();
  }

  asio::posix::stream_descriptor descriptor_;
  std::shared_ptr<Wait> read_;
  std::shared_ptr<Wait> write_;
  std::string assign_error_;
};

class AsioLoop final : public Loop {
 public:
  AsioLoop() : Loop(system_seed()), io_(1), guard_(io_.get_executor()) {}

  TimePoint now() const override {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return TimePoint(std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec));
  }
  int64_t unix_time_ms() const override {
    timespec time{};
    clock_gettime(CLOCK_REALTIME, &time);
    return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1000000;
  }
  void post(std::function<void()> work) override { asio::post(io_, std::move(work)); }

  void run() override {
    home_ = std::this_thread::get_id();
    while (!stopping_.load(std::memory_order_acquire)) {
      fire_timers();
      run_ready(kReadyPerTurn);
      if (has_ready()) {
        poll();
        continue;
      }
      if (const auto when = next_timer()) {
        const TimePoint time = now();
        if (*when > time) io_.run_one_for(*when - time);
      } else {
        io_.run_one();
      }
      poll();
    }
    stopping_.store(false, std::memory_order_release);
    home_ = {};
  }
  void stop() override {
    asio::post(io_, [this] { stopping_.store(true, std::memory_order_release); });
  }
  std::unique_ptr<FdWatch> watch_fd(int fd) override { return std::make_unique<AsioFdWatch>(io_, fd); }

 private:
  void poll() {
    for (size_t i = 0; i < kPostsPerTurn && io_.poll_one() > 0; ++i) {
    }
  }

  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> guard_;
  std::atomic<bool> stopping_{false};
};

}  // namespace

std::unique_ptr<Loop> make_loop() { return std::make_unique<AsioLoop>(); }

}  // namespace skate::rt
