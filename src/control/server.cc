#include "control/server.h"

#include <signal.h>
#include <unistd.h>

#include <deque>
#include <map>

#include "control/committer.h"
#include "rpc/server.h"
#include "rt/fd.h"
#include "rt/pool.h"
#include "rt/sleep.h"

namespace skate::control {

namespace {

/// Notices and what is published reach a node at most once; the rest is repeated when it registers again.
bool is_told_again(wire::NodeCommand command) {
  return command != wire::NodeCommand::kPublish && command != wire::NodeCommand::kNotice;
}

}  // namespace

class ControlService::Impl final : public rpc::Service {
 public:
  Impl(rt::Loop& loop, rt::Network& network, Storage& storage, const ControlOptions& options)
      : loop_(loop),
        network_(network),
        storage_(storage),
        log_(options.log ? options.log : [](const std::string&) {}),
        send_twice_(options.send_twice),
        core_({options.session_name, options.config_json, options.release, options.node_grace_ms}),
        committer_(loop, storage, log_),
        tick_(loop, [this] { tick(); }),
        tasks_(loop),
        server_(loop, *this, server_options(options)) {
    tasks_.spawn(send_loop());
  }

  Result<std::string> start(const std::string& address) {
    SKATE_TRY_ASSIGN(const std::vector<Row> rows, storage_.load());
    SKATE_TRY(core_.recover(rows, moment()));
    if (!rows.empty()) log_("recovered " + std::to_string(rows.size()) + " rows");
    arm_tick();
    return server_.listen(network_, address);
  }

  // Not a coroutine: requests of one peer take effect in the order in which they arrive.
  rt::Task<Result<std::string>> call(std::shared_ptr<rpc::Peer> peer, rpc::Request request) override {
    Outbox out;
    const auto method = static_cast<wire::ControlMethod>(request.method);
    const auto known = node_of_.find(peer->id());
    const NodeId from = known == node_of_.end() ? NodeId::nil() : known->second;
    if (method == wire::ControlMethod::kRegisterNode) attach(peer, request.body);
    Result<std::string> result = core_.handle(from, method, request.body, moment(), out);
    if (method == wire::ControlMethod::kRegisterNode) {
      if (result) {
        arm_tick();
        log_("node " + node_of_[peer->id()].hex() + " has registered");
      } else {
        log_("a node may not register: " + result.error().message);
        detach(peer->id());
      }
    }
    const uint64_t number = take(std::move(out));
    return answer(number, std::move(result));
  }
  void connected(rpc::Peer&) override {}
  void disconnected(rpc::Peer& peer) override {
    const std::optional<NodeId> node = detach(peer.id());
    if (!node) return;
    log_("the connection of node " + node->hex() + " is down");
    core_.node_disconnected(*node, moment());
    arm_tick();
  }

  rt::Task<void> shut_down_nodes() {
    for (auto& [node, peer] : peers_)
      peer->notify(static_cast<uint16_t>(wire::NodeCommand::kShutdown), wire::encode(wire::Empty{}));
    Result<void> gone = co_await rt::with_timeout(std::chrono::seconds(1), wait_no_nodes());
    if (!gone) log_(std::to_string(peers_.size()) + " nodes have not gone yet");
  }
  rt::Task<void> wait_no_nodes() {
    while (!peers_.empty()) co_await node_left_.wait();
  }
  const ControlCore& core() const { return core_; }

 private:
  struct Sending {
    uint64_t number;  ///< goes out once this is committed
    NodeMessage message;
  };
  static constexpr size_t kSendingMax = 1'000'000;

  rpc::ServerOptions server_options(const ControlOptions& options) {
    rpc::ServerOptions out{.key = options.key, .release = options.release};
    out.log = log_;
    return out;
  }
  Moment moment() const {
    return {loop_.now().time_since_epoch() / std::chrono::milliseconds(1), loop_.unix_time_ms()};
  }

  /// Before the core handles the registration, as its messages go to this connection. The last one counts.
  void attach(const std::shared_ptr<rpc::Peer>& peer, const std::string& body) {
    Result<wire::RegisterNode> message = wire::decode<wire::RegisterNode>(std::string_view(body));
    if (!message || core_.nodes().dead(message->node)) return;
    detach(peer->id());
    const auto old = peers_.find(message->node);
    if (old != peers_.end()) {
      node_of_.erase(old->second->id());
      old->second->close();
    }
    peers_[message->node] = peer;
    node_of_[peer->id()] = message->node;
  }
  std::optional<NodeId> detach(uint64_t peer_id) {
    const auto known = node_of_.find(peer_id);
    if (known == node_of_.end()) return std::nullopt;
    const NodeId node = known->second;
    node_of_.erase(known);
    peers_.erase(node);
    node_left_.wake_all();
    return node;
  }

  uint64_t take(Outbox out) {
    const uint64_t number = committer_.append(std::move(out.rows));
    for (NodeMessage& message : out.messages) sending_.push_back({number, std::move(message)});
    if (sending_.size() > kSendingMax) {
      // The disk has been stuck for long. Nodes that come back are told again what matters.
      log_("too many messages wait for the log: all nodes must register again");
      sending_.clear();
      for (auto& [node, peer] : peers_) peer->close();
    }
    send_committed();
    return number;
  }
  void send_committed() {
    while (!sending_.empty() && committer_.is_committed(sending_.front().number)) {
      const NodeMessage message = std::move(sending_.front().message);
      sending_.pop_front();
      const auto peer = peers_.find(message.node);
      // A node that is out of contact is told again when it registers.
      if (peer == peers_.end()) continue;
      const auto topic = static_cast<uint16_t>(message.command);
      peer->second->notify(topic, message.body);
      if (send_twice_ && is_told_again(message.command)) peer->second->notify(topic, message.body);
    }
    if (!sending_.empty()) unsent_.wake_all();
  }
  rt::Task<void> send_loop() {
    while (true) {
      while (sending_.empty()) co_await unsent_.wait();
      const uint64_t number = sending_.front().number;
      co_await committer_.wait(number);
      send_committed();
    }
  }
  rt::Task<Result<std::string>> answer(uint64_t number, Result<std::string> result) {
    co_await committer_.wait(number);
    co_return result;
  }

  void arm_tick() {
    const std::optional<TimeMs> next = core_.next_deadline();
    if (next) tick_.start_at(rt::TimePoint(std::chrono::milliseconds(*next + 1)));
  }
  void tick() {
    Outbox out;
    core_.tick(moment(), out);
    take(std::move(out));
    arm_tick();
  }

  rt::Loop& loop_;
  rt::Network& network_;
  Storage& storage_;
  std::function<void(std::string)> log_;
  const bool send_twice_;
  ControlCore core_;
  Committer committer_;
  std::map<NodeId, std::shared_ptr<rpc::Peer>> peers_;
  std::map<uint64_t, NodeId> node_of_;
  std::deque<Sending> sending_;
  rt::WaitList unsent_;
  rt::WaitList node_left_;
  rt::Timer tick_;
  rt::TaskGroup tasks_;
  rpc::Server server_;  // last: its requests use all of the above
};

ControlService::ControlService(rt::Loop& loop, rt::Network& network, Storage& storage,
                               const ControlOptions& options)
    : impl_(std::make_unique<Impl>(loop, network, storage, options)) {}
ControlService::~ControlService() = default;
Result<std::string> ControlService::start(const std::string& address) { return impl_->start(address); }
rt::Task<void> ControlService::shut_down_nodes() { return impl_->shut_down_nodes(); }
const ControlCore& ControlService::core() const { return impl_->core(); }

namespace {

rt::Task<void> stop_on_signal(rt::Loop* loop, rt::SignalSet* signals, std::function<void(std::string)> log) {
  Result<int> signal = co_await signals->next();
  log(signal ? "ends after signal " + std::to_string(*signal) : signal.error().message);
  loop->stop();
}

rt::Task<void> stop_with(rt::Loop* loop, rt::ProcessWatch* watch, ControlService* service,
                         std::function<void(std::string)> log) {
  Result<void> ended = co_await watch->wait_end();
  log(ended ? "process " + std::to_string(watch->pid()) + " has ended, and the cluster with it"
            : ended.error().message);
  co_await service->shut_down_nodes();
  loop->stop();
}

Result<void> tell_ready(int fd, const std::string& address) {
  const UniqueFd owned(fd);
  const std::string line = address + "\n";
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t sent = ::write(fd, line.data() + done, line.size() - done);
    if (sent < 0 && errno == EPIPE) return Error{ErrorCode::kUnavailable, "who started it has gone"};
    if (sent < 0 && errno != EINTR) return errno_error("cannot tell the address");
    if (sent > 0) done += static_cast<size_t>(sent);
  }
  return {};
}

}  // namespace

ControlServer::ControlServer(ControlOptions options) : options_(std::move(options)), loop_(rt::make_loop()) {
  if (!options_.log) options_.log = [](const std::string&) {};
}

ControlServer::~ControlServer() = default;

Result<void> ControlServer::run() {
  std::unique_ptr<rt::SignalSet> signals;
  if (options_.handle_signals)
    signals = std::make_unique<rt::SignalSet>(std::initializer_list<int>{SIGTERM, SIGINT});
  std::optional<rt::ProcessWatch> watch;
  if (options_.watch_pid > 0) {
    SKATE_TRY_ASSIGN(rt::ProcessWatch opened, rt::ProcessWatch::open(options_.watch_pid));
    watch.emplace(std::move(opened));
  }
  rt::ThreadPool pool(1);
  std::unique_ptr<Storage> storage;
  if (options_.sqlite_path.empty()) {
    storage = make_memory_storage();
  } else {
    SKATE_TRY_ASSIGN(storage, open_sqlite_storage(options_.sqlite_path, pool));
  }
  const std::unique_ptr<rt::Network> network = rt::make_network(*loop_);
  ControlService service(*loop_, *network, *storage, options_);
  SKATE_TRY_ASSIGN(const std::string address, service.start(options_.listen));
  options_.log("listens on " + address);
  if (options_.ready_fd >= 0) SKATE_TRY(tell_ready(std::exchange(options_.ready_fd, -1), address));
  rt::TaskGroup tasks(*loop_);
  if (signals) tasks.spawn(stop_on_signal(loop_.get(), signals.get(), options_.log));
  if (watch) tasks.spawn(stop_with(loop_.get(), &*watch, &service, options_.log));
  loop_->run();
  return {};
}

void ControlServer::stop() { loop_->stop(); }

}  // namespace skate::control
