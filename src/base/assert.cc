#include "base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace skate {

void assert_failed(const char* condition, const char* message, const char* file, int line) {
  std::fprintf(stderr, "skate: bug: %s (%s) at %s:%d\n", message, condition, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace skate
