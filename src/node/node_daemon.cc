#include "node/node_daemon.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace skate::node {

namespace {
constexpr double kStoreShare = 0.3;
constexpr rt::Duration kEndTimeout = std::chrono::milliseconds(1500);

/// How many there may be now.
uint64_t raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return RLIM_INFINITY;
  rlimit raised{limit.rlim_max, limit.rlim_max};
  return ::setrlimit(RLIMIT_NOFILE, &raised) == 0 ? raised.rlim_cur : limit.rlim_cur;
}
}  // namespace

Scheduler NodeDaemon::make_scheduler() {
  if (!options_.num_cpus_given) options_.num_cpus = std::floor(usable_cpus());
  MemoryState memory = memory_state();
  if (options_.object_store_bytes == 0)
    options_.object_store_bytes =
        static_cast<uint64_t>(static_cast<double>(memory.available_bytes) * kStoreShare);
  if (!options_.resources.count("memory")) {
    uint64_t rest = memory.available_bytes - std::min(memory.available_bytes, options_.object_store_bytes);
    options_.resources["memory"] = static_cast<int64_t>(rest) * wire::kResourceUnit;
  }
  options_.resources["object_store_memory"] =
      static_cast<int64_t>(options_.object_store_bytes) * wire::kResourceUnit;
  options_.resources["CPU"] = static_cast<int64_t>(std::llround(options_.num_cpus * wire::kResourceUnit));
  options_.resources["node:" + options_.node_ip] = wire::kResourceUnit;
  if (options_.is_head) options_.resources["node:__internal_head__"] = wire::kResourceUnit;

  SchedulerOptions out;
  out.total = options_.resources;
  out.instances = options_.instances;
  const auto cpus = static_cast<uint32_t>(std::max(1.0, options_.num_cpus));
  const auto usable = static_cast<uint32_t>(usable_cpus());
  usable_workers_ = std::min<double>(cpus, 2 * usable);
  out.idle_workers_kept = cpus;
  out.starting_max = std::max(4u, 2 * usable);
  const uint64_t by_memory = memory.available_bytes / options_.worker_bytes_guess;
  out.workers_max = workers_max_ =
      static_cast<uint32_t>(std::clamp<uint64_t>(by_memory, 16, rpc::kSlotsMax - 64));
  return Scheduler(std::move(out));
}

NodeDaemon::NodeDaemon(rt::Loop& loop, NodeOptions options, ObjectStoreFactory make_store)
    : loop_(loop),
      options_(std::move(options)),
      make_store_(std::move(make_store)),
      scheduler_(make_scheduler()),
      by_link_(rpc::kLinksMax),
      pump_timer_(loop, [this] { pump_later(); }),
      deadlock_timer_(loop, [this] { report_deadlocks(); }),
      tasks_(loop) {}

NodeDaemon::~NodeDaemon() { tasks_.stop(); }

Result<void> NodeDaemon::start() {
  options_.labels[wire::kNodeIdLabel] = id_.hex();
  descriptors_max_ = raise_descriptor_limit();
  ::signal(SIGPIPE, SIG_IGN);
  // Orphans of workers, and workers whose fork server has died, become our children.
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return errno_error("cannot become the subreaper");
  signals_ = std::make_unique<rt::SignalSet>(std::initializer_list<int>{SIGCHLD, SIGTERM, SIGINT, SIGHUP});
  // Before anything is made: the session of a driver that was killed may be gone, and the key with it.
  SKATE_TRY_ASSIGN(rpc::ClusterKey key, rpc::ClusterKey::read_file(options_.key_file));
  for (const std::string& directory : {options_.session_dir, options_.session_dir + "/logs"})
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
      return errno_error("cannot create " + directory);
  struct stat status {};
  if (::stat(options_.session_dir.c_str(), &status) != 0)
    return errno_error("cannot look at " + options_.session_dir);
  if (status.st_uid != ::geteuid() || (status.st_mode & 077) != 0)
    return Error{ErrorCode::kDenied, options_.session_dir + " must belong to this user, with mode 0700"};

  SKATE_TRY_ASSIGN(segment_, rpc::Segment::create(static_cast<uint32_t>(std::max(1.0, usable_cpus()))));
  links_ = std::make_unique<LinkTable>(*segment_);
  slot_ = links_->take_slot().value();
  segment_->slot(slot_).pid.store(::getpid(), std::memory_order_relaxed);
  event_fd_.reset(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!event_fd_) return errno_error("cannot make an eventfd");
  StoreOptions store_options;
  store_options.capacity_bytes = options_.object_store_bytes;
  store_options.spill_dir = options_.spill_dir.empty() ? options_.session_dir + "/spill" : options_.spill_dir;
  SKATE_TRY_ASSIGN(store_, make_store_(loop_, store_options));

  ForkServer::Events events;
  events.forked = [this](uint64_t token, pid_t pid) {
    Process* process = find(token);
    if (process == nullptr) {
      ::kill(pid, SIGKILL);  // its start was given up meanwhile
      return;
    }
    process->stdio = {};
    attach_worker(*process, pid);
  };
  events.spawn_instead = [this](uint64_t token, const std::string& reason) { spawn_worker(token, reason); };
  events.warning = [this](const std::string& line) { warn(line); };
  fork_server_ = std::make_unique<ForkServer>(
      loop_,
      ForkServer::Options{options_.python, options_.preload, options_.session_dir + "/logs/fork-server.log"},
      statuses_, std::move(events));
  if (Result<void> started = fork_server_->start(); !started) warn(started.error().message);

  network_ = rt::make_network(loop_);
  rpc::ClientOptions client{
      .address = options_.control_address,
      .key = std::move(key),
      .release = wire::kVersion,
      .limits = {},
      .send_twice = options_.send_twice,
      .greet = [this](rpc::Client* control) { return greet_control(control); },
      .on_notify = [this](uint16_t topic, std::string body) { on_command(topic, std::move(body)); },
      .on_state =
          [this](bool up, const Error& why) {
            if (!up && !stopping_) warn("no connection to the control service: " + why.message);
          },
  };
  control_ = std::make_unique<rpc::Client>(loop_, *network_, std::move(client));
  control_->start();

  SKATE_TRY_ASSIGN(listener_, listen_unix(socket_path()));
  tasks_.spawn(signal_loop());
  tasks_.spawn(doorbell_loop());
  tasks_.spawn(pump_loop());
  tasks_.spawn(accept_loop());
  tasks_.spawn(report_loop());
  tasks_.spawn(store_->upkeep());
  tasks_.spawn(announce());
  if (options_.watch_pid > 0) tasks_.spawn(watch_starter());
  return {};
}

/// Tells who started us that processes can come.
rt::Task<void> NodeDaemon::announce() {
  co_await registered_.wait();
  if (options_.ready_fd < 0) co_return;
  UniqueFd fd(std::exchange(options_.ready_fd, -1));
  nlohmann::json ready{{"node_id", id_.hex()}, {"socket", socket_path()}, {"pid", ::getpid()}};
  std::string line = ready.dump() + "\n";
  if (::write(fd.get(), line.data(), line.size()) < 0) warn("nobody reads the ready descriptor");
}

rt::Task<void> NodeDaemon::run() {
  co_await stop_asked_.wait();
  co_await shut_down();
}

void NodeDaemon::ask_stop(std::string why) {
  if (stopping_) return;
  stopping_ = true;
  stop_why_ = std::move(why);
  warn("stopping: " + stop_why_);
  stop_asked_.set();
}

rt::Task<void> NodeDaemon::signal_loop() {
  while (true) {
    Result<int> signal = co_await signals_->next();
    if (!signal) co_return warn(signal.error().message);
    if (*signal == SIGCHLD) {
      statuses_.reap();
      child_ended_.wake_all();
    } else if (*signal != SIGHUP) {  // the daemon outlives the terminal that started it
      ask_stop("signal " + std::to_string(*signal));
    }
  }
}

rt::Task<void> NodeDaemon::watch_starter() {
  Result<rt::ProcessWatch> watch = rt::ProcessWatch::open(options_.watch_pid);
  if (watch) {
    Result<void> ended = co_await watch->wait_end();
    if (!ended) warn(ended.error().message);
  }
  ask_stop("process " + std::to_string(options_.watch_pid) + ", whose private cluster this is, has ended");
}

rt::Task<void> NodeDaemon::shut_down() {
  listener_.reset();
  ::unlink(socket_path().c_str());
  for (const auto& [number, process] : processes_)
    tell(*process, wire::MessageType::kExit,
         wire::Exit{death_of(wire::DeathKind::kNodeLost, "the node shuts down: " + stop_why_), true});
  flush_rings();
  // All that we started, and all that this started, descends from us; a second round gets what forked
  // meanwhile.
  rt::TimePoint deadline = loop_.now() + kEndTimeout;
  while (true) {
    statuses_.reap();
    std::vector<pid_t> left = descendants_of({::getpid()});
    if (left.empty() || loop_.now() > deadline) break;
    for (pid_t pid : left) ::kill(pid, SIGKILL);
    rt::Task<void> ended = child_ended_.wait();
    Result<void> in_time = co_await rt::with_timeout<void>(std::chrono::milliseconds(20), std::move(ended));
    (void)in_time;  // either way, look again
  }
  if (options_.watch_pid > 0) {
    std::error_code error;
    std::filesystem::remove_all(options_.session_dir, error);
    if (error) warn("cannot remove " + options_.session_dir + ": " + error.message());
  }
}

/// Who used what when memory ran out: the dead at its peak, the others now.
std::string NodeDaemon::memory_table(const Process& dead, uint64_t peak_bytes) const {
  std::vector<std::pair<uint64_t, std::string>> rows;
  auto add = [&](uint64_t bytes, pid_t pid, std::string_view what) {
    rows.emplace_back(bytes, "pid " + std::to_string(pid) + "  " + std::string(what));
  };
  for (const auto& [number, process] : processes_) {
    std::string what = process->kind == wire::ProcessKind::kDriver ? "driver" : "idle worker";
    if (std::string source = source_of(*process); !source.empty()) what = std::move(source);
    if (process.get() == &dead) {
      add(peak_bytes, dead.pid, what + ", which was killed");
    } else if (auto used = memory_of(process->pid)) {
      add(used->private_bytes, process->pid, what);
    }
  }
  struct stat arena {};
  constexpr uint64_t kStatBlockBytes = 512;
  if (::fstat(store_->data_fd(), &arena) == 0)
    rows.emplace_back(static_cast<uint64_t>(arena.st_blocks) * kStatBlockBytes, "object store");
  if (auto used = memory_of(::getpid())) add(used->private_bytes, ::getpid(), "node daemon");
  std::sort(rows.rbegin(), rows.rend());
  MemoryState memory = memory_state();
  std::string out = "Memory: " + human_bytes(memory.limit_bytes) + " in all, " +
                    human_bytes(memory.available_bytes) + " available now that it is gone. Used:\n";
  constexpr size_t kRowsMax = 10;
  for (size_t i = 0; i < std::min(rows.size(), kRowsMax); ++i)
    out += "  " + human_bytes(rows[i].first) + "  " + rows[i].second + "\n";
  if (rows.size() > kRowsMax) out += "  and " + std::to_string(rows.size() - kRowsMax) + " smaller ones\n";
  return out;
}

void NodeDaemon::warn_job_of(const Process* process, const std::string& text) {
  warn(text);
  if (process == nullptr) return;
  auto job = jobs_.find(process->job);
  if (job == jobs_.end() || !job->second.logs) return;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find('\n', begin), text.size());
    job->second.logs->add({::getpid(), true, "skate", options_.node_ip, text.substr(begin, end - begin)});
    begin = end + 1;
  }
}

Process* NodeDaemon::find(ProcessNumber number) {
  auto found = processes_.find(number);
  return found == processes_.end() ? nullptr : found->second.get();
}

Process* NodeDaemon::find(const WorkerId& id) {
  auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : find(found->second);
}

int64_t NodeDaemon::now_us() const {
  return std::chrono::duration_cast<std::chrono::microseconds>(loop_.now().time_since_epoch()).count();
}

}  // namespace skate::node
