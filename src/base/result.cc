#include "base/result.h"

#include <cerrno>
#include <system_error>

namespace skate {

const char* to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid: return "invalid";
    case ErrorCode::kNotFound: return "not found";
    case ErrorCode::kExists: return "exists";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kUnavailable: return "unavailable";
    case ErrorCode::kFull: return "full";
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kCancelled: return "cancelled";
    case ErrorCode::kDenied: return "denied";
    case ErrorCode::kIo: return "io";
  }
  return "unknown";
}

Error errno_error(std::string what) {
  int code = errno;
  Error error{ErrorCode::kIo, std::move(what) + ": " + std::generic_category().message(code)};
  if (code == EMFILE)
    error.message += " (raise the limit on file descriptors, `ulimit -n`, where the cluster is started)";
  return error;
}

}  // namespace skate
