// Sessions over the simulated network: what arrives, whatever becomes of the connections.
#include "rpc/session.h"

#include <gtest/gtest.h>

#include "rpc/server.h"
#include "rt/sim_network.h"
#include "rt/sleep.h"
#include "wire/archive.h"

namespace skate::rpc {
namespace {

using namespace std::chrono_literals;

constexpr uint16_t kBatch = 7;

NodeId node(uint8_t number) {
  NodeId id;
  id.bytes.fill(number);
  return id;
}

/// A daemon: a server that passes batches to an Inbox.
class Receiver final : public Service {
 public:
  Receiver(rt::SimLoop& loop, rt::SimNetwork& network, std::string address)
      : inbox([this](const NodeId& from, std::string_view record) { got[from].emplace_back(record); }),
        server_(loop, *this, {.key = key(), .release = "1.0"}) {
    EXPECT_TRUE(server_.listen(network, std::move(address)).ok());
  }
  static ClusterKey key() { return *ClusterKey::from_bytes("the key of the tests"); }
  rt::Task<Result<std::string>> call(std::shared_ptr<Peer>, Request request) override {
    EXPECT_EQ(request.method, kBatch);
    return answer(inbox.take(request.body));
  }
  void connected(Peer&) override {}
  void disconnected(Peer&) override {}

  std::map<NodeId, std::vector<std::string>> got;
  Inbox inbox;

 private:
  static rt::Task<Result<std::string>> answer(Result<std::string> result) { co_return result; }
  Server server_;
};

OutboxOptions outbox_options(uint8_t from) {
  return {.client = {.address = "unix:other", .key = Receiver::key(), .release = "1.0"},
          .method = kBatch,
          .from = node(from)};
}

std::string batch(uint8_t from, uint64_t number, std::vector<std::string> records) {
  return wire::encode(RecordBatch{node(from), number, std::move(records)});
}

TEST(Session, RecordsOfSeveralSendersArriveInOrder) {
  rt::SimLoop loop(1);
  rt::SimNetwork network(loop, {});
  Receiver receiver(loop, network, "unix:other");
  Outbox first(loop, network, outbox_options(1)), second(loop, network, outbox_options(2));
  first.send("before it is started");
  first.start();
  second.start();
  second.send("");
  first.send("b");
  loop.run_for(1s);
  first.send("c");
  loop.run_for(1s);
  EXPECT_EQ(receiver.got[node(1)], (std::vector<std::string>{"before it is started", "b", "c"}));
  EXPECT_EQ(receiver.got[node(2)], std::vector<std::string>{""});
  EXPECT_EQ(first.untaken_bytes(), 0u);
}

TEST(Session, ARecordThatFillsABatchAloneArrives) {
  rt::SimLoop loop(2);
  rt::SimNetwork network(loop, {});
  Receiver receiver(loop, network, "unix:other");
  OutboxOptions options = outbox_options(1);
  options.batch_bytes = 10;
  Outbox outbox(loop, network, std::move(options));
  outbox.start();
  for (int i = 0; i < 5; ++i) outbox.send(std::string(100, static_cast<char>('a' + i)));
  loop.run_for(1s);
  ASSERT_EQ(receiver.got[node(1)].size(), 5u);
  EXPECT_EQ(receiver.got[node(1)][4], std::string(100, 'e'));
}

TEST(Session, WithoutANetworkItFillsUpAndThenEmpties) {
  rt::SimLoop loop(3);
  rt::SimNetwork network(loop, {});
  Receiver receiver(loop, network, "unix:other");
  network.cut("unix:other", true);
  OutboxOptions options = outbox_options(1);
  options.untaken_bytes_max = 1000;
  int told = 0;
  options.on_room = [&] { ++told; };
  Outbox outbox(loop, network, std::move(options));
  outbox.start();
  int sent = 0;
  for (; outbox.has_room(); ++sent) outbox.send("record " + std::to_string(sent));
  outbox.send("without room");
  loop.run_for(10min);
  EXPECT_TRUE(receiver.got.empty());
  EXPECT_FALSE(outbox.has_room());
  EXPECT_EQ(told, 0);
  network.allow("unix:other");
  loop.run_for(5s);
  EXPECT_EQ(told, 1);
  EXPECT_EQ(outbox.untaken_bytes(), 0u);
  ASSERT_EQ(receiver.got[node(1)].size(), static_cast<size_t>(sent) + 1);
  EXPECT_EQ(receiver.got[node(1)].back(), "without room");
}

rt::Task<void> send_some(Outbox* outbox, uint64_t count) {
  rt::Loop& loop = co_await rt::this_loop();
  for (uint64_t i = 0; i < count; ++i) {
    outbox->send(std::to_string(i));
    if (loop.random().below(4) == 0)
      co_await rt::sleep_for(std::chrono::microseconds(loop.random().below(3000)));
  }
}

// Each write may break its connection, with what is in flight; answers are lost as well as batches.
TEST(Session, EveryRecordArrivesOnceAndInOrderWhateverBreaks) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    rt::SimLoop loop(seed);
    rt::SimNetwork network(loop, {.break_probability = 0.05});
    Receiver receiver(loop, network, "unix:other");
    OutboxOptions options = outbox_options(1);
    options.batch_bytes = 1 + loop.random().below(200);
    Outbox outbox(loop, network, std::move(options));
    outbox.start();
    constexpr uint64_t kCount = 500;
    rt::TaskGroup tasks(loop);
    tasks.spawn(send_some(&outbox, kCount));
    loop.run_for(1min);
    network.set_break_probability(0);
    loop.run_for(10s);
    const std::vector<std::string>& got = receiver.got[node(1)];
    ASSERT_EQ(got.size(), kCount);
    for (uint64_t i = 0; i < kCount; ++i) ASSERT_EQ(got[i], std::to_string(i));
    EXPECT_EQ(outbox.untaken_bytes(), 0u);
  }
}

TEST(Session, WhoWasDeclaredDeadIsRefusedAndToldOnce) {
  rt::SimLoop loop(4);
  rt::SimNetwork network(loop, {});
  Receiver receiver(loop, network, "unix:other");
  std::vector<ErrorCode> refusals;
  OutboxOptions options = outbox_options(1);
  options.on_refused = [&](const Error& error) { refusals.push_back(error.code); };
  Outbox outbox(loop, network, std::move(options));
  outbox.start();
  outbox.send("alive");
  loop.run_for(1s);
  receiver.inbox.forget(node(1));
  for (int i = 0; i < 3; ++i) {
    outbox.send("late");
    loop.run_for(1s);
  }
  EXPECT_EQ(receiver.got[node(1)], std::vector<std::string>{"alive"});
  EXPECT_EQ(refusals, std::vector<ErrorCode>{ErrorCode::kDenied});
  EXPECT_EQ(outbox.untaken_bytes(), 0u);
}

TEST(Inbox, RepeatedBatchesAreDroppedAndNonsenseIsRefusedWhole) {
  std::vector<std::string> got;
  Inbox inbox([&](const NodeId&, std::string_view record) { got.emplace_back(record); });
  EXPECT_TRUE(inbox.take(batch(1, 1, {"a", "b"})).ok());
  EXPECT_TRUE(inbox.take(batch(1, 1, {"a", "b"})).ok());
  EXPECT_EQ(got, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(inbox.take(batch(1, 3, {"gap"})).error().code, ErrorCode::kCorrupt);
  for (const std::string& bad : {std::string(), std::string(35, 'x'), batch(1, 2, {"short"}).substr(0, 42),
                                 batch(1, 2, {"c"}) + "xyz", batch(1, 2, {}) + std::string(4, '\xff')})
    EXPECT_EQ(inbox.take(bad).error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(inbox.take(batch(1, 2, {"c"})).ok());
  EXPECT_EQ(got, (std::vector<std::string>{"a", "b", "c"}));
}

}  // namespace
}  // namespace skate::rpc
