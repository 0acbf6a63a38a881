// How workers start, and how processes end.
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "node/launcher.h"
#include "node/node_daemon.h"

namespace skate::node {

namespace {

// Whoever is the parent tells, the fork server or the kernel; only one that hangs does not.
constexpr rt::Duration kStatusTimeout = std::chrono::seconds(10);
constexpr int64_t kSetupTimeoutMaxS = 10LL * 365 * 24 * 3600;  // what a clock can still count
constexpr uint64_t kDescriptorsKept = 24;
constexpr size_t kLastRecordsMax = 100'000;  // of a dead process that are still read

nlohmann::json object_of(const std::string& text) {
  nlohmann::json out = nlohmann::json::parse(text.empty() ? "{}" : text, nullptr, false);
  return out.is_object() ? out : nlohmann::json::object();
}

std::string string_in(const nlohmann::json& object, const char* name) {
  auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::vector<std::string> strings_in(const nlohmann::json& object, const char* name) {
  std::vector<std::string> out;
  if (auto found = object.find(name); found != object.end() && found->is_array())
    for (const auto& item : *found)
      if (item.is_string()) out.push_back(item.get<std::string>());
  return out;
}

/// ${NAME} becomes what the daemon's environment has, or nothing.
std::string expanded(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    size_t begin = text.find("${", at);
    size_t end = begin == std::string::npos ? begin : text.find('}', begin);
    out.append(text, at, (end == std::string::npos ? text.size() : begin) - at);
    if (end == std::string::npos) break;
    std::string name = text.substr(begin + 2, end - begin - 2);
    if (const char* value = std::getenv(name.c_str())) out += value;
    at = end + 1;
  }
  return out;
}

/// "session:x" is x in the session's directory.
std::string in_session(std::string path, const std::string& session_dir) {
  constexpr std::string_view kPrefix = "session:";
  return path.starts_with(kPrefix) ? session_dir + "/" + path.substr(kPrefix.size()) : path;
}

}  // namespace

WorkerSetup NodeDaemon::setup_of(const Process& process) const {
  WorkerSetup out;
  out.token = process.number;
  out.socket_path = socket_path();
  nlohmann::json job = object_of(jobs_.at(process.job).job_json);
  nlohmann::json environment = object_of(process.pool.runtime_env);
  if (auto vars = environment.find("env_vars"); vars != environment.end() && vars->is_object())
    for (const auto& [name, value] : vars->items())
      if (value.is_string()) out.env[name] = expanded(value.get<std::string>());
  out.env["SKATE_WORKER_TOKEN"] = std::to_string(process.number);
  out.env["SKATE_JOB_ID"] = process.job.hex();
  out.cwd = string_in(job, "cwd");
  out.argv = strings_in(job, "argv");
  out.sys_path = strings_in(job, "sys_path");
  auto put_first = [&](const std::string& path) {
    if (path.empty()) return;
    std::erase(out.sys_path, path);
    out.sys_path.insert(out.sys_path.begin(), path);
  };
  put_first(string_in(job, "script_dir"));
  std::vector<std::string> modules = strings_in(environment, "py_modules");
  for (std::string& module : modules) module = in_session(std::move(module), options_.session_dir);
  std::for_each(modules.rbegin(), modules.rend(), put_first);
  std::string directory = in_session(string_in(environment, "working_dir"), options_.session_dir);
  if (!directory.empty()) {
    out.cwd = directory;
    put_first(directory);
  }
  return out;
}

void NodeDaemon::start_worker(const StartWorker& order) {
  job_of(order.pool.job, "");
  auto fresh = std::make_unique<Process>();
  Process& process = *fresh;
  process.number = order.worker;
  process.kind = wire::ProcessKind::kWorker;
  process.id = WorkerId::random();
  process.job = order.pool.job;
  process.pool = order.pool;
  processes_.emplace(order.worker, std::move(fresh));
  tasks_.spawn(start_deadline(order.worker));

  if (Result<void> made = start_output(process); !made) {
    worker_start_failed(order.worker, made.error().message);
    return;
  }
  WorkerSetup setup = setup_of(process);
  nlohmann::json environment = object_of(process.pool.runtime_env);
  if (order.pool.language != "python" || environment.contains("py_executable")) {
    spawn_worker(order.worker, "");
    return;
  }
  // Copies: the originals stay for a spawn, should the fork server decline.
  UniqueFd out(::dup(process.stdio.first.get())), err(::dup(process.stdio.second.get()));
  if (!out || !err) {
    worker_start_failed(order.worker, errno_error("cannot duplicate a worker's output").message);
    return;
  }
  fork_server_->fork(setup, std::move(out), std::move(err));
}

/// Pipes for what the worker prints, and their reader.
Result<void> NodeDaemon::start_output(Process& process) {
  SKATE_TRY_ASSIGN(Pipe out, make_pipe());
  SKATE_TRY_ASSIGN(Pipe err, make_pipe());
  // The lowest free number is given out, so this many at most are left. A worker that starts needs two more
  // for its connection and its end; logs, spilling and the control service need some at any time.
  const uint64_t kept = std::min(kDescriptorsKept, descriptors_max_ / 4);
  if (static_cast<uint64_t>(err.write.get()) + kept > descriptors_max_) {
    errno = EMFILE;
    return errno_error("the node daemon has no descriptors for another worker: it may have " +
                       std::to_string(descriptors_max_) + " and keeps " + std::to_string(kept) +
                       " for those that start, for logs and for spilling");
  }
  ProcessNumber number = process.number;
  process.log = std::make_unique<WorkerLog>(
      loop_,
      options_.session_dir + "/logs/worker-" + process.id.hex().substr(0, 16) + "-" + std::to_string(number),
      std::move(out.read), std::move(err.read), options_.log_file_bytes_max,
      [this, number]() -> std::string {
        Process* process = find(number);
        if (process == nullptr || !process->link) return "worker";
        const char* shared = segment_->slot(process->slot).source;
        std::string name(shared, strnlen(shared, sizeof(rpc::ProcessSlot::source)));
        return name.empty() ? "worker" : name;  // it has run nothing yet
      },
      [this, number](bool is_stderr, std::string source, std::string text) {
        Process* process = find(number);
        if (process == nullptr) return;
        auto job = jobs_.find(process->job);
        if (job == jobs_.end() || !job->second.logs) return;
        job->second.logs->add(
            {process->pid, is_stderr, std::move(source), options_.node_ip, std::move(text)});
      });
  process.stdio = {std::move(out.write), std::move(err.write)};
  return {};
}

void NodeDaemon::spawn_worker(ProcessNumber number, const std::string& why) {
  Process* process = find(number);
  if (process == nullptr || process->pid > 0 || process->ending) return;
  if (!why.empty() && warned_spawns_.insert(why).second && warned_spawns_.size() < 100)
    warn("workers are spawned afresh, not forked: " + why);
  WorkerSetup setup = setup_of(*process);
  LaunchSpec spec;
  for (const auto& [name, value] : setup.env) spec.env[name] = value;
  nlohmann::json job = object_of(jobs_.at(process->job).job_json);
  if (process->pool.language == "python") {
    std::string python = string_in(object_of(process->pool.runtime_env), "py_executable");
    spec.command = {python.empty() ? options_.python : python, "-m", "skate._worker_main", setup.json()};
    const char* threads = std::getenv("OMP_NUM_THREADS");
    spec.env.try_emplace("OMP_NUM_THREADS", threads != nullptr ? threads : "1");
  } else {
    spec.command = strings_in(job, "worker_command");
    spec.env["SKATE_NODE_SOCKET"] = setup.socket_path;
    spec.env["SKATE_START_TOKEN"] = std::to_string(number);
    spec.cwd = setup.cwd;
  }
  if (spec.command.empty()) {
    worker_start_failed(number,
                        "the job names no worker_command for its language '" + process->pool.language + "'");
    return;
  }
  spec.fds = {{process->stdio.first.get(), 1}, {process->stdio.second.get(), 2}};
  Result<pid_t> pid = launch(spec);
  process->stdio = {};
  if (pid) {
    attach_worker(*process, *pid);
  } else {
    worker_start_failed(number, pid.error().message);
  }
}

void NodeDaemon::worker_start_failed(ProcessNumber number, const std::string& why) {
  Process* process = find(number);
  if (process == nullptr || process->cause) return;
  process->cause = death_of(wire::DeathKind::kStartFailed, why);
  tasks_.spawn(end_process(number));
}

rt::Task<void> NodeDaemon::start_deadline(ProcessNumber number) {
  co_await rt::sleep_for(std::chrono::milliseconds(options_.worker_start_timeout_ms));
  Process* process = find(number);
  if (process == nullptr || process->registered) co_return;
  std::string message =
      "the worker did not register within " + std::to_string(options_.worker_start_timeout_ms / 1000) + " s";
  if (process->pid > 0) {
    kill(*process, death_of(wire::DeathKind::kEnvironment, message));
  } else {
    worker_start_failed(number, message);
  }
}

/// A hook of the user's runs between registration and WorkerReady.
void NodeDaemon::limit_setup(Process& process) {
  nlohmann::json environment = object_of(process.pool.runtime_env);
  auto hook = environment.find("worker_process_setup_hook");
  if (hook == environment.end()) return;
  int64_t limit_s = options_.setup_timeout_s;
  if (auto config = environment.find("config"); config != environment.end() && config->is_object())
    if (auto given = config->find("setup_timeout_seconds");
        given != config->end() && given->is_number_integer())
      limit_s = given->get<int64_t>();
  if (limit_s < 0) return;
  limit_s = std::min(limit_s, kSetupTimeoutMaxS);
  std::string name = hook->is_string() ? hook->get<std::string>() : string_in(*hook, "name");
  process.setup_limit = std::make_unique<rt::Timer>(
      loop_, [this, &process, limit_s, name = std::move(name)] { setup_hangs(process, limit_s, name); });
  process.setup_limit->start_after(std::chrono::seconds(limit_s));
}

void NodeDaemon::setup_hangs(Process& process, int64_t limit_s, const std::string& hook) {
  if (process.ending || process.cause) return;
  scheduler_.worker_hung(process.number);
  kill(process, death_of(wire::DeathKind::kEnvironment,
                         "the worker_process_setup_hook '" + hook + "' did not return within " +
                             std::to_string(limit_s) +
                             " s. Make it return sooner, or give it more time by "
                             "runtime_env={'config': {'setup_timeout_seconds': ...}} (-1: without limit).",
                         process.pid));
}

rt::Task<void> NodeDaemon::watch_process(ProcessNumber number) {
  Process* process = find(number);
  if (process == nullptr || !process->watch) co_return;
  std::shared_ptr<rt::ProcessWatch> watch = process->watch;
  Result<void> ended = co_await watch->wait_end();
  if (!ended) warn(ended.error().message);
  co_await end_process(number);
}

rt::Task<void> NodeDaemon::end_process(ProcessNumber number) {
  Process* process = find(number);
  if (process == nullptr || process->ending) co_return;
  process->ending = true;
  std::optional<ExitStatus> status;
  if (process->kind == wire::ProcessKind::kWorker && process->pid > 0)
    status = co_await statuses_.take(process->pid, kStatusTimeout);
  process = find(number);
  if (process->link) {  // what it said last still counts
    Result<size_t> read = process->link->receive(
        [&](uint16_t type, std::span<const uint8_t> body) { handle(*process, type, body); }, kLastRecordsMax);
    if (!read) warn(read.error().message);
  }
  if (process->log) process->log->drain();
  wire::Death death = cause_of(*process, status);
  bury(*process, death);
  flush_rings();
  // It may have died between taking the mark that this daemon sleeps and waking it.
  const uint64_t one = 1;
  if (::write(event_fd_.get(), &one, sizeof one) < 0 && errno != EAGAIN)
    warn(errno_error("cannot ring its own doorbell").message);
}

wire::Death NodeDaemon::cause_of(Process& process, std::optional<ExitStatus> status) {
  wire::Death death;
  std::string who = process.kind == wire::ProcessKind::kDriver ? "the driver" : "the worker";
  who += " (pid " + std::to_string(process.pid) + ")";
  if (process.cause) {
    death = *process.cause;
  } else if (status && status->signal == SIGKILL && oom_kills_.claim(now_us())) {
    death.kind = wire::DeathKind::kOutOfMemory;
    death.message =
        who + " was killed by the kernel because memory ran out.\n" +
        memory_table(process, status->peak_bytes) +
        "Use less memory per task, ask for it with `memory=`, or run fewer tasks at once with `num_cpus=`.";
  } else if (status && status->signal != 0) {
    death.kind = wire::DeathKind::kSignalled;
    const char* name = ::strsignal(status->signal);
    death.message = who + " was killed by signal " + std::to_string(status->signal) + " (" +
                    (name ? name : "unknown") + ")";
  } else if (status) {
    death.kind = wire::DeathKind::kExited;
    death.message = who + " ended with exit code " + std::to_string(status->code);
  } else if (process.kind == wire::ProcessKind::kDriver) {
    death.kind = wire::DeathKind::kExited;
    death.message = who + " has ended";
  } else {
    death.kind = wire::DeathKind::kUnknown;
    death.message = who + " has ended; nobody could tell how";
  }
  if (process.pid > 0) death.pid = process.pid;
  if (status) {
    death.exit_code = status->code;
    death.signal = status->signal;
  }
  if (process.log && death.log_tail.empty()) death.log_tail = process.log->tail();
  return death;
}

/// The worker's set-up is over. What it raised makes its start a failed one, and ends the worker.
void NodeDaemon::worker_ready(Process& process, const wire::WorkerReady& message) {
  if (process.kind != wire::ProcessKind::kWorker || process.ready || process.cause) return;
  process.setup_limit.reset();
  if (message.failure.empty()) {
    process.ready = true;
    scheduler_.worker_ready(process.number, now_us());
    return;
  }
  process.cause = death_of(wire::DeathKind::kEnvironment, message.failure, process.pid);
  if (!process.ending) tasks_.spawn(kill_later({process.number}, options_.exit_grace_ms));
}

/// A driver that goes wants all that its workers have printed.
void NodeDaemon::flush_logs(Process& driver) {
  auto job = jobs_.find(driver.job);
  if (job != jobs_.end() && job->second.logs) {
    for (const auto& [number, process] : processes_)
      if (process->job == driver.job && process->log) process->log->drain();
    job->second.logs->flush();
  }
  if (!driver.link || driver.ending) return;
  driver.link->send(static_cast<uint16_t>(wire::MessageType::kLogsFlushed), std::string());
  to_ring_.insert(driver.daemon_link);
}

/// Everything that knew the process forgets it, and those concerned are told.
void NodeDaemon::bury(Process& process, const wire::Death& death) {
  const wire::Address address = address_of(process);
  const ProcessNumber number = process.number;
  const JobId job = process.job;
  const bool is_driver = process.kind == wire::ProcessKind::kDriver;
  if (dead_.emplace(process.id, death).second) dead_order_.push_back(process.id);
  while (dead_order_.size() > kDeadKept) {
    dead_.erase(dead_order_.front());
    dead_order_.pop_front();
  }
  adopt_what_it_owned(process);  // before anybody is told, and drops what it held
  for (ProcessNumber asker : process.refused_later)
    if (Process* other = find(asker))
      tell(*other, wire::MessageType::kLinkRefused, wire::LinkRefused{address, death});
  for (const auto& [peer_number, link] : std::exchange(process.links, {})) {
    Process* peer = find(peer_number);
    if (peer == nullptr) continue;
    peer->links.erase(number);
    tell(*peer, wire::MessageType::kPeerDied, wire::PeerDied{address, death});
    links_->free_link_after_read(link, peer->daemon_link);
  }
  if (process.link) {
    segment_->node().active.fetch_sub(segment_->slot(process.slot).active.load(std::memory_order_relaxed));
    process.link.reset();
    by_link_[process.daemon_link] = 0;
    to_ring_.erase(process.daemon_link);
    links_->survivor_gone(process.daemon_link);
    links_->free_link(process.daemon_link);
    links_->free_slot(process.slot);
    store_->recover_client(process.store_slot);
    by_id_.erase(process.id);
  }
  for (auto item = subscribers_.begin(); item != subscribers_.end();) {
    item->second.erase(number);
    item = item->second.empty() ? subscribers_.erase(item) : std::next(item);
  }
  if (!is_driver) {
    if (!process.ready) last_start_failure_[process.pool] = death;
    wire::WorkerDied report{address, death, {}, 0};
    if (auto actor = actors_.find(process.actor_number); actor != actors_.end()) {
      report.actor = actor->second.order.spec.actor;
      report.incarnation = actor->second.order.incarnation;
      actors_.erase(actor);
    }
    if (process.registered || !report.actor.is_nil()) tell_control(wire::ControlMethod::kWorkerDied, report);
    if (process.pid > 0) dead_sessions_.insert(process.pid);
    dead_tokens_.insert(number);
    if (!sweeping_) {
      sweeping_ = true;
      tasks_.spawn(sweep_orphans());
    }
  }
  scheduler_.process_died(number, now_us());
  processes_.erase(number);
  if (is_driver) {
    jobs_.at(job).driver = 0;
    jobs_.at(job).logs.reset();
    finish_job(job, death.kind != wire::DeathKind::kIntended, true);
  }
  pump_later();
}

void NodeDaemon::finish_job(const JobId& id, bool failed, bool at_control) {
  auto job = jobs_.find(id);
  if (job == jobs_.end() || job->second.finished) return;
  job->second.finished = true;
  if (at_control)
    tell_control(wire::ControlMethod::kFinishJob, wire::FinishJob{loop_.random()(), id, failed});
  // Actors that wait for a place here and do not outlive their job.
  for (auto item = actors_.begin(); item != actors_.end();) {
    const wire::ActorSpec& spec = item->second.order.spec;
    bool drop = spec.job == id && !spec.detached && item->second.worker == 0;
    if (drop) scheduler_.cancel_actor(item->first);
    item = drop ? actors_.erase(item) : std::next(item);
  }
  scheduler_.finish_job(id);
  pump_later();
}

void NodeDaemon::ask_exit(Process& process, wire::Death reason, bool force, int64_t grace_ms) {
  tell(process, wire::MessageType::kExit, wire::Exit{reason, force});
  if (!process.cause && force) process.cause = reason;
  tasks_.spawn(kill_later({process.number}, grace_ms));
}

void NodeDaemon::kill(Process& process, wire::Death cause) {
  if (!process.cause) process.cause = std::move(cause);
  kill_all({process.number});
}

rt::Task<void> NodeDaemon::kill_later(std::vector<ProcessNumber> numbers, int64_t grace_ms) {
  co_await rt::sleep_for(std::chrono::milliseconds(grace_ms));
  std::erase_if(numbers, [&](ProcessNumber number) {
    Process* process = find(number);
    return process == nullptr || process->declined_exit;
  });
  kill_all(numbers);
}

/// The processes and all that they started, as long as one tree still shows it.
void NodeDaemon::kill_all(const std::vector<ProcessNumber>& numbers) {
  std::vector<pid_t> roots;
  for (ProcessNumber number : numbers) {
    Process* process = find(number);
    if (process == nullptr || process->kind == wire::ProcessKind::kDriver || process->pid <= 0 ||
        !process->watch)
      continue;
    roots.push_back(process->pid);
  }
  if (roots.empty()) return;
  std::vector<pid_t> others = descendants_of(roots);
  for (ProcessNumber number : numbers) {
    Process* process = find(number);
    if (process == nullptr || process->kind == wire::ProcessKind::kDriver || !process->watch) continue;
    (void)process->watch->send_signal(SIGKILL);  // only fails when it has ended
  }
  for (pid_t pid : others) ::kill(pid, SIGKILL);
}

/// What dead workers left behind: processes of their sessions, and children of theirs that we inherited.
rt::Task<void> NodeDaemon::sweep_orphans() {
  constexpr int kRoundsMax = 20;
  for (int round = 0; round < kRoundsMax; ++round) {
    std::set<pid_t> known{::getpid(), fork_server_->pid()};
    bool workers_left = false;
    for (const auto& [number, process] : processes_) {
      known.insert(process->pid);
      workers_left |= process->kind == wire::ProcessKind::kWorker;
    }
    bool found = false;
    for (const ProcessEntry& entry : process_table()) {
      if (known.count(entry.pid) || entry.state == 'Z') continue;
      bool ours = dead_sessions_.count(entry.session) > 0;
      if (!ours && entry.parent == ::getpid()) {
        auto token = environment_of(entry.pid, "SKATE_WORKER_TOKEN");
        ours = token ? dead_tokens_.count(std::strtoull(token->c_str(), nullptr, 10)) > 0 : !workers_left;
      }
      if (!ours) continue;
      found = true;
      ::kill(entry.pid, SIGKILL);
    }
    if (!found) break;
    co_await rt::sleep_for(std::chrono::milliseconds(10));  // their children come to us meanwhile
  }
  dead_sessions_.clear();
  while (dead_tokens_.size() > kDeadKept) dead_tokens_.erase(dead_tokens_.begin());
  sweeping_ = false;
}

}  // namespace skate::node
