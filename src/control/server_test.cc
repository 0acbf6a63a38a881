// The service over real sockets and a real database, killed and restarted; and what the database refuses.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "control/server.h"
#include "control/storage.h"
#include "rpc/typed.h"
#include "rt/sleep.h"
#include "rt/task_group.h"

namespace skate::control {
namespace {

using namespace std::chrono_literals;
using wire::ControlMethod;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    char name[] = "/tmp/skate-control-test-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

rpc::ClusterKey key() { return *rpc::ClusterKey::from_bytes("the key of the control tests"); }

ControlOptions control_options(const TemporaryDirectory& directory) {
  ControlOptions options{.listen = "unix:" + (directory / "control.sock"), .key = key(), .release = "1.0"};
  options.session_name = "session";
  options.config_json = "{}";
  options.sqlite_path = directory / "control.db";
  options.handle_signals = false;
  return options;
}

/// A server on a thread of its own, told to be ready through a pipe, as the command line does.
class RunningServer {
 public:
  explicit RunningServer(ControlOptions options) {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    UniqueFd reader(fds[0]);
    options.ready_fd = fds[1];
    server_ = std::make_unique<ControlServer>(std::move(options));
    thread_ = std::thread([this] { result_ = server_->run(); });
    char c;
    while (::read(reader.get(), &c, 1) == 1 && c != '\n') address_ += c;
  }
  ~RunningServer() { stop(); }
  void stop() {
    if (!thread_.joinable()) return;
    server_->stop();
    thread_.join();
    EXPECT_TRUE(result_.ok()) << result_.error().message;
  }
  void wait_for_its_end() { thread_.join(); }
  const std::string& address() const { return address_; }

 private:
  std::unique_ptr<ControlServer> server_;
  Result<void> result_;
  std::string address_;
  std::thread thread_;
};

/// Runs one coroutine on a loop of its own, with a client that has registered a node.
struct Session {
  std::unique_ptr<rt::Loop> loop = rt::make_loop();
  std::unique_ptr<rt::Network> network = rt::make_network(*loop);
  NodeId node = NodeId::random();
  std::vector<std::pair<wire::NodeCommand, std::string>> commands;
  rpc::Client client;

  explicit Session(const std::string& address) : client(*loop, *network, options(address)) { client.start(); }
  rpc::ClientOptions options(const std::string& address) {
    rpc::ClientOptions out{.address = address, .key = key(), .release = "1.0"};
    out.greet = [this](rpc::Client* c) { return greet(c, node); };
    out.on_notify = [this](uint16_t topic, std::string body) {
      commands.emplace_back(static_cast<wire::NodeCommand>(topic), std::move(body));
    };
    return out;
  }
  static rt::Task<Result<void>> greet(rpc::Client* client, NodeId node) {
    wire::RegisterNode message;
    message.node = node;
    message.version = "1.0";
    message.ip = "127.0.0.1";
    message.resources = {{"CPU", 2 * wire::kResourceUnit}};
    rpc::CallOptions options;
    options.greeting = true;
    Result<wire::RegisterNodeReply> reply =
        co_await rpc::call<wire::RegisterNodeReply>(client, ControlMethod::kRegisterNode, message, options);
    if (!reply) co_return reply.error();
    co_return Result<void>();
  }
  rt::Task<void> then_stop(rt::Task<void> work) {
    Result<void> result = co_await rt::with_timeout(60s, std::move(work));
    EXPECT_TRUE(result.ok()) << "the test hangs";
    loop->stop();
  }
  void run(rt::Task<void> work) {
    rt::TaskGroup tasks(*loop);
    tasks.spawn(then_stop(std::move(work)));
    loop->run();
  }
};

rt::Task<void> make_things(Session* session, JobId* job) {
  wire::RegisterJob request;
  request.key = 1;
  request.driver = {WorkerId::random(), session->node};
  Result<wire::RegisterJobReply> reply =
      co_await rpc::call<wire::RegisterJobReply>(&session->client, ControlMethod::kRegisterJob, request);
  EXPECT_TRUE(reply.ok());
  if (reply) *job = reply->job;
  wire::Kv kv;
  kv.key = 2;
  kv.operation = wire::KvOperation::kPut;
  kv.name = "name";
  kv.value = std::string(100000, 'v');
  EXPECT_TRUE((co_await rpc::call<wire::KvReply>(&session->client, ControlMethod::kKv, kv)).ok());
  wire::RegisterActor actor;
  actor.key = 3;
  actor.actor = ActorId::make(*job);
  actor.owner = request.driver;
  actor.job = *job;
  actor.name = "an actor";
  actor.name_space = "ns";
  actor.detached = true;
  EXPECT_TRUE(
      (co_await rpc::call<wire::RegisterActorReply>(&session->client, ControlMethod::kRegisterActor, actor))
          .ok());
  wire::PlaceActor place;
  place.key = 4;
  place.spec.actor = actor.actor;
  place.spec.job = *job;
  EXPECT_TRUE((co_await rpc::call<wire::Empty>(&session->client, ControlMethod::kPlaceActor, place)).ok());
}

rt::Task<void> find_things(Session* session, JobId* job) {
  wire::Kv kv;
  kv.operation = wire::KvOperation::kGet;
  kv.name = "name";
  Result<wire::KvReply> value = co_await rpc::call<wire::KvReply>(&session->client, ControlMethod::kKv, kv);
  EXPECT_TRUE(value.ok() && value->value.size() == 100000);
  wire::GetNamedActor name{"an actor", "ns"};
  EXPECT_TRUE(
      (co_await rpc::call<wire::ActorInfo>(&session->client, ControlMethod::kGetNamedActor, name)).ok());
  wire::RegisterJob again;
  again.key = 1;
  Result<wire::RegisterJobReply> reply =
      co_await rpc::call<wire::RegisterJobReply>(&session->client, ControlMethod::kRegisterJob, again);
  EXPECT_TRUE(reply.ok() && reply->job == *job) << "a duplicate across a restart gets the first answer";
}

TEST(ControlServer, TakesUpWhereItWas) {
  TemporaryDirectory directory;
  JobId job;
  RunningServer first(control_options(directory));
  Session session(first.address());
  session.run(make_things(&session, &job));
  EXPECT_FALSE(session.commands.empty());
  first.stop();
  EXPECT_EQ(std::filesystem::status(directory / "control.db").permissions() & std::filesystem::perms(077),
            std::filesystem::perms::none);
  RunningServer second(control_options(directory));
  session.run(find_things(&session, &job));  // the client connects again by itself
}

rt::Task<void> read_nodes(Session* session, std::string* out) {
  wire::ClusterInfo what{"nodes", ""};
  Result<wire::ClusterInfoReply> reply =
      co_await rpc::call<wire::ClusterInfoReply>(&session->client, ControlMethod::kClusterInfo, what);
  *out = reply ? reply->json : reply.error().message;
}

TEST(ControlServer, TcpAndMemory) {
  TemporaryDirectory directory;
  ControlOptions options = control_options(directory);
  options.listen = "tcp:127.0.0.1:0";
  options.sqlite_path.clear();
  RunningServer server(std::move(options));
  EXPECT_TRUE(server.address().starts_with("tcp:127.0.0.1:"));
  Session session(server.address());
  std::string json;
  session.run(read_nodes(&session, &json));
  EXPECT_NE(json.find(session.node.hex()), std::string::npos) << json;
  EXPECT_NE(json.find("\"CPU\":2.0"), std::string::npos) << json;
}

TEST(ControlServer, EndsWithTheProcessItWatches) {
  TemporaryDirectory directory;
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  ControlOptions options = control_options(directory);
  options.watch_pid = child;
  RunningServer server(std::move(options));
  kill(child, SIGKILL);
  server.wait_for_its_end();
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

rt::Task<void> commit_into(Storage* storage, std::vector<Row> rows, Result<void>* out) {
  *out = co_await storage->commit(std::move(rows));
}

class Sqlite : public testing::Test {
 protected:
  Result<void> commit(Storage& storage, std::vector<Row> rows) {
    Result<void> out = Error{ErrorCode::kCancelled, "did not run"};
    rt::TaskGroup tasks(*loop_);
    tasks.spawn(then_stop(commit_into(&storage, std::move(rows), &out)));
    loop_->run();
    return out;
  }
  rt::Task<void> then_stop(rt::Task<void> work) {
    co_await std::move(work);
    loop_->stop();
  }
  TemporaryDirectory directory_;
  std::unique_ptr<rt::Loop> loop_ = rt::make_loop();
  rt::ThreadPool pool_{1};
};

TEST_F(Sqlite, KeepsTheLastOfEachKey) {
  const std::string path = directory_ / "rows.db";
  const std::string binary("\0\xff\0", 3);
  {
    auto storage = open_sqlite_storage(path, pool_);
    ASSERT_TRUE(storage.ok()) << storage.error().message;
    ASSERT_TRUE(
        commit(**storage, {{Table::kKv, "a", "1"}, {Table::kKv, binary, binary}, {Table::kKv, "a", "2"}})
            .ok());
    ASSERT_TRUE(commit(**storage, {{Table::kJobs, "a", std::string()},
                                   {Table::kKv, "gone", "x"},
                                   {Table::kKv, "gone", std::nullopt}})
                    .ok());
  }
  auto storage = open_sqlite_storage(path, pool_);
  ASSERT_TRUE(storage.ok()) << storage.error().message;
  const std::vector<Row> rows = *(*storage)->load();
  EXPECT_EQ(rows,
            (std::vector<Row>{
                {Table::kJobs, "a", std::string()}, {Table::kKv, binary, binary}, {Table::kKv, "a", "2"}}));
  EXPECT_FALSE(open_sqlite_storage(path, pool_).ok()) << "one service at a time";
}

TEST_F(Sqlite, RefusesWhatIsNotItsOwn) {
  std::ofstream(directory_ / "text") << "this is no database, however long it may be"
                                     << std::string(5000, '.');
  EXPECT_EQ(open_sqlite_storage(directory_ / "text", pool_).error().code, ErrorCode::kCorrupt);
  EXPECT_FALSE(open_sqlite_storage(directory_ / "missing/rows.db", pool_).ok());
}

}  // namespace
}  // namespace skate::control
