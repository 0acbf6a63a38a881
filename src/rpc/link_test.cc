// Two ends of a link on two threads over a real segment: nothing is lost, reordered, or left asleep.
#include "rpc/link.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace skate::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr seconds kPatience{60};  // only a broken doorbell takes this long

std::string record_body(uint64_t number, size_t size) {
  std::mt19937_64 random(number);
  std::string body(size, '\0');
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    uint64_t word = random();
    std::memcpy(body.data() + at, &word, std::min(sizeof word, size - at));
  }
  return body;
}

uint16_t record_type(uint64_t number) { return static_cast<uint16_t>(1 + number % 1000); }

bool same(std::span<const uint8_t> got, const std::string& expected) {
  return std::string_view(reinterpret_cast<const char*>(got.data()), got.size()) == expected;
}

/// Sleeps as a process's service thread does, until a link is marked. False: nobody rang in time.
bool sleep_until_marked(Doorbell& bell, Clock::time_point until) {
  while (!any_ready(bell)) {
    if (Clock::now() > until) return false;
    uint32_t ticket = bell.service_word.load(std::memory_order_seq_cst);
    bell.sleeper.store(static_cast<uint32_t>(Sleeper::kService), std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!any_ready(bell)) futex_sleep(bell.service_word, ticket, seconds(1));
    bell.sleeper.store(static_cast<uint32_t>(Sleeper::kNone), std::memory_order_seq_cst);
  }
  return true;
}

class LinkTest : public testing::Test {
 protected:
  static constexpr uint32_t kIndex = 70;  // not in the first word of the bitmap

  void SetUp() override {
    auto created = Segment::create(2);
    ASSERT_TRUE(created.ok());
    segment = std::move(*created);
    left = std::make_unique<Link>(*segment, kIndex, 0, 2);
    right = std::make_unique<Link>(*segment, kIndex, 1, 1);
  }
  Doorbell& left_bell() { return segment->slot(1).doorbell; }
  Doorbell& right_bell() { return segment->slot(2).doorbell; }

  std::unique_ptr<Segment> segment;
  std::unique_ptr<Link> left, right;
};

TEST_F(LinkTest, RecordsArriveWholeAndInOrder) {
  left->send(7, "hello");
  left->send(8, "");
  left->send(9, {std::span(reinterpret_cast<const uint8_t*>("ab"), 2),
                 {},
                 std::span(reinterpret_cast<const uint8_t*>("cde"), 3)});
  std::vector<std::pair<uint16_t, std::string>> got;
  EXPECT_FALSE(right->empty());
  auto count = right->receive([&](uint16_t type, std::span<const uint8_t> body) {
    got.emplace_back(type, std::string(body.begin(), body.end()));
  });
  ASSERT_TRUE(count.ok());
  EXPECT_EQ(*count, 3u);
  EXPECT_EQ(got, (std::vector<std::pair<uint16_t, std::string>>{{7, "hello"}, {8, ""}, {9, "abcde"}}));
  EXPECT_TRUE(right->empty());
  EXPECT_TRUE(left->empty());
}

TEST_F(LinkTest, ReceiveStopsAtItsLimitAndGoesOnThere) {
  for (uint64_t i = 0; i < 5; ++i) left->send(record_type(i), record_body(i, 20));
  uint64_t next = 0;
  auto check = [&](uint16_t type, std::span<const uint8_t> body) {
    EXPECT_EQ(type, record_type(next));
    EXPECT_TRUE(same(body, record_body(next, 20)));
    ++next;
  };
  EXPECT_EQ(*right->receive(check, 2), 2u);
  EXPECT_EQ(*right->receive(check, 2), 2u);
  EXPECT_EQ(*right->receive(check, 2), 1u);
  EXPECT_EQ(next, 5u);
}

TEST_F(LinkTest, SizesAroundThePieceAndTheRingsEnd) {
  std::vector<size_t> sizes{0,
                            1,
                            7,
                            8,
                            9,
                            kRingBytes / 4 - 1,
                            kRingBytes / 4,
                            kRingBytes / 4 + 1,
                            kRingBytes / 2,
                            kRingBytes - 8,
                            kRingBytes,
                            kRingBytes + 1,
                            5 * kRingBytes + 3};
  uint64_t sent = 0, got = 0;
  for (size_t round = 0; round < 12; ++round) {
    for (size_t size : sizes) {
      const std::string body = record_body(sent, size);
      left->send(record_type(sent++), body);
      // Alone in the ring, so a body larger than it needs the backlog and both ends by turns.
      while (got < sent) {
        auto count = right->receive([&](uint16_t type, std::span<const uint8_t> bytes) {
          EXPECT_EQ(type, record_type(got));
          EXPECT_TRUE(same(bytes, body)) << "record " << got << " of " << size << " bytes";
          ++got;
        });
        ASSERT_TRUE(count.ok());
        ASSERT_TRUE(left->receive([](uint16_t, std::span<const uint8_t>) { ADD_FAILURE(); }).ok());
      }
      EXPECT_EQ(left->backlog_bytes(), 0u);
    }
    left->send(1, std::string(round * 8, 'x'));  // shifts where the next round meets the ring's end
    ASSERT_EQ(*right->receive([](uint16_t, std::span<const uint8_t>) {}), 1u);
  }
}

TEST_F(LinkTest, AFullRingQueuesAndTheWriterIsRungOnceThereIsRoom) {
  uint64_t sent = 0;
  while (left->backlog_bytes() == 0) left->send(record_type(sent), record_body(sent, 1000)), ++sent;
  EXPECT_TRUE(left->crowded());
  for (int i = 0; i < 10; ++i) left->send(record_type(sent), record_body(sent, 1000)), ++sent;
  EXPECT_GE(left->backlog_bytes(), 11 * 1000u);
  EXPECT_FALSE(any_ready(left_bell()));

  uint64_t got = 0;
  auto check = [&](uint16_t type, std::span<const uint8_t> body) {
    EXPECT_EQ(type, record_type(got));
    EXPECT_TRUE(same(body, record_body(got, 1000)));
    ++got;
  };
  // A little room is not worth a wake.
  ASSERT_EQ(*right->receive(check, 2), 2u);
  EXPECT_FALSE(any_ready(left_bell()));
  ASSERT_TRUE(right->receive(check).ok());
  std::vector<uint32_t> marked;
  take_ready(left_bell(), [&](uint32_t link) { marked.push_back(link); });
  EXPECT_EQ(marked, std::vector<uint32_t>{kIndex});

  ASSERT_TRUE(left->receive([](uint16_t, std::span<const uint8_t>) { ADD_FAILURE(); }).ok());
  EXPECT_EQ(left->backlog_bytes(), 0u);
  EXPECT_TRUE(any_ready(right_bell())) << "who moves waiting records out tells the reader";
  ASSERT_TRUE(right->receive(check).ok());
  EXPECT_EQ(got, sent);
}

TEST_F(LinkTest, ManyThreadsMaySendAndEachKeepsItsOrder) {
  constexpr uint32_t kThreads = 3;
  constexpr uint32_t kEach = 3000;
  std::atomic<bool> stop{false};
  std::vector<std::thread> senders;
  for (uint32_t t = 0; t < kThreads; ++t)
    senders.emplace_back([&, t] {
      std::string body(sizeof(uint32_t) + 40, static_cast<char>('a' + t));
      for (uint32_t i = 0; i < kEach; ++i) {
        std::memcpy(body.data(), &i, sizeof i);
        left->send(static_cast<uint16_t>(t), body);
        left->ring(Urgency::kTask);
      }
    });
  // This side's other duty: waiting records go out when it reads.
  std::thread pump([&] {
    while (!stop.load()) {
      EXPECT_TRUE(left->receive([](uint16_t, std::span<const uint8_t>) { ADD_FAILURE(); }).ok());
      std::this_thread::yield();
    }
  });
  std::vector<uint32_t> next(kThreads, 0);
  const Clock::time_point until = Clock::now() + kPatience;
  uint64_t got = 0;
  while (got < uint64_t{kThreads} * kEach && sleep_until_marked(right_bell(), until)) {
    take_ready(right_bell(), [](uint32_t link) { EXPECT_EQ(link, kIndex); });
    auto count = right->receive([&](uint16_t type, std::span<const uint8_t> body) {
      ASSERT_LT(type, kThreads);
      uint32_t number = 0;
      ASSERT_EQ(body.size(), sizeof number + 40);
      std::memcpy(&number, body.data(), sizeof number);
      EXPECT_EQ(number, next[type]++);
      EXPECT_EQ(body.back(), 'a' + type);
    });
    ASSERT_TRUE(count.ok());
    got += *count;
  }
  stop.store(true);
  for (std::thread& sender : senders) sender.join();
  pump.join();
  EXPECT_EQ(next, std::vector<uint32_t>(kThreads, kEach));
}

/// Both directions at once, both ends asleep whenever they have nothing to do: random sizes up to several
/// rings, so that backlogs, wrap-around and pieces mix. Whatever wake is lost stops the test.
TEST_F(LinkTest, RandomTrafficBothWaysWithSleepingEnds) {
  constexpr uint64_t kRecords = 500;
  auto size_of = [](uint64_t number) -> size_t {
    std::mt19937_64 random(number * 2654435761u + 1);
    switch (random() % 16) {
      case 0: return random() % (3 * kRingBytes);
      case 1: return kRingBytes / 4 - 16 + random() % 32;
      case 2:
      case 3: return random() % 8000;
      default: return random() % 300;
    }
  };
  auto run = [&](Link& link, Doorbell& bell, uint64_t own_base, uint64_t peer_base) {
    uint64_t sent = 0, got = 0;
    std::mt19937_64 random(own_base);
    const Clock::time_point until = Clock::now() + kPatience;
    while (got < kRecords || sent < kRecords || link.backlog_bytes() != 0) {
      uint64_t burst = random() % 20;
      for (; burst > 0 && sent < kRecords && link.backlog_bytes() < 2 * kRingBytes; --burst, ++sent)
        link.send(record_type(own_base + sent), record_body(own_base + sent, size_of(own_base + sent)));
      link.ring(Urgency::kUrgent);
      const bool may_send = sent < kRecords && link.backlog_bytes() < 2 * kRingBytes;
      if (!may_send && !sleep_until_marked(bell, until)) return got;
      take_ready(bell, [](uint32_t) {});
      auto count = link.receive([&](uint16_t type, std::span<const uint8_t> body) {
        const uint64_t number = peer_base + got;
        EXPECT_EQ(type, record_type(number));
        EXPECT_TRUE(same(body, record_body(number, size_of(number)))) << "record " << number;
        ++got;
      });
      if (!count.ok()) return got;
    }
    return got;
  };
  uint64_t right_got = 0;
  std::thread other([&] { right_got = run(*right, right_bell(), 1'000'000, 0); });
  uint64_t left_got = run(*left, left_bell(), 0, 1'000'000);
  other.join();
  EXPECT_EQ(left_got, kRecords);
  EXPECT_EQ(right_got, kRecords);
}

TEST_F(LinkTest, PingPongLosesNoWake) {
  constexpr uint32_t kRounds = 5000;
  auto play = [&](Link& link, Doorbell& bell, bool begins) -> uint32_t {
    const Clock::time_point until = Clock::now() + kPatience;
    uint32_t got = 0;
    if (begins) {
      link.send(1, "0000");
      link.ring(Urgency::kTask);
    }
    while (got < kRounds && sleep_until_marked(bell, until)) {
      take_ready(bell, [](uint32_t) {});
      uint32_t came = 0;
      EXPECT_TRUE(link.receive([&](uint16_t, std::span<const uint8_t>) { ++came; }).ok());
      got += came;
      for (; came > 0; --came) link.send(1, "0000");
      link.ring(Urgency::kTask);
    }
    return got;
  };
  uint32_t right_got = 0;
  std::thread other([&] { right_got = play(*right, right_bell(), false); });
  uint32_t left_got = play(*left, left_bell(), true);
  other.join();
  EXPECT_EQ(left_got, kRounds);
  EXPECT_EQ(right_got, kRounds);
}

TEST_F(LinkTest, MarksBelowTheThresholdDoNotWakeTheServiceThread) {
  Doorbell& bell = right_bell();
  bell.service_threshold.store(static_cast<uint32_t>(Urgency::kUrgent));
  bell.sleeper.store(static_cast<uint32_t>(Sleeper::kService));
  const uint32_t before = bell.service_word.load();
  left->ring(Urgency::kTask);
  EXPECT_EQ(bell.service_word.load(), before);
  EXPECT_EQ(bell.sleeper.load(), static_cast<uint32_t>(Sleeper::kService));
  EXPECT_TRUE(any_ready(bell)) << "it finds them when it wakes";
  left->ring(Urgency::kUrgent);
  EXPECT_EQ(bell.service_word.load(), before + 1);
  EXPECT_EQ(bell.sleeper.load(), static_cast<uint32_t>(Sleeper::kNone));
  left->ring(Urgency::kUrgent);
  EXPECT_EQ(bell.service_word.load(), before + 1) << "who is awake is not woken";
  bell.sleeper.store(static_cast<uint32_t>(Sleeper::kForeground));
  left->ring(Urgency::kLazy);
  EXPECT_EQ(bell.foreground_word.load(), 1u) << "a thread in a call wants everything";
}

TEST_F(LinkTest, AnEventLoopIsWokenThroughItsEventFd) {
  UniqueFd event(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  Link to_daemon(*segment, 3, 0, 9, event.get());
  Doorbell& bell = segment->slot(9).doorbell;
  uint64_t count = 0;
  to_daemon.ring(Urgency::kUrgent);
  EXPECT_LT(read(event.get(), &count, sizeof count), 0) << "it is awake";
  bell.sleeper.store(static_cast<uint32_t>(Sleeper::kEventFd));
  to_daemon.ring(Urgency::kUrgent);
  ASSERT_EQ(read(event.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  EXPECT_EQ(count, 1u);
}

TEST_F(LinkTest, EveryMarkIsVisitedOnce) {
  std::vector<uint32_t> links{0, 1, 63, 64, 4095, 4096, kLinksMax - 1};
  for (uint32_t link : links) ring(right_bell(), link, Urgency::kLazy, -1);
  ring(right_bell(), 63, Urgency::kLazy, -1);
  std::vector<uint32_t> visited;
  take_ready(right_bell(), [&](uint32_t link) { visited.push_back(link); });
  EXPECT_EQ(visited, links);
  EXPECT_FALSE(any_ready(right_bell()));
}

struct Header {
  uint32_t size;
  uint16_t type;
  uint8_t flags;
  uint8_t check;
};
constexpr uint8_t kGoodCheck = 0x5A;

/// What a reader says about a ring whose writer left `header` at `head` and says that it wrote up to `tail`.
bool is_corrupt(const Header& header, uint64_t head, uint64_t tail) {
  auto segment = std::move(*Segment::create(1));
  LinkArea& area = segment->link(0);
  area.control[0].head.store(head);
  Link reader(*segment, 0, 1, 1);
  if (head % kRingBytes + sizeof header <= kRingBytes)
    std::memcpy(area.data[0] + head % kRingBytes, &header, sizeof header);
  area.control[0].tail.store(tail);
  auto count = reader.receive([](uint16_t, std::span<const uint8_t>) {});
  return !count.ok() && count.error().code == ErrorCode::kCorrupt;
}

TEST(LinkInput, MalformedRecordsCloseTheLink) {
  EXPECT_FALSE(is_corrupt({8, 1, 0, kGoodCheck}, 0, 16)) << "the case from which the others differ";
  EXPECT_TRUE(is_corrupt({8, 1, 0, kGoodCheck + 1}, 0, 16)) << "not a header";
  EXPECT_TRUE(is_corrupt({16, 1, 0, kGoodCheck}, 0, 16)) << "longer than what was written";
  EXPECT_TRUE(is_corrupt({kRingBytes / 4 + 1, 1, 0, kGoodCheck}, 0, kRingBytes)) << "longer than a piece";
  EXPECT_TRUE(is_corrupt({0xFFFFFFFE, 1, 0, kGoodCheck}, 0, kRingBytes)) << "a size near the sign of a skip";
  EXPECT_TRUE(is_corrupt({16, 1, 0, kGoodCheck}, kRingBytes - 16, kRingBytes + 64)) << "over the ring's end";
  EXPECT_TRUE(is_corrupt({0xFFFFFFFF, 0, 0, kGoodCheck}, 64, 128)) << "skips more than was written";
  EXPECT_FALSE(is_corrupt({0xFFFFFFFF, 0, 0, kGoodCheck}, 64, kRingBytes)) << "a skip to the end";
  EXPECT_TRUE(is_corrupt({8, 1, 0, kGoodCheck}, 0, kRingBytes + 8)) << "more than a ring written";
  EXPECT_TRUE(is_corrupt({8, 1, 0, kGoodCheck}, 128, 64)) << "a tail that went back";
}

TEST_F(LinkTest, AReaderThatLiesAboutItsPlaceDoesNotMakeTheWriterOverrun) {
  segment->link(kIndex).control[0].head.store(uint64_t{1} << 40);
  for (int i = 0; i < 200; ++i) left->send(1, std::string(1000, 'x'));
  EXPECT_GT(segment->link(kIndex).control[0].tail.load(), 100'000u) << "nobody reads, it says it does";
  segment->link(kIndex).control[0].head.store(0);
  auto ended = right->receive([](uint16_t, std::span<const uint8_t>) {});
  EXPECT_FALSE(ended.ok());
}

TEST_F(LinkTest, AClaimHasOneWinner) {
  constexpr uint32_t kTasks = 20'000;  // each word is used some eighty times
  std::atomic<uint32_t> offered{0};
  std::atomic<uint32_t> begun{0}, taken{0};
  std::atomic<uint32_t> settled_by_worker{0};
  // The worker sees each task once and begins it unless it was taken back.
  std::thread worker([&] {
    for (uint32_t s = 0; s < kTasks; ++s) {
      while (offered.load(std::memory_order_acquire) <= s) std::this_thread::yield();
      uint32_t expected = claim_word(s, Claim::kOffered);
      if (right->peer_claim(s).compare_exchange_strong(expected, claim_word(s, Claim::kBegun),
                                                       std::memory_order_acq_rel))
        begun.fetch_add(1);
      else
        EXPECT_EQ(expected, claim_word(s, Claim::kTaken));
      settled_by_worker.store(s + 1, std::memory_order_release);
    }
  });
  std::mt19937 random(1);
  for (uint32_t s = 0; s < kTasks; ++s) {
    // Fewer in flight than there are words.
    while (s - settled_by_worker.load(std::memory_order_acquire) >= 4) std::this_thread::yield();
    left->own_claim(s).store(claim_word(s, Claim::kOffered), std::memory_order_relaxed);
    offered.store(s + 1, std::memory_order_release);
    if (random() % 2 == 0) std::this_thread::yield();
    uint32_t expected = claim_word(s, Claim::kOffered);
    if (left->own_claim(s).compare_exchange_strong(expected, claim_word(s, Claim::kTaken),
                                                   std::memory_order_acq_rel))
      taken.fetch_add(1);
    else
      EXPECT_EQ(expected, claim_word(s, Claim::kBegun));
  }
  worker.join();
  EXPECT_EQ(begun.load() + taken.load(), kTasks);
}

TEST_F(LinkTest, AClaimWordUsedAgainIsLostToAnOldRecord) {
  constexpr uint32_t kOld = 5, kNew = 5 + kClaimsMax;
  left->own_claim(kOld).store(claim_word(kOld, Claim::kTaken));
  left->own_claim(kNew).store(claim_word(kNew, Claim::kOffered));
  ASSERT_EQ(&right->peer_claim(kOld), &right->peer_claim(kNew));
  uint32_t expected = claim_word(kOld, Claim::kOffered);
  EXPECT_FALSE(right->peer_claim(kOld).compare_exchange_strong(expected, claim_word(kOld, Claim::kBegun)));
  expected = claim_word(kNew, Claim::kOffered);
  EXPECT_TRUE(right->peer_claim(kNew).compare_exchange_strong(expected, claim_word(kNew, Claim::kBegun)));
  EXPECT_NE(&left->own_claim(kOld), &left->peer_claim(kOld)) << "the directions do not share words";
}

TEST(SegmentTest, AttachSharesMemoryAndRefusesOtherFiles) {
  auto made = Segment::create(3);
  ASSERT_TRUE(made.ok());
  auto attached = Segment::attach(UniqueFd(dup((*made)->fd())));
  ASSERT_TRUE(attached.ok());
  EXPECT_EQ((*attached)->node().cpus, 3u);
  Link writer(**made, 0, 0, 1);
  Link reader(**attached, 0, 1, 0);
  writer.send(4, "across mappings");
  EXPECT_EQ(*reader.receive([](uint16_t type, std::span<const uint8_t> body) {
    EXPECT_EQ(type, 4);
    EXPECT_TRUE(same(body, "across mappings"));
  }),
            1u);
  (*made)->clear_link(0);
  EXPECT_EQ((*attached)->link(0).control[0].tail.load(), 0u);

  UniqueFd foreign(eventfd(0, EFD_CLOEXEC));
  EXPECT_FALSE(Segment::attach(std::move(foreign)).ok());
}

}  // namespace
}  // namespace skate::rpc
