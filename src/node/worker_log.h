// What one worker prints: read from its pipes, kept in files of bounded size, handed on line by line.
//
// The files are `<stem>.out` and `<stem>.err`; one that reaches its cap becomes `<name>.1` (replacing the
// last one), so that a worker takes at most four times the cap. The last bytes of both are kept for
// reports of its death. It does not: limit the rate or reach drivers (see LogForwarder). Home: the loop.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "rt/fd.h"
#include "rt/task.h"
#include "rt/task_group.h"

namespace skate::node {

class WorkerLog {
 public:
  /// What the worker runs, so whose what it prints now is.
  using Source = std::function<std::string()>;
  /// One line without its newline, or what a source left without one when another began to print.
  using OnLine = std::function<void(bool is_stderr, std::string source, std::string text)>;

  WorkerLog(rt::Loop& loop, std::string stem, UniqueFd out, UniqueFd err, uint64_t file_bytes_max,
            Source source, OnLine on_line);
  ~WorkerLog();

  /// Reads what is there now, without waiting; a last line without a newline counts.
  void drain();
  /// What was printed last, at most 4 KiB.
  const std::string& tail() const { return tail_; }

 private:
  struct Stream {
    bool is_stderr{};
    std::string path;
    UniqueFd pipe;
    UniqueFd file;
    uint64_t file_bytes{};
    std::string partial;
    std::string partial_source;
    std::unique_ptr<rt::FdWatch> watch;
  };
  rt::Task<void> read_on(Stream* stream);
  /// False at the end of the stream.
  bool read_some(Stream& stream, bool& more);
  void take(Stream& stream, const char* data, size_t size);
  void hand_on(Stream& stream, std::string text);
  void write_file(Stream& stream, const char* data, size_t size);

  const uint64_t file_bytes_max_;
  Source source_;
  OnLine on_line_;
  Stream out_, err_;
  std::string tail_;
  rt::TaskGroup tasks_;
};

}  // namespace skate::node
