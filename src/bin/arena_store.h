// The node daemon's ObjectStore over the store's arena.
#pragma once

#include "node/object_store.h"

namespace skate::bin {
Result<std::unique_ptr<node::ObjectStore>> make_arena_store(rt::Loop& loop, node::StoreOptions options);
}  // namespace skate::bin
