// The daemon as a process, a control service that only answers, and a client that speaks the protocol by
// hand. Workers are this same program, started by the daemon with SKATE_START_TOKEN in its environment.
#include "node/node_daemon.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "rpc/server.h"

namespace skate::node {
namespace {

using wire::MessageType;
using namespace std::chrono_literals;

// --- a process that speaks to the daemon ------------------------------------------------------------------

struct Received {
  MessageType type{};
  std::string body;
};

class Client {
 public:
  /// Connects and registers; `welcome` holds an error when refused.
  Client(const std::string& socket_path, wire::Hello hello) {
    socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, socket_path.c_str(), sizeof address.sun_path - 1);
    if (::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return;
    std::string body = wire::encode(hello);
    uint32_t size = static_cast<uint32_t>(body.size());
    std::string frame(reinterpret_cast<const char*>(&size), 4);
    frame += body;
    if (::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0) return;
    std::string answer = read_welcome();
    if (auto parsed = wire::decode<wire::Welcome>(std::string_view(answer))) welcome = *parsed;
    if (fds_.size() != 4 || !welcome.error.empty()) return;
    segment_ = std::move(rpc::Segment::attach(UniqueFd(::dup(fds_[0].get()))).value());
    link_ =
        std::make_unique<rpc::Link>(*segment_, welcome.daemon_link, 1, welcome.daemon_slot, fds_[3].get());
  }

  bool ok() const { return link_ != nullptr; }
  rpc::ProcessSlot& slot() { return segment_->slot(welcome.process_slot); }
  rpc::Segment& segment() { return *segment_; }
  wire::Address address() const { return {welcome.worker, welcome.node}; }

  template <class Message>
  void send(MessageType type, const Message& message) {
    link_->send(static_cast<uint16_t>(type), wire::encode(message));
    link_->ring(rpc::Urgency::kUrgent);
  }
  void send(MessageType type) {
    link_->send(static_cast<uint16_t>(type), std::string_view());
    link_->ring(rpc::Urgency::kUrgent);
  }

  /// The next record, or nothing after the timeout.
  std::optional<Received> next(std::chrono::milliseconds timeout = 20s) {
    auto deadline = std::chrono::steady_clock::now() + timeout;
    while (inbox_.empty()) {
      auto read = link_->receive([&](uint16_t type, std::span<const uint8_t> body) {
        inbox_.push_back({static_cast<MessageType>(type),
                          std::string(reinterpret_cast<const char*>(body.data()), body.size())});
      });
      if (!read) return std::nullopt;
      if (!inbox_.empty()) break;
      auto left = deadline - std::chrono::steady_clock::now();
      if (left.count() <= 0) return std::nullopt;
      rpc::Doorbell& bell = slot().doorbell;
      uint32_t word = bell.foreground_word.load();
      rpc::take_ready(bell, [](uint32_t) {});
      bell.sleeper.store(static_cast<uint32_t>(rpc::Sleeper::kForeground), std::memory_order_seq_cst);
      std::atomic_thread_fence(std::memory_order_seq_cst);
      // Short, so that a daemon which is gone is noticed by whoever asks alive().
      if (link_->empty())
        rpc::futex_sleep(bell.foreground_word, word, std::min<std::chrono::nanoseconds>(left, 100ms));
      bell.sleeper.store(static_cast<uint32_t>(rpc::Sleeper::kNone), std::memory_order_seq_cst);
      if (!alive()) return std::nullopt;
    }
    Received out = std::move(inbox_.front());
    inbox_.pop_front();
    return out;
  }
  /// The next record of this type; others before it are dropped.
  template <class Message>
  std::optional<Message> await(MessageType type, std::chrono::milliseconds timeout = 20s) {
    auto deadline = std::chrono::steady_clock::now() + timeout;
    while (true) {
      auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      auto got = next(std::max(left, 0ms));
      if (!got) return std::nullopt;
      if (got->type != type) continue;
      auto parsed = wire::decode<Message>(std::string_view(got->body));
      return parsed ? std::optional(*parsed) : std::nullopt;
    }
  }
  bool alive() {
    pollfd item{socket_.get(), POLLIN, 0};
    return ::poll(&item, 1, 0) == 0;
  }
  void hang_up() { socket_.reset(); }

  wire::Welcome welcome;

 private:
  std::string read_welcome() {
    uint32_t size = 0;
    char control[256];
    iovec part{&size, sizeof size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC | MSG_WAITALL) != sizeof size) return "";
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
      for (size_t i = 0; i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
        fds_.emplace_back(fd);
      }
    std::string body(size, '\0');
    if (::recv(socket_.get(), body.data(), size, MSG_WAITALL) != static_cast<ssize_t>(size)) return "";
    return body;
  }

  UniqueFd socket_;
  std::vector<UniqueFd> fds_;
  std::unique_ptr<rpc::Segment> segment_;
  std::unique_ptr<rpc::Link> link_;
  std::deque<Received> inbox_;
};

// --- what a worker of these tests does --------------------------------------------------------------------

/// Obeys the daemon, and the source name "crash" etc. that a test writes into its slot.
[[noreturn]] void be_a_worker() {
  const char* token = std::getenv("SKATE_START_TOKEN");
  const char* mode = std::getenv("TEST_MODE");
  std::string how = mode ? mode : "";
  if (how == "die_at_start") {
    std::fprintf(stderr, "cannot even start\n");
    ::_exit(9);
  }
  wire::Hello hello;
  hello.version = wire::kVersion;
  hello.kind = wire::ProcessKind::kWorker;
  hello.pid = ::getpid();
  hello.start_token = std::strtoull(token, nullptr, 10);
  hello.language = "cpp";
  Client client(std::getenv("SKATE_NODE_SOCKET"), hello);
  if (!client.ok()) ::_exit(3);
  std::snprintf(client.slot().source, sizeof client.slot().source, "printer");
  std::printf("worker %d is up\n", ::getpid());
  std::fflush(stdout);
  if (how == "bad_environment") {
    client.send(MessageType::kWorkerReady, wire::WorkerReady{"the hook raised"});
    ::pause();
  }
  client.send(MessageType::kWorkerReady, wire::WorkerReady{});
  if (how == "grandchild" && ::fork() == 0) {
    if (::fork() == 0) {
      ::setsid();  // a daemon of the user's
      ::pause();
    }
    ::pause();
  }
  while (client.alive()) {
    auto got = client.next(1s);
    if (!got) continue;
    if (got->type == MessageType::kExit) {
      auto exit = wire::decode<wire::Exit>(std::string_view(got->body));
      if (how == "decline" && exit && !exit->force) {
        client.send(MessageType::kExitDeclined);
        continue;
      }
      if (how != "stubborn") ::_exit(0);
    }
    if (got->type == MessageType::kCreateActor) {
      auto create = wire::decode<wire::CreateActor>(std::string_view(got->body));
      if (!create) ::_exit(4);
      wire::ActorCreated created{create->spec.actor, create->incarnation, create->spec.class_name != "Broken",
                                 "an exception"};
      client.send(MessageType::kActorCreated, created);
    }
  }
  ::_exit(0);
}

class WorkerInstead : public testing::Environment {
  void SetUp() override {
    if (std::getenv("SKATE_START_TOKEN")) be_a_worker();
  }
};
const auto* const worker_instead = testing::AddGlobalTestEnvironment(new WorkerInstead);

// --- the cluster ------------------------------------------------------------------------------------------

class NoStore final : public ObjectStore {
 public:
  int index_fd() const override { return fd_.get(); }
  int data_fd() const override { return fd_.get(); }
  uint64_t capacity_bytes() const override { return 1 << 20; }
  Result<uint32_t> add_client(int32_t) override { return ++last_; }
  void recover_client(uint32_t) override {}
  rt::Task<void> upkeep() override { co_return; }
  rt::Task<Result<void>> make_space(uint64_t) override {
    co_return Error{ErrorCode::kFull, "full of nothing"};
  }
  rt::Task<Restored> restore(std::vector<ObjectId> objects) override {
    Restored out;
    out.lost = std::move(objects);
    co_return out;
  }
  void erase(const std::vector<ObjectId>&) override {}
  std::vector<ObjectId> objects() override { return {}; }
  std::optional<wire::KeptObject> look(const ObjectId&) override { return std::nullopt; }

 private:
  UniqueFd fd_{::memfd_create("no-store", MFD_CLOEXEC)};
  uint32_t last_ = 0;
};

/// Says yes to everything, writes down what it was told, and passes on orders that a test sends as Kv.
class YesControl final : public rpc::Service {
 public:
  explicit YesControl(std::string journal) : journal_(std::move(journal)) {}
  void connected(rpc::Peer&) override {}
  void disconnected(rpc::Peer&) override {}
  rt::Task<Result<std::string>> call(std::shared_ptr<rpc::Peer> peer, rpc::Request request) override {
    std::ofstream journal(journal_, std::ios::app);
    switch (static_cast<wire::ControlMethod>(request.method)) {
      case wire::ControlMethod::kRegisterNode:
        co_return wire::encode(wire::RegisterNodeReply{"session", "{}"});
      case wire::ControlMethod::kRegisterJob: {
        JobId job;
        job.bytes = {++jobs_, 0, 0, 0};
        co_return wire::encode(wire::RegisterJobReply{job, "space"});
      }
      case wire::ControlMethod::kFinishJob: {
        auto message = wire::decode<wire::FinishJob>(std::string_view(request.body));
        journal << "job finished " << (message && message->failed ? "failed" : "well") << std::endl;
        break;
      }
      case wire::ControlMethod::kWorkerDied: {
        auto message = wire::decode<wire::WorkerDied>(std::string_view(request.body));
        if (message) journal << "worker died: " << message->cause.message << std::endl;
        break;
      }
      case wire::ControlMethod::kActorCreated: {
        auto message = wire::decode<wire::ActorCreatedReport>(std::string_view(request.body));
        if (message)
          journal << "actor " << (message->ok ? "created" : "failed: " + message->cause.message) << std::endl;
        break;
      }
      case wire::ControlMethod::kKv: {  // {name: topic, value: body}
        auto message = wire::decode<wire::Kv>(std::string_view(request.body));
        if (!message) co_return Error{ErrorCode::kInvalid, "no Kv"};
        peer->notify(static_cast<uint16_t>(std::stoi(message->name)), message->value);
        co_return wire::encode(wire::KvReply{});
      }
      default: break;
    }
    co_return wire::encode(wire::Empty{});
  }

 private:
  std::string journal_;
  uint8_t jobs_ = 0;
};

class NodeDaemonTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/skate-node-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    options_.session_dir = folder_ + "/session";
    options_.control_address = "unix:" + folder_ + "/control.sock";
    options_.key_file = folder_ + "/key";
    options_.num_cpus = 2;
    options_.num_cpus_given = true;
    options_.instances["GPU"] = {0};
    options_.object_store_bytes = 1 << 20;
    options_.python = "/bin/false";  // no fork server: these workers are C++
    ASSERT_TRUE(rpc::ClusterKey::random().write_file(options_.key_file));
  }
  void TearDown() override {
    if (daemon_ > 0) {
      ::kill(daemon_, SIGTERM);
      wait_daemon();
    }
    std::filesystem::remove_all(folder_);
  }

  void start() {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    options_.ready_fd = ready[1];
    daemon_ = ::fork();
    if (daemon_ == 0) {
      ::close(ready[0]);
      ::_exit(run_daemon());
    }
    ::close(ready[1]);
    std::string line;
    char byte;
    while (::read(ready[0], &byte, 1) == 1 && byte != '\n') line += byte;
    ::close(ready[0]);
    ASSERT_THAT(line, testing::HasSubstr("node.sock"));
  }
  int run_daemon() {
    std::unique_ptr<rt::Loop> loop = rt::make_loop();
    std::unique_ptr<rt::Network> network = rt::make_network(*loop);
    YesControl service(folder_ + "/journal");
    rpc::ServerOptions server_options{.key = rpc::ClusterKey::read_file(options_.key_file).value(),
                                      .release = wire::kVersion,
                                      .limits = {},
                                      .log = {}};
    rpc::Server server(*loop, service, std::move(server_options));
    if (!server.listen(*network, options_.control_address)) return 1;
    options_.log = [](const std::string& text) { std::fprintf(stderr, "node: %s\n", text.c_str()); };
    NodeDaemon daemon(*loop, options_, [](rt::Loop&, StoreOptions) -> Result<std::unique_ptr<ObjectStore>> {
      return std::unique_ptr<ObjectStore>(std::make_unique<NoStore>());
    });
    if (auto started = daemon.start(); !started) {
      std::fprintf(stderr, "%s\n", started.error().message.c_str());
      return 1;
    }
    rt::TaskGroup tasks(*loop);
    tasks.spawn(serve(loop.get(), &daemon));
    loop->run();
    server.stop();
    return 0;
  }
  static rt::Task<void> serve(rt::Loop* loop, NodeDaemon* daemon) {
    co_await daemon->run();
    loop->stop();
  }
  void wait_daemon() {
    int status = 0;
    ASSERT_EQ(::waitpid(daemon_, &status, 0), daemon_);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    daemon_ = -1;
  }

  wire::Hello driver_hello(const std::string& mode = "") {
    wire::Hello hello;
    hello.version = wire::kVersion;
    hello.kind = wire::ProcessKind::kDriver;
    hello.pid = ::getpid();
    hello.language = "cpp";
    hello.log_to_driver = true;
    std::string exe = std::filesystem::read_symlink("/proc/self/exe");
    hello.job_json = R"({"worker_command": ["/usr/bin/env", "TEST_MODE=)" + mode + R"(", ")" + exe + R"("]})";
    return hello;
  }
  std::unique_ptr<Client> driver(const std::string& mode = "") {
    auto out = std::make_unique<Client>(options_.session_dir + "/node.sock", driver_hello(mode));
    EXPECT_EQ(out->welcome.error, "");
    EXPECT_TRUE(out->ok());
    return out;
  }
  wire::LeaseDemand demand(const Client& client, uint64_t shape, Resources resources, uint32_t wanted) {
    wire::LeaseDemand out;
    out.shape_id = shape;
    out.shape.job = client.welcome.job;
    out.shape.resources = std::move(resources);
    out.shape.function = "f" + std::to_string(shape);
    out.wanted = wanted;
    return out;
  }
  std::string journal() {
    std::ifstream file(folder_ + "/journal");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  bool journal_says(const std::string& text) {
    return eventually([&] { return journal().find(text) != std::string::npos; });
  }
  template <class Condition>
  static bool eventually(Condition&& condition, std::chrono::milliseconds limit = 10s) {
    auto deadline = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(5ms);
    }
    return true;
  }
  size_t daemon_children() { return descendants_of({daemon_}).size(); }

  std::string folder_;
  NodeOptions options_;
  pid_t daemon_ = -1;
};

const Resources kOneCpu{{"CPU", wire::kResourceUnit}};
const Resources kOneGpu{{"GPU", wire::kResourceUnit}};

TEST_F(NodeDaemonTest, WelcomesADriver) {
  start();
  auto client = driver();
  EXPECT_EQ(client->welcome.name_space, "space");
  EXPECT_FALSE(client->welcome.job.is_nil());
  EXPECT_EQ(client->welcome.node_resources.at("CPU"), 2 * wire::kResourceUnit);
  EXPECT_EQ(client->slot().pid.load(), ::getpid());
  struct stat status {};
  ASSERT_EQ(::stat((options_.session_dir + "/node.sock").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(NodeDaemonTest, RefusesOtherVersionsAndStrangeWorkers) {
  start();
  auto hello = driver_hello();
  hello.version = "0.0.1";
  Client old(options_.session_dir + "/node.sock", hello);
  EXPECT_THAT(old.welcome.error, testing::HasSubstr("0.0.1"));
  hello.version = wire::kVersion;
  hello.kind = wire::ProcessKind::kWorker;
  hello.start_token = 12345;
  Client stranger(options_.session_dir + "/node.sock", hello);
  EXPECT_THAT(stranger.welcome.error, testing::HasSubstr("token"));
}

TEST_F(NodeDaemonTest, GrantsLeasesOnRealWorkers) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 3));
  auto first = client->await<wire::LinkOpened>(MessageType::kLinkOpened);
  ASSERT_TRUE(first);
  auto grant = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(grant);
  EXPECT_EQ(grant->shape_id, 1u);
  EXPECT_EQ(grant->worker, first->peer);
  EXPECT_EQ(grant->worker_pid, first->peer_pid);
  auto second = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(second);
  EXPECT_NE(second->worker, grant->worker);
  EXPECT_FALSE(client->await<wire::LeaseGrant>(MessageType::kLeaseGrant, 300ms)) << "there are two CPUs only";
  client->send(MessageType::kLeaseReturn, wire::LeaseReturn{grant->lease_id, false, false});
  auto third = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(third);
  EXPECT_EQ(third->worker, grant->worker) << "a returned worker is used again";
}

TEST_F(NodeDaemonTest, RecallsForAnotherDriver) {
  start();
  auto rich = driver(), poor = driver();
  rich->send(MessageType::kLeaseDemand, demand(*rich, 1, kOneCpu, 2));
  auto one = rich->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  auto two = rich->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(one && two);
  poor->send(MessageType::kLeaseDemand, demand(*poor, 7, kOneCpu, 2));
  auto recall = rich->await<wire::LeaseRecall>(MessageType::kLeaseRecall);
  ASSERT_TRUE(recall);
  rich->send(MessageType::kLeaseReturn, wire::LeaseReturn{recall->lease_id, false, false});
  auto grant = poor->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(grant);
  EXPECT_EQ(grant->shape_id, 7u);
}

TEST_F(NodeDaemonTest, AKilledWorkerIsToldWithItsCauseAndReplaced) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  auto grant = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(grant);
  ::kill(grant->worker_pid, SIGSEGV);
  auto died = client->await<wire::PeerDied>(MessageType::kPeerDied);
  ASSERT_TRUE(died);
  EXPECT_EQ(died->peer, grant->worker);
  EXPECT_EQ(died->cause.kind, wire::DeathKind::kSignalled);
  EXPECT_EQ(died->cause.signal, SIGSEGV);
  EXPECT_THAT(died->cause.message, testing::HasSubstr("signal 11"));
  auto again = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(again);
  EXPECT_NE(again->worker, grant->worker);
  EXPECT_TRUE(journal_says("signal 11"));
  client->send(MessageType::kOpenLink, wire::OpenLink{grant->worker});
  auto refused = client->await<wire::LinkRefused>(MessageType::kLinkRefused);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->cause.signal, SIGSEGV) << "who asks late learns it, too";
}

TEST_F(NodeDaemonTest, KillWorkerNamesTheReason) {
  start();
  auto client = driver("stubborn");
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  auto grant = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(grant);
  client->send(MessageType::kKillWorker, wire::KillWorker{grant->worker, true, "because of a test"});
  auto died = client->await<wire::PeerDied>(MessageType::kPeerDied);
  ASSERT_TRUE(died);
  EXPECT_EQ(died->cause.kind, wire::DeathKind::kKilled);
  EXPECT_EQ(died->cause.message, "because of a test");
}

TEST_F(NodeDaemonTest, AWorkerThatCannotStartIsRefusedWithItsLog) {
  start();
  auto client = driver("die_at_start");
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  auto refused = client->await<wire::LeaseRefused>(MessageType::kLeaseRefused);
  ASSERT_TRUE(refused);
  EXPECT_FALSE(refused->infeasible_now);
  EXPECT_EQ(refused->cause.kind, wire::DeathKind::kEnvironment);
  EXPECT_EQ(refused->cause.exit_code, 9);
  EXPECT_THAT(refused->cause.log_tail, testing::HasSubstr("cannot even start"));
}

TEST_F(NodeDaemonTest, RefusesWhatWaitsForAWorkerThatCannotBeSetUp) {
  start();
  auto client = driver("bad_environment");
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  auto refused = client->await<wire::LeaseRefused>(MessageType::kLeaseRefused);
  ASSERT_TRUE(refused);
  EXPECT_FALSE(refused->infeasible_now);
  EXPECT_EQ(refused->cause.kind, wire::DeathKind::kEnvironment);
  EXPECT_THAT(refused->cause.message, testing::HasSubstr("the hook raised"));
}

TEST_F(NodeDaemonTest, SaysWhatIsInfeasible) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, {{"moon", wire::kResourceUnit}}, 1));
  auto refused = client->await<wire::LeaseRefused>(MessageType::kLeaseRefused);
  ASSERT_TRUE(refused);
  EXPECT_TRUE(refused->infeasible_now);
  EXPECT_THAT(refused->cause.message, testing::HasSubstr("1 moon"));
}

TEST_F(NodeDaemonTest, ABlockedWorkerLendsItsCpu) {
  options_.num_cpus = 1;
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 2));
  auto opened = client->await<wire::LinkOpened>(MessageType::kLinkOpened);
  auto grant = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(opened && grant);
  EXPECT_FALSE(client->await<wire::LeaseGrant>(MessageType::kLeaseGrant, 200ms));
  EXPECT_EQ(client->segment().node().cpus_wanted.load(), 1u);
  client->segment().slot(opened->peer_slot).blocked = 1;
  client->send(MessageType::kWake);
  EXPECT_TRUE(client->await<wire::LeaseGrant>(MessageType::kLeaseGrant));
}

TEST_F(NodeDaemonTest, ReportsWhoWaitsForWhatItHoldsItself) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneGpu, 2));
  auto opened = client->await<wire::LinkOpened>(MessageType::kLinkOpened);
  auto grant = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(opened && grant);
  EXPECT_EQ(grant->instances, (ResourceInstances{{"GPU", {0}}}));
  // The driver waits for a second GPU task while the holder of the only GPU is not blocked: no deadlock.
  EXPECT_FALSE(client->await<wire::LeaseRefused>(MessageType::kLeaseRefused, 2500ms));
}

TEST_F(NodeDaemonTest, NothingIsLeftOfAKilledDriver) {
  start();
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  pid_t driver_pid = ::fork();
  if (driver_pid == 0) {
    auto client = driver("grandchild");
    client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 2));
    bool ok = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant) &&
              client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
    char byte = ok ? 'y' : 'n';
    if (::write(pipe[1], &byte, 1) != 1) ::_exit(1);
    ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(pipe[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_TRUE(eventually([&] { return daemon_children() >= 6; })) << "two workers with two processes each";
  ::kill(driver_pid, SIGKILL);
  ::waitpid(driver_pid, nullptr, 0);
  EXPECT_TRUE(eventually([&] { return daemon_children() == 0; }, 2s));
  EXPECT_TRUE(journal_says("job finished failed"));
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_F(NodeDaemonTest, ADriverThatSaysGoodbyeFinishesItsJobWell) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  ASSERT_TRUE(client->await<wire::LeaseGrant>(MessageType::kLeaseGrant));
  client->send(MessageType::kProcessExiting,
               wire::ProcessExiting{death_of(wire::DeathKind::kIntended, "shutdown()")});
  EXPECT_TRUE(journal_says("job finished well"));
  EXPECT_TRUE(eventually([&] { return daemon_children() == 0; }, 2s));
}

TEST_F(NodeDaemonTest, AnActorIsCreatedStoppedAndReported) {
  start();
  auto client = driver();
  wire::StartActor order;
  order.spec.actor = ActorId::make(client->welcome.job);
  order.spec.job = client->welcome.job;
  order.spec.owner = client->address();
  order.spec.class_name = "Counter";
  order.spec.placement_resources = kOneCpu;
  auto send_order = [&](wire::NodeCommand topic, std::string body) {
    wire::Kv kv;
    kv.name = std::to_string(static_cast<int>(topic));
    kv.value = std::move(body);
    client->send(MessageType::kControlCall,
                 wire::ControlCall{1, static_cast<uint16_t>(wire::ControlMethod::kKv), wire::encode(kv)});
    ASSERT_TRUE(client->await<wire::ControlReply>(MessageType::kControlReply));
  };
  send_order(wire::NodeCommand::kStartActor, wire::encode(order));
  EXPECT_TRUE(journal_says("actor created"));
  wire::StopActor stop{order.spec.actor, 0, false,
                       death_of(wire::DeathKind::kKilled, "the actor was killed")};
  send_order(wire::NodeCommand::kStopActor, wire::encode(stop));
  EXPECT_TRUE(journal_says("worker died: the actor was killed"));
  order.spec.actor = ActorId::make(client->welcome.job);
  order.spec.class_name = "Broken";
  send_order(wire::NodeCommand::kStartActor, wire::encode(order));
  EXPECT_TRUE(journal_says("actor failed: the constructor raised"));
}

TEST_F(NodeDaemonTest, LinesOfWorkersReachDriverAndFile) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  std::vector<wire::LogLine> lines;
  while (lines.empty() || lines.back().text.find("is up") == std::string::npos) {
    auto batch = client->await<wire::LogLines>(MessageType::kLogLines);
    ASSERT_TRUE(batch) << "the worker's line did not come";
    lines.insert(lines.end(), batch->lines.begin(), batch->lines.end());
  }
  EXPECT_EQ(lines.back().source, "printer");
  EXPECT_FALSE(lines.back().is_stderr);
  EXPECT_GT(lines.back().pid, 0);
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options_.session_dir + "/logs"))
    files += entry.path().extension() == ".out";
  EXPECT_GE(files, 1u);
}

TEST_F(NodeDaemonTest, EndsWithTheProcessThatItWatches) {
  pid_t watched = ::fork();
  if (watched == 0) {
    ::pause();
    ::_exit(0);
  }
  options_.watch_pid = watched;
  start();
  auto client = driver("stubborn");
  client->send(MessageType::kLeaseDemand, demand(*client, 1, kOneCpu, 1));
  auto grant = client->await<wire::LeaseGrant>(MessageType::kLeaseGrant);
  ASSERT_TRUE(grant);
  ::kill(watched, SIGKILL);
  ::waitpid(watched, nullptr, 0);
  wait_daemon();
  EXPECT_FALSE(std::filesystem::exists(options_.session_dir));
  EXPECT_EQ(::kill(grant->worker_pid, 0), -1);
}

TEST_F(NodeDaemonTest, SurvivesGarbage) {
  start();
  auto client = driver();
  client->send(MessageType::kLeaseDemand, wire::LinkRefused{});
  client->send(static_cast<MessageType>(77));
  client->send(MessageType::kLeaseReturn, wire::LeaseReturn{999, false, true});
  client->send(MessageType::kOpenLink, wire::OpenLink{{WorkerId::random(), client->welcome.node}});
  auto refused = client->await<wire::LinkRefused>(MessageType::kLinkRefused);
  ASSERT_TRUE(refused);
  EXPECT_THAT(refused->cause.message, testing::HasSubstr("no such process"));
  client->send(MessageType::kControlCall,
               wire::ControlCall{5, static_cast<uint16_t>(wire::ControlMethod::kFinishJob), ""});
  auto reply = client->await<wire::ControlReply>(MessageType::kControlReply);
  ASSERT_TRUE(reply);
  EXPECT_FALSE(reply->ok);
}

}  // namespace
}  // namespace skate::node
