#include "node/launcher.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

extern char** environ;

namespace skate::node {

Result<pid_t> launch(const LaunchSpec& spec) {
  std::vector<std::string> variables;
  for (char** item = environ; *item != nullptr; ++item) {
    std::string text = *item;
    if (!spec.env.count(text.substr(0, text.find('=')))) variables.push_back(std::move(text));
  }
  for (const auto& [name, value] : spec.env)
    if (value) variables.push_back(name + "=" + *value);
  std::vector<char*> argv, envp;
  for (const auto& item : spec.command) argv.push_back(const_cast<char*>(item.c_str()));
  for (const auto& item : variables) envp.push_back(const_cast<char*>(item.c_str()));
  argv.push_back(nullptr);
  envp.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  for (const auto& [ours, theirs] : spec.fds) posix_spawn_file_actions_adddup2(&actions, ours, theirs);
  if (!spec.cwd.empty()) posix_spawn_file_actions_addchdir_np(&actions, spec.cwd.c_str());
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = 0;
  errno = posix_spawnp(&pid, spec.command[0].c_str(), &actions, &attributes, argv.data(), envp.data());
  Error error = errno_error("cannot start " + spec.command[0]);
  bool failed = errno != 0;
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) return error;
  return pid;
}

Result<Pipe> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return errno_error("cannot make a pipe");
  Pipe pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
  if (::fcntl(fds[0], F_SETFL, O_NONBLOCK) != 0) return errno_error("cannot make a pipe non-blocking");
  return pipe;
}

Result<SocketPair> make_packet_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
    return errno_error("cannot make a socket pair");
  SocketPair pair{UniqueFd(fds[0]), UniqueFd(fds[1])};
  if (::fcntl(fds[0], F_SETFL, O_NONBLOCK) != 0) return errno_error("cannot make a socket non-blocking");
  return pair;
}

}  // namespace skate::node
