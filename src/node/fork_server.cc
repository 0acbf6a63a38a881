#include "node/fork_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "node/launcher.h"
#include "node/machine.h"
#include "rt/sleep.h"

namespace skate::node {

namespace {
constexpr size_t kMessageBytesMax = 64 * 1024;
constexpr rt::Duration kRestartPause = std::chrono::seconds(1);

/// True when the packet went out; `again` when the socket is full.
bool send_with_fds(int socket, const std::string& body, int out, int err, bool& again) {
  iovec part{const_cast<char*>(body.data()), body.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(2 * sizeof(int));
  int fds[2] = {out, err};
  std::memcpy(CMSG_DATA(header), fds, sizeof fds);
  ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  again = sent < 0 && (errno == EAGAIN || errno == EINTR);
  return sent >= 0;
}
}  // namespace

std::string WorkerSetup::json() const {
  nlohmann::json out{{"token", token}, {"socket", socket_path}, {"env", env},
                     {"cwd", cwd},     {"sys_path", sys_path},  {"argv", argv}};
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

ForkServer::ForkServer(rt::Loop& loop, Options options, ExitStatuses& statuses, Events events)
    : loop_(loop), options_(std::move(options)), statuses_(statuses), events_(std::move(events)) {}

ForkServer::~ForkServer() { tasks_.reset(); }

Result<void> ForkServer::start() {
  if (socket_) return {};
  if (started_ && loop_.now() - *started_ < kRestartPause)
    return Error{ErrorCode::kUnavailable, "the fork server ended less than a second after it was started"};
  started_ = loop_.now();
  SKATE_TRY_ASSIGN(SocketPair pair, make_packet_pair());
  UniqueFd log(::open(options_.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log) return errno_error("cannot open " + options_.log_path);
  std::string modules;
  for (const auto& module : options_.preload) modules += (modules.empty() ? "" : ",") + module;
  constexpr int kTheirFd = 3;
  LaunchSpec spec;
  spec.command = {options_.python, "-m",   "skate._fork_server", "--fd", std::to_string(kTheirFd),
                  "--preload",     modules};
  spec.fds = {{log.get(), 1}, {log.get(), 2}, {pair.theirs.get(), kTheirFd}};
  SKATE_TRY_ASSIGN(pid_, launch(spec));
  statuses_.expect(pid_);
  set_oom_score(pid_, 0);  // not the daemon's, which it has inherited
  socket_ = std::move(pair.ours);
  watch_ = loop_.watch_fd(socket_.get());
  tasks_ = std::make_unique<rt::TaskGroup>(loop_);
  tasks_->spawn(run());
  return {};
}

void ForkServer::fork(const WorkerSetup& setup, UniqueFd out, UniqueFd err) {
  if (Result<void> started = start(); !started) {
    events_.spawn_instead(setup.token, started.error().message);
    return;
  }
  unsent_.push_back({setup.token, setup.json(), std::move(out), std::move(err)});
  send_next();
}

/// Sends what the socket takes; the rest goes when answers have come back.
void ForkServer::send_next() {
  while (!unsent_.empty() && socket_) {
    Request& next = unsent_.front();
    bool again = false;
    if (send_with_fds(socket_.get(), next.json, next.out.get(), next.err.get(), again)) {
      unanswered_.insert(next.token);
      unsent_.pop_front();
      continue;
    }
    if (again) return;
    uint64_t token = next.token;  // too large for a packet, or the server is gone: run() sees the latter
    std::string why = std::strerror(errno);
    unsent_.pop_front();
    events_.spawn_instead(token, "the request cannot be sent to the fork server: " + why);
  }
}

rt::Task<void> ForkServer::run() {
  std::string buffer(kMessageBytesMax, '\0');
  while (true) {
    ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got > 0) {
      take(buffer.substr(0, static_cast<size_t>(got)));
      send_next();
      continue;
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) break;
    Result<void> ready = co_await watch_->wait_readable();
    if (!ready) break;
  }
  std::optional<ExitStatus> status = co_await statuses_.take(pid_, std::chrono::seconds(1));
  lost(status ? "exit code " + std::to_string(status->code) + ", signal " + std::to_string(status->signal)
              : "no status");
}

void ForkServer::take(const std::string& text) {
  nlohmann::json message = nlohmann::json::parse(text, nullptr, false);
  if (!message.is_object()) {
    events_.warning("the fork server sent a message that does not parse");
    return;
  }
  auto number = [&](const char* name) -> int64_t {
    auto found = message.find(name);
    return found != message.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
  };
  auto token = [&](const char* name) -> uint64_t {
    auto found = message.find(name);
    return found != message.end() && found->is_number_unsigned() ? found->get<uint64_t>() : 0;
  };
  if (message.contains("forked")) {
    pid_t pid = static_cast<pid_t>(number("pid"));
    if (unanswered_.erase(token("forked")) && pid > 0) {
      statuses_.expect(pid);
      events_.forked(token("forked"), pid);
    }
  } else if (message.contains("spawn")) {
    std::string reason = message.value("reason", "");
    if (unanswered_.erase(token("spawn"))) events_.spawn_instead(token("spawn"), reason);
  } else if (message.contains("exited")) {
    const auto peak_bytes = static_cast<uint64_t>(std::max<int64_t>(number("peak_bytes"), 0));
    statuses_.report(
        static_cast<pid_t>(number("exited")),
        {static_cast<int32_t>(number("code")), static_cast<int32_t>(number("signal")), peak_bytes});
  } else if (message.contains("ready") && message.contains("failed") && message["failed"].is_object()) {
    for (const auto& [module, error] : message["failed"].items())
      events_.warning("the fork server cannot preload " + module + ": " + error.dump());
  }
}

void ForkServer::lost(const std::string& why) {
  watch_.reset();
  socket_.reset();
  pid_ = -1;
  std::set<uint64_t> open = std::move(unanswered_);
  unanswered_.clear();
  for (const auto& request : unsent_) open.insert(request.token);
  unsent_.clear();
  events_.warning("the fork server ended (" + why + "); its log: " + options_.log_path);
  for (uint64_t token : open) events_.spawn_instead(token, "the fork server ended (" + why + ")");
}

}  // namespace skate::node
