// Handshake, client, server and dedup over the simulated network, as from a Unix socket and as over TCP, and
// once over real sockets.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "rpc/client.h"
#include "rpc/dedup.h"
#include "rpc/handshake.h"
#include "rpc/server.h"
#include "rt/sim_network.h"
#include "rt/sleep.h"

namespace skate::rpc {
namespace {

using namespace std::chrono_literals;

ClusterKey test_key(std::string text = "the key of the tests") {
  return *ClusterKey::from_bytes(std::move(text));
}

/// Method 1 echoes; 2 never answers; 3 notifies and echoes; 4 counts through the dedup table, key = body.
class TestService final : public Service {
 public:
  explicit TestService(rt::Loop& loop) : dedup(loop) {}
  rt::Task<Result<std::string>> call(std::shared_ptr<Peer> peer, Request request) override {
    if (request.method == 2) {
      co_await never.wait();
    } else if (request.method == 3) {
      for (int i = 0; i < 3; ++i) peer->notify(9, std::to_string(i));
    } else if (request.method == 4) {
      co_return co_await dedup.once(request.body, count(request.body));
    } else if (request.method == 5) {
      co_return Error{ErrorCode::kNotFound, "no " + request.body};
    }
    order.push_back(request.body);
    co_return request.body;
  }
  void connected(Peer&) override { ++peers; }
  void disconnected(Peer&) override { --peers; }

  rt::Task<Result<std::string>> count(std::string key) {
    ++runs[key];
    co_await rt::sleep_for(3ms);
    co_return "done " + key;
  }

  int peers = 0;
  std::vector<std::string> order;
  std::map<std::string, int> runs;
  rt::Event never;
  DedupTable dedup;
};

struct World {
  World(uint64_t seed, std::string server_address)
      : address(std::move(server_address)),
        loop(seed),
        network(loop, {}),
        service(loop),
        server(loop, service, server_options()) {}
  ServerOptions server_options() {
    ServerOptions options{.key = test_key(), .release = "1.0"};
    options.log = [this](std::string line) { log.push_back(std::move(line)); };
    return options;
  }
  ClientOptions client_options() {
    return ClientOptions{.address = address, .key = test_key(), .release = "1.0"};
  }
  void listen() { EXPECT_EQ(*server.listen(network, address), address); }

  std::string address;
  std::vector<std::string> log;
  rt::SimLoop loop;
  rt::SimNetwork network;
  TestService service;
  Server server;
};

/// By address kind: over TCP there is TLS.
class Rpc : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Rpc, Rpc, testing::Values("unix:server", "tcp:server:1"), [](const auto& info) {
  return std::string(info.param, info.param[0] == 'u' ? 4 : 3);
});

rt::Task<void> call_into(Client* client, uint16_t method, std::string body, CallOptions options,
                         std::optional<Result<std::string>>* out) {
  *out = co_await client->call(method, std::move(body), options);
}

TEST_P(Rpc, CallsErrorsAndNotifications) {
  World world(1, GetParam());
  world.listen();
  std::vector<std::string> notes;
  ClientOptions options = world.client_options();
  options.on_notify = [&](uint16_t topic, std::string body) {
    notes.push_back(std::to_string(topic) + body);
  };
  Client client(world.loop, world.network, std::move(options));
  client.start();
  std::optional<Result<std::string>> echoed, missing, notified;
  rt::TaskGroup tasks(world.loop);
  tasks.spawn(call_into(&client, 1, "hello", {}, &echoed));
  tasks.spawn(call_into(&client, 5, "such thing", {}, &missing));
  tasks.spawn(call_into(&client, 3, "", {}, &notified));
  world.loop.run_for(1s);
  ASSERT_TRUE(echoed && missing && notified);
  EXPECT_EQ(**echoed, "hello");
  EXPECT_EQ(missing->error(), (Error{ErrorCode::kNotFound, "no such thing"}));
  EXPECT_EQ(notes, (std::vector<std::string>{"90", "91", "92"}));
  EXPECT_EQ(world.service.peers, 1);
  client.stop();
  world.loop.run_for(1s);
  EXPECT_EQ(world.service.peers, 0);
}

TEST_P(Rpc, DeadlinesEndCallsOnBothSides) {
  World world(2, GetParam());
  world.listen();
  Client client(world.loop, world.network, world.client_options());
  client.start();
  std::optional<Result<std::string>> result;
  rt::TaskGroup tasks(world.loop);
  tasks.spawn(call_into(&client, 2, "", {.timeout = 50ms}, &result));
  world.loop.run_for(1s);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->error().code, ErrorCode::kTimeout);
  EXPECT_EQ(client.calls_under_way(), 0u);
}

TEST_P(Rpc, WrongKeyIsRefusedBothWaysAndLoggedOnce) {
  World world(3, GetParam());
  world.listen();
  std::set<ErrorCode> reasons;
  ClientOptions options = world.client_options();
  options.key = test_key("another key, of a stranger");
  options.on_state = [&](bool up, const Error& why) {
    EXPECT_FALSE(up);
    reasons.insert(why.code);
  };
  Client client(world.loop, world.network, std::move(options));
  client.start();
  world.loop.run_for(9s);
  EXPECT_EQ(reasons, std::set<ErrorCode>{ErrorCode::kDenied});
  EXPECT_GT(world.server.counts().refused, 5u);
  EXPECT_EQ(world.log.size(), 1u);
  EXPECT_EQ(world.service.peers, 0);
}

TEST_P(Rpc, AServerWithoutTheKeyLearnsNothing) {
  World world(4, GetParam());
  world.listen();
  ClientOptions options = world.client_options();
  Client client(world.loop, world.network, std::move(options));
  // The other way round: the client's key is right, the server's is not.
  TestService service(world.loop);
  Server impostor(world.loop, service,
                  ServerOptions{.key = test_key("what an impostor made up"), .release = "1.0"});
  ASSERT_TRUE(impostor.listen(world.network, world.address + "0").ok());
  ClientOptions to_impostor = world.client_options();
  to_impostor.address = world.address + "0";
  Client victim(world.loop, world.network, std::move(to_impostor));
  victim.start();
  std::optional<Result<std::string>> result;
  rt::TaskGroup tasks(world.loop);
  tasks.spawn(call_into(&victim, 1, "secret", {.timeout = 500ms}, &result));
  world.loop.run_for(1s);
  EXPECT_EQ(result->error().code, ErrorCode::kTimeout);
  EXPECT_TRUE(service.order.empty());
}

TEST_P(Rpc, OtherReleaseIsTold) {
  World world(5, GetParam());
  world.listen();
  std::string why;
  ClientOptions options = world.client_options();
  options.release = "2.0";
  options.on_state = [&](bool, const Error& error) { why = error.message; };
  Client client(world.loop, world.network, std::move(options));
  client.start();
  world.loop.run_for(100ms);
  EXPECT_EQ(why, "the cluster runs Skate 1.0, this process Skate 2.0: install the same version on both");
}

rt::Task<void> connect_and_say(World* world, std::string bytes, bool* closed, std::string* answer) {
  Result<std::unique_ptr<rt::Stream>> stream = co_await world->network.connect(world->address);
  EXPECT_TRUE(stream.ok());
  if (!stream) co_return;
  const std::span data(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  Result<void> sent = co_await (*stream)->write(data);
  EXPECT_TRUE(sent.ok());
  std::vector<uint8_t> buffer(4096);
  while (true) {
    Result<size_t> got = co_await (*stream)->read(buffer);
    if (!got || *got == 0) break;
    answer->append(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(*got));
  }
  *closed = true;
}

TEST_P(Rpc, StrangersAreBoundedInNumberAndTime) {
  World world(6, GetParam());
  world.listen();
  rt::TaskGroup tasks(world.loop);
  std::array<bool, 300> closed{};
  std::string answers;
  for (bool& flag : closed) tasks.spawn(connect_and_say(&world, "", &flag, &answers));
  for (int i = 0; i < 40; ++i) {
    world.loop.run_for(5ms);
    EXPECT_LE(world.server.counts().strangers, 64u);
  }
  EXPECT_GT(world.server.counts().turned_away, 0u);
  world.loop.run_for(6s);
  EXPECT_EQ(world.server.counts().strangers, 0u);
  size_t gone = 0;
  for (const bool flag : closed) gone += flag;
  EXPECT_EQ(gone, closed.size()) << "nobody is left hanging";
  EXPECT_LE(world.log.size(), 2u);
}

TEST_P(Rpc, APortScanGetsNothing) {
  World world(7, GetParam());
  world.listen();
  rt::TaskGroup tasks(world.loop);
  const std::string client_hello =
      std::string("\x16\x03\x01\x00\xfa\x01\x00\x00\xf6\x03\x03", 11) + std::string(239, 'r');
  const std::vector<std::string> probes = {std::string(4096, 'G'),
                                           std::string(4096, '\0'),
                                           "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                           client_hello,
                                           "SKATErpc",
                                           "SSH-2.0-scan\r\n",
                                           std::string(1, '\x80')};
  for (size_t i = 0; i < probes.size(); ++i) {
    bool closed = false;
    std::string answer;
    tasks.spawn(connect_and_say(&world, probes[i], &closed, &answer));
    world.loop.run_for(6s);
    EXPECT_TRUE(closed) << i;
    EXPECT_EQ(answer, "") << i;
    EXPECT_EQ(world.server.counts().refused, i + 1);
    EXPECT_EQ(world.server.counts().strangers, 0u);
  }
  EXPECT_LE(world.log.size(), 1 + probes.size() * 6 / 10) << "a line in ten seconds";
}

TEST_P(Rpc, CallsThatMayNotRepeatFailOnLoss) {
  World world(8, GetParam());
  world.listen();
  Client client(world.loop, world.network, world.client_options());
  client.start();
  world.loop.run_for(50ms);
  ASSERT_TRUE(client.up());
  std::optional<Result<std::string>> fails, waits;
  rt::TaskGroup tasks(world.loop);
  tasks.spawn(call_into(&client, 2, "", {.timeout = 10s, .on_loss = OnLoss::kFail}, &fails));
  tasks.spawn(call_into(&client, 4, "k", {.timeout = 10s}, &waits));
  world.loop.run_for(1ms);
  world.network.cut(world.address, true);
  world.loop.run_for(1s);
  ASSERT_TRUE(fails);
  EXPECT_EQ(fails->error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(waits);
  EXPECT_FALSE(client.up());
  std::optional<Result<std::string>> refused;
  tasks.spawn(call_into(&client, 1, "", {.on_loss = OnLoss::kFail}, &refused));
  world.loop.run_for(1ms);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->error().code, ErrorCode::kUnavailable);
  world.network.allow(world.address);
  world.loop.run_for(3s);
  ASSERT_TRUE(waits);
  EXPECT_EQ(**waits, "done k");
  EXPECT_EQ(world.service.runs["k"], 1);
}

rt::Task<Result<void>> greet(Client* client) {
  CallOptions options;
  options.greeting = true;
  Result<std::string> reply = co_await client->call(1, "greeting", options);
  if (!reply) co_return reply.error();
  co_return Result<void>();
}

TEST_P(Rpc, GreetingComesFirstAfterEachConnect) {
  World world(9, GetParam());
  world.listen();
  ClientOptions options = world.client_options();
  options.greet = greet;
  Client client(world.loop, world.network, std::move(options));
  client.start();
  std::optional<Result<std::string>> result;
  rt::TaskGroup tasks(world.loop);
  tasks.spawn(call_into(&client, 1, "call", {}, &result));
  world.loop.run_for(100ms);
  world.network.cut(world.address, false);
  world.loop.run_for(2s);
  EXPECT_EQ(world.service.order, (std::vector<std::string>{"greeting", "call", "greeting"}));
}

rt::Task<void> many_calls(Client* client, int first, int count, int* answered) {
  for (int i = first; i < first + count; ++i) {
    std::string key = "key" + std::to_string(i);
    Result<std::string> result = co_await client->call(4, key, {.timeout = rt::Duration::zero()});
    EXPECT_TRUE(result.ok()) << result.error().message;
    if (result && *result == "done " + key) ++*answered;
  }
}

TEST_P(Rpc, EveryKeyRunsOnceThroughLosses) {
  for (uint64_t seed = 100; seed < 140; ++seed) {
    World world(seed, GetParam());
    world.network.set_break_probability(0.02);
    world.listen();
    Client client(world.loop, world.network, world.client_options());
    client.start();
    int answered = 0;
    rt::TaskGroup tasks(world.loop);
    for (int t = 0; t < 8; ++t) tasks.spawn(many_calls(&client, t * 50, 50, &answered));
    world.loop.run_for(600s);
    ASSERT_EQ(answered, 400) << "seed " << seed;
    for (const auto& [key, runs] : world.service.runs) ASSERT_EQ(runs, 1) << key << " seed " << seed;
  }
}

rt::Task<void> once_into(DedupTable* table, std::string key, rt::Task<Result<std::string>> work,
                         std::vector<std::string>* out) {
  Result<std::string> answer = co_await table->once(std::move(key), std::move(work));
  out->push_back(answer ? *answer : answer.error().message);
}

rt::Task<Result<std::string>> slow(int* runs) {
  ++*runs;
  co_await rt::sleep_for(10ms);
  co_return std::string("answer");
}

TEST(Dedup, JoinsRemembersAndForgetsTheOldest) {
  rt::SimLoop loop(1);
  DedupTable table(loop, {.entries_max = 3, .bytes_max = 1000});
  int runs = 0;
  std::vector<std::string> out;
  rt::TaskGroup tasks(loop);
  rt::TaskGroup cancelled(loop);
  cancelled.spawn(once_into(&table, "a", slow(&runs), &out));
  loop.run_for(1ms);
  cancelled.stop();  // whoever asked first is gone; the work goes on
  tasks.spawn(once_into(&table, "a", slow(&runs), &out));
  loop.run();
  tasks.spawn(once_into(&table, "a", slow(&runs), &out));
  loop.run();
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(out, (std::vector<std::string>{"answer", "answer"}));
  for (const char* key : {"b", "c", "d", "e"}) {
    tasks.spawn(once_into(&table, key, slow(&runs), &out));
    loop.run();
  }
  EXPECT_EQ(table.size(), 3u);
  EXPECT_EQ(runs, 5);
}

TEST(Dedup, WorkUnderWayIsBounded) {
  rt::SimLoop loop(1);
  DedupTable table(loop, {.entries_max = 2, .bytes_max = 1000});
  int runs = 0;
  std::vector<std::string> out;
  rt::TaskGroup tasks(loop);
  for (const char* key : {"a", "b", "c"}) tasks.spawn(once_into(&table, key, slow(&runs), &out));
  loop.run();
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(std::count(out.begin(), out.end(), "answer"), 2);
}

TEST(Handshake, GreetingSurvivesAndGarbageDoesNot) {
  Greeting greeting;
  greeting.release = "1.2.3";
  greeting.nonce.fill(7);
  auto bytes = encode_greeting(greeting);
  Result<Greeting> decoded = decode_greeting(bytes);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->release, "1.2.3");
  EXPECT_EQ(decoded->nonce, greeting.nonce);
  bytes[16] = '\n';  // a release that would break a log line
  EXPECT_FALSE(decode_greeting(bytes).ok());
  bytes = encode_greeting(greeting);
  bytes[0] ^= 1;
  EXPECT_FALSE(decode_greeting(bytes).ok());
}

TEST(ClusterKey, FilesAreForTheirOwnerOnly) {
  const std::string path = "/tmp/skate-key-test-" + std::to_string(getpid());
  const ClusterKey key = ClusterKey::random();
  ASSERT_TRUE(key.write_file(path).ok());
  EXPECT_EQ(key.write_file(path).error().code, ErrorCode::kExists);
  EXPECT_EQ(*ClusterKey::read_file(path), key);
  chmod(path.c_str(), 0644);
  EXPECT_EQ(ClusterKey::read_file(path).error().code, ErrorCode::kDenied);
  unlink(path.c_str());
  EXPECT_FALSE(ClusterKey::read_file(path).ok());
  EXPECT_FALSE(ClusterKey::from_bytes("short").ok());
  EXPECT_NE(ClusterKey::random(), key);
}

rt::Task<void> call_and_stop(rt::Loop* loop, Client* client, std::string* out) {
  std::string body(300000, 'b');
  Result<std::string> result = co_await client->call(1, body, {.timeout = 10s});
  *out = result ? (*result == body ? "same" : "different") : result.error().message;
  loop->stop();
}

TEST(Rpc, RealSockets) {
  for (const std::string& address :
       {"unix:/tmp/skate-rpc-test-" + std::to_string(getpid()), std::string("tcp:127.0.0.1:0")}) {
    std::unique_ptr<rt::Loop> loop = rt::make_loop();
    std::unique_ptr<rt::Network> network = rt::make_network(*loop);
    TestService service(*loop);
    Server server(*loop, service, ServerOptions{.key = test_key(), .release = "1.0"});
    Result<std::string> bound = server.listen(*network, address);
    ASSERT_TRUE(bound.ok()) << bound.error().message;
    Client client(*loop, *network, ClientOptions{.address = *bound, .key = test_key(), .release = "1.0"});
    client.start();
    std::string out;
    rt::TaskGroup tasks(*loop);
    tasks.spawn(call_and_stop(loop.get(), &client, &out));
    loop->run();
    EXPECT_EQ(out, "same") << *bound;
  }
}

}  // namespace
}  // namespace skate::rpc
