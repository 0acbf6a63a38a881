// What both daemons of a private cluster do about the driver that started them.
#pragma once

#include <string>

#include "base/result.h"

namespace skate::bin {

/// Whether the process has ended, be it that nobody has waited for it yet.
bool has_ended(int pid);
/// Standard output and error go to this file from now on.
Result<void> go_on_in(const std::string& path);

}  // namespace skate::bin
