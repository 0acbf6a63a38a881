// Assertions for bugs of our own: always on, print where and why, then abort.
// Never assert on what a peer, a user or a disk sent: that is input, and gets a Result.
#pragma once

namespace skate {
[[noreturn]] void assert_failed(const char* condition, const char* message, const char* file, int line);
}  // namespace skate

#define SKATE_ASSERT(condition, message)                               \
  do {                                                                 \
    if (!(condition)) [[unlikely]]                                     \
      ::skate::assert_failed(#condition, message, __FILE__, __LINE__); \
  } while (false)
