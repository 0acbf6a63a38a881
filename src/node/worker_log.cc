#include "node/worker_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace skate::node {

namespace {
constexpr size_t kReadBytes = 64 * 1024;
constexpr size_t kLineBytesMax = 64 * 1024;  // a longer line is handed on in pieces
constexpr size_t kTailBytesMax = 4 * 1024;
}  // namespace

WorkerLog::WorkerLog(rt::Loop& loop, std::string stem, UniqueFd out, UniqueFd err, uint64_t file_bytes_max,
                     Source source, OnLine on_line)
    : file_bytes_max_(file_bytes_max),
      source_(std::move(source)),
      on_line_(std::move(on_line)),
      tasks_(loop) {
  out_.path = stem + ".out";
  err_.path = stem + ".err";
  err_.is_stderr = true;
  out_.pipe = std::move(out);
  err_.pipe = std::move(err);
  for (Stream* stream : {&out_, &err_}) {
    stream->watch = loop.watch_fd(stream->pipe.get());
    tasks_.spawn(read_on(stream));
  }
}

WorkerLog::~WorkerLog() { tasks_.stop(); }

rt::Task<void> WorkerLog::read_on(Stream* stream) {
  while (true) {
    bool more = false;
    if (!read_some(*stream, more)) co_return;
    // Also after a full buffer: others have their turn between two reads of one that prints without end.
    Result<void> ready = co_await stream->watch->wait_readable();
    if (!ready) co_return;
  }
}

bool WorkerLog::read_some(Stream& stream, bool& more) {
  char buffer[kReadBytes];
  std::string source = source_();  // before the read: what comes is older than what the worker runs next
  ssize_t got = ::read(stream.pipe.get(), buffer, sizeof buffer);
  more = got > 0;
  if (got > 0 && source != stream.partial_source) {
    if (!stream.partial.empty()) hand_on(stream, std::exchange(stream.partial, {}));
    stream.partial_source = std::move(source);
  }
  if (got > 0) take(stream, buffer, static_cast<size_t>(got));
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

void WorkerLog::drain() {
  for (Stream* stream : {&out_, &err_}) {
    // Bounded: a child of the dead worker may hold the pipe and print on.
    bool more = true;
    for (int i = 0; more && i < 64; ++i) read_some(*stream, more);
    if (!stream->partial.empty()) hand_on(*stream, std::exchange(stream->partial, {}));
  }
}

void WorkerLog::take(Stream& stream, const char* data, size_t size) {
  write_file(stream, data, size);
  tail_.append(data, size);
  if (tail_.size() > kTailBytesMax) tail_.erase(0, tail_.size() - kTailBytesMax);
  std::string& partial = stream.partial;
  for (const char* end = data + size; data < end;) {
    const char* newline = static_cast<const char*>(memchr(data, '\n', static_cast<size_t>(end - data)));
    partial.append(data, newline ? newline : end);
    bool complete = newline != nullptr;
    while (partial.size() > kLineBytesMax) {
      hand_on(stream, partial.substr(0, kLineBytesMax));
      partial.erase(0, kLineBytesMax);
    }
    if (complete) hand_on(stream, std::exchange(partial, {}));
    data = complete ? newline + 1 : end;
  }
}

void WorkerLog::hand_on(Stream& stream, std::string text) {
  on_line_(stream.is_stderr, stream.partial_source, std::move(text));
}

void WorkerLog::write_file(Stream& stream, const char* data, size_t size) {
  if (stream.file_bytes + size > file_bytes_max_ && stream.file_bytes > 0) {
    stream.file.reset();
    ::rename(stream.path.c_str(), (stream.path + ".1").c_str());
    stream.file_bytes = 0;
  }
  if (!stream.file)
    stream.file.reset(::open(stream.path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  while (size > 0) {
    ssize_t wrote = ::write(stream.file.get(), data, size);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;  // a full disk costs the file its lines, not the worker its life
    stream.file_bytes += static_cast<uint64_t>(wrote);
    data += wrote;
    size -= static_cast<size_t>(wrote);
  }
}

}  // namespace skate::node
