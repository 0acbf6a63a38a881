// What this machine allows, measured beside the systems: copies into touched and untouched memory,
// and the round trip between two processes by shared memory, futex, eventfd and socket.
// Prints one JSON object. Built by run.py with any C++20 compiler.
#include <linux/futex.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

void* map(size_t bytes, int flags, int fd = -1) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (p == MAP_FAILED) fail("mmap");
  return p;
}

// The i-th CPU this process may use, so that the two sides of a round trip never share one.
void pin(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) fail("sched_getaffinity");
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed) || index-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
}

// The best of five copies, in GB/s of 1000 MiB, as the put line counts them.
double copy_rate(char* to, const char* from, size_t bytes) {
  double best = 1e9;
  for (int i = 0; i < 5; i++) {
    const double start = now_s();
    std::memcpy(to, from, bytes);
    asm volatile("" : : "r"(to) : "memory");
    best = std::min(best, now_s() - start);
  }
  return static_cast<double>(bytes) / (1000.0 * 1024 * 1024) / best;
}

struct Shared {
  alignas(64) std::atomic<uint32_t> ping{0};
  alignas(64) std::atomic<uint32_t> pong{0};
};

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

// Median of five runs, in microseconds for one round trip. `side(0)` asks, `side(1)` answers.
template <typename Side>
double round_trip_us(int rounds, Side side) {
  std::vector<double> runs;
  for (int i = 0; i < 5; i++) {
    const pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
      pin(1);
      side(1);
      _exit(0);
    }
    pin(0);
    const double start = now_s();
    side(0);
    runs.push_back((now_s() - start) / rounds * 1e6);
    waitpid(child, nullptr, 0);
  }
  std::sort(runs.begin(), runs.end());
  return runs[runs.size() / 2];
}

double spin_us() {
  constexpr int kRounds = 20000;
  auto* s = new (map(sizeof(Shared), MAP_SHARED | MAP_ANONYMOUS)) Shared;
  uint32_t base = 0;
  const double us = round_trip_us(kRounds, [&](int who) {
    auto wait_for = [](std::atomic<uint32_t>& word, uint32_t value) {
      for (int spins = 0; word.load(std::memory_order_acquire) != value; spins++)
        if (spins > 2000) sched_yield();
    };
    for (uint32_t i = 1; i <= kRounds; i++) {
      if (who == 0) {
        s->ping.store(base + i, std::memory_order_release);
        wait_for(s->pong, base + i);
      } else {
        wait_for(s->ping, base + i);
        s->pong.store(base + i, std::memory_order_release);
      }
    }
    base += kRounds;
  });
  return us;
}

double futex_us() {
  constexpr int kRounds = 3000;
  auto* s = new (map(sizeof(Shared), MAP_SHARED | MAP_ANONYMOUS)) Shared;
  uint32_t base = 0;
  return round_trip_us(kRounds, [&](int who) {
    auto wait_for = [](std::atomic<uint32_t>& word, uint32_t value) {
      for (uint32_t seen; (seen = word.load(std::memory_order_acquire)) != value;)
        futex_wait(word, seen);
    };
    for (uint32_t i = 1; i <= kRounds; i++) {
      if (who == 0) {
        s->ping.store(base + i, std::memory_order_release);
        futex_wake(s->ping);
        wait_for(s->pong, base + i);
      } else {
        wait_for(s->ping, base + i);
        s->pong.store(base + i, std::memory_order_release);
        futex_wake(s->pong);
      }
    }
    base += kRounds;
  });
}

double eventfd_us() {
  constexpr int kRounds = 3000;
  const int ping = eventfd(0, 0), pong = eventfd(0, 0);
  return round_trip_us(kRounds, [&](int who) {
    uint64_t word = 1;
    for (int i = 0; i < kRounds; i++) {
      if (who == 0 && write(ping, &word, 8) != 8) fail("write");
      if (read(who == 0 ? pong : ping, &word, 8) != 8) fail("read");
      word = 1;
      if (who == 1 && write(pong, &word, 8) != 8) fail("write");
    }
  });
}

double socket_us() {
  constexpr int kRounds = 3000;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) fail("socketpair");
  return round_trip_us(kRounds, [&](int who) {
    char word[64] = {};
    for (int i = 0; i < kRounds; i++) {
      if (who == 0 && write(ends[0], word, 64) != 64) fail("write");
      if (read(ends[who], word, 64) != 64) fail("read");
      if (who == 1 && write(ends[1], word, 64) != 64) fail("write");
    }
  });
}

}  // namespace

int main() {
  const size_t bytes = 800ull << 20;
  // The source of the put line: zeroed memory that nobody has written, so all of it is one page, and
  // a huge one, since NumPy asks for that.
  char* zeros = static_cast<char*>(map(bytes, MAP_PRIVATE | MAP_ANONYMOUS));
  madvise(zeros, bytes, MADV_HUGEPAGE);
  const char* source = zeros;

  auto warm = [&](int flags, int advice, int fd) {
    char* to = static_cast<char*>(map(bytes, flags, fd));
    if (advice != 0) madvise(to, bytes, advice);
    std::memset(to, 1, bytes);
    const double rate = copy_rate(to, source, bytes);
    munmap(to, bytes);
    return rate;
  };
  const int fd = memfd_create("floors", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) fail("memfd");
  const double warm_shared = warm(MAP_SHARED, 0, fd);
  close(fd);
  const double warm_4k = warm(MAP_PRIVATE | MAP_ANONYMOUS, MADV_NOHUGEPAGE, -1);
  const double warm_huge = warm(MAP_PRIVATE | MAP_ANONYMOUS, MADV_HUGEPAGE, -1);

  const int cold_fd = memfd_create("floors", MFD_CLOEXEC);
  if (cold_fd < 0 || ftruncate(cold_fd, static_cast<off_t>(bytes)) != 0) fail("memfd");
  char* cold = static_cast<char*>(map(bytes, MAP_SHARED, cold_fd));
  const double start = now_s();
  std::memcpy(cold, source, bytes);
  const double cold_rate = static_cast<double>(bytes) / (1000.0 * 1024 * 1024) / (now_s() - start);
  munmap(cold, bytes);
  close(cold_fd);

  std::printf(
      "{\"memcpy_warm_shared_gb_s\": %.3f, \"memcpy_warm_4k_gb_s\": %.3f, "
      "\"memcpy_warm_huge_gb_s\": %.3f, \"memcpy_untouched_gb_s\": %.3f, ",
      warm_shared, warm_4k, warm_huge, cold_rate);
  std::printf(
      "\"spin_round_trip_us\": %.3f, \"futex_round_trip_us\": %.3f, "
      "\"eventfd_round_trip_us\": %.3f, \"socket_round_trip_us\": %.3f}\n",
      spin_us(), futex_us(), eventfd_us(), socket_us());
  return 0;
}
