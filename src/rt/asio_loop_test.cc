// Tests of what only the real loop has: threads, descriptors, processes, signals, sockets.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "rt/fd.h"
#include "rt/pool.h"
#include "rt/sleep.h"
#include "rt/stream.h"
#include "rt/task_group.h"

namespace skate::rt {
namespace {

using namespace std::chrono_literals;

class RealLoop : public testing::Test {
 protected:
  std::unique_ptr<Loop> loop_ = make_loop();

  Task<void> then_stop(Task<void> task) {
    Result<void> result = co_await with_timeout(20s, std::move(task));
    EXPECT_TRUE(result.ok()) << "the test hangs";
    loop_->stop();
  }
  void run(Task<void> task) {
    TaskGroup group(*loop_);
    group.spawn(then_stop(std::move(task)));
    loop_->run();
  }
};

Task<void> sleep_and_measure(bool* waited) {
  Loop& loop = co_await this_loop();
  const TimePoint before = loop.now();
  co_await sleep_for(5ms);
  *waited = loop.now() - before >= 5ms;
}

TEST_F(RealLoop, Sleeps) {
  bool waited = false;
  run(sleep_and_measure(&waited));
  EXPECT_TRUE(waited);
}

Task<void> wait_for(Event* event) { co_await event->wait(); }

TEST_F(RealLoop, PostsFromThreads) {
  Event event;
  int count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        loop_->post([&] {
          if (++count == 4000) event.set();
        });
      }
    });
  }
  run(wait_for(&event));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 4000);
}

Task<void> pool_work(Pool* pool, std::thread::id* where) {
  *where = co_await run_on(pool, [] { return std::this_thread::get_id(); });
}

TEST_F(RealLoop, PoolRunsElsewhere) {
  ThreadPool pool(2);
  std::thread::id where = std::this_thread::get_id();
  run(pool_work(&pool, &where));
  EXPECT_NE(where, std::this_thread::get_id());
}

Task<void> read_twice(int fd, int* got) {
  Loop& loop = co_await this_loop();
  std::unique_ptr<FdWatch> watch = loop.watch_fd(fd);
  // A waiter that gives up must leave the watch usable.
  Result<void> nothing = co_await with_timeout(2ms, watch->wait_readable());
  EXPECT_FALSE(nothing.ok());
  loop.post([fd] { EXPECT_EQ(::write(fd, "x", 1), 1); });
  EXPECT_TRUE((co_await watch->wait_readable()).ok());
  *got = 1;
}

TEST_F(RealLoop, DescriptorReadiness) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
  UniqueFd a(fds[0]), b(fds[1]);
  int got = 0;
  std::thread peer([&] {  // echoes one byte
    char byte;
    fcntl(b.get(), F_SETFL, 0);
    EXPECT_EQ(::read(b.get(), &byte, 1), 1);
    EXPECT_EQ(::write(b.get(), &byte, 1), 1);
  });
  run(read_twice(a.get(), &got));
  peer.join();
  EXPECT_EQ(got, 1);
}

Task<void> watch_child(pid_t child) {
  Result<ProcessWatch> watch = ProcessWatch::open(child);
  EXPECT_TRUE(watch.ok());
  if (!watch) co_return;
  EXPECT_TRUE(watch->send_signal(SIGKILL).ok());
  EXPECT_TRUE((co_await watch->wait_end()).ok());
}

TEST_F(RealLoop, ProcessEnd) {
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  run(watch_child(child));
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(ProcessWatch::open(child).error().code, ErrorCode::kNotFound);
}

Task<void> next_signal(SignalSet* signals, int* got) {
  kill(getpid(), SIGUSR2);
  Result<int> signal = co_await signals->next();
  if (signal) *got = *signal;
}

TEST_F(RealLoop, Signals) {
  SignalSet signals({SIGUSR2});
  int got = 0;
  run(next_signal(&signals, &got));
  EXPECT_EQ(got, SIGUSR2);
}

Task<void> serve_echo(Listener* listener) {
  Result<std::unique_ptr<Stream>> stream = co_await listener->accept();
  EXPECT_TRUE(stream.ok());
  if (!stream) co_return;
  std::vector<uint8_t> buffer(70000);
  while (true) {
    Result<size_t> got = co_await (*stream)->read(buffer);
    if (!got || *got == 0) co_return;
    std::span<const uint8_t> bytes(buffer.data(), *got);
    EXPECT_TRUE((co_await (*stream)->write(bytes)).ok());
  }
}

Task<void> write_all(Stream* stream, std::vector<uint8_t> bytes) {
  EXPECT_TRUE((co_await stream->write(bytes)).ok());
}

Task<void> echo(Loop* loop, std::string address, bool* same) {
  std::unique_ptr<Network> network = make_network(*loop);
  Result<std::unique_ptr<Listener>> listener = network->listen(address);
  EXPECT_TRUE(listener.ok()) << listener.error().message;
  if (!listener) co_return;
  Result<std::unique_ptr<Stream>> stream = co_await network->connect((*listener)->address());
  EXPECT_TRUE(stream.ok());
  if (!stream) co_return;
  TaskGroup group(*loop);
  group.spawn(serve_echo(listener->get()));
  std::vector<uint8_t> sent(3 << 20), received(3 << 20);
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<uint8_t>(i * 31 >> 3);
  group.spawn(write_all(stream->get(), sent));
  EXPECT_TRUE((co_await read_exactly(stream->get(), received)).ok());
  *same = sent == received;
  (*stream)->close();
  Result<size_t> after = co_await (*stream)->read(received);
  EXPECT_TRUE(!after || *after == 0);
}

TEST_F(RealLoop, StreamsOverUnixAndTcp) {
  const std::string path = "/tmp/skate-rt-test-" + std::to_string(getpid());
  for (const std::string& address :
       {"unix:" + path, std::string("tcp:127.0.0.1:0"), "unix:@skate-rt-" + std::to_string(getpid())}) {
    bool same = false;
    run(echo(loop_.get(), address, &same));
    EXPECT_TRUE(same) << address;
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "the listener removes its path";
}

Task<void> refuse_bad_addresses(Loop* loop) {
  std::unique_ptr<Network> network = make_network(*loop);
  for (const char* bad : {"", "unix:", "tcp:", "tcp::1", "tcp:localhost:80", "tcp:127.0.0.1:70000",
                          "tcp:127.0.0.1:", "http://x"}) {
    std::string address = bad;
    Result<std::unique_ptr<Stream>> stream = co_await network->connect(address);
    EXPECT_FALSE(stream.ok()) << bad;
    EXPECT_EQ(stream.error().code, ErrorCode::kInvalid) << bad;
  }
  std::string nobody = "unix:/tmp/skate-nobody-listens-here";
  Result<std::unique_ptr<Stream>> stream = co_await network->connect(nobody);
  EXPECT_EQ(stream.error().code, ErrorCode::kUnavailable);
}

TEST_F(RealLoop, BadAddresses) { run(refuse_bad_addresses(loop_.get())); }

TEST_F(RealLoop, LoopThreadRunsAndStops) {
  std::atomic<bool> ran{false};
  {
    LoopThread thread;
    thread.loop().post([&] { ran = true; });
  }
  EXPECT_TRUE(ran) << "what was posted before the stop has run";
}

}  // namespace
}  // namespace skate::rt
