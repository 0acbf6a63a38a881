// Result<T>: a value or an Error, for failures that are expected (peer gone, timeout, full, bad input).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

#include "base/assert.h"

namespace skate {

enum class ErrorCode : uint8_t {
  kInvalid,  ///< what was given is wrong; the message says what to give instead
  kNotFound,
  kExists,
  kTimeout,
  kUnavailable,  ///< the peer is gone or cannot be reached; trying again may help
  kFull,         ///< a named limit is reached
  kCorrupt,      ///< bytes from a peer or a disk that do not parse
  kCancelled,
  kDenied,  ///< authentication or permission
  kIo,      ///< the operating system refused; the message holds errno's text
};

const char* to_string(ErrorCode code);

struct Error {
  ErrorCode code{};
  std::string message;
  friend bool operator==(const Error&, const Error&) = default;
};

/// An Error with the text of the current `errno` appended to `what`.
Error errno_error(std::string what);

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    check();
    return std::get<0>(state_);
  }
  const T& value() const& {
    check();
    return std::get<0>(state_);
  }
  T&& value() && {
    check();
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const {
    SKATE_ASSERT(!ok(), "error() of a Result that holds a value");
    return std::get<1>(state_);
  }

 private:
  void check() const { SKATE_ASSERT(ok(), "value() of a Result that holds an error"); }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}
  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  const Error& error() const {
    SKATE_ASSERT(!ok_, "error() of a Result that is ok");
    return error_;
  }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace skate

#define SKATE_CONCAT_(a, b) a##b
#define SKATE_CONCAT(a, b) SKATE_CONCAT_(a, b)
/// SKATE_TRY(expr): returns the error of a Result<void> to the caller.
#define SKATE_TRY(expr)                                          \
  do {                                                           \
    if (auto result_ = (expr); !result_) return result_.error(); \
  } while (false)
/// SKATE_TRY_ASSIGN(auto x, expr): x = the value, or returns the error to the caller.
#define SKATE_TRY_ASSIGN(decl, expr)                                                    \
  auto SKATE_CONCAT(result_, __LINE__) = (expr);                                        \
  if (!SKATE_CONCAT(result_, __LINE__)) return SKATE_CONCAT(result_, __LINE__).error(); \
  decl = std::move(*SKATE_CONCAT(result_, __LINE__))
