#include "worker/spin_policy.h"

#include <gtest/gtest.h>

namespace skate::worker {
namespace {

using std::chrono::nanoseconds;
constexpr int64_t kUs = 1000;
constexpr nanoseconds kBudget{50 * kUs};

/// One who waits for records: when he has one that came at `at`, given a wake that costs `wake_ns`.
struct Reader {
  SpinPolicy policy{kBudget};
  int64_t began_ns = 0;
  int64_t looked_ns = 0;
  bool last_spun = false;

  int64_t receive(int64_t at_ns, int64_t wake_ns) {
    const int64_t limit = policy.next().count();
    const int64_t waited = at_ns - began_ns;
    last_spun = limit > 0 && waited <= limit;
    looked_ns += std::min(limit, waited);
    if (last_spun) {
      policy.found(nanoseconds(waited));
      return at_ns;
    }
    if (limit > 0) policy.missed();
    const int64_t now = at_ns + wake_ns;
    policy.slept(nanoseconds(now - began_ns - limit));
    return now;
  }
};

/// A caller and a server by turns; how many of the last 100 of `calls` took no wake at all.
struct Calls {
  Reader caller, server;
  int64_t now_ns = 0;

  int quick(int calls, int64_t work_ns, int64_t wake_ns) {
    int quick = 0;
    for (int i = 0; i < calls; ++i) {
      caller.began_ns = now_ns;
      now_ns = server.receive(now_ns + 300, wake_ns) + work_ns;
      server.began_ns = now_ns;
      now_ns = caller.receive(now_ns + 300, wake_ns) + 3 * kUs;
      if (i >= calls - 100) quick += caller.last_spun && server.last_spun;
    }
    return quick;
  }
};

TEST(SpinPolicy, CallerAndServerFindEachOtherFromEveryState) {
  for (int64_t wake_us : {20, 50, 80, 120}) {
    for (int slow_calls : {0, 1, 7, 8, 9, 30, 500, 5000}) {
      Calls calls;
      calls.quick(slow_calls, 5'000 * kUs, wake_us * kUs);
      EXPECT_EQ(calls.quick(1000, 2 * kUs, wake_us * kUs), 100)
          << "wake " << wake_us << " us, after " << slow_calls << " slow calls";
    }
  }
}

TEST(SpinPolicy, OneSideStartsInItsWorstState) {
  for (int misses : {1, 8, 100, 1000}) {
    Calls calls;
    for (int i = 0; i < misses; ++i) calls.server.receive(calls.server.began_ns += 10'000 * kUs, 0);
    calls.server.began_ns = calls.now_ns = 0;
    EXPECT_EQ(calls.quick(1000, 2 * kUs, 60 * kUs), 100) << misses;
  }
}

TEST(SpinPolicy, LongWorkCostsLittle) {
  for (int64_t work_us : {200, 1000, 20'000}) {
    Calls calls;
    calls.quick(1000, work_us * kUs, 60 * kUs);
    calls.caller.looked_ns = 0;
    const int64_t began_ns = calls.now_ns;
    calls.quick(1000, work_us * kUs, 60 * kUs);
    EXPECT_LT(calls.caller.looked_ns, (calls.now_ns - began_ns) / 20) << work_us;
  }
}

TEST(SpinPolicy, RestGrowsAndAQuickFindEndsIt) {
  SpinPolicy policy(kBudget);
  int looks = 0;
  for (int i = 0; i < 10'000; ++i) {
    if (policy.next() == nanoseconds::zero()) continue;
    ++looks;
    policy.missed();
  }
  EXPECT_GT(looks, 100) << "it never gives up for good";
  EXPECT_LT(looks, 500);
  while (policy.next() == nanoseconds::zero()) continue;
  policy.found(nanoseconds(300));
  for (int i = 0; i < 100; ++i) {
    EXPECT_GT(policy.next(), nanoseconds::zero());
    policy.found(nanoseconds(300));
  }
}

}  // namespace
}  // namespace skate::worker
