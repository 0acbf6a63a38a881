#include "node/log_forwarder.h"

#include <gtest/gtest.h>

#include "rt/sim_loop.h"

namespace skate::node {
namespace {

using namespace std::chrono_literals;

/// A driver that reads, or has room for some records only.
struct Driver {
  rt::SimLoop loop{1};
  size_t room = SIZE_MAX;
  uint64_t lines = 0;
  uint64_t dropped = 0;
  LogForwarder forwarder{loop, 2000, [this](const wire::LogLines& batch) {
                           if (batch.lines.size() > room) return false;
                           lines += batch.lines.size();
                           dropped += batch.dropped;
                           return true;
                         }};

  void print(size_t count) {
    for (size_t i = 0; i < count; ++i) forwarder.add({1, false, "f", "", "a line"});
  }
};

TEST(LogForwarder, SendsAllAtOnceWhenFlushed) {
  Driver driver;
  driver.print(1234);
  driver.forwarder.flush();
  EXPECT_EQ(driver.lines, 1234u);
  EXPECT_EQ(driver.dropped, 0u);
}

TEST(LogForwarder, CountsWhatIsAboveTheRate) {
  Driver driver;
  driver.print(3000);
  driver.forwarder.flush();
  EXPECT_EQ(driver.lines, 2000u);
  EXPECT_EQ(driver.dropped, 1000u);
}

TEST(LogForwarder, CountsWhatADriverHasNoRoomFor) {
  Driver driver;
  driver.room = 0;
  driver.print(700);
  driver.forwarder.flush();
  EXPECT_EQ(driver.lines, 0u);
  EXPECT_EQ(driver.dropped, 700u) << "the count takes little room";
}

TEST(LogForwarder, KeepsTheCountForADriverThatHasNoRoomForIt) {
  rt::SimLoop loop(1);
  bool reads = false;
  uint64_t dropped = 0;
  LogForwarder forwarder(loop, 2000, [&](const wire::LogLines& batch) {
    if (reads) dropped += batch.dropped;
    return reads;
  });
  for (int i = 0; i < 700; ++i) forwarder.add({1, false, "f", "", "a line"});
  loop.run_for(1s);
  reads = true;
  loop.run_for(1s);
  EXPECT_EQ(dropped, 700u);
}

}  // namespace
}  // namespace skate::node
