#include "bin/control_main.h"

#define FMT_HEADER_ONLY
#include <signal.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "bin/starter.h"
#include "control/server.h"
#include "wire/node_messages.h"

namespace skate::bin {
namespace {

constexpr size_t kLogBytesMax = 16u << 20;
constexpr size_t kLogFilesMax = 4;

/// The session directory is for its user only; its logs are read by people and by the node daemon.
Result<void> make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return {};
  return errno_error("cannot create the directory " + path);
}

/// Removes the directory of a private session when the service has ended. After a failed start it only does
/// so if nobody is left to read there why: a pipe of who started it closes a moment before his process ends.
struct SessionDirectory {
  std::string path;  ///< empty: it stays
  int watch_pid;
  bool served = false;

  ~SessionDirectory() {
    if (path.empty() || (!served && !has_ended(watch_pid))) return;
    // The node daemon may still remove or write files there.
    std::error_code error;
    for (int attempt = 0; attempt < 10; ++attempt) {
      std::filesystem::remove_all(path, error);
      if (!error) break;
    }
  }
};

}  // namespace

int control_main(int argc, char** argv) {
  std::string session_dir, listen, storage = "memory", key_file, config = "{}";
  int watch_pid = 0, ready_fd = -1;
  bool is_private = false, send_twice = false;
  int64_t node_grace_ms = 10'000;
  CLI::App app{"The control service: nodes, jobs, actors, names and settings of a cluster", "skated control"};
  app.add_option("--session-dir", session_dir, "Directory of this session; created with mode 0700")
      ->required();
  app.add_option("--listen", listen,
                 "unix:PATH or tcp:HOST:PORT; default: control.sock in the session directory");
  app.add_option("--storage", storage, "memory, or sqlite:PATH for tables that outlive the service");
  app.add_option("--key-file", key_file, "File with the cluster's key")->required();
  app.add_option("--watch-pid", watch_pid, "End when this process ends");
  app.add_flag("--private", is_private,
               "Of one driver's own cluster: makes the key, and removes the session directory at the end");
  app.add_option("--ready-fd", ready_fd,
                 "Descriptor to which the address is written when the service is ready");
  app.add_option("--config", config, "Settings of the cluster, as JSON, handed to every node");
  app.add_flag("--send-twice", send_twice, "For tests: commands to nodes go out twice");
  app.add_option("--node-grace-ms", node_grace_ms, "A node out of contact for so long is dead")
      ->check(CLI::PositiveNumber);
  try {
    app.parse(argc, argv);
    if (storage != "memory" && !storage.starts_with("sqlite:"))
      throw CLI::ValidationError("--storage", "must be memory or sqlite:PATH");
  } catch (const CLI::Error& error) {
    return app.exit(error);
  }
  auto fail = [](const Error& error) {
    std::fprintf(stderr, "skated control: %s\n", error.message.c_str());
    return 1;
  };
  ::signal(SIGPIPE, SIG_IGN);  // who reads the address may die meanwhile: then there is to clean up
  SessionDirectory directory{is_private ? session_dir : "", watch_pid};
  for (const std::string& path : {session_dir, session_dir + "/logs"}) {
    if (Result<void> made = make_directory(path); !made) return fail(made.error());
  }
  if (is_private) {
    if (Result<void> written = rpc::ClusterKey::random().write_file(key_file); !written)
      return fail(written.error());
  }
  Result<rpc::ClusterKey> key = rpc::ClusterKey::read_file(key_file);
  if (!key) return fail(key.error());
  std::shared_ptr<spdlog::logger> logger;
  try {
    logger =
        spdlog::rotating_logger_st("control", session_dir + "/logs/control.log", kLogBytesMax, kLogFilesMax);
  } catch (const spdlog::spdlog_ex& error) {
    return fail(Error{ErrorCode::kIo, error.what()});
  }
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %v");
  logger->flush_on(spdlog::level::info);

  control::ControlOptions options{.listen = listen.empty() ? "unix:" + session_dir + "/control.sock" : listen,
                                  .key = *key,
                                  .release = wire::kVersion,
                                  .session_name = std::filesystem::path(session_dir).filename().string(),
                                  .config_json = config,
                                  .sqlite_path = storage == "memory" ? std::string() : storage.substr(7),
                                  .node_grace_ms = node_grace_ms,
                                  .send_twice = send_twice,
                                  .watch_pid = watch_pid,
                                  .ready_fd = ready_fd,
                                  .log = [logger](const std::string& line) { logger->info("{}", line); }};
  // Who starts it reads what it prints up to here.
  if (is_private) {
    if (Result<void> redirected = go_on_in(session_dir + "/logs/control.err"); !redirected)
      return fail(redirected.error());
  }
  control::ControlServer server(std::move(options));
  Result<void> ended = server.run();
  if (!ended) {
    directory.served = ended.error().code == ErrorCode::kUnavailable;
    logger->error("{}", ended.error().message);
    return fail(ended.error());
  }
  directory.served = true;
  logger->info("the control service has ended");
  return 0;
}

}  // namespace skate::bin
