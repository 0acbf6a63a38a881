// How processes come: over the Unix socket, with a Hello, answered by a Welcome and four descriptors.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "node/node_daemon.h"

namespace skate::node {

namespace {
constexpr rt::Duration kHelloTimeout = std::chrono::seconds(10);
constexpr rt::Duration kRefusedHelloTimeout = std::chrono::seconds(1);
constexpr int kWorkerOomScore = 1000;  // rather a worker than a driver or a daemon
constexpr rt::Duration kAcceptPause = std::chrono::milliseconds(100);

UniqueFd reserve_descriptor() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
}  // namespace

rt::Task<void> NodeDaemon::accept_loop() {
  std::unique_ptr<rt::FdWatch> watch = loop_.watch_fd(listener_.get());
  UniqueFd reserve = reserve_descriptor();
  while (true) {
    Result<UniqueFd> socket = co_await accept_unix(listener_.get(), watch.get());
    if (socket) {
      tasks_.spawn(serve_connection(std::move(*socket)));
      continue;
    }
    std::string why = socket.error().message;
    const bool had_reserve = static_cast<bool>(reserve);
    reserve.reset();
    UniqueFd refused(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (refused) {
      // In the backlog it would wait in vain: it is let in to be told why it cannot stay.
      warn(why);
      co_await refuse_connection(std::move(refused), std::move(why));
    } else if (had_reserve && errno == EAGAIN) {
      // Nobody is there: without a descriptor to spare accept() fails before it looks.
      reserve = reserve_descriptor();
      Result<void> ready = co_await watch->wait_readable();
      if (ready) continue;
    } else {
      co_await rt::sleep_for(kAcceptPause);  // those that end give descriptors back
    }
    if (!reserve) reserve = reserve_descriptor();
  }
}

rt::Task<void> NodeDaemon::refuse_connection(UniqueFd socket, std::string why) {
  Result<PeerCredentials> peer = credentials_of(socket.get());
  if (!peer || peer->uid != ::geteuid()) co_return;
  for (const auto& [number, process] : processes_)
    if (process->pid == peer->pid && !process->registered && !process->cause)
      process->cause = death_of(wire::DeathKind::kEnvironment, why, peer->pid);
  std::unique_ptr<rt::FdWatch> watch = loop_.watch_fd(socket.get());
  rt::Task<Result<std::string>> reading = read_frame(socket.get(), watch.get());
  Result<std::string> hello =
      co_await rt::with_timeout<Result<std::string>>(kRefusedHelloTimeout, std::move(reading));
  if (!hello) co_return;
  wire::Welcome welcome;
  welcome.error = "the node daemon " + why;
  std::string body = wire::encode(welcome);
  Result<void> sent = co_await write_frame(socket.get(), watch.get(), std::move(body), {});
  if (!sent) warn(sent.error().message);
}

rt::Task<void> NodeDaemon::serve_connection(UniqueFd socket) {
  Result<PeerCredentials> peer = credentials_of(socket.get());
  if (!peer || peer->uid != ::geteuid()) co_return;
  std::unique_ptr<rt::FdWatch> watch = loop_.watch_fd(socket.get());
  rt::Task<Result<std::string>> reading = read_frame(socket.get(), watch.get());
  Result<std::string> frame =
      co_await rt::with_timeout<Result<std::string>>(kHelloTimeout, std::move(reading));
  if (!frame) co_return;
  Result<wire::Hello> hello = wire::decode<wire::Hello>(std::string_view(*frame));
  Result<ProcessNumber> met =
      Error{ErrorCode::kInvalid, "the greeting does not parse: different versions of Skate?"};
  if (hello && hello->version != wire::kVersion) {
    met = Error{ErrorCode::kInvalid, "this cluster runs Skate " + std::string(wire::kVersion) +
                                         ", the process has " + hello->version +
                                         "; use the same on both sides"};
  } else if (hello && hello->kind == wire::ProcessKind::kWorker) {
    met = meet_worker(*hello, *peer);
  } else if (hello) {
    met = co_await meet_driver(std::move(*hello), *peer);
  }
  Process* process = met ? find(*met) : nullptr;
  wire::Welcome welcome;
  std::vector<int> fds;
  if (process != nullptr) {
    welcome = welcome_for(*process);
    fds = {segment_->fd(), store_->index_fd(), store_->data_fd(), event_fd_.get()};
  } else {
    welcome.error = met ? "the process ended while it registered" : met.error().message;
  }
  std::string body = wire::encode(welcome);
  Result<void> sent = co_await write_frame(socket.get(), watch.get(), std::move(body), std::move(fds));
  if (!met) co_return;
  process = find(*met);
  if (process == nullptr || process->ending) co_return;
  if (sent) {
    process->registered = true;
    if (process->kind == wire::ProcessKind::kDriver) {
      const Job& job = jobs_.at(process->job);
      scheduler_.start_job(job.id, job.language,
                           job.language == "python" ? static_cast<uint32_t>(usable_workers_) : 0);
    } else {
      limit_setup(*process);
    }
    pump_later();
    // The connection says nothing more; its end says that nobody holds it any longer.
    char byte = 0;
    while (true) {
      ssize_t got = ::read(socket.get(), &byte, 1);
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) break;
      Result<void> ready = co_await watch->wait_readable();
      if (!ready) break;
    }
  }
  // A process that died tells its cause better than its socket does: let that come first.
  co_await rt::sleep_for(std::chrono::milliseconds(200));
  process = find(*met);
  if (process == nullptr || process->ending) co_return;
  wire::Death closed =
      death_of(wire::DeathKind::kIntended, "it closed its connection to the node daemon", process->pid);
  if (process->kind == wire::ProcessKind::kDriver) {
    if (!process->cause) process->cause = closed;
    tasks_.spawn(end_process(process->number));
  } else {
    kill(*process, closed);
  }
}

Result<ProcessNumber> NodeDaemon::meet_worker(const wire::Hello& hello, const PeerCredentials& peer) {
  Process* process = find(hello.start_token);
  if (process == nullptr || process->kind != wire::ProcessKind::kWorker || process->registered ||
      process->ending || process->link)
    return Error{ErrorCode::kDenied, "no worker was started with this token, or it has registered already"};
  SKATE_TRY(equip(*process, peer.pid));
  if (!attach_worker(*process, peer.pid))
    return Error{ErrorCode::kUnavailable, process->cause ? process->cause->message : "it has ended"};
  return process->number;
}

rt::Task<Result<ProcessNumber>> NodeDaemon::meet_driver(wire::Hello hello, PeerCredentials peer) {
  if (stopping_) co_return Error{ErrorCode::kUnavailable, "the node is shutting down"};
  auto fresh = std::make_unique<Process>();
  ProcessNumber number = scheduler_.new_process();
  fresh->number = number;
  fresh->kind = wire::ProcessKind::kDriver;
  fresh->id = WorkerId::random();
  fresh->log_to_driver = hello.log_to_driver;
  wire::RegisterJob request;
  request.key = loop_.random()();
  request.driver = {fresh->id, id_};
  request.pid = peer.pid;
  request.name_space = hello.name_space;
  request.job_json = hello.job_json;
  std::string body = wire::encode(request);
  Result<std::string> answer =
      co_await control_->call(static_cast<uint16_t>(wire::ControlMethod::kRegisterJob), std::move(body));
  if (!answer)
    co_return Error{answer.error().code,
                    "the control service did not register the job: " + answer.error().message};
  Result<wire::RegisterJobReply> reply = wire::decode<wire::RegisterJobReply>(std::string_view(*answer));
  if (!reply) co_return reply.error();

  fresh->job = reply->job;
  // Watched first: this can fail, and a process that is equipped is given up by its death alone.
  Result<rt::ProcessWatch> watch = rt::ProcessWatch::open(peer.pid);
  Result<void> equipped = watch ? equip(*fresh, peer.pid) : Result<void>(watch.error());
  if (!equipped) {
    wire::FinishJob finish{loop_.random()(), reply->job, true};
    tell_control(wire::ControlMethod::kFinishJob, finish);
    co_return equipped.error();
  }
  Job& job = job_of(reply->job, hello.job_json);
  job.driver = number;
  job.name_space = reply->name_space;
  if (!hello.language.empty()) job.language = hello.language;
  if (hello.log_to_driver) {
    job.logs = std::make_unique<LogForwarder>(
        loop_, options_.log_lines_per_s_max, [this, number](const wire::LogLines& lines) {
          // A driver that does not read loses lines, not the node its memory; room for counts is left.
          constexpr size_t kBacklogMax = 4u << 20, kCountsMax = 64u << 10;
          Process* driver = find(number);
          if (!driver || !driver->link) return true;  // nobody is there to miss them
          if (driver->link->backlog_bytes() >= kBacklogMax + (lines.lines.empty() ? kCountsMax : 0))
            return false;
          tell(*driver, wire::MessageType::kLogLines, lines);
          flush_rings();
          return true;
        });
  }
  Process& process = *fresh;
  processes_.emplace(number, std::move(fresh));
  attach_pid(process, peer.pid, std::move(*watch));
  co_return number;
}

Result<void> NodeDaemon::equip(Process& process, pid_t pid) {
  auto slot = links_->take_slot();
  auto link = links_->take_link();
  Result<uint32_t> store_slot = Error{ErrorCode::kFull, "the node has no room for another process"};
  if (slot && link) store_slot = store_->add_client(pid);
  if (!store_slot) {
    if (slot) links_->free_slot(*slot);
    if (link) links_->free_link(*link);
    return store_slot.error();
  }
  process.slot = *slot;
  process.daemon_link = *link;
  process.store_slot = *store_slot;
  process.link = std::make_unique<rpc::Link>(*segment_, *link, 0, *slot);
  by_link_[*link] = process.number;
  by_id_[process.id] = process.number;
  do secure_random_bytes(reinterpret_cast<uint8_t*>(&process.first_sequence), sizeof process.first_sequence);
  while (!adopted_.sequences_free(process.first_sequence));
  adopted_.process_came(process.number, process.id, process.first_sequence);
  return {};
}

void NodeDaemon::attach_pid(Process& process, pid_t pid, rt::ProcessWatch watch) {
  process.pid = pid;
  if (process.link) segment_->slot(process.slot).pid.store(pid, std::memory_order_relaxed);
  process.watch = std::make_shared<rt::ProcessWatch>(std::move(watch));
  tasks_.spawn(watch_process(process.number));
}

/// False when the worker has ended, or had to be ended because nothing could tell us of its end.
bool NodeDaemon::attach_worker(Process& process, pid_t pid) {
  if (process.pid > 0) return true;  // by its Hello, which came before the fork server's word
  set_oom_score(pid, kWorkerOomScore);
  statuses_.expect(pid);
  Result<rt::ProcessWatch> watch = rt::ProcessWatch::open(pid);
  if (watch) {
    attach_pid(process, pid, std::move(*watch));
    return true;
  }
  process.pid = pid;
  if (watch.error().code != ErrorCode::kNotFound) {
    // Not waited for yet, whoever its parent is: the number is still its own.
    ::kill(pid, SIGKILL);
    if (!process.cause) process.cause = death_of(wire::DeathKind::kEnvironment, watch.error().message, pid);
  }
  tasks_.spawn(end_process(process.number));
  return false;
}

wire::Welcome NodeDaemon::welcome_for(const Process& process) {
  const Job& job = jobs_.at(process.job);
  wire::Welcome out;
  out.worker = process.id;
  out.node = id_;
  out.job = process.job;
  out.process_slot = process.slot;
  out.daemon_slot = slot_;
  out.daemon_link = process.daemon_link;
  out.store_slot = process.store_slot;
  out.store_capacity_bytes = store_->capacity_bytes();
  out.session_dir = options_.session_dir;
  out.name_space = job.name_space;
  out.job_json = job.job_json;
  if (!process.pool.runtime_env.empty()) {
    // A worker's environment is its pool's: what it starts inherits that.
    nlohmann::json own = nlohmann::json::parse(job.job_json, nullptr, false);
    if (own.is_object()) {
      own["runtime_env"] = process.pool.runtime_env;
      out.job_json = own.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
  }
  out.config_json = options_.config_json;
  out.node_ip = options_.node_ip;
  out.control_address = options_.control_address;
  out.node_resources = scheduler_.total();
  out.first_sequence = process.first_sequence;
  out.node_labels = options_.labels;
  return out;
}

NodeDaemon::Job& NodeDaemon::job_of(const JobId& id, const std::string& job_json) {
  auto [found, fresh] = jobs_.try_emplace(id);
  Job& job = found->second;
  if (fresh) {
    job.id = id;
    job.job_json = job_json;
    nlohmann::json parsed = nlohmann::json::parse(job_json, nullptr, false);
    if (parsed.is_object() && parsed.contains("namespace") && parsed["namespace"].is_string())
      job.name_space = parsed["namespace"];
    if (parsed.is_object() && parsed.contains("language") && parsed["language"].is_string())
      job.language = parsed["language"];
  }
  return job;
}

}  // namespace skate::node
